"""Verdicts by hand, and how often they are wrong in planted worlds."""

import numpy as np
import pandas as pd
import pytest

from lib.stats import families, verdicts
from lib.stats.draws import Draws
from lib.stats.verdicts import INCONCLUSIVE, NO_DIFFERENCE, OPPOSITE, REPRODUCED, Interval, decide

M = 0.02


@pytest.mark.parametrize(
    ("says", "low", "high", "expected"),
    [
        ("above", 0.01, 0.05, REPRODUCED),
        ("above", 0.005, 0.015, NO_DIFFERENCE),  # above zero, and too small to matter
        ("above", -0.01, 0.05, INCONCLUSIVE),
        ("above", -0.05, -0.01, OPPOSITE),
        ("above", -0.02, 0.02, NO_DIFFERENCE),  # the margin itself is too small to matter
        ("above", -0.015, 0.775, INCONCLUSIVE),  # the referee's example
        ("below", -0.05, -0.01, REPRODUCED),
        ("below", 0.01, 0.05, OPPOSITE),
        ("same", -0.01, 0.019, REPRODUCED),
        ("same", 0.01, 0.03, INCONCLUSIVE),  # it differs from zero, and perhaps by less than matters
        ("same", 0.021, 0.03, OPPOSITE),
        ("same", -0.03, -0.021, OPPOSITE),
    ],
)
def test_verdicts_by_hand(says, low, high, expected):
    assert decide(says, Interval(low, high), M) == expected


def test_what_is_no_rule_is_refused():
    with pytest.raises(ValueError, match="unknown says 'better'; allowed are above, below, same"):
        decide("better", Interval(0, 1), M)
    with pytest.raises(ValueError, match="the margin 0.0 must be a number above zero"):
        decide("above", Interval(0, 1), 0.0)
    with pytest.raises(ValueError, match="an interval from 1 to 0 is none"):
        decide("above", Interval(1, 0), M)


@pytest.mark.parametrize("error", [0.002, 0.01, 0.05, 0.3])
def test_a_world_without_a_difference_shows_one_in_at_most_five_of_a_hundred_draws(error):
    estimates = np.random.default_rng(0).normal(0, error, 20_000)
    shown = [decide("above", Interval(d - 1.96 * error, d + 1.96 * error), M) for d in estimates]
    wrong = np.mean([verdict in (REPRODUCED, OPPOSITE) for verdict in shown])
    assert wrong <= 0.055
    in_margin = [decide("same", Interval(M + d - 1.96 * error, M + d + 1.96 * error), M) for d in estimates]
    assert np.mean([verdict == REPRODUCED for verdict in in_margin]) <= 0.03, "at the margin it is not the same"


def test_a_difference_that_matters_is_found():
    estimates = np.random.default_rng(1).normal(0.1, 0.02, 2000)
    shown = [decide("above", Interval(d - 0.04, d + 0.04), M) for d in estimates]
    assert np.mean([verdict == REPRODUCED for verdict in shown]) >= 0.95


def test_holm_by_hand():
    p = np.array([0.04, 0.001, 0.02])
    np.testing.assert_allclose(verdicts.holm_levels(p), [0.05, 0.05 / 3, 0.025])
    p = np.array([0.018, 0.02, 0.9])  # the first fails at 0.05 / 3; the second would pass at 0.05 / 2
    np.testing.assert_allclose(verdicts.holm_levels(p), [0.05 / 3] * 3)
    np.testing.assert_allclose(verdicts.holm_levels(np.array([0.2])), [0.05])


def test_holm_intervals_hold_the_error_of_a_family_where_plain_ones_do_not():
    rng, n, comparisons = np.random.default_rng(2), 40, 8
    wrong = {"plain": 0, "holm": 0}
    for _ in range(300):
        x = rng.standard_normal((comparisons, n))
        drawn = rng.integers(0, n, (1000, n))
        replicates = x[:, drawn].mean(2)
        plain = np.quantile(replicates, [0.025, 0.975], axis=1).T
        wrong["plain"] += any(low > 0 or high < 0 for low, high in plain)
        names = pd.DataFrame({"variant": range(comparisons)})
        family = families.estimates(Draws(names, np.column_stack([x.mean(1), replicates])))
        wrong["holm"] += ((family["low"] > 0) | (family["high"] < 0)).any()
    assert wrong["plain"] > 60 and wrong["holm"] <= 30


def test_a_p_value_is_never_zero():
    replicates = np.stack([np.full(999, 1.0), np.concatenate([np.full(10, -1.0), np.full(989, 1.0)])])
    np.testing.assert_allclose(verdicts.p_values(replicates), [0.002, 0.022])


def test_holm_t_intervals_by_hand():
    samples = [np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.1, 0.1]), np.array([5.0])]
    p = verdicts.t_p_values(samples)
    np.testing.assert_allclose(p, [0.0742, 0.0, 1.0], atol=1e-4)  # t = 2 √3 with two degrees of freedom
    levels, estimates = verdicts.holm_t_intervals(samples)
    np.testing.assert_allclose(levels, [0.025, 0.05 / 3, 0.025])
    assert estimates[0].high == pytest.approx(2 + 6.2053 / 3**0.5, rel=1e-4) and estimates[2].low is None
    assert verdicts.t_p_values([np.zeros(3)]).tolist() == [1.0]


def test_holm_t_intervals_hold_the_error_of_a_family():
    rng, wrong = np.random.default_rng(3), 0
    for _ in range(400):
        _, estimates = verdicts.holm_t_intervals(list(rng.standard_normal((4, 3))))
        wrong += any(estimate.low > 0 or estimate.high < 0 for estimate in estimates)
    assert wrong <= 30
