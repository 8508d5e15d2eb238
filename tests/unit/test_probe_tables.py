"""What finetuning gains, on planted draws whose differences are known."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from lib.probing.tasks import Probe
from lib.results import monitor_tables, probe_tables
from lib.results.probe_tables import Finetuning, gained, gained_by_seed
from lib.stats import metrics
from lib.stats.draws import Draws

NAMES = Finetuning("base", "chat", "placebo")
# By variant: AUROC at k = 1 and k = 5 of the base SAEs 0, 1 and 2, which differ by far more than finetuning changes.
AUROCS = {
    "base": [(0.5, 0.5), (0.6, 0.6), (0.7, 0.7)],
    "chat": [(0.52, 0.58), (0.61, 0.69), (0.73, 0.77)],
    "placebo": [(0.5, 0.51), (0.6, 0.61), (0.7, 0.71)],
}


def planted(aurocs=AUROCS, seeds=(0, 1, 2), replicates=999) -> Draws:
    rows = {
        Probe("k-sparse", "max", variant, seed, "s", k): pair[place]
        for variant, pairs in aurocs.items()
        for seed, pair in zip(seeds, pairs, strict=False)
        for place, k in enumerate((1, 5))
    }
    dimensions = pd.DataFrame([probe.columns() | {"split": "ood"} for probe in rows], dtype=object)
    return Draws(dimensions, np.repeat(np.array(list(rows.values()))[:, None], replicates + 1, axis=1))


def test_gains_are_paired_by_base_seed():
    table = gained(planted(), NAMES, 0).set_index(["metric", "k"])
    value = table["value"]
    assert value["auroc_gained_by_finetuning", 1] == pytest.approx(0.02)
    assert value["auroc_gained_by_finetuning", 5] == pytest.approx((0.08 + 0.09 + 0.07) / 3)
    assert value["auroc_gained_by_finetuning", "mean"] == pytest.approx((0.02 + 0.08) / 2)
    assert value["auroc_gained_by_placebo", "mean"] == pytest.approx(0.005)
    assert value["auroc_gained_over_placebo", "mean"] == pytest.approx(0.045)
    assert set(table["against"]) == {"base", "placebo"} and len(table) == 9
    # The base SAEs' own differences of 0.1 are in no interval: the widest is that of three paired differences.
    apart = metrics.t_interval(np.array([0.02, 0.01, 0.03]))
    assert table.loc[("auroc_gained_over_placebo", 1), "low"] == pytest.approx(apart.low, abs=1e-3)
    assert table.loc[("auroc_gained_over_placebo", 1), "high"] == pytest.approx(apart.high, abs=1e-3)
    assert table.loc[("auroc_gained_by_placebo", 1), "high"] < 0.02


def test_other_ways_from_the_same_bases_lend_their_seed_variance():
    alone = gained(planted(), NAMES, 0).set_index(["metric", "k"]).loc[("auroc_gained_over_placebo", 1)]
    calm = AUROCS | {"resampled": [(0.51, 0.5), (0.61, 0.6), (0.71, 0.7)]}
    lent = gained(planted(calm), NAMES._replace(others=("resampled",)), 0)
    lent = lent.set_index(["metric", "k"]).loc[("auroc_gained_over_placebo", 1)]
    assert lent["value"] == alone["value"] and lent["high"] - lent["low"] < 0.8 * (alone["high"] - alone["low"])


def test_a_way_from_one_base_is_compared_with_what_was_made_of_the_same_base():
    ways = {"resampled": [(0.50, 0.5)], "from scratch": [(0.55, 0.6)]}  # of seed 0 only
    of_k = planted(AUROCS | ways, replicates=1999).where(k=1)
    names = [*ways, "not made"]
    table = probe_tables.way_differences(of_k, "chat", names, 0, lending=["placebo"]).set_index("variant")
    assert table["value"].to_dict() == pytest.approx({"resampled": 0.50 - 0.52, "from scratch": 0.55 - 0.52})
    # The placebo is behind by 0.02, 0.01 and 0.03: s = 0.01 with two degrees of freedom, lent to a mean over one seed.
    for row in table.itertuples():
        width = 2 * scipy.stats.t.ppf(1 - row.alpha / 2, 2) * 0.01
        assert row.high - row.low == pytest.approx(width, rel=0.1)
    alone = probe_tables.way_differences(of_k, "chat", names, 0)
    assert (alone["low"] == alone["high"]).all(), "nobody tells how much such differences vary"


def test_units_say_which_variants_have_fewer_saes():
    counts = {"base": 3, "chat": 3, "from IT": 1, "resampled": 1, "from scratch": 2}
    rows = [(name, seed) for name, n in counts.items() for seed in range(n)]
    saes = pd.DataFrame(rows, columns=["variant", "seed"])
    words = "base prompts and 3 base SAEs"
    assert probe_tables.units(saes, "base") == f"{words} (from IT, resampled: 1; from scratch: 2)"
    assert probe_tables.units(saes, "base", ["base", "chat"]) == words
    assert probe_tables.units(saes, "base", ["base", "from scratch"]) == f"{words} (from scratch: 2)"
    assert probe_tables.units(saes[saes["seed"] == 0], "base") == "base prompts only (one base SAE)"


def test_one_base_sae_has_no_noise_of_seeds_and_an_unpaired_one_no_difference():
    table = gained(planted(seeds=(0,)), NAMES, 0)
    assert (table["low"] == table["high"]).all() and len(table) == 9
    lacking = AUROCS | {"chat": AUROCS["chat"][:2]}
    value = gained(planted(lacking), NAMES, 0).set_index(["metric", "k"])["value"]
    assert value["auroc_gained_by_finetuning", 1] == pytest.approx(0.015), "of the two seeds that have both"


def test_single_bases_are_told_apart():
    points = gained_by_seed(planted(), NAMES).set_index(["variant", "seed", "k"])["value"]
    assert points["chat", 2, 1] == pytest.approx(0.03) and points["placebo", 0, 5] == pytest.approx(0.01)
    assert len(points) == 2 * 3 * 2


def test_the_others_are_read_off_a_table_of_saes():
    rows = [("base", None, "b0"), ("IT", None, "p0"), ("chat", "b0", "x"), ("from IT", "p0", "y")]
    rows += [("placebo", "b0", "z"), ("resampled", "b0", "r"), ("from scratch", None, "s")]
    saes = pd.DataFrame(rows, columns=["variant", "start", "folder"])
    assert Finetuning.of(saes, "base", "chat", "placebo").others == ("resampled",)


def test_a_mean_over_k_is_a_text_in_json_and_none_in_parquet(tmp_path):
    table = gained(planted(), NAMES, 0)
    assert {row["k"] for row in json.loads(table.to_json(orient="records"))} == {1, 5, "mean"}
    numeric = probe_tables.with_numeric_k(table)
    numeric.to_parquet(tmp_path / "x.parquet")
    again = pd.read_parquet(tmp_path / "x.parquet")
    assert again["k"].isna().sum() == 3 and (again.loc[again["k"].isna(), "over"] == "k").all()


def test_an_sae_is_ahead_of_cheaper_ones_by_the_pooled_variance_of_seeds():
    aurocs = {"base": AUROCS["base"], "whole": [(0.8, 0.8)], "share": [(0.7, 0.75)], "tiny": [(0.6, 0.5)]}
    drawn = planted(aurocs).where(k=1)
    table = monitor_tables.ahead_of_others(drawn, "whole", ["share", "tiny"], "auroc_ahead_of_cheaper", 0)
    assert table["against"].to_list() == ["share", "tiny"] and set(table["variant"]) == {"whole"}
    np.testing.assert_allclose(table["value"], [0.1, 0.2])
    assert set(table["metric"]) == {"auroc_ahead_of_cheaper"} and table["alpha"].between(0.0, 0.05).all()
    # One SAE each: seeds differ by 0.1 (standard deviation, of base), so that 0.1 between two SAEs shows nothing.
    assert (table["low"] < 0).all() and (table["high"] > table["value"] + 0.2).all()


def test_what_is_behind_the_dense_probe_pooled_and_within_wrappers():
    # Two wrappers of four prompts. The token probe ranks within each as the dense probe does, but has no threshold that
    # holds in both; the other one is the dense probe's reverse.
    transform = np.repeat(["plain", "story"], 4)
    prompts = pd.DataFrame({
        "split": "ood", "label": [0, 1] * 4, "base_id": [0, 1, 2, 3] * 2, "transform": transform,
    })  # fmt: skip
    kinds = pd.Series(np.where(transform == "plain", "plain", "jailbreak"))
    dense = np.array([0.0, 1.0] * 4)
    scores = {Probe("dense"): dense, Probe("shifted"): dense + 2.0 * (transform == "story"), Probe("reverse"): -dense}
    weights = {"ood": metrics.bootstrap_weights(prompts["base_id"].to_numpy(), 200, 0)}
    table = monitor_tables.behind(prompts, kinds, "ood", scores, weights, 0).set_index(["probe", "metric"])["value"]
    assert table["shifted", "auroc_behind_dense"] == pytest.approx(1 - 12 / 16)
    assert table["shifted", "auroc_behind_dense_within_wrapper"] == pytest.approx(0)
    assert table["reverse", "auroc_behind_dense"] == table["reverse", "auroc_behind_dense_within_wrapper"] == 1
    assert "dense" not in table.index.get_level_values("probe")


def test_a_monitor_that_seeds_change_has_their_spread_in_its_interval_and_a_threshold_from_validation():
    rng = np.random.default_rng(0)
    n = 400
    prompts = pd.DataFrame({
        "split": np.repeat(["val", "ood"], n), "label": [0, 1] * n, "base_id": np.arange(2 * n),
        "transform": np.tile(np.repeat(["plain", "story"], 2), n // 2),
    })  # fmt: skip
    kinds = pd.Series(np.where(prompts["transform"] == "plain", "plain", "jailbreak"))
    label = prompts["label"].to_numpy()
    dense = label * 2.0 + rng.standard_normal(2 * n)
    # Three seeds of one monitor: as good as dense, a little worse, and blind.
    of_seeds = [dense, label * 1.0 + rng.standard_normal(2 * n), rng.standard_normal(2 * n)]
    scores = {Probe("dense"): dense} | {Probe("tokens", seed=seed): of_one for seed, of_one in enumerate(of_seeds)}
    weights = metrics.split_weights(prompts, 400, 0)
    table = monitor_tables.measured(prompts, kinds, "ood", scores, weights, 0).set_index(["probe", "metric"])
    here = (prompts["split"] == "ood").to_numpy()
    areas = [metrics.auroc(label[here], of_one[here], np.ones((1, n)))[0] for of_one in of_seeds]
    row = table.loc[("tokens", "auroc")]
    assert row["value"] == pytest.approx(np.mean(areas))
    by_t = metrics.t_interval(np.array(areas))
    assert row["low"] <= by_t.low + 0.02 and row["high"] == 1, "seeds differ by far more than prompts, and t is bounded"
    of_dense = table.loc[("dense", "auroc")]
    assert of_dense["high"] - of_dense["low"] < 0.1 < 0.5 < row["high"] - row["low"]
    behind = monitor_tables.behind(prompts, kinds, "ood", scores, weights, 0).set_index(["probe", "metric"])
    apart = behind.loc[("tokens", "auroc_behind_dense")]
    assert apart["low"] < 0 < apart["value"]
    # At the threshold that lets one in a hundred validation negatives through, by hand.
    quiet = np.sort(dense[~here & (label == 0)])[-3]
    expected = (dense[here & (label == 1)] > quiet).mean()
    assert table.loc[("dense", "recall_at_validation_threshold"), "value"] == pytest.approx(expected)
    assert len(table) == 2 * 5
