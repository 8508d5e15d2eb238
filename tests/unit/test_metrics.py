import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from lib.results import probe_tables
from lib.stats import metrics


def data(n=300, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    return y, np.round(y * 0.7 + rng.normal(size=n), 1)  # rounded: ties


def test_auroc_and_recall_equal_sklearn_with_weights_and_ties():
    y, s = data()
    weights = np.random.default_rng(1).integers(0, 4, (5, len(y))).astype(np.float32)
    expected = [roc_auc_score(y, s, sample_weight=w) for w in weights]
    np.testing.assert_allclose(metrics.auroc(y, s, weights), expected, atol=1e-12)
    recall = []
    for w in weights:
        fpr, tpr, _ = roc_curve(y, s, sample_weight=w, drop_intermediate=False)
        recall.append(tpr[fpr <= 0.05].max())
    np.testing.assert_allclose(metrics.recall_at_fpr(y, s, weights, 0.05), recall, atol=1e-12)


def test_auroc_by_hand():
    y, s = np.array([1, 1, 0, 0]), np.array([3.0, 1.0, 2.0, 1.0])
    assert metrics.auroc(y, s, np.ones((1, 4)))[0] == (2 + 0.5) / 4
    assert metrics.recall_at_fpr(y, s, np.ones((1, 4)))[0] == 0.5
    assert np.isnan(metrics.auroc(np.array([1, 1]), np.array([0.0, 1.0]), np.ones((1, 2)))[0])


def test_bootstrap_draws_whole_groups():
    groups = np.array(["a", "a", "b", "c", "c", "c"])
    weights = metrics.bootstrap_weights(groups, 200, 0)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3:] == weights[:, 3:4]).all()
    np.testing.assert_array_equal(weights[:, [0, 2, 3]].sum(1), 3)


def test_interval_widens_when_rows_are_copies():
    """Ten copies of each prompt are no new evidence: the interval must be that of the prompts without copies."""
    y, s = data(80)
    groups = np.arange(80)
    alone = metrics.estimate(y, s, groups, metrics.auroc, metrics.bootstrap_weights(groups, 2000, 0))
    y10, s10, groups10 = (np.repeat(v, 10) for v in (y, s, groups))
    copied = metrics.estimate(y10, s10, groups10, metrics.auroc, metrics.bootstrap_weights(groups10, 2000, 0))
    by_row = metrics.bootstrap_weights(np.arange(800), 2000, 0)
    naive = metrics.estimate(y10, s10, np.arange(800), metrics.auroc, by_row)
    np.testing.assert_allclose(copied[:3], alone[:3], atol=1e-9)
    assert naive.high - naive.low < 0.5 * (copied.high - copied.low)
    assert (copied.n, copied.n_groups) == (800, 80)


def delong_variance(y, a, b):
    """Variance of the difference of two AUROCs on the same rows, DeLong, DeLong and Clarke-Pearson 1988."""
    placements = []
    for s in (a, b):
        wins = (s[y == 1][:, None] > s[y == 0]) + 0.5 * (s[y == 1][:, None] == s[y == 0])
        placements.append((wins.mean(1), wins.mean(0)))
    d10, d01 = (placements[0][i] - placements[1][i] for i in (0, 1))
    return d10.var(ddof=1) / len(d10) + d01.var(ddof=1) / len(d01)


def test_paired_difference_agrees_with_delong_on_independent_rows():
    y, a = data(1500)
    b = a + np.random.default_rng(5).normal(size=len(a))
    groups = np.arange(len(y))
    difference = metrics.difference(y, (a, b), groups, metrics.auroc, metrics.bootstrap_weights(groups, 2000, 0))
    half = 1.96 * delong_variance(y, a, b) ** 0.5
    assert abs(difference.value - (roc_auc_score(y, a) - roc_auc_score(y, b))) < 1e-12
    assert abs((difference.high - difference.low) / 2 / half - 1) < 0.1


