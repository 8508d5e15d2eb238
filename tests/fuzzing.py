"""For property-based tests of what a user hands in: fixed settings, and the property that every input has to meet."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

T = TypeVar("T")
fuzz = partial(settings, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


class Outcomes(list):
    """What became of each example: true if it was accepted."""

    def judge(self, act: Callable[[], T], *names: str) -> T | None:
        """``act()``, or None if it is refused by a plain ValueError: one short sentence that has one of ``names``."""
        try:
            result = act()
        except ValueError as error:
            message = str(error)
            assert type(error) is ValueError, f"{type(error).__name__}: {message}"
            assert len(message.splitlines()) == 1 and len(message) < 2000, f"no sentence: {message!r}"
            assert any(name in message for name in names), f"{message!r} names none of {names}"
            self.append(False)
            return None
        self.append(True)
        return result

    def check_both(self) -> None:
        """The examples are worth something if they reach beyond the first check, and past it."""
        assert 0.05 < sum(self) / len(self) < 0.95, f"{sum(self)} of {len(self)} accepted"
