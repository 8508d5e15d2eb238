import numpy as np
import pandas as pd
import pytest

from lib.probing.on_saes import auroc_lost, directions_in_dictionary, gaps_closed, logit_parts
from lib.stats import draws, metrics


def prompts(n=400):
    rng = np.random.default_rng(0)
    return pd.DataFrame({"split": ["train"] * (n // 2) + ["ood"] * (n // 2), "label": rng.integers(0, 2, n), "base_id": [f"b{i // 2}" for i in range(n)]})


def test_a_table_holds_the_value_and_the_replicates():
    table = prompts()
    weights = metrics.split_weights(table, 50, 0)
    score = np.random.default_rng(1).standard_normal(400) + table["label"].to_numpy()
    drawn = draws.table(table, {("a",): score}, ["probe"], weights)
    part = (table["split"] == "ood").to_numpy()
    expected = metrics.estimate(table["label"].to_numpy()[part], score[part], table["base_id"].to_numpy()[part], metrics.auroc, weights["ood"])
    found = draws.estimates(drawn).set_index("split").loc["ood"]
    assert found["value"] == pytest.approx(expected.value) and found["low"] == pytest.approx(expected.low)


def test_seeds_widen_the_interval_to_students_and_leave_the_mean():
    index = pd.MultiIndex.from_tuples([("a", 0), ("a", 1), ("a", 2)], names=["probe", "seed"])
    values = np.repeat([[0.6], [0.7], [0.8]], 20_001, axis=1)
    found = draws.estimates(draws.over_seeds(pd.DataFrame(values, index=index), 0)).iloc[0]
    other = pd.MultiIndex.from_tuples([("b", i) for i in range(3)], names=["probe", "seed"])
    both = draws.over_seeds(pd.concat([pd.DataFrame(values, index=i) for i in (index, other)]), 0).to_numpy()[:, 1:]
    assert abs(np.corrcoef(both)[0, 1]) < 0.05, "the noise of two SAEs is not shared"
    expected = metrics.t_interval(np.array([0.6, 0.7, 0.8]))
    assert found["value"] == pytest.approx(0.7)
    assert found["low"] == pytest.approx(expected.low, abs=0.02) and found["high"] == pytest.approx(expected.high, abs=0.02)
    single = draws.over_seeds(pd.DataFrame(values[:1], index=index[:1]), 0)
    assert np.ptp(single.to_numpy()) == 0


def test_differences_are_paired_and_undefined_replicates_give_no_interval():
    index = pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1), ("b", 2)], names=["way", "k"])
    frame = pd.DataFrame([[0.5, 0.4, 0.6], [0.6, 0.6, 0.6], [0.7, 0.6, 0.8], [0.5, 0.5, np.nan]], index=index)
    found = draws.estimates(draws.paired(frame, "way", "a")).set_index("k")
    assert found.loc[1, ["value", "low", "high"]].tolist() == pytest.approx([0.2, 0.2, 0.2])
    assert found.loc[2, "value"] == pytest.approx(-0.1) and np.isnan(found.loc[2, "low"])


def test_shares_of_a_gap_by_hand():
    share = draws.gap_closed(np.array([0.8, 0.7, 0.9]), np.array([0.7, 0.8, 0.9]), np.array([0.9, 0.9, 0.9]))
    np.testing.assert_allclose(share, [0.5, -1.0, np.nan])
    levels = ["variant", "seed", "probe", "pooling", "selection", "k", "split"]
    rows = {("base", None, "k-sparse", "max", "s", 5, "ood"): [0.6, 0.5], ("chat", 0, "k-sparse", "max", "s", 5, "ood"): [0.75, 0.6],
            ("chat", 1, "k-sparse", "max", "s", 5, "ood"): [0.75, 0.8], ("base", None, "reconstruction", "mean", "", 0, "ood"): [0.85, 0.8]}  # fmt: skip
    drawn = pd.DataFrame(list(rows.values()), index=pd.MultiIndex.from_tuples(rows, names=levels))
    dense = pd.DataFrame([[0.9, 0.9]], index=pd.MultiIndex.from_tuples([("dense", None, "dense", "mean", "", 0, "ood")], names=levels))
    found = gaps_closed(drawn, dense, "base", "mean", "ood", 0).iloc[0]
    assert found["value"] == pytest.approx(0.15 / 0.3) and found["low"] == pytest.approx(0.2 / 0.4)
    assert auroc_lost(drawn, dense, 0).iloc[0]["value"] == pytest.approx(0.05)


def test_matching_pursuit_finds_the_rows_of_a_planted_direction():
    rng = np.random.default_rng(0)
    dictionary = rng.standard_normal((40, 64))
    unit = dictionary / np.linalg.norm(dictionary, axis=1, keepdims=True)
    found = directions_in_dictionary(3 * unit[3] + 2 * unit[17], dictionary, [1, 2, 5])
    assert 0.5 < found[0] < 0.9 and found[1] == pytest.approx(1) and found[2] == pytest.approx(1)


def test_the_parts_of_a_logit_add_up():
    table = prompts()
    rng = np.random.default_rng(2)
    parts = {"reconstruction": rng.standard_normal((400, 5)), "error": 0.1 * rng.standard_normal((400, 5))}
    rows = pd.DataFrame(logit_parts(np.ones(5), parts, table)).set_index(["split", "part"])["variance_share"]
    assert rows["ood", "reconstruction"] + rows["ood", "error"] == pytest.approx(1) and rows["ood", "error"] < 0.1
