import pytest

from lib.results import records, tables
from lib.stats.metrics import Estimate


@pytest.mark.parametrize(
    "estimate, text",
    [
        (Estimate(0.5, 0.25, 0.75, 4, 2), "0.50 [0.25, 0.75]"),
        (Estimate(0.5, None, None, 1, 1), "0.50 (no interval)"),
        (Estimate(None, None, None, 0, 0), "n/a"),
        (Estimate(float("nan"), float("nan"), float("nan"), 0, 0), "n/a"),
    ],
)
def test_text_of_an_estimate(estimate, text):
    assert tables.text(estimate, 2) == text
