"""AUROC, recall at a false-positive rate, and 95 % intervals from a bootstrap over base prompts.

Variants of one base prompt are not independent, so a replicate draws *base prompts* with replacement and takes
all their variants along. Two probes that share the weights of ``bootstrap_weights`` give a paired difference.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
from jaxtyping import Bool, Float, Int

Labels = Int[np.ndarray, " rows"]
Scores = Float[np.ndarray, " rows"]
Weights = Float[np.ndarray, "replicates rows"]
SplitWeights = dict[str, Float[np.ndarray, "replicates _"]]
Metric = Callable[[Labels, Scores, Weights], np.ndarray]


class Estimate(NamedTuple):
    """A point value, its 95 % interval, the number of rows and of independent groups; None where undefined."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    n_groups: int


def row(metric: str, estimate: Estimate, unit: str = "fraction", **dimensions: Any) -> dict[str, Any]:
    """A line of a results table: metric, dimensions, value, 95 % interval, n (rows), n_groups (base prompts), unit."""
    return {"metric": metric} | dimensions | estimate._asdict() | {"unit": unit}


def bootstrap_weights(groups: np.ndarray, replicates: int, seed: int) -> Weights:
    """How often each row stands in each replicate when groups are drawn with replacement.

    Args:
        groups: group (``base_id``) of each row.
    """
    names, member = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=replicates)
    return np.ascontiguousarray(counts.T.astype(np.float32)[member]).T


def split_weights(prompts: pd.DataFrame, replicates: int, seed: int) -> SplitWeights:
    """Bootstrap weights over the base prompts of each split of a prompt table."""
    return {
        split: bootstrap_weights(rows["base_id"].to_numpy(), replicates, seed)
        for split, rows in prompts.groupby("split", sort=False)
    }


def by_split(prompts: pd.DataFrame, scores: Scores, weights: SplitWeights, **dimensions: Any) -> list[dict]:
    """AUROC and recall at 1 % false positives of one probe on every split of a prompt table."""
    rows = []
    for split, replicates in weights.items():
        part = (prompts["split"] == split).to_numpy()
        y, ids = prompts["label"].to_numpy()[part], prompts["base_id"].to_numpy()[part]
        for name, metric in (("auroc", auroc), ("recall_at_1pct_fpr", recall_at_fpr)):
            rows.append(row(name, estimate(y, scores[part], ids, metric, replicates), split=split, **dimensions))
    return rows


def by_transform(
    prompts: pd.DataFrame, kinds: pd.Series, scores: Scores, weights: SplitWeights, **dimensions: Any
) -> list[dict]:
    """AUROC by transform. A jailbreak (or ``plain``): its harmful against its own harmless prompts, so that the
    wrapper cannot help. An innocuous transformation: plain harmful prompts against transformed harmful ones.

    Args:
        kinds: ``plain``, ``jailbreak`` or ``innocuous`` for each row (:func:`lib.texts.datasets.kind`).
    """
    rows = []
    for split, replicates in weights.items():
        in_split = (prompts["split"] == split).to_numpy()
        table, kind_of = prompts[in_split], dict(zip(prompts["transform"], kinds, strict=True))
        for name, part in wrapper_rows(table, kinds[in_split]).items():
            y, ids = table["label"].to_numpy()[part], table["base_id"].to_numpy()[part]
            area = estimate(y, scores[in_split][part], ids, auroc, replicates[:, part])
            rows.append(row("auroc", area, split=split, transform=name, kind=kind_of[name], **dimensions))
    return rows


def wrapper_rows(prompts: pd.DataFrame, kinds: pd.Series) -> dict[str, Bool[np.ndarray, " rows"]]:
    """Which rows a wrapper's AUROC is of (:func:`by_transform`), by the transform's name, in the order of the table."""
    is_request = (prompts["transform"] == "plain") & (prompts["label"] == 1)
    has_request = prompts["base_id"].isin(prompts.loc[is_request, "base_id"])
    parts = {}
    for name, kind in dict(zip(prompts["transform"], kinds, strict=True)).items():
        part = prompts["transform"] == name
        parts[name] = (part & has_request | is_request if kind == "innocuous" else part).to_numpy()
    return parts


