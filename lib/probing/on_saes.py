"""Every probe on an SAE: k-sparse ones on its latents, linear ones on its reconstruction, error and all latents."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
import scipy.sparse
import torch
from jaxtyping import Float
from sae_lens import SAE
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from lib.base import processes
from lib.model import poolings
from lib.model.activations import PromptTokens
from lib.probing import dense as dense_probes
from lib.probing import ksparse
from lib.probing.tasks import Probe, Task
from lib.sae import folders, latents
from lib.stats.metrics import Scores


class Fit(NamedTuple):
    """A k-sparse probe: how many columns, which, and its scores of all prompts."""

    k: int
    columns: np.ndarray
    scores: Scores


def k_sparse(x: ksparse.Columns, task: Task, ks: list[int], selection: str) -> list[Fit]:
    """A probe for each k; only training rows are used to select, scale and fit.

    A k above the number of columns that vary is left out; if all are, that is an error.
    """
    y, training = task.y[task.train], x[task.train]
    chosen = ksparse.select(training, y, ksparse.possible(training, ks), selection)
    union = np.unique(np.concatenate(list(chosen.values())))
    chosen_by_any = ksparse.dense(x, union)
    fits = []
    for k, columns in chosen.items():
        places = np.searchsorted(union, columns)
        probe = ksparse.refit(chosen_by_any[task.train], y, places)
        fits.append(Fit(k, columns, probe.decision_function(chosen_by_any[:, places])))
    return fits


class Encoded:
    """Pooled latents of one SAE beside the pooled residual stream of the same prompts."""

    def __init__(self, sae: SAE, pooled: ksparse.Columns, resid: Float[np.ndarray, "prompts d_model"]):
        self.sae, self.latents, self.resid = sae, pooled, resid

    @functools.cached_property
    def reconstruction(self) -> Float[np.ndarray, "prompts d_model"]:
        """Decoded pooled latents (exact for the poolings that commute with the affine decoder)."""
        return latents.reconstruction(self.sae, self.latents)


# What a linear probe can be given of an SAE, by the name under which results hold it.
VIEWS: dict[str, Callable[[Encoded], ksparse.Columns]] = {
    "reconstruction": lambda encoded: encoded.reconstruction,
    "error": lambda encoded: encoded.resid - encoded.reconstruction,
    "all latents": lambda encoded: encoded.latents,
}
K_SPARSE = "k-sparse"


def views(encoded: Encoded) -> dict[str, ksparse.Columns]:
    """The columns of every entry of ``VIEWS``."""
    return {name: view(encoded) for name, view in VIEWS.items()}


def linear(x: ksparse.Columns, c: float = 1.0) -> Pipeline:
    """L2 logistic regression on standardised columns; sparse ones are scaled, not centred. Not fitted yet."""
    scaler = StandardScaler(with_mean=not scipy.sparse.issparse(x))
    return make_pipeline(scaler, LogisticRegression(C=c, max_iter=2000))


def choose_c(x: ksparse.Columns, task: Task, c_grid: list[float]) -> float:
    """Inverse L2 strength by cross-validated AUROC on the training split, in folds that keep a base prompt together."""
    y, groups = task.y[task.train], task.groups[task.train]
    search = dense_probes.search(linear(x), y, groups, tuple(c_grid)).set_params(refit=False)
    return dense_probes.chosen_c(search.fit(x[task.train], y))


def linear_scores(x: ksparse.Columns, task: Task, c: float) -> Scores:
    """Scores of all prompts from a linear probe that is fitted on the training split."""
    return linear(x, c).fit(x[task.train], task.y[task.train]).decision_function(x)


class Inputs(NamedTuple):
    """What SAEs are probed on: every token, the pooled residual stream by pooling (for linear probes), the task, and
    which hook of which model the activations are of (None: not checked)."""

    tokens: PromptTokens
    resid: dict[str, np.ndarray]
    task: Task
    hook_name: str | None = None
    model: str | None = None
    device: str = "cpu"


class Grid(NamedTuple):
    """Which probes are fitted: each k of ``ks`` by pooling and selection, and linear ones with C of ``c_grid``."""

    ks: list[int]
    poolings: list[str]
    c_grid: list[float]
    selections: tuple[str, ...] = tuple(ksparse.SELECTIONS)


class Probed(NamedTuple):
    """Scores of all prompts and chosen latents by probe, and the pooled latents of each variant's first SAE."""

    scores: dict[Probe, Scores]
    chosen: dict[Probe, np.ndarray]
    latents: dict[str, latents.Pooled]

    def first(self, variant: str, pooling: str, selection: str, k: int) -> Probe:
        """The k-sparse probe on a variant's first SAE.

        Raises:
            ValueError: there is none, such as for a k above the latents that fire.
        """
        wanted = Probe(K_SPARSE, pooling, variant, None, selection, k)
        probe = next((probe for probe in self.chosen if probe._replace(seed=None) == wanted), None)
        if probe is None:
            raise ValueError(f"there is no probe {wanted.columns()}; k may be above the number of latents that fire")
        return probe


class _Job(NamedTuple):
    """One SAE to probe; ``pooled`` are its latents if they are known, and are kept if ``keep``."""

    variant: str
    seed: int | None
    folder: str
    keep: bool
    pooled: latents.Pooled


class _MappedTokens(NamedTuple):
    """``PromptTokens`` as arrays that processes map and do not copy (numpy has no bfloat16)."""

    bits: np.ndarray
    starts: np.ndarray
    dtype: torch.dtype
    fixed: int
    in_turn: np.ndarray | None

    def tokens(self) -> PromptTokens:
        """The tokens, without a copy."""
        in_turn = None if self.in_turn is None else torch.from_numpy(self.in_turn)
        activations = torch.from_numpy(self.bits).view(self.dtype)
        return PromptTokens(activations, torch.from_numpy(self.starts), self.fixed, in_turn)


