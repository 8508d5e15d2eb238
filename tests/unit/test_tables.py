import numpy as np
import pandas as pd
import pytest

from lib.results import tables

ESTIMATES = pd.DataFrame({
    "probe": ["dense", "dense", "best latent"], "split": ["val", "ood", "ood"],
    "value": [0.99, 0.85, np.nan], "low": [0.98, np.nan, np.nan], "high": [1.0, np.nan, np.nan],
})  # fmt: skip


def test_a_value_stands_with_its_interval_and_what_is_missing_is_said():
    assert tables.texts(ESTIMATES, 2).tolist() == ["0.99 [0.98, 1.00]", "0.85 (no interval)", "n/a"]


def test_rows_and_columns_keep_the_order_of_the_table():
    wide = tables.in_columns(ESTIMATES, "probe", digits=2)
    assert wide.index.tolist() == ["dense", "best latent"] and wide.columns.tolist() == ["val", "ood"]
    assert wide.loc["dense", "ood"] == "0.85 (no interval)" and pd.isna(wide.loc["best latent", "val"])
    two = tables.in_columns(ESTIMATES.assign(k=pd.array([None, None, 1], dtype="Int64")), ["probe", "k"])
    assert two.shape == (2, 2)


def test_two_estimates_for_one_cell_are_refused():
    with pytest.raises(ValueError, match="dense.*ood.*more than one estimate"):
        tables.in_columns(pd.concat([ESTIMATES, ESTIMATES.iloc[1:2]]), "probe")
