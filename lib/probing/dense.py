"""Dense probes on the residual stream, and the lexical baseline. They are fitted on the training split only."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, GroupShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from lib.base import processes
from lib.base.files import write_table
from lib.model.activations import PromptTokens
from lib.model.forward import batches
from lib.probing.tasks import Task
from lib.stats.metrics import Scores, SplitWeights, auroc, by_split
from lib.texts.datasets import surface_form

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
N_FOLDS = 4


def search(
    pipeline: Pipeline, y: Int[np.ndarray, " rows"], groups: np.ndarray, c_grid: tuple[float, ...]
) -> GridSearchCV:
    """Search for C by cross-validated AUROC in folds that keep a base prompt's variants together.

    Raises:
        ValueError: fewer groups than two for each fold, or a fold in which a class is missing.
    """
    n_groups = len(np.unique(groups))
    if n_groups < 2 * N_FOLDS or len(np.unique(y)) < 2:
        few = f"{n_groups} base prompts with labels {np.unique(y)}"
        raise ValueError(f"{few} are too few for {N_FOLDS} folds of both classes")
    folds = list(GroupKFold(N_FOLDS, shuffle=True, random_state=0).split(y, y, groups))
    if any(len(np.unique(y[part])) < 2 for fold in folds for part in fold):
        raise ValueError(f"a class is missing in one of {N_FOLDS} folds over base prompts; give more prompts of it")
    grid = {"logisticregression__C": list(c_grid)}
    return GridSearchCV(pipeline, grid, scoring="roc_auc", cv=folds, n_jobs=processes.count(N_FOLDS * len(c_grid)))


def logistic(c: float = 1.0) -> Pipeline:
    """L2 logistic regression of inverse strength ``c`` on standardised columns, not fitted yet."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))


def fit_logistic(
    x: Float[np.ndarray, "rows d"], y: Int[np.ndarray, " rows"], groups: np.ndarray, c_grid: tuple[float, ...] = C_GRID
) -> GridSearchCV:
    """Logistic regression with an L2 penalty on standardised activations.

    Minimises Σ log(1 + exp(−ỹᵢ (w·zᵢ + b))) + ‖w‖² / 2C with zᵢ the standardised xᵢ and ỹᵢ = ±1; scaling is part
    of each fold. ``decision_function`` gives scores, ``best_params_`` the chosen C.
    """
    return search(logistic(), y, groups, c_grid).fit(x, y)


def chosen_c(search: GridSearchCV) -> float:
    """The inverse L2 strength that a search chose."""
    return search.best_params_["logisticregression__C"]


class OfCell(NamedTuple):
    """The dense probe of one layer and pooling: its score of every prompt, and the chosen C."""

    scores: Scores
    c: float


def of_cells(
    pooled: dict[tuple[int, str], Float[np.ndarray, "prompts d"]], task: Task, c_grid: tuple[float, ...] = C_GRID
) -> dict[tuple[int, str], OfCell]:
    """A dense probe for every cell of layer × pooling, fitted on the training split (:func:`fit_logistic`).

    Raises:
        ValueError: as in :func:`search`.
    """
    y, train, ids, *_ = task
    fit = joblib.delayed(fit_logistic)
    searches = processes.parallel(len(pooled))(fit(x[train], y[train], ids[train], c_grid) for x in pooled.values())
    fitted = zip(pooled.items(), searches, strict=True)
    return {cell: OfCell(search.decision_function(x), chosen_c(search)) for (cell, x), search in fitted}


def table(prompts: pd.DataFrame, probes: dict[tuple[int, str], OfCell], weights: SplitWeights) -> pd.DataFrame:
    """AUROC and recall at 1 % false positives on every split, a row each; with columns layer, pooling and c."""
    return pd.DataFrame([
        row
        for (layer, pooling), of_cell in probes.items()
        for row in by_split(prompts, of_cell.scores, weights, probe="dense", layer=layer, pooling=pooling, c=of_cell.c)
    ])


def save_scores(probes: dict[tuple[int, str], OfCell], path: Path) -> Path:
    """The scores as a table, a column ``<layer> <pooling>`` for each cell and a row for each prompt."""
    return write_table(path, pd.DataFrame({f"{layer} {name}": p.scores for (layer, name), p in probes.items()}))