def probe_saes(table: pd.DataFrame, inputs: Inputs, grid: Grid) -> Probed:
    """Every probe on every SAE of ``table`` (columns variant, seed, folder), each of which is checked to fit.

    k-sparse probes for each pooling of ``grid``, linear ones on :data:`VIEWS` for each pooling of ``inputs.resid``.
    Their C is chosen on the first SAE and kept for all others.

    Raises:
        ValueError: an SAE of another width, layer or model than the activations, an unknown pooling or selection, or
            no k that is possible.
    """
    poolings.named(grid.poolings)
    tokens, task = inputs.tokens, inputs.task
    first = folders.load(table["folder"].iloc[0], inputs.device)
    folders.check_fits(first, tokens.activations.shape[1], inputs.hook_name, inputs.model)
    known = latents.pool_latents(first, tokens, _needed(inputs, grid)) if inputs.resid else {}
    strengths = {
        (name, pooling): choose_c(columns, task, grid.c_grid)
        for pooling, resid in inputs.resid.items()
        for name, columns in views(Encoded(first, known[pooling], resid)).items()
    }
    jobs = []
    for row, repeated in zip(table.itertuples(), table["variant"].duplicated(), strict=True):
        seed = None if pd.isna(row.seed) else int(row.seed)
        jobs.append(_Job(row.variant, seed, row.folder, not repeated, known if not jobs else {}))
    bits = tokens.activations.view(torch.int16).numpy()
    in_turn = None if tokens.in_turn is None else tokens.in_turn.numpy()
    mapped = _MappedTokens(bits, tokens.starts.numpy(), tokens.activations.dtype, tokens.fixed, in_turn)
    without_tokens = inputs._replace(tokens=None)
    workers = processes.parallel(len(jobs) if inputs.device == "cpu" else 1)
    calls = (joblib.delayed(_probe_sae)(job, mapped, without_tokens, grid, strengths) for job in jobs)
    probed = Probed({}, {}, {})
    for part in tqdm(workers(calls), total=len(jobs), desc="SAEs probed", unit="SAE"):
        for whole, addition in zip(probed, part, strict=True):
            whole.update(addition)
    return probed


def _needed(inputs: Inputs, grid: Grid) -> list[str]:
    """The poolings of which some probe reads latents."""
    return list(dict.fromkeys([*grid.poolings, *inputs.resid]))


def _probe_sae(
    job: _Job, mapped: _MappedTokens, inputs: Inputs, grid: Grid, strengths: dict[tuple[str, str], float]
) -> Probed:
    """All probes on one SAE."""
    sae, tokens = folders.load(job.folder, inputs.device), mapped.tokens()
    folders.check_fits(sae, tokens.activations.shape[1], inputs.hook_name, inputs.model)
    pooled = job.pooled or latents.pool_latents(sae, tokens, _needed(inputs, grid))
    probed = Probed({}, {}, {job.variant: pooled} if job.keep else {})
    for pooling in grid.poolings:
        _probe_latents(probed, job, pooled[pooling], inputs.task, pooling, grid)
    for pooling, resid in inputs.resid.items():
        for name, columns in views(Encoded(sae, pooled[pooling], resid)).items():
            probe = Probe(name, pooling, job.variant, job.seed)
            probed.scores[probe] = linear_scores(columns, inputs.task, strengths[name, pooling])
    return probed


def _probe_latents(probed: Probed, job: _Job, x: ksparse.Columns, task: Task, pooling: str, grid: Grid) -> None:
    """Add the k-sparse probes of one pooling; that of k = 1, which no selection decides, is fitted once."""
    single: Fit | None = None
    for selection in grid.selections:
        ks = [k for k in grid.ks if k > 1] if single else grid.ks
        fits = [single] if single else []
        fits += k_sparse(x, task, ks, selection) if ks else []
        single = next((fit for fit in fits if fit.k == 1), None)
        for fit in fits:
            probe = Probe(K_SPARSE, pooling, job.variant, job.seed, selection, fit.k)
            probed.scores[probe], probed.chosen[probe] = fit.scores, fit.columns


def shown(scores: dict[Probe, Scores], pooling: str, selection: str, k: int) -> dict[Probe, Scores]:
    """The probes that claims rest on: linear ones, k-sparse ones of one pooling and selection, and all of one k."""
    return {
        probe: of_probe
        for probe, of_probe in scores.items()
        if probe.k in (None, k) or (probe.pooling, probe.selection) == (pooling, selection)
    }


def chosen_latents(probed: Probed, prompts: pd.DataFrame, splits: list[str], probes: list[Probe]) -> pd.DataFrame:
    """Every latent of the SAEs of ``probes``: its own AUROC in each of ``splits``, its firing frequency, and whether it
    is chosen.

    A row per variant and latent, with the columns of ``splits``, ``variant``, ``latent``, ``chosen`` and ``frequency``
    (the share of prompts in which it fires under the probe's pooling).
    """
    y, tables = prompts["label"].to_numpy(), []
    for probe in probes:
        x = probed.latents[probe.variant][probe.pooling]
        rows_of = {split: (prompts["split"] == split).to_numpy() for split in splits}
        areas = {split: ksparse.column_aurocs(x[rows], y[rows]) for split, rows in rows_of.items()}
        every = np.arange(x.shape[1])
        tables.append(
            pd.DataFrame(areas).assign(
                variant=probe.variant,
                latent=every,
                chosen=np.isin(every, probed.chosen[probe]),
                frequency=np.asarray((x > 0).mean(0)).ravel(),
            )
        )
    return pd.concat(tables, ignore_index=True)
