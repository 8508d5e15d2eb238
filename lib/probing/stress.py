"""Probes with few, or mislabelled, training prompts."""

from collections.abc import Callable, Iterator

import joblib
import numpy as np
import pandas as pd
import scipy.sparse

from lib.base import processes
from lib.probing import ksparse
from lib.probing.on_saes import Task, linear
from lib.stats.metrics import Estimate, auroc, t_interval

Change = Callable[[np.random.Generator, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def fewer(n_prompts: int) -> Change:
    """Keep whole base prompts, in random order, until ``n_prompts`` prompts are together (0: all)."""

    def change(rng, rows, y, groups):
        names, member = np.unique(groups, return_inverse=True)
        order = rng.permutation(len(names))
        place = np.empty(len(names), dtype=int)
        place[order] = np.arange(len(names))
        ends = np.bincount(place[member]).cumsum()
        kept = place[member] < (np.searchsorted(ends, n_prompts) + 1 if n_prompts else len(names))
        return rows[kept], y[kept]

    return change


def mislabelled(share: int | float) -> Change:
    """Flip the labels of a share of the training prompts, drawn at random."""

    def change(rng, rows, y, groups):
        flipped = y.copy()
        chosen = rng.permutation(len(y))[: round(share * len(y))]
        flipped[chosen] = 1 - flipped[chosen]
        return rows, flipped

    return change


def fit_scores(x: ksparse.Columns, rows: np.ndarray, y: np.ndarray, k: int, c: int | float) -> np.ndarray:
    """Scores of all prompts: a k-sparse probe (mean difference), or for k = 0 a linear probe on all columns."""
    if k == 0:
        return linear(scipy.sparse.issparse(x), c).fit(x[rows], y).decision_function(x)
    k = min(k, len(ksparse.live_columns(x[rows])))
    columns = ksparse.select(x[rows], y, [k], "mean difference")[k]
    return ksparse.refit(x[rows], y, columns).decision_function(ksparse.dense(x, columns))


def _aurocs(prompts: pd.DataFrame, scores: np.ndarray) -> Iterator[tuple[str, float]]:
    for split in ("val", "ood"):
        part = (prompts["split"] == split).to_numpy()
        y = prompts["label"].to_numpy()[part]
        if len(np.unique(y)) == 2:
            yield split, auroc(y, scores[part], np.ones((1, part.sum())))[0]


def sweep(
    prompts: pd.DataFrame, given: Task, probes: dict[str, tuple[ksparse.Columns, int, int | float]], changes: dict[int | float, Change], draws: int, seed: int
) -> pd.DataFrame:
    """AUROC of each probe (columns, k, C) under each change of the training rows, mean and 95 % t interval over draws.

    All probes see the same draws. A draw in which a class is missing is left out and counted in ``missing``. There is
    no interval where all draws are the same (all prompts, no label flipped).
    """
    rows = np.flatnonzero(given.train)
    calls, missing = [], {value: 0 for value in changes}
    for (value, change), draw in ((item, draw) for item in changes.items() for draw in range(draws)):
        kept, y = change(np.random.default_rng([seed, draw]), rows, given.y[rows], given.groups[rows])
        if len(np.unique(y)) < 2:
            missing[value] += 1
            continue
        calls += [(name, value, joblib.delayed(fit_scores)(x, kept, y, k, c)) for name, (x, k, c) in probes.items()]
    scores = processes.parallel(len(calls))(call for *_, call in calls)
    found = [(*of, split, area) for (*of, _), score in zip(calls, scores, strict=True) for split, area in _aurocs(prompts, score)]
    table = pd.DataFrame(found, columns=["probe", "setting", "split", "auroc"])
    return pd.DataFrame([
        dict(zip(("probe", "setting", "split"), key, strict=True)) | _over_draws(part["auroc"].to_numpy())._asdict() | {"missing": missing[key[1]]}
        for key, part in table.groupby(["probe", "setting", "split"], sort=False)
    ])


def _over_draws(values: np.ndarray) -> Estimate:
    found = t_interval(values)
    return found if np.ptp(values) else found._replace(low=None, high=None)
