"""What an interval would have to be for another verdict: by hand, and asked again of the verdict itself."""

import numpy as np
import pytest

from lib.stats import other_verdicts, verdicts
from lib.stats.other_verdicts import Change, Difference
from lib.stats.verdicts import Interval

MARGIN = 0.02


def of(value, low, high, name="d"):
    return Difference(name, value, Interval(low, high))


def changes(says, *differences):
    return other_verdicts.changes(says, list(differences), MARGIN)


def up(verdict, amount):
    return Change(verdict, {"d": amount})


def wide(verdict, factor):
    return Change(verdict, {}, factor)


@pytest.mark.parametrize(
    ("says", "difference", "expected"),
    [
        # Its low end must be above zero: 0.01 and a thousandth higher; its high end below zero: 0.05 and one lower. Of
        # the same value: 0.02 − 0.66 · 0.03 = 0.0002 is above zero.
        (
            "above",
            of(0.02, -0.01, 0.05),
            [up("reproduced", 0.011), up("opposite", -0.051), wide("reproduced", 0.66)],
        ),
        # Reproduced, and no wider than the margin: a thousandth lower both ends are within it. 0.015 + 0.98 · 0.0051 =
        # 0.019998 is within it too, and 0.015 − 3.13 · 0.0048 = −0.00002 is below zero.
        (
            "above",
            of(0.015, 0.0102, 0.0201),
            [up("no difference", -0.001), wide("no difference", 0.98), wide("inconclusive", 3.13)],
        ),
        # No difference, and no wider than the margin: beyond it, it is above or below zero at once.
        # −0.002 − 2.58 · 0.007 = −0.02006, while the high end is above zero.
        (
            "above",
            of(-0.002, -0.009, 0.005),
            [up("opposite", -0.012), up("reproduced", 0.016), wide("inconclusive", 2.58)],
        ),
        # First above zero at 0.6 of the width (0.015 − 0.59 · 0.025 = 0.00025), then within the margin at 0.2 of it.
        (
            "above",
            of(0.015, -0.01, 0.04),
            [up("reproduced", 0.011), up("opposite", -0.041), wide("reproduced", 0.59), wide("no difference", 0.19)],
        ),
        # Wider than two margins: no move makes it the same, but a third of the width does.
        ("same", of(0.0, -0.06, 0.06), [up("opposite", 0.081), up("opposite", -0.081), wide("reproduced", 0.33)]),
        ("same", of(0.01, 0.0, 0.0205), [up("reproduced", -0.001), up("opposite", 0.021), wide("reproduced", 0.95)]),
        # The mirror image of "above": its high end must stay below zero. −0.03 + 1.51 · 0.0199 = 0.00005.
        ("below", of(-0.03, -0.05, -0.0101), [up("inconclusive", 0.011), wide("inconclusive", 1.51)]),
    ],
)
def test_the_nearest_other_verdicts_by_hand(says, difference, expected):
    found = changes(says, difference)
    assert [change.verdict for change in found] == [change.verdict for change in expected]
    for change, other in zip(found, expected, strict=True):
        assert change.moves == pytest.approx(other.moves, abs=1e-9) and change.factor == pytest.approx(other.factor)


def test_a_family_by_hand():
    a, b, c = of(0.1, 0.05, 0.15, "a"), of(0.03, -0.01, 0.07, "b"), of(-0.02, -0.06, 0.02, "c")
    assert changes("above", a, b, c) == [
        # c must rise by 0.06 and a thousandth, b by 0.01 and one; a holds.
        Change("reproduced", {"c": 0.061, "b": 0.011}),
        # of all three c is the nearest to being below zero.
        Change("opposite", {"c": -0.021}),
        # At half its width c ends at zero.
        wide("opposite", 0.49),
    ]
    assert changes("above", a, of(0.03, 0.01, 0.07, "b"))[0] == Change("inconclusive", {"b": -0.011})
    opposite = changes("above", a, of(-0.05, -0.07, -0.03, "b"), of(-0.1, -0.115, -0.085, "c"))
    assert opposite[0] == Change("inconclusive", {"c": 0.086, "b": 0.031})  # both must reach zero


def test_without_an_interval_nothing_can_be_said_of_it():
    none = Difference("d", 0.1, None)
    assert changes("above", none) == []
    family = changes("above", of(0.1, 0.05, 0.15, "a"), none)
    assert [change.verdict for change in family] == ["opposite"] and set(family[0].moves) == {"a"}


def random_families(seed, members, draws):
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        values = rng.normal(0, 0.03, members)
        halves = np.exp(rng.normal(-4, 1, (members, 2)))
        yield [of(v, v - a, v + b, f"d{i}") for i, (v, (a, b)) in enumerate(zip(values, halves, strict=True))]


@pytest.mark.parametrize("says", verdicts.SAYS)
@pytest.mark.parametrize("members", [1, 3])
def test_what_is_stated_gives_the_verdict_that_is_stated(says, members):
    for family in random_families(members, members, 100):
        current = other_verdicts.verdict_of(says, family, MARGIN)
        stated = changes(says, *family)
        assert any(change.moves for change in stated)
        for change in stated:
            changed = other_verdicts.with_change(family, change)
            assert other_verdicts.verdict_of(says, changed, MARGIN) == change.verdict != current


@pytest.mark.parametrize("says", verdicts.SAYS)
def test_nothing_nearer_is_passed_over(says):
    """Against a fine grid: up to the first move that is stated, upward and downward, the verdict stays, and so it does
    up to the first width, narrower and wider."""
    for (difference,) in random_families(7, 1, 30):
        current = other_verdicts.verdict_of(says, [difference], MARGIN)
        stated = changes(says, difference)
        moves = [change.moves["d0"] for change in stated if change.moves]
        factors = [change.factor for change in stated if not change.moves]
        for sign in (1, -1):
            reach = min((abs(move) for move in moves if move * sign > 0), default=0.5) - 0.001
            for amount in sign * np.linspace(0, max(reach, 0), 200):
                assert other_verdicts.verdict_of(says, [other_verdicts.moved(difference, amount)], MARGIN) == current
        narrowest = max((factor for factor in factors if factor < 1), default=0.0) + 0.01
        widest = min((factor for factor in factors if factor > 1), default=20.0) - 0.01
        for factor in np.linspace(min(narrowest, 1), max(widest, 1), 300):
            assert other_verdicts.verdict_of(says, [other_verdicts.scaled(difference, factor)], MARGIN) == current
