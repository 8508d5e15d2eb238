"""Comparisons at equal L0: what a variant's SAEs have at the same L0s, differences of it, and distances of histograms.

Frequent latents, their share of all firings and FVU depend on L0, so that SAEs of unequal L0 say nothing about their
architectures. A curve of one variant and seed is read at given L0s, linearly in log L0 between its two nearest SAEs.
"""

import itertools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from lib.results import tables
from lib.sae import folders
from lib.sae.comparison import BASELINE, frequency_of, quadratic_frequency
from lib.stats.metrics import Estimate, pairs_interval, t_interval
from lib.stats.verdicts import ALPHA, holm_t_intervals

OF_ROWS = ["metric", "variant", "against", *Estimate._fields, "alpha", "unit"]
LEAST_FREQUENT = "gated"  # the variant that has no frequent latents in the paper
SAME_L0 = 1.05  # ratio of the L0s of SAEs whose histograms are compared, at most


class Measure(NamedTuple):
    """A column of a grid's table that depends on L0, and its unit."""

    column: str
    unit: str


FVU = Measure("fvu", "fraction of variance")
FREQUENT_MASS = Measure("high_frequency_mass", "share of active latents")
MASS_ABOVE_MEAN = Measure("mass_above_10x_mean", "share of active latents")
# Metric of a record's row -> what it is of each variant.
OF_VARIANT = {
    "fvu_at_matched_l0": FVU,
    "frequent_mass_at_matched_l0": FREQUENT_MASS,
    "mass_above_10x_mean_at_matched_l0": MASS_ABOVE_MEAN,
    "weighted_frequency_at_matched_l0": Measure("weighted_frequency", "fraction of tokens"),
    "high_frequency": Measure("high_frequency", "latents"),
}


def inner_l0s(targets: list[int | float]) -> list[int | float]:
    """The targets but for the least and the largest, and the geometric mean of each two neighbours, in order.

    Targets at the ends are what SAEs span just, or just not.
    """
    ordered = sorted(targets)
    between = [math.sqrt(a * b) for a, b in itertools.pairwise(ordered)]
    return sorted([*ordered[1:-1], *between])


def at_l0s(
    table: pd.DataFrame, column: str, variant: str, l0s: list[int | float], against: str | None = None
) -> pd.DataFrame:
    """A column of the table at equal L0, or its difference from that of ``against``: a row per seed, a column per L0.

    Curves are interpolated linearly in log L0 within each seed, and never extrapolated: an L0 that one seed's SAEs do
    not span is left out for all seeds, so that every seed's mean is over the same L0s.
    """
    values = _interpolated(table, column, variant, l0s)
    if against is not None:
        others = _interpolated(table, column, against, l0s)
        both = values.index.intersection(others.index)
        values = values.loc[both] - others.loc[both]
    return values.dropna(axis="columns")


def _interpolated(table: pd.DataFrame, column: str, variant: str, l0s: list[int | float]) -> pd.DataFrame:
    """NaN where the SAEs of a seed do not span an L0."""
    values = {}
    for seed, curve in table[table["variant"] == variant].sort_values("l0").groupby("seed"):
        ends = {"left": np.nan, "right": np.nan}
        values[seed] = np.interp(np.log(l0s), np.log(curve["l0"]), curve[column].astype(float), **ends)
    return pd.DataFrame.from_dict(values, orient="index", columns=l0s, dtype=float)


def over_seeds(values: pd.DataFrame) -> Estimate:
    """The mean of :func:`at_l0s` with a 95 % t interval over the seeds' means; n counts values, n_groups seeds.

    Values of one seed at several L0s are not independent. The variance over seeds is that of the variant alone: a
    variance pooled over variants would be too small for some, as that of the frequent mass differs tenfold.
    """
    return t_interval(_seed_means(values))._replace(n=values.size)


