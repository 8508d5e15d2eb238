"""What a k-sparse probe loses to the dense probe out of distribution (OOD), in parts that add up.

The loss A(dense) − A(k-sparse), both probes trained in distribution, is taken apart by repairs with OOD prompts. Each
repair is fitted on other base prompts than it is tested on (folds over base prompts; every wrapper is in every fold):

    threshold   each wrapper gets a threshold of its own: columns count from the middle of its classes' means
    weights     the same latents, refitted OOD
    latents     the k latents are chosen OOD as well
    number      all latents in the place of k
    decoder     the reconstruction x̂ is read in the place of the latents
    error       the error x − x̂ is read too; with x̂ that is the residual stream x

A part of the k-sparse probe is what its repair gains, a mean over the orders in which they can be made: latents that
are chosen OOD are refitted there, and what no k latents hold is what is left once these are at their best. This is the
Shapley value under precedence constraints (Faigle and Kern 1992, doi 10.1007/BF01258278). With all repairs made the
probe is the dense one, refitted OOD, wrapper by wrapper. The dense probe gains from the first two as well; its gains
are subtracted, so that the parts say what the k-sparse probe loses *beyond* it, and their sum is the loss.
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Float, Int
from sklearn.model_selection import StratifiedGroupKFold

from lib.base import processes
from lib.probing import ksparse
from lib.probing.on_saes import tuned_linear
from lib.probing.stress import Contender
from lib.probing.tasks import Task
from lib.stats.draws import Draws
from lib.stats.metrics import Scores, SplitWeights

PARTS = THRESHOLD, WEIGHTS, LATENTS, NUMBER, DECODER, ERROR = (
    "threshold",
    "weights",
    "latents",
    "number",
    "decoder",
    "error",
)
LOSS = "loss"
REPAIRS = (  # for captions
    "What a part repairs: threshold: each jailbreak gets its own; weights: the same latents refitted; latents: chosen "
    "anew as well; number: all latents in the place of k; decoder: the reconstruction is read in their place; error: "
    "what the dictionary leaves out is read too."
)
AFTER = {LATENTS: {WEIGHTS}, NUMBER: {THRESHOLD, LATENTS}, DECODER: {NUMBER}, ERROR: {NUMBER}}
DENSE_PARTS = (THRESHOLD, WEIGHTS)
BEST_OF_K = frozenset({THRESHOLD, WEIGHTS, LATENTS})
N_FOLDS = 5

Repairs = frozenset[str]  # those that have been made


class Readable(NamedTuple):
    """What the probes of one dictionary read of all prompts: the pooled latents under a k-sparse probe, how many of
    them, how they are chosen, and reconstruction and residual stream under the dense probe's pooling."""

    latents: ksparse.Columns
    k: int
    selection: str
    reconstruction: Float[np.ndarray, "prompts d_model"]
    resid: Float[np.ndarray, "prompts d_model"]

    def views(self) -> dict[str, np.ndarray]:
        """Reconstruction and error, which add to the residual stream."""
        return {"reconstruction": self.reconstruction, "error": self.resid - self.reconstruction}


class Repaired(NamedTuple):
    """The key of a probe with some repairs made; ``variant`` is None for the dense one."""

    variant: str | None
    repairs: Repairs

    def columns(self) -> dict[str, Any]:
        """Dimensions by name."""
        return {"variant": self.variant, "repairs": self.repairs}


def orders(parts: tuple[str, ...] = PARTS) -> list[tuple[str, ...]]:
    """Every order of ``parts`` in which none comes before one that it needs (``AFTER``)."""
    return [
        order
        for order in itertools.permutations(parts)
        if all(AFTER.get(part, set()) & set(parts) <= set(order[:place]) for place, part in enumerate(order))
    ]


