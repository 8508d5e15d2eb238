"""Probes that read every token of a prompt's turn, trained end to end through an aggregation of the tokens' scores.

A token's score is s_t = w·z_t + b, z_t its activations standardised over the tokens of the training prompts; an entry
of ``aggregations.AGGREGATIONS`` makes a prompt's score of them.
"""

from collections.abc import Iterable
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sklearn.model_selection import GroupShuffleSplit
from torch import Tensor

from lib.base import processes
from lib.model.activations import MappedTokens, PromptTokens
from lib.probing import aggregations
from lib.probing.aggregations import Option
from lib.probing.tasks import Task
from lib.probing.token_training import Bank, Batch, Block, Setting, Standardiser, batches, train
from lib.stats.metrics import Labels, Scores, auroc


class Inputs(NamedTuple):
    """What a token probe may read: the tokens of all prompts, and the task, in the same order."""

    tokens: PromptTokens
    task: Task


class Grid(NamedTuple):
    """The settings that are tried, and how each is trained.

    Attributes:
        learning_rates: of AdamW.
        weight_decays: of AdamW: a step takes the share learning rate × weight decay off a weight.
        options: the values of an aggregation's own hyperparameter that are tried, by its name, where they are not to
            be ``Aggregation.values``.
        epochs: the most passes over the training prompts.
        patience: training ends once no setting's held AUROC has risen for so many epochs.
        batch_prompts: prompts in a batch.
        held_share: the share of the training split's base prompts on which the choice is made.
    """

    learning_rates: tuple[float, ...] = (1e-2, 3e-2)
    weight_decays: tuple[float, ...] = (1e-2, 1.0)
    options: dict[str, tuple[Option, ...]] = {}
    epochs: int = 20
    patience: int = 4
    batch_prompts: int = 64
    held_share: float = 0.2

    def blocks(self, names: Iterable[str]) -> tuple[Block, ...]:
        """The settings of the aggregations of these names.

        Raises:
            ValueError: an unknown aggregation, or a value out of its range.
        """
        entries = aggregations.named(names)
        self._check(entries)
        return tuple(
            Block(name, tuple(Setting(r, decay, value) for r in self.learning_rates for decay in self.weight_decays))
            for name, entry in entries.items()
            for value in self.options.get(name, entry.values)
        )

    def _check(self, entries: dict[str, aggregations.Aggregation]) -> None:
        if not entries:
            raise ValueError(f"no aggregation is given; allowed are {', '.join(aggregations.AGGREGATIONS)}")
        for name, values, is_allowed, allowed in (
            ("learning_rates", self.learning_rates, lambda v: v > 0, "above 0"),
            ("weight_decays", self.weight_decays, lambda v: v >= 0, "0 or more"),
            ("epochs", (self.epochs,), lambda v: v >= 1, "1 or more"),
            ("patience", (self.patience,), lambda v: v >= 1, "1 or more"),
            ("batch_prompts", (self.batch_prompts,), lambda v: v >= 1, "1 or more"),
            ("held_share", (self.held_share,), lambda v: 0 < v < 1, "between 0 and 1"),
        ):
            if not values or not all(map(is_allowed, values)):
                raise ValueError(f"{name} {values} must be {allowed}")
        for name, values in self.options.items():
            entry = aggregations.named([name])[name]
            if entry.option is None:
                raise ValueError(f"the aggregation {name!r} has no hyperparameter of its own, so not {values}")
            if not values or not all(entry.allows(value) for value in values):
                raise ValueError(f"{entry.option} {values} of {name!r} must be {entry.allowed}")


