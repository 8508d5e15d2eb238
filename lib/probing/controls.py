"""Bases that no SAE training made, in the place of latents."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from sae_lens import SAE
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA

from lib.base import processes
from lib.base.files import relative
from lib.model.activations import PromptTokens
from lib.probing import ksparse, on_saes
from lib.probing.on_saes import BEST, Grid, best_forms, every_k_sparse, probe_saes
from lib.probing.stress import Contender
from lib.probing.tasks import Probe, Task
from lib.sae import folders, latents
from lib.sae.recipes import Recipe, scaling
from lib.sae.trainers import tied
from lib.stats.metrics import Scores, bootstrap_weights

CONTROL = "control"
SHUFFLED = "shuffled labels"
SAMPLE_TOKENS = 4096  # of training prompts, from which thresholds are set
CENTRE_TOKENS = 16_384  # of training prompts, of which k-means centres are made: four for each of 4,096
CENTRE_ITERATIONS = 2  # passes over them


class Inputs(NamedTuple):
    """What control bases are made of and probed on.

    Attributes:
        resid: the residual stream of all prompts, by pooling.
        tokens: the same of every token.
        like: the SAE whose number of latents and L0 a control has.
        device: where dictionaries are encoded.
    """

    resid: dict[str, Float[np.ndarray, "prompts d_model"]]
    tokens: PromptTokens
    task: Task
    like: SAE
    device: str = "cpu"


def _principal_components(resid: np.ndarray, task: Task, n_columns: int, draw: int) -> ksparse.Columns:
    """Of the training prompts; from the second draw on of base prompts that are drawn with replacement."""
    rows = np.flatnonzero(task.train)
    if draw:
        counts = bootstrap_weights(task.groups[rows], 1, draw)[0].astype(int)
        rows = np.repeat(rows, counts)
    return PCA(random_state=draw).fit(resid[rows]).transform(resid)


def _coordinates(resid: np.ndarray, task: Task, n_columns: int, draw: int) -> ksparse.Columns:
    return resid


def _random_directions(resid: np.ndarray, task: Task, n_columns: int, draw: int) -> ksparse.Columns:
    directions = np.random.default_rng(draw).standard_normal((resid.shape[1], n_columns)).astype(np.float32)
    return resid @ (directions / np.linalg.norm(directions, axis=0))


class Basis(NamedTuple):
    """A basis of the pooled residual stream, from (resid, task, number of columns, draw); whether draws differ."""

    columns: Callable[[np.ndarray, Task, int, int], ksparse.Columns]
    is_random: bool


BASES = {
    "principal components": Basis(_principal_components, is_random=True),
    "coordinates": Basis(_coordinates, is_random=False),
    "random directions": Basis(_random_directions, is_random=True),
}


def of_bases(inputs: Inputs, grid: Grid, k: int, draws: int) -> dict[Probe, Scores]:
    """Scores of k-sparse probes on ``draws`` draws of every entry of ``BASES`` (:func:`in_best_form`)."""
    scores = {}
    for name, basis in BASES.items():
        fit = functools.partial(_on_basis, inputs, name)
        scores |= in_best_form(fit, inputs.task, grid, k, draws if basis.is_random else 1)
    return scores


def _on_basis(inputs: Inputs, name: str, draws: list[int], grid: Grid) -> dict[Probe, Scores]:
    jobs = [(draw, pooling) for draw in draws for pooling in grid.poolings]
    about = name, inputs.task, inputs.like.cfg.d_sae, grid
    calls = [joblib.delayed(_on_columns)(inputs.resid[pooling], draw, *about) for draw, pooling in jobs]
    of_columns = 2 * 4 * len(inputs.task.y) * inputs.like.cfg.d_sae  # bytes: all columns of all prompts, and a copy
    return {
        Probe(CONTROL, pooling, name, draw, selection, fit.k): fit.scores
        for (draw, pooling), fits in zip(jobs, processes.parallel(len(calls), of_columns)(calls), strict=True)
        for selection, fit in fits
    }


def _on_columns(
    resid: np.ndarray, draw: int, name: str, task: Task, n_columns: int, grid: Grid
) -> list[tuple[str, on_saes.Fit]]:
    return list(every_k_sparse(BASES[name].columns(resid, task, n_columns, draw), task, grid))


def of_dictionaries(inputs: Inputs, grid: Grid, k: int, draws: int, parent: Path) -> dict[Probe, Scores]:
    """The same of every entry of ``DICTIONARIES``, which are written below ``parent``."""
    scores = {}
    for name in DICTIONARIES:
        fit = functools.partial(_on_dictionary, inputs, name, parent)
        scores |= in_best_form(fit, inputs.task, grid, k, draws)
    return scores


def first_draws(parent: Path) -> pd.DataFrame:
    """The first draw of each dictionary that :func:`of_dictionaries` has written below ``parent``, as a table of SAEs
    (columns variant, seed, folder)."""
    return pd.DataFrame([
        {"variant": name, "seed": 0, "folder": relative(_place(parent, name, 0))} for name in DICTIONARIES
    ])


def _place(parent: Path, name: str, draw: int) -> Path:
    return parent / f"{name.replace(' ', '-')}-{draw}"


def _on_dictionary(inputs: Inputs, name: str, parent: Path, draws: list[int], grid: Grid) -> dict[Probe, Scores]:
    places = [folders.save(DICTIONARIES[name](inputs, draw), _place(parent, name, draw), {}) for draw in draws]
    rows = pd.DataFrame({"variant": name, "seed": draws, "folder": places})
    probed = probe_saes(rows, on_saes.Inputs(inputs.tokens, {}, inputs.task, device=inputs.device), grid)
    return {probe._replace(kind=CONTROL): scores for probe, scores in probed.scores.items()}


def in_best_form(
    fit: Callable[[list[int], Grid], dict[Probe, Scores]], task: Task, grid: Grid, k: int, draws: int
) -> dict[Probe, Scores]:
    """Scores of all draws of a control, pooled and selected as is best at k on validation for the first of them."""
    first = fit([0], grid)
    [form] = best_forms(first, task, k, grid.selections).values()
    narrowed = grid._replace(poolings=[form.pooling], selections=(form.selection,))
    every = first | (fit(list(range(1, draws)), narrowed) if draws > 1 else {})
    return on_saes.in_best_form(every, {(probe.variant, probe.seed): form for probe in every})


def contenders(inputs: Inputs, names: list[str], grid: Grid, k: int, draws: int) -> dict[Probe, Contender]:
    """k-sparse probes, to be fitted anew, on ``draws`` draws of some of ``BASES`` and ``DICTIONARIES``, pooled and
    selected as is best at k on validation for the first of them. Keys are those of :func:`in_best_form`."""
    every = {}
    for name in names:
        is_random = name in DICTIONARIES or BASES[name].is_random
        first = _columns_of(inputs, name, 0, grid.poolings)
        scores = {
            Probe(CONTROL, pooling, name, 0, selection, fit.k): fit.scores
            for pooling, columns in first.items()
            for selection, fit in every_k_sparse(columns, inputs.task, grid)
        }
        [form] = best_forms(scores, inputs.task, k, grid.selections).values()
        for draw in range(draws if is_random else 1):
            columns = _columns_of(inputs, name, draw, [form.pooling]) if draw else first
            contender = Contender(columns[form.pooling], k=k, selection=form.selection)
            every[Probe(CONTROL, BEST, name, draw, BEST, k)] = contender
    return every


def _columns_of(inputs: Inputs, name: str, draw: int, of_poolings: list[str]) -> dict[str, ksparse.Columns]:
    """A draw of a control, by pooling."""
    if name in DICTIONARIES:
        return latents.pool_latents(DICTIONARIES[name](inputs, draw), inputs.tokens, of_poolings)
    n_columns = inputs.like.cfg.d_sae
    return {p: BASES[name].columns(inputs.resid[p], inputs.task, n_columns, draw) for p in of_poolings}


def of_shuffled_labels(contender: Contender, task: Task, draws: int) -> dict[Probe, Scores]:
    """Scores of a k-sparse probe that is fitted on labels which are shuffled over the training prompts."""
    rows = np.flatnonzero(task.train)
    shuffled = [np.random.default_rng(draw).permutation(task.y[rows]) for draw in range(draws)]
    calls = [joblib.delayed(contender.fit_scores)(rows, y) for y in shuffled]
    return {
        Probe(CONTROL, BEST, SHUFFLED, draw, BEST, contender.k): of_draw
        for draw, of_draw in enumerate(processes.parallel(len(calls))(calls))
    }


def training_sample(
    tokens: PromptTokens, task: Task, generator: torch.Generator, n: int = SAMPLE_TOKENS
) -> Float[torch.Tensor, "tokens d_model"]:
    """Activations of random tokens of training prompts."""
    lengths = tokens.starts.diff()
    rows = torch.repeat_interleave(torch.tensor(task.train), lengths).nonzero()[:, 0]
    return tokens.activations[rows[torch.randperm(len(rows), generator=generator)[:n]]].float()


@torch.no_grad()
def untrained(inputs: Inputs, draw: int) -> SAE:
    """A JumpReLU SAE of random decoder rows whose thresholds give the L0 of ``inputs.like`` on training prompts."""
    return _tied(inputs, draw, lambda _, drawn, generator: torch.randn(drawn.shape, generator=generator))


@torch.no_grad()
def of_training_tokens(inputs: Inputs, draw: int) -> SAE:
    """:func:`untrained` with random training tokens, centred, for decoder rows."""
    return _tied(inputs, draw, lambda _, drawn, generator: drawn)


@torch.no_grad()
def of_kmeans_centres(inputs: Inputs, draw: int) -> SAE:
    """:func:`untrained` with the :func:`kmeans_centres` of ``CENTRE_TOKENS`` training tokens for decoder rows."""
    return _tied(inputs, draw, kmeans_centres, CENTRE_TOKENS)


def kmeans_centres(
    x: Float[torch.Tensor, "tokens d_model"],
    drawn: Float[torch.Tensor, "d_sae d_model"],
    generator: torch.Generator,
) -> Float[torch.Tensor, "d_sae d_model"]:
    """Centres c of mini-batch k-means, argmin Σᵢ minⱼ ‖xᵢ − cⱼ‖² (Sculley 2010, doi 10.1145/1772690.1772862), as many
    as ``drawn`` has rows, in units of ``x``.

    They begin at different tokens, drawn at random, and move for ``CENTRE_ITERATIONS`` passes, without a stop before.
    No centre is moved to another token on the way (``reassignment_ratio``), so that tokens alone decide them. Where the
    tokens that differ are no more than the centres, each is a centre of its own, and ``drawn`` fills the rest.
    """
    first_of, _ = latents.distinct_rows(x)
    distinct = x[torch.from_numpy(first_of)]
    if len(distinct) <= len(drawn):
        return torch.cat([distinct, drawn[: len(drawn) - len(distinct)]])
    order = torch.randperm(len(distinct), generator=generator)
    model = MiniBatchKMeans(
        len(drawn),
        init=distinct[order[: len(drawn)]].numpy(),
        n_init=1,
        max_iter=CENTRE_ITERATIONS,
        max_no_improvement=None,
        compute_labels=False,
        random_state=int(torch.randint(2**31, (1,), generator=generator)),
        reassignment_ratio=0.0,
    )
    return torch.from_numpy(model.fit(x.numpy()).cluster_centers_).to(x)


def _tied(
    inputs: Inputs,
    draw: int,
    rows_of: Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor],
    n_tokens: int = SAMPLE_TOKENS,
) -> SAE:
    """The SAE of the decoder rows that ``rows_of`` makes of ``n_tokens`` scaled tokens, and of d_sae drawn from them.

    The first ``SAMPLE_TOKENS`` set scale and thresholds; of one draw they are the same, whatever ``n_tokens`` is.
    """
    generator = torch.Generator().manual_seed(draw)
    like, d_sae = inputs.like, inputs.like.cfg.d_sae
    tokens = training_sample(inputs.tokens, inputs.task, generator, n_tokens)
    sample = tokens[:SAMPLE_TOKENS]
    l0 = len(latents.active_entries(like, sample)[0]) / len(sample)
    mean, scale = scaling(sample)
    scaled = (tokens - mean) / scale
    drawn = scaled[torch.randperm(d_sae, generator=generator) % len(scaled)]
    rows = rows_of(scaled, drawn, generator)
    p = tied(Recipe(d_sae=d_sae, target_l0=l0, seed=draw), scaled[:SAMPLE_TOKENS], rows)
    return folders.from_parameters(p, mean, scale, {})


DICTIONARIES: dict[str, Callable[[Inputs, int], SAE]] = {
    "untrained SAE": untrained,
    "training tokens": of_training_tokens,
    "k-means centres": of_kmeans_centres,
}