def within(parts: dict[str, list[Bool[np.ndarray, " rows"]]], seed: int) -> Metric:
    """The metric that is the mean over wrappers of the AUROC within each, Σⱼ wⱼ Aⱼ / Σⱼ wⱼ.

    ``parts`` has the rows of each wrapper, in one or several sets (such as folds), of which Aⱼ is the mean. The first
    replicate has all wⱼ = 1; in the others wrappers are drawn with replacement, as base prompts are by the weights, so
    that an interval covers both. Sets without both classes are left out.

    Raises:
        ValueError: there is no wrapper with both classes.
    """

    def mean_auroc(labels: Labels, scores: Scores, weights: Weights) -> Float[np.ndarray, " replicates"]:
        areas = []
        for sets in parts.values():
            of_sets = [
                auroc(labels[rows], scores[rows], weights[:, rows])
                for rows in sets
                if len(np.unique(labels[rows])) == 2
            ]
            areas += [np.mean(of_sets, axis=0)] if of_sets else []
        if not areas:
            raise ValueError(f"none of the wrappers {list(parts)} has prompts of both classes")
        drawn = np.random.default_rng(seed).multinomial(len(areas), [1 / len(areas)] * len(areas), len(weights) - 1)
        counts = np.concatenate([np.ones((1, len(areas))), drawn])
        areas = np.array(areas).T
        defined = ~np.isnan(areas) * counts
        with np.errstate(invalid="ignore", divide="ignore"):
            return (np.nan_to_num(areas) * counts).sum(1) / defined.sum(1)

    return mean_auroc


def threshold_at_fpr(scores: Scores, weights: Weights, fpr: float = 0.01) -> Float[np.ndarray, " replicates"]:
    """The least threshold at which at most a share ``fpr`` of these (negative) rows scores higher, in each replicate;
    NaN where no row has weight."""
    order = np.argsort(-scores, kind="stable")
    weight = weights[:, order].cumsum(1, dtype=np.float64)
    too_many = (weight > (fpr + 1e-12) * weight[:, -1:]).argmax(1)
    return np.where(weight[:, -1] > 0, scores[order][too_many], np.nan)


def share_above(
    scores: Scores, weights: Weights, thresholds: Float[np.ndarray, " replicates"]
) -> Float[np.ndarray, " replicates"]:
    """The share of the rows' weight that scores above each replicate's threshold; NaN where no row has weight."""
    order = np.argsort(-scores, kind="stable")
    weight = np.zeros((len(weights), len(scores) + 1))
    weight[:, 1:] = weights[:, order].cumsum(1)
    n_above = np.searchsorted(-scores[order], -thresholds, side="left")
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.isnan(thresholds), np.nan, weight[np.arange(len(weights)), n_above] / weight[:, -1])


def auroc(labels: Labels, scores: Scores, weights: Weights) -> Float[np.ndarray, " replicates"]:
    """Weighted area under the ROC curve, ties counted half; NaN where a class has no weight.

    AUROC = P(score of a positive > score of a negative) + P(equal) / 2.
    """
    columns = weights.T  # (rows, replicates): rows are gathered and summed whole
    side = [np.flatnonzero(labels == label) for label in (0, 1)]
    order = side[0][np.argsort(scores[side[0]], kind="stable")]
    cumulative = np.zeros((len(order) + 1, columns.shape[1]), dtype=columns.dtype)
    np.cumsum(columns[order], axis=0, out=cumulative[1:])
    left, right = (np.searchsorted(scores[order], scores[side[1]], where) for where in ("left", "right"))
    no_ties = (left == right).all()
    below = cumulative[left] if no_ties else (cumulative[left] + cumulative[right]) / 2
    positive = columns[side[1]]
    total = positive.sum(0, dtype=np.float64) * cumulative[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, (positive * below).sum(0, dtype=np.float64) / total, np.nan)


def within_strata(
    labels: Labels, scores: Scores, weights: Weights, strata: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, " replicates"]:
    """AUROC of pairs from one stratum: Σₛ PₛNₛ AUROCₛ / Σₛ PₛNₛ, with Pₛ and Nₛ the stratum's weight of either class.

    It is P(score of a positive > score of a negative | same stratum) + P(equal | same stratum) / 2: what ``strata``
    measure cannot help, as in an AUROC adjusted for a covariate (Janes & Pepe, Biometrika 2009). NaN where no stratum
    has both classes.
    """
    won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for stratum in np.unique(strata):
        part = strata == stratum
        y, of_part = labels[part], weights[:, part]
        n_pairs = of_part[:, y == 1].sum(1, dtype=np.float64) * of_part[:, y == 0].sum(1, dtype=np.float64)
        won += np.where(n_pairs > 0, auroc(y, scores[part], of_part) * n_pairs, 0.0)
        pairs += n_pairs
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, won / pairs, np.nan)