class Fitted(NamedTuple):
    """A trained token probe.

    Attributes:
        setting: the chosen one.
        held_auroc: its AUROC on the held-out training prompts, for which it was chosen.
        tried: a row for every setting, with its best number of epochs and the held AUROC after those.
        weights: of the projections, on standardised tokens.
        scores: of all prompts.
    """

    name: str
    setting: Setting
    held_auroc: float
    tried: pd.DataFrame
    weights: Float[Tensor, "projections d_model"]
    bias: Float[Tensor, ""]
    standardiser: Standardiser
    scores: Scores

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations that scoring takes for each token, 2 · projections · d_model.

        Standardising is not counted, which can be folded into the weights, nor are the few operations for each
        projection with which tokens are aggregated.
        """
        return 2 * self.weights.numel()

    def score(self, tokens: PromptTokens, prompts: Int[np.ndarray, " rows"]) -> Scores:
        """Scores of ``prompts``, which are positions in ``tokens``."""
        bank = Bank((Block(self.name, (self.setting,)),), self.weights, self.bias[None])
        return bank.scores(batches(tokens, prompts, self.standardiser))[:, 0]


class Refit(NamedTuple):
    """A token probe of a ``setting`` that was chosen on ``n_prompts`` prompts, to be fitted anew on some of them.

    Equal prompts and labels give equal scores: batches and the weights before training follow from ``seed``.
    """

    mapped: MappedTokens
    name: str
    setting: Setting
    n_prompts: int
    seed: int = 0

    def fit_scores(self, rows: Int[np.ndarray, " fitted"], y: Int[np.ndarray, " fitted"]) -> Scores:
        """Scores of all prompts from a probe that is trained on ``rows`` with the labels ``y``.

        Fewer prompts are passed over more often, so that about as many steps are taken as on all.
        """
        tokens = self.mapped.tokens()
        blocks, every = (Block(self.name, (self.setting,)),), np.arange(len(tokens.starts) - 1)
        standardiser = Standardiser.of(tokens, rows)
        labels = np.zeros(len(every), dtype=int)
        labels[rows] = y
        shuffled = np.random.default_rng(self.seed).permutation(rows)
        data = list(batches(tokens, shuffled, standardiser))
        epochs = max(1, round(self.setting.epochs * self.n_prompts / len(rows)))
        *_, bank = train(blocks, data, labels, epochs, self.seed)
        return bank.scores(batches(tokens, every, standardiser))[:, 0]


def steadiest(fitted: Iterable[dict[str, Fitted]], tokens: PromptTokens, n_prompts: int, seed: int) -> Refit:
    """The aggregation of the best mean held AUROC over the seeds of ``fitted``, with the setting of the first seed."""
    of_seeds = list(fitted)
    held = {name: np.mean([of_seed[name].held_auroc for of_seed in of_seeds]) for name in of_seeds[0]}
    name = max(held, key=held.get)
    return Refit(MappedTokens.of(tokens), name, of_seeds[0][name].setting, n_prompts, seed)


def fit_seeds(inputs: Inputs, names: Iterable[str], grid: Grid, seeds: Iterable[int]) -> dict[int, dict[str, Fitted]]:
    """:func:`fit_all` with each seed, on all cores."""
    seeds, about = list(seeds), (MappedTokens.of(inputs.tokens), inputs.task, list(names), grid)
    calls = [joblib.delayed(_fit_mapped)(*about, seed) for seed in seeds]
    return dict(zip(seeds, processes.parallel(len(calls))(calls), strict=True))


def _fit_mapped(mapped: MappedTokens, task: Task, names: list[str], grid: Grid, seed: int) -> dict[str, Fitted]:
    return fit_all(Inputs(mapped.tokens(), task), names, grid, seed)


def fit_all(inputs: Inputs, names: Iterable[str], grid: Grid, seed: int) -> dict[str, Fitted]:
    """A token probe for each aggregation of ``names``, fitted on the training split, with scores of all prompts.

    A share of the training split's *base prompts* is held out, with all their variants. Every setting is trained on
    the other training prompts, and that of highest AUROC on the held ones is chosen, with its number of epochs (of
    equals, that of fewest epochs). With these the probe is trained anew on all training prompts
    (:func:`token_training.train`). The labels of other prompts are never read. ``seed`` decides which base prompts are
    held out, the batches and their order, and the weights before training, so that equal seeds give equal scores.

    Raises:
        ValueError: an unknown aggregation, a value out of its range, a class missing among the training prompts held
            out or among the others, or a prompt whose turn has no token.
    """
    tokens, (y, is_training, groups, *_) = inputs
    blocks = grid.blocks(names)
    training = np.flatnonzero(is_training)
    inner, held = _split(training, y, groups, grid.held_share, seed)
    standardiser = Standardiser.of(tokens, training)
    of_inner, of_held = (list(batches(tokens, part, standardiser, grid.batch_prompts)) for part in (inner, held))
    held_aurocs = _held_aurocs(train(blocks, of_inner, y, grid.epochs, seed), of_held, y[held], grid.patience)
    tried = _trials(blocks, held_aurocs)
    chosen = {name: max(trials, key=_preference) for name, trials in tried.items()}
    final = tuple(Block(name, (trial.setting,)) for name, trial in chosen.items())
    most = max(trial.setting.epochs for trial in chosen.values())
    trained = {}
    for epoch, bank in enumerate(train(final, of_inner + of_held, y, most, seed), 1):
        ready = [i for i, block in enumerate(final) if block.settings[0].epochs == epoch]
        trained |= {final[i].name: bank.probe(i) for i in ready}
    scores = _join(final, trained).scores(batches(tokens, np.arange(len(y)), standardiser))
    return {
        name: Fitted(name, *trial, _table(tried[name]), *trained[name], standardiser, of_prompts)
        for (name, trial), of_prompts in zip(chosen.items(), scores.T, strict=True)
    }


def _join(blocks: tuple[Block, ...], trained: dict[str, tuple[Tensor, Tensor]]) -> Bank:
    """One bank of separately kept probes, a block each."""
    weights, biases = zip(*(trained[block.name] for block in blocks), strict=True)
    return Bank(blocks, torch.cat(weights), torch.stack(biases))


def _split(
    training: Int[np.ndarray, " training"], y: Labels, groups: np.ndarray, share: float, seed: int
) -> tuple[Int[np.ndarray, " inner"], Int[np.ndarray, " held"]]:
    """Training prompts for training, in random order, and those held out; a base prompt's variants stay together."""
    n_groups = len(np.unique(groups[training]))
    if n_groups < 2:
        raise ValueError(f"{n_groups} base prompts in the training split are too few; 2 are the least")
    splitter = GroupShuffleSplit(1, test_size=share, random_state=seed)
    inner, held = (training[rows] for rows in next(splitter.split(training, groups=groups[training])))
    for part, name in ((inner, "for training"), (held, "held out")):
        if len(np.unique(y[part])) < 2:
            raise ValueError(f"prompts {name} have labels {np.unique(y[part])} only, and must have both; give more")
    return np.random.default_rng(seed).permutation(inner), held