def _seed_means(values: pd.DataFrame) -> Float[np.ndarray, " seeds"]:
    return values.mean(axis="columns").to_numpy() if values.size else np.zeros(0)


def of_variants(table: pd.DataFrame, l0s: list[int | float]) -> pd.DataFrame:
    """Each measure of ``OF_VARIANT`` of every variant, a mean over the L0s: rows of a record."""
    rows = []
    for metric, measure in OF_VARIANT.items():
        for variant in table["variant"].unique():
            estimate = over_seeds(at_l0s(table, measure.column, variant, l0s))
            rows.append({"metric": metric, "variant": variant, "unit": measure.unit} | estimate._asdict())
    return _rows(rows)


def differences(
    table: pd.DataFrame, l0s: list[int | float], f0s: list[float], comparators: list[str]
) -> pd.DataFrame:
    """Differences between variants at equal L0, rows of a record:

    - fvu_cost_at_matched_l0 and frequent_mass_change_at_matched_l0, FVU and frequent mass of each variant minus those
      of ``BASELINE``;
    - frequent_mass_difference and mass_above_10x_mean_difference, frequent mass, and mass above ten times the mean
      frequency, of each variant minus those of ``LEAST_FREQUENT``, if that is compared;
    - fvu_cost_over_qf, FVU of each comparator minus that of the QF penalty with the largest of ``f0s``, if there are
      any. The comparators are one family: each interval is at 1 − ``alpha``, its level by Holm's procedure on the
      t-tests over seeds.
    """
    rows = _against(table, l0s, "fvu_cost_at_matched_l0", FVU, BASELINE)
    rows += _against(table, l0s, "frequent_mass_change_at_matched_l0", FREQUENT_MASS, BASELINE)
    rows += _against(table, l0s, "frequent_mass_difference", FREQUENT_MASS, LEAST_FREQUENT)
    rows += _against(table, l0s, "mass_above_10x_mean_difference", MASS_ABOVE_MEAN, LEAST_FREQUENT)
    return _rows(rows + (_over_qf(table, l0s, max(f0s), comparators) if f0s else []))


def _against(table: pd.DataFrame, l0s: list[int | float], metric: str, measure: Measure, against: str) -> list[dict]:
    """A row for every variant but ``against``; none where there is no such variant."""
    variants = list(dict.fromkeys(table["variant"]))
    rows = []
    for variant in [name for name in variants if name != against] if against in variants else []:
        estimate = over_seeds(at_l0s(table, measure.column, variant, l0s, against))
        about = {"metric": metric, "variant": variant, "against": against, "unit": measure.unit}
        rows.append(about | estimate._asdict())
    return rows


def _over_qf(table: pd.DataFrame, l0s: list[int | float], f0: float, comparators: list[str]) -> list[dict]:
    qf = quadratic_frequency(f0)
    values = [at_l0s(table, FVU.column, variant, l0s, qf) for variant in comparators]
    levels, estimates = holm_t_intervals(list(map(_seed_means, values)))
    rows = []
    for variant, of_variant, alpha, estimate in zip(comparators, values, levels, estimates, strict=True):
        about = {"metric": "fvu_cost_over_qf", "variant": variant, "against": qf, "alpha": alpha, "unit": FVU.unit}
        rows.append(about | estimate._replace(n=of_variant.size)._asdict())
    return rows


def _rows(rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame([{"alpha": ALPHA} | row for row in rows], columns=OF_ROWS)


def ks_distance(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " m"]) -> float:
    """Kolmogorov-Smirnov distance max |F₁ − F₂| of two samples' distribution functions; the same for their logarithms.

    A sample without a value is as far from any other as can be.
    """
    points = np.concatenate([first, second])
    shares = (np.searchsorted(np.sort(x), points, side="right") / max(len(x), 1) for x in (first, second))
    return float(np.abs(np.subtract(*shares)).max(initial=0.0))


