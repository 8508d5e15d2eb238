"""Estimates at Holm's levels: by hand, and how often a family without a difference shows one."""

import numpy as np
import pandas as pd
import pytest

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


def test_a_family_without_a_difference_shows_one_in_at_most_five_of_a_hundred_draws():
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(300):
        value = rng.standard_normal(6)
        table = families.estimates(draws(value[:, None] + rng.standard_normal((6, 2000)), value))
        wrong += ((table["low"] > 0) | (table["high"] < 0)).any()
    assert wrong <= 27  # 15 are expected, and 27 are three standard errors above