def test_auroc_within_strata_by_hand():
    """Two strata: 2 × 1 pairs, of which 1.5 are won, and 1 × 3 pairs, of which 2 are won; pairs across do not count."""
    y = np.array([1, 1, 0, 1, 0, 0, 0, 1])
    scores = np.array([5.0, 3.0, 3.0, 12.0, 10.0, 11.0, 13.0, 99.0])
    strata = np.array([0, 0, 0, 1, 1, 1, 1, 2])
    assert metrics.within_strata(y, scores, np.ones((1, 8)), strata) == pytest.approx([3.5 / 5])
    twice = np.ones((2, 8))
    twice[1, 2] = 2  # the only negative of the first stratum: its pairs, and what is won of them, count twice
    twice[1, 7] = 50  # a stratum of one class has no pairs
    assert metrics.within_strata(y, scores, twice, strata) == pytest.approx([3.5 / 5, 5 / 7])
    one = np.zeros(8, dtype=int)
    np.testing.assert_allclose(metrics.within_strata(y, scores, twice, one), metrics.auroc(y, scores, twice))
    assert np.isnan(metrics.within_strata(y, scores, np.ones((1, 8)), np.arange(8)))


def test_a_score_that_is_the_stratum_is_at_chance_within_strata():
    rng = np.random.default_rng(0)
    strata = rng.integers(0, 5, 4000)
    y = (rng.random(4000) < strata / 5).astype(int)
    ones = np.ones((1, 4000))
    assert metrics.auroc(y, strata.astype(float), ones)[0] > 0.7
    assert metrics.within_strata(y, strata.astype(float), ones, strata)[0] == 0.5


def test_strata_are_of_the_base_prompt_in_its_split_and_have_rows():
    """Ten base prompts of 1 to 10 characters and one wrapper much longer; out of distribution, ten of 101 to 110."""
    n = [*range(1, 11), *range(101, 111)]
    base = pd.DataFrame({
        "base_id": [f"b{i}" for i in n], "text": ["x" * i for i in n], "split": ["train"] * 10 + ["ood"] * 10,
        "transform": "plain", "label": [0, 1] * 10,
    })  # fmt: skip
    wrapped = base.assign(transform="aim", text="w" * 500 + base["text"])
    prompts = pd.concat([wrapped, base], ignore_index=True)
    strata = probe_tables.length_strata(prompts, 5)
    assert strata.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] * 4
    scores = {"length": prompts["text"].str.len().to_numpy(dtype=float), "label": prompts["label"].to_numpy(float)}
    table = probe_tables.within_length(prompts, scores, metrics.split_weights(prompts, 10, 0))
    values = table.set_index(["probe", "split"])["value"].to_dict()
    # Within a stratum of two base prompts the positive is the longer one; half of the pairs are of two wrappers.
    assert values == {("length", s): 0.75 for s in ("train", "ood")} | {("label", s): 1.0 for s in ("train", "ood")}
    assert set(table["metric"]) == {"auroc_within_length"} and (table["n_groups"] == 10).all()


def test_an_innocuous_transformation_is_compared_by_harmful_base_prompts_only():
    prompts = pd.DataFrame({
        "label": [1, 0, 0, 0], "split": "val", "base_id": list("abab"),
        "transform": ["plain", "plain", "count", "count"],
    })  # fmt: skip
    kinds = pd.Series(["plain", "plain", "innocuous", "innocuous"])
    weights = metrics.split_weights(prompts, 10, 0)
    rows = metrics.by_transform(prompts, kinds, np.array([1.0, 0.0, 0.5, 2.0]), weights)
    (of_count,) = [r for r in rows if r["transform"] == "count"]
    assert of_count["value"] == 1.0 and of_count["n"] == 2, "the harmless prompt in the wrapper scores 2.0"


def test_undefined_is_null_and_tables_are_by_split_and_transform():
    prompts = pd.DataFrame({
        "label": [1, 0, 1, 0, 1, 1], "split": ["train"] * 4 + ["val"] * 2, "base_id": list("abcaef"),
        "transform": ["plain", "plain", "aim", "count", "plain", "plain"],
    })  # fmt: skip
    kinds = pd.Series(["plain", "plain", "jailbreak", "innocuous", "plain", "plain"])
    scores = np.array([3.0, 1.0, 0.0, 2.0, 1.0, 1.0])
    weights = metrics.split_weights(prompts, 10, 0)
    by_split = {(r["metric"], r["split"]): r["value"] for r in metrics.by_split(prompts, scores, weights)}
    assert by_split["auroc", "train"] == 0.5 and by_split["auroc", "val"] is None
    rows = metrics.by_transform(prompts, kinds, scores, weights)
    values = {(r["split"], r["transform"]): r["value"] for r in rows}
    assert values == {("train", "plain"): 1.0, ("train", "aim"): None, ("train", "count"): 1.0, ("val", "plain"): None}


