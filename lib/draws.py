"""Bootstrap draws kept as a table, so that means over seeds, differences and shares of a gap share their replicates.

A table of draws has a row per probe and split, its dimensions as index levels, and 1 + B columns: the metric on the
rows themselves, then on B replicates over base prompts (``lib.metrics``), the same replicates for every probe.
"""

import numpy as np
import pandas as pd

from lib.metrics import Metric, Scores, SplitWeights, auroc


def table(prompts: pd.DataFrame, scores: dict[tuple, Scores], names: list[str], weights: SplitWeights, metric: Metric = auroc) -> pd.DataFrame:
    """Draws of a metric for every key of ``scores`` (levels ``names``) and every split with both classes."""
    rows, index = [], []
    for split, replicates in weights.items():
        part = (prompts["split"] == split).to_numpy()
        y = prompts["label"].to_numpy()[part]
        if len(np.unique(y)) < 2:
            continue
        with_value = np.concatenate([np.ones((1, len(y)), dtype=np.float32), replicates])
        for key, score in scores.items():
            rows.append(metric(y, score[part], with_value))
            index.append((*key, split))
    return pd.DataFrame(np.array(rows), index=pd.MultiIndex.from_tuples(index, names=[*names, "split"]))


def over_seeds(draws: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Means over the level ``seed``; each replicate also draws the seeds with replacement."""
    levels = [name for name in draws.index.names if name != "seed"]
    parts, index = [], []
    for key, part in draws.groupby(level=levels, sort=False, dropna=False):
        parts.append(resampled_mean(part.to_numpy(), seed))
        index.append(key)
    return pd.DataFrame(np.array(parts), index=pd.MultiIndex.from_tuples(index, names=levels))


def resampled_mean(values: np.ndarray, seed: int) -> np.ndarray:
    """Mean over the rows (seeds) of the first column; in every other column rows are drawn with replacement."""
    n, columns = values.shape
    chosen = np.random.default_rng(seed).integers(n, size=(n, columns))
    chosen[:, 0] = np.arange(n)
    return np.take_along_axis(values, chosen, axis=0).mean(0)


def gap_closed(after: np.ndarray, before: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Share of the gap between the dense probe and the first SAE that another SAE closes, (after − before) / (dense − before).

    NaN in replicates without a gap (dense not above before).
    """
    gap = dense - before
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gap > 0, (after - before) / gap, np.nan)


def estimates(draws: pd.DataFrame) -> pd.DataFrame:
    """One row per index entry: its levels, ``value``, and the 95 % percentile interval ``low``, ``high``."""
    values = draws.to_numpy()
    low, high = np.nanpercentile(values[:, 1:], [2.5, 97.5], axis=1)
    return draws.index.to_frame(index=False).assign(value=values[:, 0], low=low, high=high)
