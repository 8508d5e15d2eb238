"""Comparisons at equal L0, by hand and in planted worlds."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from lib.sae import matched
from lib.sae.comparison import BASELINE, quadratic_frequency

QF = quadratic_frequency(0.1)


def curve(variant, seed, shift=0.0, l0=(8, 16, 32, 64)):
    """FVU falls by 0.1 for each doubling of L0; the frequent mass rises by as much."""
    doublings = np.log2(np.array(l0) / 8)
    return pd.DataFrame({
        "variant": variant,
        "sparsity": l0,
        "seed": seed,
        "l0": l0,
        "fvu": 0.5 - 0.1 * doublings + shift,
        "high_frequency_mass": 0.1 * doublings + shift,
        "mass_above_10x_mean": 0.0,
        "weighted_frequency": 0.02,
        "high_frequency": np.round(10 * doublings),
    })


def row(rows, metric, variant):
    """The one row of a metric and variant."""
    (match,) = rows[(rows["metric"] == metric) & (rows["variant"] == variant)].itertuples()
    return match


def test_differences_at_equal_l0_by_hand():
    parts = [curve(BASELINE, seed) for seed in range(3)]
    parts += [curve("b", seed, 0.01 * (seed + 1), (10, 20, 40)) for seed in range(3)]
    table = pd.concat(parts, ignore_index=True)
    values = matched.at_l0s(table, "fvu", "b", [8, 16, 32, 64], BASELINE)
    assert values.columns.tolist() == [16, 32], "8 and 64 lie outside b's range: nothing is extrapolated"
    np.testing.assert_allclose(values, [[0.01] * 2, [0.02] * 2, [0.03] * 2], atol=1e-12)
    estimate = matched.over_seeds(values)
    assert estimate.value == pytest.approx(0.02) and (estimate.n, estimate.n_groups) == (6, 3)
    assert estimate.high - estimate.value == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-3)
    cost = row(matched.differences(table, [16, 32], [], []), "fvu_cost_at_matched_l0", "b")
    assert cost.value == pytest.approx(0.02) and cost.against == BASELINE and cost.alpha == 0.05
    change = row(matched.differences(table, [16, 32], [], []), "frequent_mass_change_at_matched_l0", "b")
    assert change.value == pytest.approx(0.02) and change.against == BASELINE


def test_an_l0_that_one_seed_does_not_span_is_left_out_for_all():
    parts = [curve(BASELINE, 0), curve(BASELINE, 1, l0=(17, 64)), curve("b", 1), curve("b", 2)]
    table = pd.concat(parts, ignore_index=True)
    assert matched.at_l0s(table, "fvu", BASELINE, [16, 32]).columns.tolist() == [32]
    of_both = matched.at_l0s(table, "fvu", "b", [16, 32], BASELINE)
    assert of_both.index.tolist() == [1] and of_both.columns.tolist() == [32], "seeds that both have"
    nothing = matched.over_seeds(matched.at_l0s(table, "fvu", "c", [16, 32], BASELINE))
    assert nothing.value is None and (nothing.n, nothing.n_groups) == (0, 0)
    assert matched.over_seeds(matched.at_l0s(table, "fvu", "b", [])).value is None


def test_a_frequent_mass_that_follows_l0_alone_is_no_difference():
    """Gated SAEs of half the L0 have less frequent mass at each setting, and as much at equal L0."""
    parts = [curve(BASELINE, seed) for seed in (0, 1)] + [curve("gated", seed, l0=(4, 8, 16, 32)) for seed in (0, 1)]
    table = pd.concat(parts, ignore_index=True)
    l0s = matched.inner_l0s([8, 16, 32])
    differences = matched.differences(table, l0s, [], [])
    for metric in ("frequent_mass_difference", "mass_above_10x_mean_difference"):
        assert row(differences, metric, BASELINE).value == pytest.approx(0)
    rows = matched.of_variants(table, l0s)
    masses = [row(rows, "frequent_mass_at_matched_l0", name) for name in (BASELINE, "gated")]
    assert masses[0].value == pytest.approx(masses[1].value) == pytest.approx(0.1)
    assert row(rows, "high_frequency", "gated").unit == "latents"


def test_without_gated_there_is_no_row_of_its_difference():
    table = pd.concat([curve(BASELINE, 0), curve("topk", 0)], ignore_index=True)
    rows = matched.differences(table, [16], [], ["topk"])
    assert rows["metric"].tolist() == ["fvu_cost_at_matched_l0", "frequent_mass_change_at_matched_l0"]
    assert matched.differences(table[table["variant"] == BASELINE], [16], [], []).empty


def test_comparators_are_one_family_of_the_cost_over_qf():
    noise = {"topk": [0.02, 0.021, 0.022], "gated": [0.0, 0.3, -0.1]}
    parts = [curve(name, seed) for name in (BASELINE, QF) for seed in range(3)]
    parts += [curve(name, seed, shift) for name, shifts in noise.items() for seed, shift in enumerate(shifts)]
    table = pd.concat(parts, ignore_index=True)
    rows = matched.differences(table, [16, 32], [0.01, 0.1], list(noise))
    topk, gated = (row(rows, "fvu_cost_over_qf", name) for name in noise)
    assert topk.against == QF and (topk.alpha, gated.alpha) == (0.025, 0.05), "Holm: the clearer one first, at a half"
    assert topk.value == pytest.approx(0.021) and (topk.n, topk.n_groups) == (6, 3)
    assert topk.high - topk.value == pytest.approx(6.2053 * 0.001 / 3**0.5, rel=1e-3)
    assert "fvu_cost_over_qf" not in set(matched.differences(table, [16], [], list(noise))["metric"])


def test_inner_l0s_leave_out_the_ends():
    assert matched.inner_l0s([32, 8]) == [16] and matched.inner_l0s([5]) == []
    assert matched.inner_l0s([8, 32, 128]) == [16, 32, 64]


def test_ks_distance_is_scipys():
    rng = np.random.default_rng(0)
    first, second = np.round(rng.random(50), 2), np.round(rng.random(80) ** 2, 2)
    expected = ks_2samp(np.log(first + 0.01), np.log(second + 0.01)).statistic
    assert matched.ks_distance(first, second) == pytest.approx(expected)
    assert matched.ks_distance(first, np.zeros(0)) == 1.0 and matched.ks_distance(first, first) == 0.0


def frequencies(rng, shift=0.0, d_sae=400):
    """Log-normal ones, and a tail above 10 %."""
    return np.concatenate([np.minimum(0.09, np.exp(rng.normal(-4 + shift, 1, d_sae))), rng.uniform(0.2, 0.5, 20)])


def test_a_variant_that_changes_nothing_is_at_no_distance_on_average():
    rng = np.random.default_rng(0)
    values = {0.0: [], 0.5: []}
    for shift, into in values.items():
        for _ in range(60):
            ours, theirs = [frequencies(rng, shift) for _ in range(3)], [frequencies(rng) for _ in range(3)]
            into.append(matched.distance_of_pairs(ours, theirs)[np.triu_indices(3, 1)].mean())
    error = np.std(values[0.0]) / 60**0.5
    assert abs(np.mean(values[0.0])) < 3 * error
    true = 0.197  # of normal distributions half a standard deviation apart
    assert true - 0.06 < np.mean(values[0.5]) < true


def test_only_the_part_below_the_line_is_compared():
    rng = np.random.default_rng(1)
    theirs = [frequencies(rng) for _ in range(3)]
    ours = [np.concatenate([x[x <= 0.1], np.full(20, 0.9)]) for x in theirs]
    np.testing.assert_allclose(matched.distance_of_pairs(ours, theirs), matched.distance_of_pairs(theirs, theirs))
    assert matched.distance_of_pairs(theirs, theirs)[0, 1] == 0


def saved(folder, frequency):
    """A folder that says no more than the frequencies."""
    folder.mkdir()
    (folder / "training.json").write_text(json.dumps({"frequency": frequency.tolist()}))
    return folder


def test_histograms_are_compared_at_equal_l0_and_not_with_one_seed(tmp_path):
    rng = np.random.default_rng(2)
    rows = []
    for variant, l0s, shift in ((BASELINE, (16, 32), 0.0), (QF, (16.3, 31.5), 0.5), ("gated", (20, 60), 0.0)):
        for sparsity, l0 in enumerate(l0s):
            for seed in range(3):
                about = {"variant": variant, "sparsity": sparsity, "seed": seed, "l0": l0}
                rows.append(about | {"folder": saved(tmp_path / str(len(rows)), frequencies(rng, shift))})
    table = pd.DataFrame(rows)
    distances = matched.histogram_distances(table).set_index("variant")
    assert distances.loc[QF, "n"] == 6 and distances.loc[QF, "n_groups"] == 3
    assert 0.1 < distances.loc[QF, "low"] < distances.loc[QF, "value"] < 0.22
    assert distances.loc["gated", "n"] == 0 and pd.isna(distances.loc["gated", "value"]), "its L0s are others"
    one = matched.histogram_distances(table[table["seed"] == 0]).set_index("variant").loc[QF]
    assert pd.isna(one["value"]) and pd.isna(one["low"])
    assert matched.histogram_distances(table[table["variant"] == BASELINE]).empty


def test_a_takeaway_says_each_row_of_a_variant_once():
    parts = [curve(name, seed, 0.001 * seed) for name in (BASELINE, QF, "gated") for seed in range(2)]
    table = pd.concat(parts, ignore_index=True)
    rows = [matched.of_variants(table, [16]), matched.differences(table, [16], [0.1], ["gated"])]
    baseline, qf, gated = matched.sentences(pd.concat(rows, ignore_index=True))
    assert baseline.startswith(f"- {BASELINE}: frequent mass 0.10") and "; from gated 0.000 [" in baseline
    assert f"FVU from {BASELINE} 0.000" in qf and "level" not in qf
    assert f"FVU from {QF} 0.000" in gated and gated.endswith("(level 0.05)")