def load_scores(path: Path) -> dict[tuple[int, str], Scores]:
    """The inverse of :func:`save_scores`, without the Cs."""
    columns = {tuple(name.split(" ", 1)): column.to_numpy() for name, column in pd.read_parquet(path).items()}
    return {(int(layer), pooling): scores for (layer, pooling), scores in columns.items()}


def fit_tfidf(texts: list[str], y: Int[np.ndarray, " rows"], groups: np.ndarray) -> GridSearchCV:
    """Lexical baseline: logistic regression on TF-IDF of word 1- and 2-grams."""
    vectors = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    pipeline = make_pipeline(vectors, LogisticRegression(max_iter=2000))
    return search(pipeline, y, groups, (1e-1, 1.0, 1e1, 1e2)).fit(texts, y)


def mean_difference(x: Float[np.ndarray, "rows d"], y: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " d"]:
    """Unit direction of the difference of class means, (μ₁ − μ₀) / ‖μ₁ − μ₀‖; the score of a row is x·w."""
    direction = x[y == 1].mean(0) - x[y == 0].mean(0)
    return direction / np.linalg.norm(direction)


class Inputs(NamedTuple):
    """What a dense probe may read of all prompts: pooled activations of one layer, texts, every token (or None)."""

    x: Float[np.ndarray, "prompts d_model"]
    texts: list[str]
    task: Task
    tokens: PromptTokens | None = None
    c_grid: tuple[float, ...] = C_GRID
    seed: int = 0


class DenseProbe(NamedTuple):
    """An entry of ``PROBES``: fitted on training prompts, it scores all; ``reads_tokens``: it needs every token."""

    scores: Callable[[Inputs], Scores]
    reads_tokens: bool = False


def all_scores(inputs: Inputs, known: dict[str, Scores]) -> dict[str, Scores]:
    """Scores of every probe of ``PROBES`` that ``inputs`` allow, by name; ``known`` ones are not fitted again."""
    possible = [name for name, probe in PROBES.items() if inputs.tokens is not None or not probe.reads_tokens]
    return {name: known[name] if name in known else PROBES[name].scores(inputs) for name in possible}


def _logistic_scores(inputs: Inputs) -> Scores:
    y, train, groups, *_ = inputs.task
    return fit_logistic(inputs.x[train], y[train], groups[train], inputs.c_grid).decision_function(inputs.x)


def _mean_difference_scores(inputs: Inputs) -> Scores:
    y, train, *_ = inputs.task
    return inputs.x @ mean_difference(inputs.x[train], y[train])


def _attention_scores(inputs: Inputs) -> Scores:
    y, train, groups, *_ = inputs.task
    prompts = np.arange(len(y))
    head = fit_attention(inputs.tokens, prompts[train], y[train], groups[train], inputs.seed)
    return head.score(inputs.tokens, prompts)


def _tfidf_scores(inputs: Inputs) -> Scores:
    y, train, groups, *_ = inputs.task
    training_texts = [text for text, kept in zip(inputs.texts, train, strict=True) if kept]
    return fit_tfidf(training_texts, y[train], groups[train]).decision_function(inputs.texts)


def _surface_form_scores(inputs: Inputs) -> Scores:
    """What formatting alone tells of the prompt as the model reads it, so also of its wrapper."""
    y, train, groups, *_ = inputs.task
    form = surface_form(inputs.texts).to_numpy()
    return fit_logistic(form[train], y[train], groups[train], inputs.c_grid).decision_function(form)


PROBES = {
    "dense": DenseProbe(_logistic_scores),
    "mean difference": DenseProbe(_mean_difference_scores),
    "attention": DenseProbe(_attention_scores, reads_tokens=True),
    "TF-IDF": DenseProbe(_tfidf_scores),
    "surface form": DenseProbe(_surface_form_scores),
}


