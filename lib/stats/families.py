"""Families of comparisons: estimates of bootstrap draws that a claim takes together, at Holm's levels.

A claim that takes several comparisons would find one by chance alone: each gets an interval of 1 − α_i, with α_i from
Holm's procedure (:func:`lib.stats.verdicts.holm_levels`), which stands in the column ``alpha``.
"""

import numpy as np
import pandas as pd
import scipy.stats

from lib.stats.draws import REPLICATES_UNDEFINED, Draws
from lib.stats.verdicts import ALPHA, holm_levels, p_values

REPLICATES = 2000  # of what the scorecard shows, at least


def estimates(draws: Draws, n_units: int | None = None) -> pd.DataFrame:
    """``draws.estimates()`` with intervals at the levels of a family of all rows, and the column ``alpha``.

    ``n_units`` is as in :func:`at_levels`. A row of which more than 2.5 % of the replicates are undefined is no member:
    its interval and its level are null.
    """
    replicates, is_member = draws.values[:, 1:], _is_defined(draws)
    levels = np.full(len(replicates), np.nan)
    if is_member.any():
        p = np.concatenate([p_values(row[None, ~np.isnan(row)]) for row in replicates[is_member]])
        levels[is_member] = holm_levels(p)
    return at_levels(draws, levels, n_units)


def at_levels(draws: Draws, levels: np.ndarray | float = ALPHA, n_units: int | None = None) -> pd.DataFrame:
    """``draws.estimates()`` with the percentile interval of 1 − level of each row, and the column ``alpha``.

    With ``n_units`` units drawn, the percentiles of a bootstrap are too near: the distance of each from the value is
    √(n / (n − 1)) t₁₋α/₂,ₙ₋₁ / z₁₋α/₂ times as long, which gives a mean the width of Student's interval (Hesterberg
    2015, doi 10.1080/00031305.2015.1089789, takes farther percentiles instead, which of few units are the outermost
    replicates). What is judged so lies between −1 and 1, and so do the ends.

    Raises:
        ValueError: fewer than two units, of which nothing can be said of others.
    """
    levels = np.broadcast_to(levels, len(draws.values)).astype(float)
    tail, value = levels / 2, draws.values[:, :1]
    ends = np.full((len(tail), 2), np.nan)
    for i in np.flatnonzero(_is_defined(draws)):
        ends[i] = np.nanquantile(draws.values[i, 1:], [tail[i], 1 - tail[i]])
    if n_units is not None:
        if n_units < 2:
            raise ValueError(f"an interval over {n_units} units is none; it needs two or more")
        wider = np.sqrt(n_units / (n_units - 1)) * scipy.stats.t.isf(tail, n_units - 1) / scipy.stats.norm.isf(tail)
        ends = (value + wider[:, None] * (ends - value)).clip(-1.0, 1.0)
    low, high = ends.T
    return draws.table().assign(low=low, high=high, alpha=levels)


def _is_defined(draws: Draws) -> np.ndarray:
    """Whether so many replicates of a row are defined that it has an interval."""
    return np.isnan(draws.values[:, 1:]).mean(1) <= REPLICATES_UNDEFINED