def recall_at_fpr(
    labels: Labels, scores: Scores, weights: Weights, fpr: float = 0.01
) -> Float[np.ndarray, " replicates"]:
    """Largest true-positive rate of a threshold whose false-positive rate is at most ``fpr`` (a fraction).

    The threshold is set on the rows themselves, as in a ROC curve; NaN where a class has no weight.
    """
    thresholds = threshold_at_fpr(scores[labels == 0], weights[:, labels == 0], fpr)
    return share_above(scores[labels == 1], weights[:, labels == 1], thresholds)


def estimate(labels: Labels, scores: Scores, groups: np.ndarray, metric: Metric, weights: Weights) -> Estimate:
    """``metric`` on the rows, with the percentile interval over the replicates of ``weights``."""
    n_groups = len(np.unique(groups))
    if len(labels) == 0 or len(np.unique(labels)) < 2:
        return Estimate(None, None, None, len(labels), n_groups)
    value = metric(labels, scores, np.ones((1, len(labels))))[0]
    if np.isnan(value):
        return Estimate(None, None, None, len(labels), n_groups)
    return _with_interval(value, metric(labels, scores, weights), len(labels), n_groups)


def difference(
    labels: Labels, scores: tuple[Scores, Scores], groups: np.ndarray, metric: Metric, weights: Weights
) -> Estimate:
    """Paired difference of a metric, first minus second, on the same rows and replicates."""
    ones = np.ones((1, len(labels)))
    first, second = scores
    value = metric(labels, first, ones) - metric(labels, second, ones)
    replicates = metric(labels, first, weights) - metric(labels, second, weights)
    return _with_interval(value[0], replicates, len(labels), len(np.unique(groups)))


def rate(values: Scores, groups: np.ndarray, weights: Weights) -> Estimate:
    """Mean of ``values`` (0/1: a rate), with the percentile interval over the replicates of ``weights``.

    Where all values agree, no replicate differs: the interval is then the exact one of as many trials as there are
    groups (Clopper and Pearson 1934, doi 10.1093/biomet/26.4.404). Everything is null without rows.
    """
    if not len(values):
        return Estimate(None, None, None, 0, 0)
    total = np.maximum(weights.sum(1), 1e-12)
    replicates = np.where(weights.sum(1) > 0, weights @ values / total, np.nan)
    estimate = _with_interval(float(np.mean(values)), replicates, len(values), len(np.unique(groups)))
    if estimate.value not in (0.0, 1.0):
        return estimate
    n = estimate.n_groups
    low, high = scipy.stats.binomtest(n if estimate.value else 0, n).proportion_ci(method="exact")
    return estimate._replace(low=float(low), high=float(high))


def _with_interval(value: float, replicates: np.ndarray, n: int, n_groups: int) -> Estimate:
    low, high = np.nanpercentile(replicates, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high), n, n_groups)


def t_interval(values: Float[np.ndarray, " n"], alpha: float = 0.05) -> Estimate:
    """Mean of independent values (such as one per seed) with a 1 − ``alpha`` Student t interval; none from a single
    value."""
    n = len(values)
    if n < 2:
        return Estimate(float(values[0]) if n else None, None, None, n, n)
    half = scipy.stats.t.ppf(1 - alpha / 2, n - 1) * values.std(ddof=1) / n**0.5
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half), n, n)


def pairs_interval(pairs: Float[np.ndarray, "units units"]) -> Estimate:
    """Mean over pairs of independent units (such as seeds) of a statistic h of two, with a 95 % jackknife interval.

    With θ the mean of h over all pairs and θ₋ᵢ that over the pairs without unit i, the interval is a Student t
    interval of the pseudo-values n θ − (n − 1) θ₋ᵢ, whose mean is θ (Arvesen 1969): pairs that share a unit are not
    independent, so there are n values and not n (n − 1) / 2. None from fewer than three units.

    Args:
        pairs: h of each two units, symmetric; the diagonal is not read.
    """
    n = len(pairs)

    def mean(kept: np.ndarray) -> float:
        return float(pairs[np.ix_(kept, kept)][np.triu_indices(len(kept), 1)].mean())

    if n < 3:
        return Estimate(mean(np.arange(n)) if n == 2 else None, None, None, n // 2, n)
    everything = mean(np.arange(n))
    without = np.array([mean(np.delete(np.arange(n), i)) for i in range(n)])
    return t_interval(n * everything - (n - 1) * without)._replace(n=n * (n - 1) // 2)
