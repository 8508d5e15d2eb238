"""Every wrapper held out of training in turn, so that there are as many out-of-distribution numbers as wrappers; and
every source of harmful prompts."""

import functools
from collections.abc import Collection
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
from jaxtyping import Bool

from lib.base import processes
from lib.probing.stress import Contender
from lib.probing.tasks import Probe
from lib.stats import metrics
from lib.stats.draws import Draws
from lib.stats.metrics import Scores

SPLIT, SOURCE_SPLIT = "rotation", "rotated source"  # stand for a split in tables of results
JAILBREAK_SPLIT = "rotation, jailbreaks"  # the same, of jailbreaks alone
N_PARTS = 2  # of the base prompts, of which each is tested by a probe of the others


class Fold(NamedTuple):
    """The name of a wrapper or a source, and which prompts a probe that has never seen it is fitted and tested on."""

    held_out: str
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
    of_wrappers = []
    for wrapper in prompts.loc[kinds != "plain", "transform"].unique():
        is_wrapped = (prompts["transform"] == wrapper).to_numpy()
        if is_ood[is_wrapped].all():
            of_wrappers.append(Fold(wrapper, ~is_ood, _tested(prompts, kinds, wrapper, is_ood)))
            continue
        for held in range(N_PARTS):
            is_held = ~is_ood & (part == held)
            kept = ~is_ood & (part != held) & ~is_wrapped
            of_wrappers.append(Fold(wrapper, kept, _tested(prompts, kinds, wrapper, is_held)))
    return _with_both_classes(of_wrappers, prompts)


def source_folds(prompts: pd.DataFrame, kinds: pd.Series) -> list[Fold]:
    """The folds of a rotation over the sources of harmful prompts, of two sides: training and validation, and OOD.

    A source is tested by a probe of all prompts of the other side, as it is, without wrappers, beside the plain
    harmless prompts of its own side. A source of both sides is left out, and a fold of one class only.
    """
    is_ood, is_plain = (prompts["split"] == "ood").to_numpy(), (kinds == "plain").to_numpy()
    is_harmful = (prompts["label"] == 1).to_numpy()
    of_sources = []
    for source in prompts.loc[is_harmful, "source"].unique():
        of_source = is_harmful & (prompts["source"] == source).to_numpy()
        sides = np.unique(is_ood[of_source])
        if len(sides) == 1:
            own_side = is_ood == sides[0]
            of_sources.append(Fold(source, ~own_side, own_side & is_plain & (of_source | ~is_harmful)))
    return _with_both_classes(of_sources, prompts)


def _with_both_classes(candidates: list[Fold], prompts: pd.DataFrame) -> list[Fold]:
    y = prompts["label"].to_numpy()
    return [fold for fold in candidates if all(len(np.unique(y[rows])) == 2 for rows in (fold.train, fold.test))]


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
        prompts: label, base_id, split (``SPLIT`` or ``SOURCE_SPLIT``), held_out and fold of each row.
        scores: of each row, by probe.
    """

    prompts: pd.DataFrame
    scores: dict[Probe, Scores]

    def parts(self) -> dict[str, list[np.ndarray]]:
        """The rows of each wrapper (or source), a set for each of its folds."""
        return {
            held_out: [(self.prompts["fold"] == fold).to_numpy() for fold in rows["fold"].unique()]
            for held_out, rows in self.prompts.groupby("held_out", sort=False)
        }

    def draws(self, replicates: int, seed: int, wrappers: Collection[str], split: str = SPLIT) -> Draws:
        """Draws of the mean AUROC within some of the wrappers, over base prompts and these wrappers
        (:func:`lib.stats.metrics.within`); ``split`` is what their dimension says."""
        weights = metrics.split_weights(self.prompts, replicates, seed)
        parts = {wrapper: sets for wrapper, sets in self.parts().items() if wrapper in wrappers}
        drawn = Draws.of(self.prompts, self.scores, weights, metrics.within(parts, seed))
        return Draws(drawn.dimensions.assign(split=split), drawn.values)

    def apart(self, replicates: int, seed: int) -> Draws:
        """Draws of the AUROC in each wrapper (or source) alone, over base prompts, with the dimension ``held_out``."""
        every = []
        for held_out, sets in self.parts().items():
            rows = np.any(sets, axis=0)
            of_one = self.prompts[rows].reset_index(drop=True)
            scores = {probe: of_all[rows] for probe, of_all in self.scores.items()}
            metric = metrics.within({held_out: [part[rows] for part in sets]}, seed)
            drawn = Draws.of(of_one, scores, metrics.split_weights(of_one, replicates, seed), metric)
            every.append(Draws(drawn.dimensions.assign(held_out=held_out), drawn.values))
        return functools.reduce(Draws.joined, every)


def rotate(
    prompts: pd.DataFrame, folds: list[Fold], contenders: dict[Probe, Contender], split: str = SPLIT
) -> Rotated:
    """Fit every contender on each fold's training prompts and score its test prompts.

    Raises:
        ValueError: no fold.
    """
    if not folds:
        raise ValueError("there is no fold: no prompt stands in a wrapper, or no source is on one side only")
    y = prompts["label"].to_numpy()
    tables = [
        prompts.loc[fold.test, ["base_id", "label"]].assign(split=split, held_out=fold.held_out, fold=number)
        for number, fold in enumerate(folds)
    ]
    calls = [joblib.delayed(_test_scores)(contender, fold, y) for contender in contenders.values() for fold in folds]
    parts = iter(processes.parallel(len(calls))(calls))
    scores = {probe: np.concatenate([next(parts) for _ in folds]) for probe in contenders}
    return Rotated(pd.concat(tables, ignore_index=True), scores)


def _test_scores(contender: Contender, fold: Fold, y: np.ndarray) -> Scores:
    rows = np.flatnonzero(fold.train)
    return contender.fit_scores(rows, y[rows])[fold.test]