def distance_of_pairs(
    ours: list[Float[np.ndarray, " d_sae"]], theirs: list[Float[np.ndarray, " d_sae"]]
) -> Float[np.ndarray, "seeds seeds"]:
    """By how much the frequencies of two recipes are farther apart than those of two seeds of one, for each two seeds.

    With D the :func:`ks_distance` of the frequencies of at most 10 % of tokens (latents that never fire come first),

        h_ij = ½ [D(oursᵢ, theirsⱼ) + D(oursⱼ, theirsᵢ)] − D(theirsᵢ, theirsⱼ).

    Seeds differ in both terms, so that h is zero on average where ``ours`` are further draws of ``theirs``.
    """
    ours, theirs = ([x[x <= folders.HIGH_FREQUENCY] for x in samples] for samples in (ours, theirs))
    across = np.array([[ks_distance(a, b) for b in theirs] for a in ours])
    among = np.array([[ks_distance(a, b) for b in theirs] for a in theirs])
    return (across + across.T) / 2 - among


def histogram_distances(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`distance_of_pairs` of every variant from ``BASELINE``: rows of ``histogram_distance_over_seeds``.

    A mean over the sparsities of ``BASELINE`` at which every seed has an SAE of the variant whose L0 is the same but
    for the factor ``SAME_L0``, with a jackknife interval over seeds (:func:`lib.stats.metrics.pairs_interval`). n
    counts pairs of seeds and sparsities. A single seed has no distance between seeds, hence no value.
    """
    frequencies = {folder: frequency_of(folder) for folder in table["folder"]}
    rows = []
    for variant in table.loc[table["variant"] != BASELINE, "variant"].unique():
        distances = []
        for _, theirs in table[table["variant"] == BASELINE].groupby("sparsity", sort=False):
            ours = [_of_same_l0(table[table["variant"] == variant], row.seed, row.l0) for row in theirs.itertuples()]
            if None not in ours:
                samples = ([frequencies[folder] for folder in places] for places in (ours, theirs["folder"]))
                distances.append(distance_of_pairs(*samples))
        estimate = Estimate(None, None, None, 0, 0)
        if distances:
            estimate = pairs_interval(np.mean(distances, axis=0))
        about = {"metric": "histogram_distance_over_seeds", "variant": variant, "against": BASELINE}
        size = {"n": estimate.n * len(distances), "unit": "Kolmogorov-Smirnov distance"}
        rows.append(about | estimate._asdict() | size)
    return _rows(rows)


def _of_same_l0(table: pd.DataFrame, seed: int, l0: float) -> Path | None:
    """The folder of a seed's SAE of nearest L0, None if that is another."""
    of_seed = table[table["seed"] == seed]
    ratio = np.exp(np.log(of_seed["l0"] / l0).abs())
    return of_seed.loc[ratio.idxmin(), "folder"] if (ratio <= SAME_L0).any() else None


# Metric of a row -> how a takeaway speaks of it, {against} being what it is compared with.
WORDS = {
    "frequent_mass_at_matched_l0": "frequent mass {estimate}",
    "frequent_mass_difference": "from {against} {estimate}",
    "fvu_cost_at_matched_l0": "FVU from {against} {estimate}",
    "fvu_cost_over_qf": "FVU from {against} {estimate} (level {alpha:.3g})",
    "histogram_distance_over_seeds": "distance of its histogram {estimate}",
}


def sentences(estimates: pd.DataFrame) -> list[str]:
    """An item of a Markdown list for each variant: what the rows say of it."""
    items = []
    for variant, rows in estimates.groupby("variant", sort=False):
        by_metric = {row.metric: row for row in rows.itertuples()}
        parts = []
        for metric, words in WORDS.items():
            if row := by_metric.get(metric):
                parts.append(words.format(estimate=tables.text(row), against=row.against, alpha=row.alpha))
        items.append(f"- {variant}: {'; '.join(parts)}")
    return items