def test_the_mean_within_wrappers_by_hand():
    labels, scores = np.array([1, 0, 1, 0, 0]), np.array([2.0, 1.0, 10.0, 20.0, 5.0])
    a, b = np.array([1, 1, 0, 0, 0], dtype=bool), np.array([0, 0, 1, 1, 1], dtype=bool)
    within = metrics.within({"a": [a], "b": [b], "one class": [np.array([1, 0, 0, 0, 0], dtype=bool)]}, seed=0)
    values = within(labels, scores, np.ones((500, 5)))
    assert values[0] == pytest.approx((1 + 0.5) / 2)
    assert set(np.unique(values)) == {0.5, 0.75, 1.0}, "wrappers are drawn with replacement"
    folds = metrics.within({"b": [np.array([0, 0, 1, 1, 0], dtype=bool), np.array([0, 0, 1, 0, 1], dtype=bool)]}, 0)
    assert folds(labels, scores, np.ones((1, 5))) == pytest.approx([0.5]), "0 in one fold, 1 in the other"
    with pytest.raises(ValueError, match=r"none of the wrappers \['a'\] has prompts of both classes"):
        metrics.within({"a": [labels == 1]}, 0)(labels, scores, np.ones((1, 5)))


def test_a_threshold_of_validation_is_carried_over():
    negatives = np.arange(100.0)
    weights = np.ones((2, 100))
    weights[1, 99] = 0  # then the second largest may stay below
    thresholds = metrics.threshold_at_fpr(negatives, weights, fpr=0.01)
    assert thresholds.tolist() == [98.0, 98.0]
    assert (metrics.threshold_at_fpr(negatives, weights, fpr=0.0) == [99.0, 98.0]).all()
    scores = np.array([97.0, 98.0, 99.0, 200.0])
    recall = metrics.share_above(scores, np.array([[1.0, 1, 1, 1], [1, 1, 3, 1]]), thresholds)
    assert recall == pytest.approx([2 / 4, 4 / 6]), "a score at the threshold does not pass it"
    for_all = metrics.share_above(negatives, np.ones((1, 100)), metrics.threshold_at_fpr(negatives, np.ones((1, 100))))
    assert for_all[0] <= 0.01


def test_pairs_interval_by_hand():
    pairs = np.array([[np.nan, 1.0, 2.0], [1.0, np.nan, 6.0], [2.0, 6.0, np.nan]])
    estimate = metrics.pairs_interval(pairs)
    pseudo = 3 * 3.0 - 2 * np.array([6.0, 2.0, 1.0])
    assert estimate.value == 3.0 == pseudo.mean() and (estimate.n, estimate.n_groups) == (3, 3)
    np.testing.assert_allclose(estimate.high - 3.0, 4.30265 * pseudo.std(ddof=1) / 3**0.5, rtol=1e-5)
    assert metrics.pairs_interval(pairs[:2, :2]) == (1.0, None, None, 1, 2), "two units are one pair"
    assert metrics.pairs_interval(pairs[:1, :1]) == (None, None, None, 0, 1)


def test_pairs_interval_covers_where_pairs_share_units():
    """h_ij = a_i + a_j: a t interval of the ten pairs, as if they were independent, would be far too narrow."""
    rng, covered, naive = np.random.default_rng(0), 0, 0
    upper = np.triu_indices(5, 1)
    for _ in range(300):
        a, noise = rng.standard_normal(5), 0.2 * rng.standard_normal((5, 5))
        pairs = a[:, None] + a + noise + noise.T
        estimate, plain = metrics.pairs_interval(pairs), metrics.t_interval(pairs[upper])
        covered += estimate.low <= 0 <= estimate.high
        naive += plain.low <= 0 <= plain.high
    assert covered >= 276 and naive < 255
