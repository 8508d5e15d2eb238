"""Probes with few, or mislabelled, training prompts."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import joblib
import numpy as np
import pandas as pd
from jaxtyping import Int
from sae_lens import SAE

from lib.base import processes
from lib.probing import ksparse
from lib.probing.on_saes import BEST, K_SPARSE, Basis, Form, Probed, linear
from lib.probing.tasks import Probe, Task
from lib.sae import folders, latents
from lib.stats.metrics import Estimate, Scores, auroc, t_interval

Change = Callable[[np.random.Generator, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
Changes = dict[str, dict[int | float, Change]]  # by what is changed, and its setting
BY = ["probe", "change", "setting", "split"]


@runtime_checkable
class Fittable(Protocol):
    """What can be put under stress: a probe that is fitted anew on some prompts with labels that may be wrong."""

    def fit_scores(self, rows: Int[np.ndarray, " fitted"], y: Int[np.ndarray, " fitted"]) -> Scores:
        """Scores of all prompts from a probe that is fitted on ``rows`` with the labels ``y``."""


class Contender(NamedTuple):
    """A probe of prompts' columns: linear on all of them with inverse L2 strength ``c``, or k-sparse by a
    ``selection``."""

    columns: ksparse.Columns
    k: int | None = None
    c: float | None = None
    selection: str = ksparse.MEAN_DIFFERENCE

    def fit_scores(self, rows: Int[np.ndarray, " fitted"], y: Int[np.ndarray, " fitted"]) -> Scores:
        """Scores of all prompts from a probe that is fitted on ``rows`` with the labels ``y``.

        Few rows leave few columns that vary: a k-sparse probe then takes all of these where they are fewer than k.
        """
        x, training = self.columns, self.columns[rows]
        if self.k is None:
            return linear(x, self.c).fit(training, y).decision_function(x)
        k = min(self.k, len(ksparse.live_columns(training)))
        columns = ksparse.select(training, y, [k], self.selection)[k]
        return ksparse.refit(training, y, columns).decision_function(ksparse.dense(x, columns))


def on_sae(
    sae: SAE, probe: Probe, columns: ksparse.Columns, linear: Contender, pooled: ksparse.Columns, pooling: str
) -> dict[Probe, Contender]:
    """The contenders of one SAE: its k-sparse ``probe`` on ``columns``, under a key that says ``BEST``, and a linear
    probe on its reconstruction from the latents ``pooled`` by ``pooling``, with the strength of ``linear``."""
    sparse = probe._replace(pooling=BEST, selection=BEST)
    of_reconstruction = Probe("reconstruction", pooling, probe.variant, probe.seed)
    return {
        sparse: Contender(columns, k=probe.k, selection=probe.selection),
        of_reconstruction: linear._replace(columns=latents.reconstruction(sae, pooled)),
    }


def on_saes(
    table: pd.DataFrame, probed: Probed, forms: dict[Basis, Form], k: int, linear: Contender, pooling: str
) -> dict[Probe, Contender]:
    """:func:`on_sae` of every SAE of ``table`` (columns variant, seed, folder) whose latents are kept, its k-sparse
    probe in the form that ``forms`` has for it."""
    contenders = {}
    for row in table.itertuples():
        basis = row.variant, None if pd.isna(row.seed) else int(row.seed)
        if basis in probed.of_seeds:
            form, pooled = forms[basis], probed.of_seeds[basis]
            probe = Probe(K_SPARSE, form.pooling, *basis, form.selection, k)
            sae = folders.load(row.folder)
            contenders |= on_sae(sae, probe, pooled[form.pooling], linear, pooled[pooling], pooling)
    return contenders


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


def imbalanced(share: int | float) -> Change:
    """Leave out positives, or negatives, until positives are a share of the training prompts; by whole base prompts,
    whose prompts of the class that is kept whole stay.

    Raises:
        ValueError: a share that leaves no class.
    """
    if not 0 < share < 1:
        raise ValueError(f"a share {share} of positives leaves one class; it must lie between 0 and 1")

    def change(rng, rows, y, groups):
        n_positives, n_negatives = (y == 1).sum(), (y == 0).sum()
        wanted = {1: n_negatives * share / (1 - share), 0: n_positives * (1 - share) / share}
        thinned = int(n_positives > wanted[1])
        keep = fewer(max(1, round(wanted[thinned])))
        part = y == thinned
        kept, _ = keep(rng, np.flatnonzero(part), y[part], groups[part])
        places = np.sort(np.concatenate([np.flatnonzero(~part), kept]))
        return rows[places], y[places]

    return change


def _aurocs(prompts: pd.DataFrame, scores: Scores) -> Iterator[tuple[str, float]]:
    for split in ("val", "ood"):
        part = (prompts["split"] == split).to_numpy()
        y = prompts["label"].to_numpy()[part]
        if len(np.unique(y)) == 2:
            yield split, auroc(y, scores[part], np.ones((1, part.sum())))[0]


def sweep(
    prompts: pd.DataFrame, contenders: dict[str, Fittable], changes: Changes, draws: int, seed: int
) -> pd.DataFrame:
    """AUROC of each probe under each change of the training rows, mean and 95 % t interval over draws.

    A row for each probe, change, setting and split. All probes see the same draws. A draw in which a class is missing
    is left out and counted in ``missing``. There is no interval where all draws are the same (all prompts, no label
    flipped).
    """
    task = Task.of(prompts)
    rows = np.flatnonzero(task.train)
    places, calls, missing = [], [], Counter()
    first_call = {}  # by what was drawn: equal draws (all prompts, no label flipped) are fitted once
    cells = [(what, setting, change) for what, of_one in changes.items() for setting, change in of_one.items()]
    for (what, setting, change), draw in itertools.product(cells, range(draws)):
        kept, y = change(np.random.default_rng([seed, draw]), rows, task.y[rows], task.groups[rows])
        if len(np.unique(y)) < 2:
            missing[what, setting] += 1
            continue
        first = first_call.setdefault((kept.tobytes(), y.tobytes()), len(calls))
        if first == len(calls):
            calls += [joblib.delayed(contender.fit_scores)(kept, y) for contender in contenders.values()]
        places += [(name, what, setting, first + i) for i, name in enumerate(contenders)]
    of_calls = [list(_aurocs(prompts, scores)) for scores in processes.parallel(len(calls))(calls)]
    areas = [(*cell, split, area) for *cell, i in places for split, area in of_calls[i]]
    table = pd.DataFrame(areas, columns=[*BY, "auroc"])
    rows = [
        dict(zip(BY, of_cell)) | {"missing": missing[of_cell[1:3]]} | _over_draws(part["auroc"].to_numpy())._asdict()
        for of_cell, part in table.groupby(BY, sort=False)
    ]
    return pd.DataFrame(rows, columns=[*BY, "missing", *Estimate._fields])


def _over_draws(values: np.ndarray) -> Estimate:
    estimate = t_interval(values)
    return estimate if np.ptp(values) else estimate._replace(low=None, high=None)