class AttentionProbe(NamedTuple):
    """One attention head over a prompt's tokens: score = Σₜ softmaxₜ(q·zₜ) (v·zₜ) + b, z the standardised tokens.

    The form of the attention probes of Kantamneni et al. (arXiv 2502.16681), one head.
    """

    mean: Float[Tensor, " d_model"]
    scale: Float[Tensor, " d_model"]
    query: Float[Tensor, " d_model"]
    value: Float[Tensor, " d_model"]
    bias: Float[Tensor, ""]

    def score(self, tokens: PromptTokens, prompts: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
        """Scores of ``prompts``, which are positions in ``tokens``."""
        scores = np.empty(len(prompts), dtype=np.float32)
        with torch.inference_mode():
            for rows, z, mask in _token_batches(tokens, prompts, self.mean, self.scale):
                scores[rows] = _attend(z, mask, self.query, self.value, self.bias).numpy()
        return scores


def _attend(z: Tensor, mask: Tensor, query: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    weights = (z @ query).masked_fill(~mask, -torch.inf).softmax(-1)
    return (weights * (z @ value)).sum(-1) + bias


def _token_batches(
    tokens: PromptTokens, prompts: np.ndarray, mean: Tensor, scale: Tensor, batch_tokens: int = 16_384
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Yield (positions in ``prompts``, standardised padded tokens, mask), bucketed by length."""
    length = (tokens.starts[1:] - tokens.starts[:-1])[torch.tensor(prompts)]
    order = torch.argsort(length, stable=True)
    for batch in batches(length[order].tolist(), batch_tokens):
        rows = order[batch].numpy()
        parts = [tokens.activations[tokens.starts[p] : tokens.starts[p + 1]].float() for p in prompts[rows]]
        z = (torch.nn.utils.rnn.pad_sequence(parts, batch_first=True) - mean) / scale
        mask = torch.arange(z.shape[1])[None] < length[rows][:, None]
        yield rows, z, mask


def fit_attention(
    tokens: PromptTokens,
    prompts: Int[np.ndarray, " rows"],
    y: Int[np.ndarray, " rows"],
    groups: np.ndarray,
    seed: int,
    *,
    weight_decays: tuple[float, ...] = (1e-3, 1e-1),
    epochs: int = 12,
    lr: float = 3e-3,
) -> AttentionProbe:
    """Train the attention probe with AdamW; weight decay and number of epochs by AUROC on held-out training prompts.

    A fifth of the base prompts of the training split is held out for that choice, then the probe is trained anew
    on all of them.
    """
    inner, held = next(GroupShuffleSplit(1, test_size=0.2, random_state=seed).split(y, y, groups))
    held_aurocs = {}
    for decay in weight_decays:
        settings = _Training(seed, decay, epochs, lr)
        for epoch, probe in enumerate(_train_attention(tokens, prompts[inner], y[inner], settings), 1):
            held_scores = probe.score(tokens, prompts[held])
            held_aurocs[decay, epoch] = auroc(y[held], held_scores, np.ones((1, len(held))))[0]
    decay, epoch = max(held_aurocs, key=held_aurocs.get)
    *_, probe = _train_attention(tokens, prompts, y, _Training(seed, decay, epoch, lr))
    return probe


class _Training(NamedTuple):
    """How an attention probe is trained."""

    seed: int
    weight_decay: float
    epochs: int
    lr: float


def _train_attention(
    tokens: PromptTokens, prompts: np.ndarray, y: np.ndarray, settings: _Training
) -> Iterator[AttentionProbe]:
    """Yield the probe after each epoch."""
    rows = torch.cat([torch.arange(tokens.starts[p], tokens.starts[p + 1]) for p in prompts])
    sample = tokens.activations[rows].float()
    mean, scale = sample.mean(0), sample.std(0) + 1e-6
    generator = torch.Generator().manual_seed(settings.seed)
    query = (0.01 * torch.randn(len(mean), generator=generator)).requires_grad_()
    value, bias = torch.zeros_like(mean, requires_grad=True), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.AdamW([query, value, bias], lr=settings.lr, weight_decay=settings.weight_decay)
    target = torch.as_tensor(y, dtype=torch.float32)
    data = list(_token_batches(tokens, prompts, mean, scale, batch_tokens=8_192))
    for _ in range(settings.epochs):
        for i in torch.randperm(len(data), generator=generator).tolist():
            batch, z, mask = data[i]
            logits = _attend(z, mask, query, value, bias)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield AttentionProbe(mean, scale, *(p.detach().clone() for p in (query, value, bias)))


def projection_plane(
    x: Float[np.ndarray, "rows d"], y: Int[np.ndarray, " rows"]
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "2 d"]]:
    """Mean of ``x``, and two orthonormal rows: the mean difference's direction, the first principal component."""
    mean, direction = x.mean(0), mean_difference(x, y)
    rest = x - mean
    rest = rest - np.outer(rest @ direction, direction)
    _, vectors = np.linalg.eigh(rest.T @ rest)
    return mean, np.stack([direction, vectors[:, -1]])
