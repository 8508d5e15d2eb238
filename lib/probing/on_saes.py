"""Every probe on an SAE, and its controls at equal k, on the same prompts and splits."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
import scipy.sparse
import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from lib.base import processes
from lib.model.activations import PromptTokens
from lib.model.poolings import named
from lib.probing import ksparse
from lib.probing.dense import search
from lib.sae import folders, latents
from lib.sae.recipes import Recipe, scaling
from lib.sae.trainers import fresh
from lib.stats import draws
from lib.stats.metrics import Scores, auroc

LEVELS = ["variant", "seed", "probe", "pooling", "selection", "k"]


class Task(NamedTuple):
    """Labels of all prompts, which of them are for training, and their base prompts."""

    y: Int[np.ndarray, " prompts"]
    train: np.ndarray
    groups: np.ndarray


def task(prompts: pd.DataFrame) -> Task:
    """The task of a prompt table."""
    return Task(prompts["label"].to_numpy(), (prompts["split"] == "train").to_numpy(), prompts["base_id"].to_numpy())


def k_sparse(x: ksparse.Columns, given: Task, ks: list[int], selection: str) -> list[tuple[int, np.ndarray, Scores]]:
    """(k, chosen columns, scores of all prompts) for each k; only training rows are used to select, scale and fit.

    A k above the number of columns that vary is left out; if all are, that is an error.
    """
    y, training = given.y[given.train], x[given.train]
    live = len(ksparse.live_columns(training))
    chosen = ksparse.select(training, y, [k for k in ks if k <= live] or ks, selection)
    union = np.unique(np.concatenate(list(chosen.values())))
    few = ksparse.dense(x, union)
    places = {k: np.searchsorted(union, columns) for k, columns in chosen.items()}
    return [(k, chosen[k], ksparse.refit(few[given.train], y, place).decision_function(few[:, place])) for k, place in places.items()]


def linear(sparse: bool, c: float = 1.0) -> Pipeline:
    """L2 logistic regression on standardised columns (sparse ones are scaled, not centred)."""
    return make_pipeline(StandardScaler(with_mean=not sparse), LogisticRegression(C=c, max_iter=2000))


def views(sae: SAE, pooled: latents.Pooled, resid: Float[np.ndarray, "prompts d_model"], pooling: str) -> dict[str, ksparse.Columns]:
    """What a linear probe can be given of an SAE: its reconstruction, its error, all its latents."""
    reconstruction = latents.reconstruction(sae, pooled[pooling])
    return {"reconstruction": reconstruction, "error": resid - reconstruction, "all latents": pooled[pooling]}


def choose_c(x: ksparse.Columns, given: Task, c_grid: list[float]) -> float:
    """Inverse L2 strength by cross-validated AUROC on the training split, in folds that keep a base prompt together."""
    found = search(linear(scipy.sparse.issparse(x)), given.y[given.train], given.groups[given.train], tuple(c_grid)).set_params(refit=False)
    return found.fit(x[given.train], given.y[given.train]).best_params_["logisticregression__C"]


def linear_scores(x: ksparse.Columns, given: Task, c: float) -> Scores:
    """Scores of all prompts from a linear probe that is fitted on the training split."""
    fitted = linear(scipy.sparse.issparse(x), c).fit(x[given.train], given.y[given.train])
    return fitted.decision_function(x)


class Probed(NamedTuple):
    """Scores of all prompts by (variant, seed, probe, pooling, selection, k), chosen latents by the same key, and the
    pooled latents of each variant's first SAE."""

    scores: dict[tuple, Scores]
    chosen: dict[tuple, np.ndarray]
    latents: dict[str, latents.Pooled]


