"""Means over two samples that cross, such as artefacts and draws of a data set, with an interval over both."""

import numpy as np
import pandas as pd
from jaxtyping import Float

from lib.stats.draws import Draws


def means(
    tables: Float[np.ndarray, "rows units repeats"], dimensions: pd.DataFrame, replicates: int, seed: int
) -> Draws:
    """The mean of each table, and of replicates in which units and repeats are drawn with replacement, each for itself.

    All tables share their units, repeats and replicates, so that their differences are paired. ``dimensions`` has a row
    a table. Drawing both is Owen's pigeonhole bootstrap (2007, doi 10.1214/07-AOAS122): its variance is at least that
    of the mean, in whichever of the two the values vary.
    """
    _, n_units, n_repeats = tables.shape
    rng = np.random.default_rng(seed)
    units, repeats = (_counts(n, replicates, rng) for n in (n_units, n_repeats))
    values = np.einsum("bu,tur,br->tb", units, tables, repeats, optimize=True) / (n_units * n_repeats)
    return Draws(dimensions.reset_index(drop=True), values)


def _counts(n: int, replicates: int, rng: np.random.Generator) -> Float[np.ndarray, "replicates_plus_1 n"]:
    """How often each of n members is drawn: once in the sample itself, which is first, then in the replicates."""
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=replicates)
    return np.concatenate([np.ones((1, n)), drawn])