def _held_aurocs(
    banks: Iterable[Bank], held: list[Batch], y: Labels, patience: int
) -> Float[np.ndarray, "epochs probes"]:
    """Held AUROC of every probe after every epoch, until none has risen for ``patience`` epochs."""
    ones, history = np.ones((1, len(y))), []
    for bank in banks:
        history.append([auroc(y, scores, ones)[0] for scores in bank.scores(held).T])
        if len(history) > patience and not (
            np.max(history[-patience:], axis=0) > np.max(history[:-patience], axis=0)
        ).any():
            break
    return np.array(history)


class _Trial(NamedTuple):
    """A setting, with its best number of epochs, and the held AUROC after those."""

    setting: Setting
    held_auroc: float


def _preference(trial: _Trial) -> tuple[float, int]:
    return trial.held_auroc, -trial.setting.epochs


def _trials(blocks: tuple[Block, ...], held_aurocs: Float[np.ndarray, "epochs probes"]) -> dict[str, list[_Trial]]:
    """What came of every setting, by aggregation."""
    trials, of_probes = {block.name: [] for block in blocks}, iter(held_aurocs.T)
    for block in blocks:
        for setting in block.settings:
            of_probe = next(of_probes)
            best = int(of_probe.argmax())
            trials[block.name].append(_Trial(setting._replace(epochs=best + 1), float(of_probe[best])))
    return trials


def _table(trials: list[_Trial]) -> pd.DataFrame:
    return pd.DataFrame([trial.setting._asdict() | {"held_auroc": trial.held_auroc} for trial in trials])


def table_of_choices(fitted: dict[str, Fitted]) -> pd.DataFrame:
    """A row for every aggregation: the chosen setting, its held AUROC, and what scoring a token takes."""
    return pd.DataFrame([
        {"aggregation": name, "hyperparameter": aggregations.AGGREGATIONS[name].option}
        | probe.setting._asdict()
        | {"held_auroc": probe.held_auroc, "flops_per_token": probe.flops_per_token}
        for name, probe in fitted.items()
    ])