def probe_saes(
    table: pd.DataFrame, tokens: PromptTokens, resid: dict[str, np.ndarray], given: Task, ks: list[int], poolings: list[str],
    c_grid: list[float], hook_name: str | None = None, model: str | None = None, device: str = "cpu",
) -> Probed:  # fmt: skip
    """Every probe on every SAE of ``table`` (columns variant, seed, folder), after a check that it is of this hook and model.

    k-sparse probes for each of ``poolings``, linear ones on :func:`views` for each pooling of ``resid``. Their C is
    chosen on the first SAE and kept for all others.

    Raises:
        ValueError: an SAE of another width, layer or model than the activations, an unknown pooling, or no k that is possible.
    """
    named(poolings)
    first = folders.load(table["folder"].iloc[0], device)
    folders.check_fits(first, tokens.activations.shape[1], hook_name, model)
    pooled = latents.pool_latents(first, tokens) if resid else {}
    c = {(name, p): choose_c(x, given, c_grid) for p in resid for name, x in views(first, pooled, resid[p], p).items()}
    shared = tokens.activations.view(torch.int16).numpy(), tokens.starts.numpy()  # which the workers map, not copy
    rest = (*shared, tokens.activations.dtype, tokens.fixed, resid, given, ks, poolings, c, hook_name, model, device)
    keys = [(row.variant, None if pd.isna(row.seed) else int(row.seed)) for row in table.itertuples()]
    kept, known = ~table["variant"].duplicated(), [pooled] + [{}] * (len(table) - 1)
    calls = (joblib.delayed(_probe_sae)(*of, *rest) for of in zip(keys, table["folder"], kept, known, strict=True))
    workers = processes.parallel(len(table) if device == "cpu" else 1)
    found = Probed({}, {}, {})
    for one in tqdm(workers(calls), total=len(table), desc="SAEs probed", unit="SAE"):
        for all_of_them, part in zip(found, one, strict=True):
            all_of_them.update(part)
    return found


def _probe_sae(key, folder, keep, pooled, activations, starts, dtype, fixed, resid, given, ks, poolings, strengths, hook_name, model, device) -> Probed:
    """All probes on one SAE, whose latents are pooled here unless they are given; they are returned only if they are to be kept."""
    sae = folders.load(folder, device)
    tokens = PromptTokens(torch.from_numpy(activations).view(dtype), torch.from_numpy(starts), fixed)
    folders.check_fits(sae, tokens.activations.shape[1], hook_name, model)
    pooled = pooled or latents.pool_latents(sae, tokens)
    found = Probed({}, {}, {key[0]: pooled} if keep else {})
    for pooling, selection in itertools.product(poolings, ksparse.SELECTIONS):
        first = (*key, "k-sparse", pooling, ksparse.SELECTIONS[0], 1)  # k = 1 does not depend on the selection
        known = [(1, found.chosen[first], found.scores[first])] if first in found.scores else []
        rest = [k for k in ks if k > 1] if known else ks
        for k, columns, scores in [*known, *(k_sparse(pooled[pooling], given, rest, selection) if rest else [])]:
            found.scores[*key, "k-sparse", pooling, selection, k] = scores
            found.chosen[*key, "k-sparse", pooling, selection, k] = columns
    for pooling, x in resid.items():
        for name, values in views(sae, pooled, x, pooling).items():
            found.scores[*key, name, pooling, "", 0] = linear_scores(values, given, strengths[name, pooling])
    return found


def controls(resid: Float[np.ndarray, "prompts d_model"], given: Task, n_random: int, seed: int) -> dict[str, np.ndarray]:
    """Bases without training in the place of latents: principal components, coordinates, random unit directions."""
    rng = np.random.default_rng(seed)
    random = rng.standard_normal((resid.shape[1], n_random)).astype(np.float32)
    components = PCA(random_state=seed).fit(resid[given.train])
    return {
        "principal components": components.transform(resid),
        "coordinates": resid,
        "random directions": resid @ (random / np.linalg.norm(random, axis=0)),
    }


def training_sample(tokens: PromptTokens, given: Task, generator: torch.Generator, n: int = 8192) -> Float[torch.Tensor, "tokens d_model"]:
    """Activations of random tokens of training prompts."""
    lengths = tokens.starts.diff()
    rows = torch.repeat_interleave(torch.tensor(given.train), lengths).nonzero()[:, 0]
    return tokens.activations[rows[torch.randperm(len(rows), generator=generator)[:n]]].float()


