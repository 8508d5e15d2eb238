"""Every probe on an SAE: k-sparse ones on its latents, linear ones on its reconstruction, error and all latents."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Float
from sae_lens import SAE
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from lib.base import processes
from lib.model import poolings
from lib.model.activations import MappedTokens, PromptTokens
from lib.probing import ksparse
from lib.probing.tasks import Probe, Task
from lib.sae import folders, latents
from lib.stats.metrics import Scores, auroc


class Fit(NamedTuple):
    """A k-sparse probe: how many columns, which, and its scores of all prompts."""

    k: int
    columns: np.ndarray
    scores: Scores


def k_sparse(
    x: ksparse.Columns, task: Task, ks: list[int], selection: str, best: int | None = None
) -> list[Fit]:
    """A probe for each k; only training rows are used to select (``ksparse.select``), scale and fit.

    A k above the number of columns that vary is left out; if all are, that is an error.
    """
    y, training = task.y[task.train], x[task.train]
    chosen = ksparse.select(training, y, ksparse.possible(training, ks), selection, best)
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


class Tuned(NamedTuple):
    """A linear probe: its scores of all prompts, and the inverse L2 strength that was chosen."""

    scores: Scores
    c: float


def tuned_linear(x: ksparse.Columns, task: Task, c_grid: list[float]) -> Tuned:
    """The linear probe on training rows whose inverse L2 strength has the best validation AUROC (the smallest of equal
    ones).

    The strengths are fitted in rising order, each from the weights of the one before.

    Raises:
        ValueError: the task has no validation rows of both classes.
    """
    y_val = task.y[task.val] if task.val is not None else np.empty(0)
    if len(np.unique(y_val)) < 2:
        raise ValueError(f"C is chosen on {len(y_val)} validation prompts; they must hold both classes")
    scaler = StandardScaler(with_mean=not scipy.sparse.issparse(x)).fit(x[task.train])
    return best_c(LogisticRegression(max_iter=2000, warm_start=True), scaler.transform(x), task, c_grid)


def best_c(model: LogisticRegression, x: ksparse.Columns, task: Task, c_grid: list[float]) -> Tuned:
    """``model`` fitted on training rows with the C of best validation AUROC; the smallest of equal ones."""
    best, best_area = None, -1.0
    for c in sorted(c_grid):
        scores = model.set_params(C=c).fit(x[task.train], task.y[task.train]).decision_function(x)
        area = val_auroc(scores, task)
        if area > best_area:
            best, best_area = Tuned(scores, c), area
    return best


def val_auroc(scores: Scores, task: Task) -> float:
    """AUROC on the task's validation rows."""
    y_val = task.y[task.val]
    return float(auroc(y_val, scores[task.val], np.ones((1, len(y_val))))[0])


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
    """Which probes are fitted: each k of ``ks`` by pooling and selection, and linear ones with C of ``c_grid``.

    Attributes:
        own_ks: those of a selection that has others than ``ks``, such as a slow one.
        linear_on: the variants that get linear probes (None: all).
        kept: the variants whose pooled latents are kept of every seed.
    """

    ks: list[int]
    poolings: list[str]
    c_grid: list[float]
    selections: tuple[str, ...] = tuple(ksparse.SELECTIONS)
    own_ks: dict[str, list[int]] = {}
    linear_on: list[str] | None = None
    kept: tuple[str, ...] = ()

    def ks_of(self, selection: str) -> list[int]:
        """The ks that are fitted of a selection."""
        return self.own_ks.get(selection, self.ks)

    def has_linear(self, variant: str) -> bool:
        """Whether a variant's SAEs get linear probes."""
        return self.linear_on is None or variant in self.linear_on


class Probed(NamedTuple):
    """Scores of all prompts and chosen latents by probe, and the pooled latents of each variant's first SAE, and of all
    SAEs of the variants that are ``kept``."""

    scores: dict[Probe, Scores]
    chosen: dict[Probe, np.ndarray]
    latents: dict[str, latents.Pooled]
    of_seeds: dict["Basis", latents.Pooled] = {}

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
    """One SAE to probe; its pooled latents are kept if ``keep``."""

    variant: str
    seed: int | None
    folder: str
    keep: bool


def probe_saes(table: pd.DataFrame, inputs: Inputs, grid: Grid) -> Probed:
    """Every probe on every SAE of ``table`` (columns variant, seed, folder), each of which is checked to fit.

    k-sparse probes for each pooling of ``grid``, linear ones on :data:`VIEWS` for each pooling of ``inputs.resid``.
    Their C is chosen on validation for each SAE.

    Raises:
        ValueError: an SAE of another width, layer or model than the activations, an unknown pooling or selection, or
            no k that is possible.
    """
    poolings.named(grid.poolings)
    tokens = inputs.tokens
    first = folders.load(table["folder"].iloc[0], inputs.device)
    folders.check_fits(first, tokens.activations.shape[1], inputs.hook_name, inputs.model)
    jobs = []
    for row, repeated in zip(table.itertuples(), table["variant"].duplicated(), strict=True):
        jobs.append(_Job(row.variant, None if pd.isna(row.seed) else int(row.seed), row.folder, not repeated))
    about = MappedTokens.of(tokens), latents.distinct_rows(tokens.activations), inputs._replace(tokens=None), grid
    workers = processes.parallel(len(jobs) if inputs.device == "cpu" else 1)
    calls = (joblib.delayed(_probe_sae)(job, *about) for job in jobs)
    probed = Probed({}, {}, {}, {})
    for part in tqdm(workers(calls), total=len(jobs), desc="SAEs probed", unit="SAE"):
        for whole, addition in zip(probed, part, strict=True):
            whole.update(addition)
    return probed


