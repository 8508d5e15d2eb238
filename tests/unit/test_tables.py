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


def test_a_difference_says_its_direction_in_words_and_has_no_minus_before_its_size():
    rows = pd.DataFrame({"value": [0.1, -0.1, -0.1], "low": [-0.05, -0.25, np.nan], "high": [0.25, 0.05, np.nan]})
    ahead, behind, alone = (tables.directed(row, "ahead by", "behind by", 2) for row in rows.itertuples())
    assert ahead == "ahead by 0.10 [-0.05, 0.25]" and behind == "behind by 0.10 [-0.05, 0.25]"
    assert alone == "behind by 0.10 (no interval)"


COURSES = {(0.9, 0.6): ": it falls", (0.5, 0.7): ": it rises", (0.501, 0.499): ": it stays"}
COURSES |= {(0.9, np.nan): "", (0.9,): ""}


@pytest.mark.parametrize(("values", "way"), COURSES.items())
def test_estimates_in_a_row_say_which_way_they_go(values, way):
    rows = pd.DataFrame({"value": list(values), "low": 0.0, "high": 1.0})
    assert tables.course(rows, 2) == ", then ".join(tables.texts(rows, 2)) + way


def test_rows_and_columns_keep_the_order_of_the_table():
    wide = tables.in_columns(ESTIMATES, "probe", digits=2)
    assert wide.index.tolist() == ["dense", "best latent"] and wide.columns.tolist() == ["val", "ood"]
    assert wide.loc["dense", "ood"] == "0.85 (no interval)" and pd.isna(wide.loc["best latent", "val"])
    two = tables.in_columns(ESTIMATES.assign(k=pd.array([None, None, 1], dtype="Int64")), ["probe", "k"])
    assert two.shape == (2, 2)


def test_two_estimates_for_one_cell_are_refused():
    with pytest.raises(ValueError, match="dense.*ood.*more than one estimate"):
        tables.in_columns(pd.concat([ESTIMATES, ESTIMATES.iloc[1:2]]), "probe")