@torch.no_grad()
def untrained(like: SAE, tokens: PromptTokens, given: Task, seed: int) -> SAE:
    """A JumpReLU SAE of random decoder rows whose thresholds give the L0 of ``like`` on tokens of training prompts."""
    generator = torch.Generator().manual_seed(seed)
    sample = training_sample(tokens, given, generator)
    l0 = (like.encode(sample) > 0).float().sum(1).mean().item()
    recipe = Recipe(d_sae=like.cfg.d_sae, target_l0=l0, seed=seed)
    mean, scale = scaling(sample)
    return folders.from_parameters(fresh(recipe, (sample - mean) / scale, generator), mean, scale, {})


def directions_in_dictionary(
    direction: Float[np.ndarray, " d_model"], dictionary: Float[np.ndarray, "d_sae d_model"], ks: list[int]
) -> Float[np.ndarray, " ks"]:
    """Share of ‖direction‖² that orthogonal matching pursuit expresses with k unit rows of a dictionary, for each k."""
    rows = dictionary / np.maximum(np.linalg.norm(dictionary, axis=1, keepdims=True), 1e-12)
    unit = direction / np.linalg.norm(direction)
    chosen: list[int] = []
    residual, shares = unit, {0: 0.0}
    for k in range(1, max(ks) + 1):
        chosen.append(int(np.argmax(np.abs(rows @ residual))))
        basis, _ = np.linalg.qr(rows[chosen].T)
        residual = unit - basis @ (basis.T @ unit)
        shares[k] = 1 - float(residual @ residual)
    return np.array([shares[k] for k in ks])


def gaps_closed(drawn: pd.DataFrame, dense: pd.DataFrame, before: str, dense_pooling: str, split: str, seed: int) -> pd.DataFrame:
    """Share of the gap between the dense probe and the SAE ``before`` that every other SAE's k-sparse probes close.

    A row per variant, pooling, selection and k, with the interval over base prompts and seeds.
    """
    line = dense.xs((dense_pooling, split), level=["pooling", "split"]).to_numpy()[0]
    part = draws.over_seeds(drawn.xs(("k-sparse", split), level=["probe", "split"]), seed)
    others = part[part.index.get_level_values("variant") != before]
    first = part.xs(before, level="variant").reindex(others.index.droplevel("variant"))
    return draws.estimates(pd.DataFrame(draws.gap_closed(others.to_numpy(), first.to_numpy(), line), index=others.index))


def auroc_lost(drawn: pd.DataFrame, dense: pd.DataFrame, seed: int) -> pd.DataFrame:
    """AUROC of the dense probe minus that of each linear probe on an SAE, same pooling and replicates."""
    part = draws.over_seeds(drawn[drawn.index.get_level_values("probe") != "k-sparse"], seed)
    kept = ["pooling", "split"]
    line = dense.droplevel([name for name in dense.index.names if name not in kept])
    same = line.reindex(part.index.droplevel([name for name in part.index.names if name not in kept]))
    return draws.estimates(same.to_numpy() - part)


def logit_parts(weight: Float[np.ndarray, " d_model"], parts: dict[str, ksparse.Columns], prompts: pd.DataFrame) -> Iterator[dict]:
    """AUROC of fixed weights on the reconstruction, the error and their sum, and each part's share of the logit's variance.

    The share is cov(part, sum) / var(sum), so that the two add to one.
    """
    logits = {name: parts[name] @ weight for name in ("reconstruction", "error")}
    total = logits["reconstruction"] + logits["error"]
    for split, rows in prompts.reset_index(drop=True).groupby("split", sort=False):
        for name, values in (logits | {"whole": total}).items():
            part, whole = values[rows.index], total[rows.index]
            area = auroc(rows["label"].to_numpy(), part, np.ones((1, len(part))))[0]
            yield {"part": name, "split": split, "auroc": float(area), "variance_share": float(np.cov(part, whole)[0, 1] / whole.var(ddof=1))}


def first_key(chosen: dict[tuple, np.ndarray], variant: str, pooling: str, selection: str, k: int) -> tuple:
    """The key of a variant's first seed."""
    return next(key for key in chosen if key[0] == variant and key[3:] == (pooling, selection, k))