def _needed(inputs: Inputs, grid: Grid) -> list[str]:
    """The poolings of which some probe reads latents."""
    return list(dict.fromkeys([*grid.poolings, *inputs.resid]))


def _probe_sae(
    job: _Job, mapped: MappedTokens, distinct: latents.Distinct, inputs: Inputs, grid: Grid
) -> Probed:
    """All probes on one SAE."""
    sae, tokens = folders.load(job.folder, inputs.device), mapped.tokens()
    folders.check_fits(sae, tokens.activations.shape[1], inputs.hook_name, inputs.model)
    pooled = latents.pool_latents(sae, tokens, _needed(inputs, grid), distinct)
    first = {job.variant: pooled} if job.keep else {}
    probed = Probed({}, {}, first, {(job.variant, job.seed): pooled} if job.variant in grid.kept else {})
    for pooling in grid.poolings:
        _probe_latents(probed, job, pooled[pooling], inputs.task, pooling, grid)
    for pooling, resid in inputs.resid.items() if grid.has_linear(job.variant) else ():
        for name, columns in views(Encoded(sae, pooled[pooling], resid)).items():
            probe = Probe(name, pooling, job.variant, job.seed)
            probed.scores[probe] = tuned_linear(columns, inputs.task, grid.c_grid).scores
    return probed


def _probe_latents(probed: Probed, job: _Job, x: ksparse.Columns, task: Task, pooling: str, grid: Grid) -> None:
    """Add the k-sparse probes of one pooling."""
    for selection, fit in every_k_sparse(x, task, grid):
        probe = Probe(K_SPARSE, pooling, job.variant, job.seed, selection, fit.k)
        probed.scores[probe], probed.chosen[probe] = fit.scores, fit.columns


def every_k_sparse(x: ksparse.Columns, task: Task, grid: Grid) -> Iterator[tuple[str, Fit]]:
    """Yield the probes of each selection of a grid, on one matrix of columns."""
    best = ksparse.best_column(x[task.train], task.y[task.train])
    for selection in grid.selections:
        for fit in k_sparse(x, task, grid.ks_of(selection), selection, best):
            yield selection, fit


class Form(NamedTuple):
    """How the columns of a k-sparse probe are pooled and chosen."""

    pooling: str
    selection: str


BEST = "chosen on validation"  # stands for pooling and selection of a probe in its best form
Basis = tuple[str, int | None]  # variant and seed


def best_forms(scores: Mapping[Probe, Scores], task: Task, k: int, selections: Iterable[str]) -> dict[Basis, Form]:
    """Pooling and selection of best validation AUROC at k columns (or at the most that there are), for each basis.

    Raises:
        ValueError: no probe of ``selections``.
    """
    best = {}
    for probe, of_all in scores.items():
        if probe.selection not in selections or probe.k > k:
            continue
        rank = probe.k, val_auroc(of_all, task)
        basis = probe.variant, probe.seed
        if basis not in best or rank > best[basis][0]:
            best[basis] = rank, Form(probe.pooling, probe.selection)
    if not best:
        raise ValueError(f"no probe at k ≤ {k} has one of the selections {list(selections)}")
    return {basis: form for basis, (_, form) in best.items()}


def in_best_form(of_probes: Mapping[Probe, Any], forms: dict[Basis, Form]) -> dict[Probe, Any]:
    """The values of those probes that have their basis' form, under keys that say ``BEST`` in its place."""
    return {
        probe._replace(pooling=BEST, selection=BEST): value
        for probe, value in of_probes.items()
        if forms.get((probe.variant, probe.seed)) == Form(probe.pooling, probe.selection)
    }


def in_own_pooling(
    scores: Mapping[Probe, Scores], forms: dict[Basis, Form], variants: list[str], k: int
) -> dict[Probe, Scores]:
    """The scores of every selection at k, in the pooling of each basis' form, for some variants; under keys that say
    ``BEST`` for the pooling."""
    return {
        probe._replace(pooling=BEST): of_probe
        for probe, of_probe in scores.items()
        if probe.k == k and probe.variant in variants and probe.pooling == forms[probe.variant, probe.seed].pooling
    }


def chosen_latents(
    probed: Probed, prompts: pd.DataFrame, splits: list[str], probes: list[Probe]
) -> pd.DataFrame:
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
