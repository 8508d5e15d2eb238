"""Means over all latents of an SAE from a sample: drawn by firing frequency, weighted back without bias.

Latents are sorted by frequency and divided into strata of equal *size*, where a latent's size is the mean of its share
of the latents and its share of the firing mass. Every stratum gets the same number of latents drawn: rare latents are
many and drawn seldom, frequent ones are few and drawn often, so that one sample serves both means. Within a stratum a
simple random sample is drawn without replacement, and a latent stands for N_h / n_h of them (Cochran 1977, chapter 5).
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
from jaxtyping import Float, Int

from lib.stats.metrics import Estimate


class Sample(NamedTuple):
    """Chosen latents, and the stratum of every latent (−1: not to be drawn)."""

    latents: Int[np.ndarray, " n"]
    stratum: Int[np.ndarray, " d_sae"]


def draw(
    frequency: Float[np.ndarray, " d_sae"],
    eligible: np.ndarray,
    n: int,
    rng: np.random.Generator,
    per_stratum: int = 5,
) -> Sample:
    """About ``n`` eligible latents (all of them if there are no more), stratified by firing frequency.

    Raises:
        ValueError: no latent is eligible, or fewer than two are wanted.
    """
    members = np.flatnonzero(eligible)
    if not len(members) or n < 2:
        raise ValueError(f"{len(members)} latents can be scored and {n} are wanted; both must be at least 1 and 2")
    order = members[np.argsort(frequency[members], kind="stable")]
    share = frequency[order] / frequency[order].sum()
    size = (1 / len(order) + share) / 2
    n_strata = max(1, min(n // per_stratum, len(order) // 2))
    label = np.minimum((np.cumsum(size) - size / 2) * n_strata, n_strata - 1).astype(int)
    stratum = np.full(len(frequency), -1)
    stratum[order] = label
    groups = [order[label == h] for h in np.unique(label)]
    wanted = _allocate([len(group) for group in groups], n)
    chosen = np.concatenate([rng.permutation(group)[:k] for group, k in zip(groups, wanted, strict=True)])
    return Sample(np.sort(chosen), stratum)


def _allocate(sizes: list[int], n: int) -> list[int]:
    """How many latents of each stratum are drawn: equally many; what a small one cannot give goes to the others."""
    wanted = [0] * len(sizes)
    left = min(n, sum(sizes))
    while left:
        unfilled = [h for h, size in enumerate(sizes) if wanted[h] < size]
        for h in unfilled[:left]:
            more = min(max(1, left // len(unfilled)), sizes[h] - wanted[h], left)
            wanted[h] += more
            left -= more
    return wanted


def estimate(
    scores: pd.Series,
    sample_stratum: Int[np.ndarray, " d_sae"],
    frequency: Float[np.ndarray, " d_sae"],
    weighted: bool,
) -> Estimate:
    """Mean score of the latents that could be drawn, uniform or weighted by firing frequency, with a 95 % interval.

    ``scores`` by latent, of the scored ones. Stratified estimator of Σ w_i s_i / Σ w_i with w = 1 or the frequency; the
    sum below is known. Variance Σ_h N_h² (1 − n_h/N_h) s_h² / n_h, Student's t with Σ (n_h − 1) degrees. A stratum of
    which no latent was scored is joined to its neighbour, one with a single score lends its neighbour's variance.
    Without any score the estimate is None.
    """
    if scores.empty:
        return Estimate(None, None, None, 0, 0)
    scored = scores.index.to_numpy()
    stratum = _joined(sample_stratum, scored)
    weight = frequency if weighted else np.ones_like(frequency)
    total = weight[stratum >= 0].sum()
    value = variance = degrees = 0.0
    for h in np.unique(stratum[stratum >= 0]):
        size = (stratum == h).sum()
        inside = scored[stratum[scored] == h]
        y = scores.loc[inside].to_numpy() * weight[inside] / total
        value += size * y.mean()
        if len(y) > 1:
            variance += size**2 * (1 - len(y) / size) * y.var(ddof=1) / len(y)
            degrees += len(y) - 1
    half = float(scipy.stats.t.ppf(0.975, degrees) * variance**0.5) if degrees else None
    low, high = (None, None) if half is None else (float(value) - half, float(value) + half)
    return Estimate(float(value), low, high, len(scores), len(scores))


def resampled(
    scored: Int[np.ndarray, " n"], sample_stratum: Int[np.ndarray, " d_sae"], replicates: int, rng: np.random.Generator
) -> Float[np.ndarray, "replicates_plus_1 n"]:
    """How many latents each scored one stands for: in the sample (first row), and in replicates of a bootstrap.

    With n_h of the N_h latents of stratum h scored, and k of n_h − 1 drawn with replacement from them,

        w_i = N_h / n_h · (1 − λ + λ k_i n_h / (n_h − 1)),   λ = √(1 − n_h / N_h)

    (Rao and Wu 1988, doi 10.1080/01621459.1988.10478591), so that Σ w_i y_i has the mean and the variance that
    :func:`estimate` has; a plain bootstrap of few latents a stratum would be too narrow. Strata are joined as there.
    Scores that share the weights are compared latent by latent.
    """
    stratum = _joined(sample_stratum, scored)
    weights = np.empty((1 + replicates, len(scored)))
    for h in np.unique(stratum[stratum >= 0]):
        size, inside = (stratum == h).sum(), np.flatnonzero(stratum[scored] == h)
        n = len(inside)
        weights[:, inside] = size / n
        if 1 < n < size:
            step = np.sqrt(1 - n / size)
            drawn = rng.multinomial(n - 1, np.full(n, 1 / n), size=replicates)
            weights[1:, inside] *= 1 - step + step * drawn * n / (n - 1)
    return weights


def partners(
    latents: Int[np.ndarray, " n"],
    frequency: Float[np.ndarray, " d_sae"],
    each: int,
    rng: np.random.Generator,
    size: int = 5,
) -> dict[int, list[int]]:
    """For each of the latents ``each`` others of about its frequency, at random, every one as often as the others.

    The latents are cut by their frequency into bins of about ``size``, at least two; of the others in its bin a latent
    has at most all. A single latent has none, and is left out.
    """
    ordered = latents[np.argsort(frequency[latents], kind="stable")]
    n_bins = max(1, len(ordered) // max(size, 2))
    partners_of = {}
    for members in np.array_split(ordered, n_bins):
        shuffled = rng.permutation(members)
        others = [np.roll(shuffled, step).tolist() for step in range(1, min(each, len(members) - 1) + 1)]
        if others:
            partners_of |= dict(zip(shuffled.tolist(), map(list, zip(*others, strict=True)), strict=True))
    return partners_of


def _joined(stratum: Int[np.ndarray, " d_sae"], scored: Int[np.ndarray, " n"]) -> Int[np.ndarray, " d_sae"]:
    """Strata renumbered so that each holds two scored latents, or all that it has: a short one joins the one below."""
    counts = np.bincount(stratum[scored], minlength=stratum.max() + 1)
    sizes = np.bincount(stratum[stratum >= 0], minlength=stratum.max() + 1)
    enough = (counts >= 2) | ((counts == sizes) & (counts > 0))
    if not enough.any():
        return np.where(stratum >= 0, 0, -1)
    joins = np.maximum.accumulate(np.where(enough, np.arange(len(counts)), -1))
    joins[joins < 0] = np.flatnonzero(enough)[0]  # the lowest ones have none below
    return np.where(stratum >= 0, joins[stratum], -1)


def difference(first: Estimate, second: Estimate) -> Estimate:
    """First minus second, of independent samples: half-widths add in quadrature, and an interval needs both."""
    if None in (first.value, second.value):
        return Estimate(None, None, None, 0, 0)
    value = first.value - second.value
    n, n_groups = first.n + second.n, first.n_groups + second.n_groups
    if None in (first.low, second.low):
        return Estimate(value, None, None, n, n_groups)
    half = np.hypot(first.high - first.value, second.high - second.value)
    return Estimate(value, float(value - half), float(value + half), n, n_groups)
