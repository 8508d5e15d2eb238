"""The tables of a rotation, on planted draws: means over base SAEs, paired gains, controls as a family."""

import numpy as np
import pandas as pd
import pytest

from lib.probing.tasks import Probe
from lib.results import probe_tables, rotation_tables, tables
from lib.results.probe_tables import Finetuning
from lib.stats.draws import Draws

NAMES = Finetuning("base", "chat", "placebo")
AREAS = {
    Probe("dense", "mean"): 0.9,
    **{Probe("k-sparse", "best", "base", seed, "best", 20): area for seed, area in enumerate((0.7, 0.8, 0.9))},
    **{Probe("k-sparse", "best", "chat", seed, "best", 20): area for seed, area in enumerate((0.72, 0.83, 0.91))},
    **{Probe("k-sparse", "best", "placebo", seed, "best", 20): area for seed, area in enumerate((0.71, 0.81, 0.91))},
    **{Probe("reconstruction", "mean", "base", seed): area for seed, area in enumerate((0.85, 0.86, 0.87))},
    **{Probe("control", "best", "noise", draw, "best", 20): area for draw, area in enumerate((0.6, 0.62))},
}


def planted(split="rotation", areas=AREAS, **more) -> Draws:
    rng = np.random.default_rng(0)
    dimensions = pd.DataFrame([probe.columns() | {"split": split} | more for probe in areas], dtype=object)
    shared = 0.01 * rng.standard_normal(2000)
    values = np.array(list(areas.values()))[:, None] + np.concatenate([[0.0], shared])
    return Draws(dimensions, values)


def test_a_rotation_is_a_mean_over_base_saes_with_their_spread():
    rotated = planted()
    rows = rotation_tables.of_wrappers(rotated, rotated.where(probe="dense"), NAMES, 10, 0)
    assert "seed" not in rows
    base = rows[rows["variant"] == "base"].set_index("metric")
    assert base.loc["auroc_behind_dense", "value"] == pytest.approx(0.1)
    # Three SAEs from 0.7 to 0.9 are known to about 0.25; prompts and wrappers alone would give 0.01.
    half = base.loc["auroc_behind_dense", "high"] - base.loc["auroc_behind_dense", "value"]
    assert 0.15 < half < 0.4
    dense = rows[(rows["probe"] == "dense") & (rows["metric"] == "auroc_within_wrapper")].iloc[0]
    assert dense["high"] - dense["low"] < 0.06, "a probe without SAEs has no spread of them"
    assert base.loc["auroc_lost", "value"] == pytest.approx(0.04)


def test_gains_of_a_rotation_are_paired_by_base_sae():
    rotated = planted()
    rows = rotation_tables.of_wrappers(rotated, rotated.where(probe="dense"), NAMES, 10, 0)
    gains = rows[rows["metric"].str.startswith("auroc_gained")].set_index("metric")
    assert gains.loc["auroc_gained_by_finetuning", "value"] == pytest.approx(0.02)
    assert gains.loc["auroc_gained_over_placebo", "value"] == pytest.approx(0.01)
    assert gains.loc["auroc_gained_by_placebo", "high"] < 0.05, "what bases differ by is in no gain"


def test_controls_of_a_rotation_are_a_family_and_may_be_none():
    rotated = planted()
    dense = rotated.where(probe="dense")
    rows = rotation_tables.of_wrappers(rotated, dense, NAMES, 10, 0)
    ahead = rows[rows["metric"] == "auroc_ahead_of_control"]
    assert ahead["control"].tolist() == ["noise"] and ahead["value"].tolist() == pytest.approx([0.8 - 0.61])
    without = rotation_tables.of_wrappers(rotated.without(probe="control"), dense, NAMES, 10, 0)
    of_none = without[without["metric"] == "auroc_ahead_of_control"]
    assert len(without) < len(rows) and tables.in_columns(of_none, "control", "split").empty


def test_sources_are_a_family_of_means_over_base_saes():
    theirs = planted("rotated source", held_out="theirs")
    rotated = planted("rotated source", held_out="ours").joined(theirs)
    rows = rotation_tables.of_sources(rotated, rotated.where(probe="dense"), "base", 0)
    behind = rows[rows["metric"] == "auroc_behind_dense"]
    assert behind["held_out"].tolist() == ["ours", "theirs"] and behind["value"].tolist() == pytest.approx([0.1, 0.1])
    assert (behind["high"] - behind["low"] > 0.2).all()


def test_what_is_behind_the_dense_probe_of_every_pooling():
    dense = planted("ood", {Probe("dense", "mean"): 0.95, Probe("dense", "max"): 0.85})
    sparse = planted("ood").where(probe="k-sparse", variant="base")
    rows = probe_tables.behind_in_poolings(sparse, dense, ["max", "mean"], 0)
    assert rows["against"].tolist() == ["max", "mean"] and rows["value"].tolist() == pytest.approx([0.05, 0.15])
    assert set(rows["metric"]) == {"auroc_behind_dense_in_pooling"} and rows["alpha"].notna().all()
