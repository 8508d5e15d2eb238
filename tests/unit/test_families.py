"""Estimates at Holm's levels: by hand, and how often a family without a difference shows one."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from lib.stats import families
from lib.stats.draws import Draws


def draws(replicates, value=None):
    replicates = np.asarray(replicates, dtype=float)
    values = replicates.mean(1) if value is None else np.asarray(value, dtype=float)
    names = pd.DataFrame({"variant": [f"v{i}" for i in range(len(values))]})
    return Draws(names, np.column_stack([values, replicates]))


def test_levels_by_hand_and_rows_that_are_no_members():
    rng = np.random.default_rng(0)
    clear, unclear = rng.normal(5, 1, 4000), rng.normal(0, 1, 4000)
    undefined = np.where(np.arange(4000) < 200, np.nan, 3.0)
    table = families.estimates(draws([clear, unclear, undefined], [5, 0, 3])).set_index("variant")
    assert table["alpha"].tolist()[:2] == pytest.approx([0.025, 0.05])
    assert table.loc["v0", ["low", "high"]].tolist() == pytest.approx(np.quantile(clear, [0.0125, 0.9875]).tolist())
    assert table.loc["v1", ["low", "high"]].tolist() == pytest.approx(np.quantile(unclear, [0.025, 0.975]).tolist())
    assert table.loc["v2", ["low", "high", "alpha"]].isna().all() and table.loc["v2", "value"] == 3
    assert families.estimates(draws(np.empty((0, 10)))).empty


def test_an_interval_over_few_units_does_not_hang_on_the_outermost_replicates():
    """Percentiles that are taken farther out, in place of a longer distance, would be those two replicates."""
    values = np.random.default_rng(0).normal(0.3, 0.05, 2000)
    rows = []
    for outermost in (0.0, 0.3):
        moved = np.sort(values) + np.array([-outermost, *np.zeros(1998), outermost])
        rows.append(families.at_levels(draws([moved], [0.3]), n_units=4).iloc[0])
    assert rows[0]["low"] == rows[1]["low"] and rows[0]["high"] == rows[1]["high"]
    half = (4 / 3) ** 0.5 * scipy.stats.t.isf(0.025, 3) * 0.05
    assert (rows[0]["low"], rows[0]["high"]) == pytest.approx((0.3 - half, 0.3 + half), abs=0.02)
    assert families.at_levels(draws([values + 0.5], [0.8]), n_units=2).iloc[0]["high"] == 1.0


def test_the_interval_of_a_mean_over_four_units_covers():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        units = rng.normal(0.2, 0.1, 4)
        replicates = units[rng.integers(0, 4, (999, 4))].mean(1)
        (row,) = families.at_levels(draws([replicates], [units.mean()]), n_units=4).itertuples()
        covered += row.low <= 0.2 <= row.high
    assert covered >= 0.93 * 400


def test_a_family_without_a_difference_shows_one_in_at_most_five_of_a_hundred_draws():
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(300):
        value = rng.standard_normal(6)
        table = families.estimates(draws(value[:, None] + rng.standard_normal((6, 2000)), value))
        wrong += ((table["low"] > 0) | (table["high"] < 0)).any()
    assert wrong <= 27  # 15 are expected, and 27 are three standard errors above
