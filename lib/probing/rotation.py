"""Every wrapper held out of training in turn, so that there are as many out-of-distribution numbers as wrappers."""

from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
from jaxtyping import Bool

from lib.base import processes
from lib.probing.stress import Contender, fit_scores
from lib.probing.tasks import Probe
from lib.stats import metrics
from lib.stats.draws import Draws
from lib.stats.metrics import Scores

SPLIT = "rotation"  # stands for a split in tables of results
N_PARTS = 2  # of the base prompts, of which each is tested by a probe of the others


class Fold(NamedTuple):
    """A wrapper, and which prompts a probe that has never seen it is fitted and tested on."""

    wrapper: str
    train: Bool[np.ndarray, " prompts"]
    test: Bool[np.ndarray, " prompts"]


def folds(prompts: pd.DataFrame, kinds: pd.Series, seed: int) -> list[Fold]:
    """The folds of a rotation over all wrappers of a prompt table (``kinds``: ``lib.texts.datasets.kind``).

    A wrapper of the training and validation prompts is held out with one part of their base prompts: the probe sees the
    other part, in the other wrappers. A wrapper of the OOD prompts is tested by a probe of all training and validation
    prompts. What a wrapper is tested on says :func:`lib.stats.metrics.wrapper_rows`. A fold that would train or test on
    one class only is left out, and without wrappers there is none.
    """
    is_ood = (prompts["split"] == "ood").to_numpy()
    part = _parts(prompts, seed)
    made = []
    for wrapper in prompts.loc[kinds != "plain", "transform"].unique():
        is_wrapped = (prompts["transform"] == wrapper).to_numpy()
        if is_ood[is_wrapped].all():
            made.append(Fold(wrapper, ~is_ood, _tested(prompts, kinds, wrapper, is_ood)))
            continue
        for held in range(N_PARTS):
            is_held = ~is_ood & (part == held)
            kept = ~is_ood & (part != held) & ~is_wrapped
            made.append(Fold(wrapper, kept, _tested(prompts, kinds, wrapper, is_held)))
    y = prompts["label"].to_numpy()
    return [fold for fold in made if all(len(np.unique(y[rows])) == 2 for rows in (fold.train, fold.test))]


def _parts(prompts: pd.DataFrame, seed: int) -> np.ndarray:
    """The part of each prompt's base prompt; every source is spread evenly over the parts."""
    base = prompts.drop_duplicates("base_id").sample(frac=1, random_state=seed)
    part = base.groupby("source").cumcount() % N_PARTS
    return prompts["base_id"].map(dict(zip(base["base_id"], part, strict=True))).to_numpy()


def _tested(prompts: pd.DataFrame, kinds: pd.Series, wrapper: str, among: np.ndarray) -> np.ndarray:
    rows = np.zeros(len(prompts), dtype=bool)
    rows[among] = metrics.wrapper_rows(prompts[among], kinds[among])[wrapper]
    return rows


class Rotated(NamedTuple):
    """Scores of the prompts of all folds: a row for each fold and prompt that it tests.

    Attributes:
        prompts: label, base_id, split (``SPLIT``), wrapper and fold of each row.
        scores: of each row, by probe.
    """

    prompts: pd.DataFrame
    scores: dict[Probe, Scores]

    def parts(self) -> dict[str, list[np.ndarray]]:
        """The rows of each wrapper, a set for each of its folds."""
        return {
            wrapper: [(self.prompts["fold"] == fold).to_numpy() for fold in rows["fold"].unique()]
            for wrapper, rows in self.prompts.groupby("wrapper", sort=False)
        }

    def draws(self, replicates: int, seed: int) -> Draws:
        """Draws of the mean AUROC within wrapper, over base prompts and wrappers (:func:`lib.stats.metrics.within`)."""
        weights = metrics.split_weights(self.prompts, replicates, seed)
        return Draws.of(self.prompts, self.scores, weights, metrics.within(self.parts(), seed))

    def by_wrapper(self, replicates: int, seed: int) -> pd.DataFrame:
        """AUROC of each probe in each wrapper, with the interval over base prompts; a row for each seed of an SAE."""
        tables = []
        for wrapper, sets in self.parts().items():
            rows = np.any(sets, axis=0)
            of_wrapper = self.prompts[rows].reset_index(drop=True)
            scores = {probe: of_all[rows] for probe, of_all in self.scores.items()}
            metric = metrics.within({wrapper: [part[rows] for part in sets]}, seed)
            weights = metrics.split_weights(of_wrapper, replicates, seed)
            tables.append(Draws.of(of_wrapper, scores, weights, metric).estimates().assign(wrapper=wrapper))
        return pd.concat(tables, ignore_index=True)


def rotate(prompts: pd.DataFrame, folds: list[Fold], contenders: dict[Probe, Contender]) -> Rotated:
    """Fit every contender on each fold's training prompts and score its test prompts.

    Raises:
        ValueError: no fold.
    """
    if not folds:
        raise ValueError("no prompt stands in a wrapper, so none can be held out")
    y = prompts["label"].to_numpy()
    tables = [
        prompts.loc[fold.test, ["base_id", "label"]].assign(split=SPLIT, wrapper=fold.wrapper, fold=number)
        for number, fold in enumerate(folds)
    ]
    calls = [joblib.delayed(_test_scores)(contender, fold, y) for contender in contenders.values() for fold in folds]
    parts = iter(processes.parallel(len(calls))(calls))
    scores = {probe: np.concatenate([next(parts) for _ in folds]) for probe in contenders}
    return Rotated(pd.concat(tables, ignore_index=True), scores)


def _test_scores(contender: Contender, fold: Fold, y: np.ndarray) -> Scores:
    rows = np.flatnonzero(fold.train)
    return fit_scores(contender, rows, y[rows])[fold.test]
