"""Bootstrap draws kept as a table, so that means over seeds, differences and shares of a gap share their replicates.

A table of draws has a row per probe and split, its dimensions as index levels, and 1 + B columns: the metric on the
rows themselves, then on B replicates over base prompts (``lib.stats.metrics``), the same replicates for every probe.
"""

import numpy as np
import pandas as pd

from lib.stats.metrics import Metric, Scores, SplitWeights, auroc


def table(prompts: pd.DataFrame, scores: dict[tuple, Scores], names: list[str], weights: SplitWeights, metric: Metric = auroc) -> pd.DataFrame:
    """Draws of a metric for every key of ``scores`` (levels ``names``) and every split with both classes."""
    rows, index = [], []
    for split, replicates in weights.items():
        part = (prompts["split"] == split).to_numpy()
        y = prompts["label"].to_numpy()[part]
        if len(np.unique(y)) < 2:
            continue
        with_value = np.concatenate([np.ones((len(y), 1), dtype=np.float32), replicates.T], axis=1).T
        for key, score in scores.items():
            rows.append(metric(y, score[part], with_value))
            index.append((*key, split))
    return pd.DataFrame(np.array(rows), index=pd.MultiIndex.from_tuples(index, names=[*names, "split"]))


def over_seeds(draws: pd.DataFrame, seed: int, bounds: tuple[float, float] = (0.0, 1.0)) -> pd.DataFrame:
    """Means over the level ``seed``; every replicate also gets seed noise, and stays within ``bounds``.

    The noise of a row is (s/√n)·t: s the standard deviation over its n seeds in the first column, t from Student's
    distribution with n − 1 degrees, independent between rows. A bootstrap of few seeds would be too narrow: with three
    it never leaves their range. With one seed nothing is added.
    """
    levels = [name for name in draws.index.names if name != "seed"]
    rng = np.random.default_rng(seed)
    parts, index = [], []
    for key, part in draws.groupby(level=levels, sort=False, dropna=False):
        values, n = part.to_numpy(), len(part)
        mean = values.mean(0)
        if n > 1:
            noise = rng.standard_t(n - 1, size=values.shape[1] - 1)
            mean[1:] = (mean[1:] + values[:, 0].std(ddof=1) / n**0.5 * noise).clip(*bounds)
        parts.append(mean)
        index.append(key)
    return pd.DataFrame(np.array(parts), index=pd.MultiIndex.from_tuples(index, names=levels))


def gap_closed(after: np.ndarray, before: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Share of the gap between the dense probe and the first SAE that another SAE closes, (after − before) / (dense − before).

    NaN in replicates without a gap (dense not above before).
    """
    gap = dense - before
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gap > 0, (after - before) / gap, np.nan)


def paired(draws: pd.DataFrame, level: str, reference: str) -> pd.DataFrame:
    """Each row minus the row that differs in ``level`` only, where it is ``reference``: replicates are paired."""
    first = draws.xs(reference, level=level)
    others = draws[draws.index.get_level_values(level) != reference]
    return others - first.reindex(others.index.droplevel(level)).to_numpy()


def estimates(draws: pd.DataFrame) -> pd.DataFrame:
    """One row per index entry: its levels, ``value``, and the 95 % percentile interval ``low``, ``high``.

    The interval is null where more than 2.5 % of the replicates are undefined.
    """
    values = draws.to_numpy(dtype=np.float64)
    undefined = np.isnan(values[:, 1:]).mean(1) > 0.025
    bounds = np.nanpercentile(values[:, 1:], [2.5, 97.5], axis=1) if len(values) else np.empty((2, 0))
    low, high = (np.where(undefined, np.nan, bound) for bound in bounds)
    return draws.index.to_frame(index=False).assign(value=values[:, 0], low=low, high=high)