class Folds(NamedTuple):
    """Folds over the base prompts of a split.

    Attributes:
        y: labels of all prompts.
        wrapper: number of the wrapper whose threshold a prompt shares.
        parts: rows to fit on and rows to test, of each fold.
    """

    y: Int[np.ndarray, " prompts"]
    wrapper: Int[np.ndarray, " prompts"]
    parts: list[tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]]

    @classmethod
    def of(cls, prompts: pd.DataFrame, split: str, seed: int) -> "Folds":
        """``N_FOLDS`` folds, in which wrappers and classes have like shares.

        A jailbreak has its own threshold. Plain prompts share theirs with all wrappers in which one class stands alone:
        in an innocuous wrapper every prompt is harmless, and a threshold of its own would tell the answer.

        Raises:
            ValueError: fewer base prompts of a class than folds, or a fold without a class.
        """
        rows = np.flatnonzero((prompts["split"] == split).to_numpy())
        table = prompts.iloc[rows]
        fewest = table.groupby("label")["base_id"].nunique().min()
        if table["label"].nunique() < 2 or fewest < N_FOLDS:
            raise ValueError(f"{N_FOLDS} folds need as many base prompts of either class; split {split} has {fewest}")
        has_both = table.groupby("transform")["label"].nunique() == 2
        alone = [name for name in has_both.index[has_both] if name != "plain"]
        wrapper = pd.Categorical(prompts["transform"], categories=alone).codes.astype(np.int64)
        strata = table["transform"] + " " + table["label"].astype(str)
        splitter = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=seed)
        parts = [(rows[fitted], rows[tested]) for fitted, tested in splitter.split(rows, strata, table["base_id"])]
        y = prompts["label"].to_numpy()
        if any(len(np.unique(y[part])) < 2 for fold in parts for part in fold):
            raise ValueError(f"a fold of the {len(rows)} prompts of split {split} lacks a class")
        return cls(y, wrapper, parts)

    def scores(self, contender: Contender, own_thresholds: bool) -> Scores:
        """Scores of each fold's prompts from a probe that is fitted on the others; zero for prompts of no fold."""
        scores = np.zeros(len(self.y))
        for fitted, tested in self.parts:
            rows = np.concatenate([fitted, tested])
            x = contender.columns[rows]
            x = self._from_middle(x, fitted, rows) if own_thresholds else x
            within = contender._replace(columns=x)
            scores[tested] = within.fit_scores(np.arange(len(fitted)), self.y[fitted])[len(fitted) :]
        return scores

    def shifted(self, scores: Scores) -> Scores:
        """Scores of a probe that was fitted elsewhere, with thresholds of their own for wrappers."""
        shifted = np.zeros(len(self.y))
        for fitted, tested in self.parts:
            rows = np.concatenate([fitted, tested])
            shifted[tested] = self._from_middle(scores[rows, None], fitted, rows)[len(fitted) :, 0]
        return shifted

    def _from_middle(self, x: ksparse.Columns, fitted: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Columns of ``rows``, of which ``fitted`` are the first, from the middle of their wrapper's class means there:
        a linear probe on them has the threshold w·(μ₁ + μ₀)/2 for each wrapper. One that lacks a class stays as it is.
        """
        x = x.toarray() if scipy.sparse.issparse(x) else x.copy()
        y, wrapper = self.y[fitted], self.wrapper[rows]
        for number in np.unique(wrapper):
            here = wrapper == number
            of_class = [x[: len(fitted)][here[: len(fitted)] & (y == label)] for label in (0, 1)]
            if all(map(len, of_class)):
                x[here] -= (of_class[0].mean(0) + of_class[1].mean(0)) / 2
        return x


def impossible(prompts: pd.DataFrame, split: str) -> str:
    """Why the loss on a split cannot be taken apart; empty if it can."""
    try:
        Folds.of(prompts, split, 0)
    except ValueError as error:
        return str(error)
    return ""


def taken_apart(
    prompts: pd.DataFrame,
    readable: Mapping[str, Readable],
    dense: Contender,
    weights: SplitWeights,
    c_grid: list[float],
    seed: int,
) -> Draws:
    """The loss of each dictionary's k-sparse probe on the split of ``weights``, and its parts: dimensions ``variant``,
    ``part`` (``PARTS`` and ``LOSS``) and ``split``. The arguments are those of :func:`draws`."""
    drawn = draws(prompts, readable, dense, weights, c_grid, seed)
    keys = zip(drawn.dimensions["variant"], drawn.dimensions["repairs"], strict=True)
    values = dict(zip(keys, drawn.values, strict=True))
    [split] = weights
    rows, parts = [], []
    for variant in readable:
        losses = _losses(
            {repairs: draws_of for (whose, repairs), draws_of in values.items() if whose == variant},
            {repairs: draws_of for (whose, repairs), draws_of in values.items() if whose is None},
        )
        rows += [{"variant": variant, "part": part, "split": split} for part in losses]
        parts += list(losses.values())
    return Draws(pd.DataFrame(rows, dtype=object), np.array(parts))


def over_bases(drawn: Draws, variant: str, others: Mapping[str, int], seed: int) -> Draws:
    """The draws of :func:`taken_apart` with the mean over the SAEs of ``variant`` in the place of its first one.

    ``others`` has the seeds of its other SAEs, by the name under which they were taken apart. The spread over these
    seeds is in the replicates of that mean (:meth:`lib.stats.draws.Draws.over_seeds`); other dictionaries, of which
    there is one each, stay as they are. Means of parts still sum to the mean loss; with their noise, replicates do so
    no more.
    """
    of_variant = drawn.where(variant=[variant, *others])
    seeds = of_variant.dimensions["variant"].map({variant: None} | dict(others)).astype(object)
    by_seed = Draws(of_variant.dimensions.assign(variant=variant, seed=seeds), of_variant.values)
    mean = by_seed.over_seeds(seed, bounds=(-1.0, 1.0))
    return mean.joined(drawn.without(variant=[variant, *others]))


def beyond(parts: Draws, variant: str, control: str) -> Draws:
    """Each part of ``variant`` minus that of a dictionary ``control``, which nobody trained; none without it."""
    return parts.where(variant=variant).minus(parts.where(variant=control), ["part", "split"]).defined()


def _losses(sparse: dict[Repairs, np.ndarray], dense: dict[Repairs, np.ndarray]) -> dict[str, np.ndarray]:
    gains = _gains(sparse | {frozenset(PARTS): dense[frozenset(DENSE_PARTS)]}, PARTS)
    of_dense = _gains(dense, DENSE_PARTS)
    losses = {part: gain - of_dense.get(part, 0.0) for part, gain in gains.items()}
    return losses | {LOSS: dense[frozenset()] - sparse[frozenset()]}


def _gains(values: dict[Repairs, np.ndarray], parts: tuple[str, ...]) -> dict[str, np.ndarray]:
    """What each repair gains, a mean over all orders."""
    every = orders(parts)
    gains = dict.fromkeys(parts, 0.0)
    for order in every:
        for place, part in enumerate(order):
            before = frozenset(order[:place])
            gains[part] = gains[part] + (values[before | {part}] - values[before]) / len(every)
    return gains


def draws(
    prompts: pd.DataFrame,
    readable: Mapping[str, Readable],
    dense: Contender,
    weights: SplitWeights,
    c_grid: list[float],
    seed: int,
) -> Draws:
    """AUROC of every dictionary's probe, and of the dense one, after every set of repairs that an order goes through.

    Dimensions ``variant`` (None: the dense probe), ``repairs`` and ``split``. ``dense`` is the probe on ``resid``,
    whose inverse L2 strength the refitted ones on ``resid`` and on reconstructions have. That of probes on all latents
    is chosen on validation, fitted in distribution.

    Raises:
        ValueError: as in :meth:`Folds.of`.
    """
    task, [split] = Task.of(prompts), weights
    folds = Folds.of(prompts, split, seed)
    calls = [joblib.delayed(_dense_scores)(dense, task, folds)]
    calls += [joblib.delayed(_sparse_scores)(of_one, dense, task, folds, c_grid) for of_one in readable.values()]
    by_variant = zip((None, *readable), processes.parallel(len(calls))(calls), strict=True)
    scores = {
        Repaired(variant, repairs): of_all for variant, each in by_variant for repairs, of_all in each.items()
    }
    return Draws.of(prompts, scores, weights)


def _dense_scores(dense: Contender, task: Task, folds: Folds) -> dict[Repairs, Scores]:
    rows = np.flatnonzero(task.train)
    return _as_fitted(dense.fit_scores(rows, task.y[rows]), folds) | _refitted({WEIGHTS}, dense, folds)


def _sparse_scores(
    of_one: Readable, dense: Contender, task: Task, folds: Folds, c_grid: list[float]
) -> dict[Repairs, Scores]:
    """Scores after every set of repairs, short of the residual stream itself."""
    rows = np.flatnonzero(task.train)
    k = min(of_one.k, len(ksparse.live_columns(of_one.latents[rows])))
    sparse = Contender(of_one.latents, k, selection=of_one.selection)
    chosen = ksparse.select(of_one.latents[rows], task.y[rows], [k], of_one.selection)[k]
    scores = _as_fitted(sparse.fit_scores(rows, task.y[rows]), folds)
    scores |= _refitted({WEIGHTS}, Contender(of_one.latents[:, chosen], k), folds)
    scores |= _refitted({WEIGHTS, LATENTS}, sparse, folds)
    live = of_one.latents[:, ksparse.live_columns(of_one.latents)]
    strength = tuned_linear(live, task, c_grid).c
    with_error = np.hstack([scipy.sparse.csr_matrix(live).toarray(), of_one.views()["error"]])
    wide = {
        NUMBER: Contender(live, c=strength),
        DECODER: Contender(of_one.reconstruction, c=dense.c),
        ERROR: Contender(with_error, c=strength),
    }
    for part, contender in wide.items():
        scores[BEST_OF_K | {NUMBER, part}] = folds.scores(contender, own_thresholds=True)
    return scores


def _as_fitted(scores: Scores, folds: Folds) -> dict[Repairs, Scores]:
    return {frozenset(): scores, frozenset({THRESHOLD}): folds.shifted(scores)}


def _refitted(repairs: set[str], contender: Contender, folds: Folds) -> dict[Repairs, Scores]:
    return {
        frozenset(repairs): folds.scores(contender, own_thresholds=False),
        frozenset(repairs | {THRESHOLD}): folds.scores(contender, own_thresholds=True),
    }
