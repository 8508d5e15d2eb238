"""Bases that no SAE training made, in the place of latents; where a dense probe's direction lies in a dictionary."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from sae_lens import SAE
from sklearn.decomposition import PCA

from lib.base import processes
from lib.model.activations import PromptTokens
from lib.probing import ksparse
from lib.probing.on_saes import k_sparse
from lib.probing.tasks import Probe, Task
from lib.sae import folders
from lib.sae.recipes import Recipe, scaling
from lib.sae.trainers import fresh
from lib.stats.metrics import Scores, auroc

CONTROL = "control"


class Inputs(NamedTuple):
    """What a control basis is made of: one pooling of the residual stream, the task, how many columns, and a seed."""

    resid: Float[np.ndarray, "prompts d_model"]
    task: Task
    n_columns: int
    seed: int


def _principal_components(inputs: Inputs) -> ksparse.Columns:
    return PCA(random_state=inputs.seed).fit(inputs.resid[inputs.task.train]).transform(inputs.resid)


def _coordinates(inputs: Inputs) -> ksparse.Columns:
    return inputs.resid


def _random_directions(inputs: Inputs) -> ksparse.Columns:
    shape = inputs.resid.shape[1], inputs.n_columns
    directions = np.random.default_rng(inputs.seed).standard_normal(shape).astype(np.float32)
    return inputs.resid @ (directions / np.linalg.norm(directions, axis=0))


BASES: dict[str, Callable[[Inputs], ksparse.Columns]] = {
    "principal components": _principal_components,
    "coordinates": _coordinates,
    "random directions": _random_directions,
}


def bases(inputs: Inputs) -> dict[str, ksparse.Columns]:
    """The columns of every entry of ``BASES``."""
    return {name: basis(inputs) for name, basis in BASES.items()}


def scores(columns: dict[tuple[str, str], ksparse.Columns], task: Task, ks: list[int]) -> dict[Probe, Scores]:
    """Scores of all prompts from k-sparse probes (mean difference) on each basis; ``columns`` by basis and pooling."""
    workers = processes.parallel(len(columns))
    fits = workers(joblib.delayed(k_sparse)(x, task, ks, ksparse.MEAN_DIFFERENCE) for x in columns.values())
    return {
        Probe(CONTROL, pooling, basis, None, ksparse.MEAN_DIFFERENCE, fit.k): fit.scores
        for (basis, pooling), of_basis in zip(columns, fits, strict=True)
        for fit in of_basis
    }


def training_sample(
    tokens: PromptTokens, task: Task, generator: torch.Generator, n: int = 8192
) -> Float[torch.Tensor, "tokens d_model"]:
    """Activations of random tokens of training prompts."""
    lengths = tokens.starts.diff()
    rows = torch.repeat_interleave(torch.tensor(task.train), lengths).nonzero()[:, 0]
    return tokens.activations[rows[torch.randperm(len(rows), generator=generator)[:n]]].float()


@torch.no_grad()
def untrained(like: SAE, tokens: PromptTokens, task: Task, seed: int) -> SAE:
    """A JumpReLU SAE of random decoder rows whose thresholds give the L0 of ``like`` on tokens of training prompts."""
    generator = torch.Generator().manual_seed(seed)
    sample = training_sample(tokens, task, generator)
    l0 = (like.encode(sample) > 0).float().sum(1).mean().item()
    recipe = Recipe(d_sae=like.cfg.d_sae, target_l0=l0, seed=seed)
    mean, scale = scaling(sample)
    return folders.from_parameters(fresh(recipe, (sample - mean) / scale, generator), mean, scale, {})


def training_tokens(tokens: PromptTokens, task: Task, n: int, seed: int) -> Float[np.ndarray, "n d_model"]:
    """Random training tokens, centred, as a dictionary: they share the activations' covariance, and no training."""
    sample = training_sample(tokens, task, torch.Generator().manual_seed(seed), n).numpy()
    return sample - sample.mean(0)


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


def direction_shares(
    directions: dict[str, np.ndarray], dictionaries: dict[str, np.ndarray], ks: list[int]
) -> pd.DataFrame:
    """:func:`directions_in_dictionary` of every direction in every dictionary, a row per k; there is no interval."""
    return pd.DataFrame([
        {"direction": name, "dictionary": which, "k": k, "value": share, "low": np.nan, "high": np.nan}
        for name, direction in directions.items()
        for which, rows in dictionaries.items()
        for k, share in zip(ks, directions_in_dictionary(direction, rows, ks), strict=True)
    ])


def logit_parts(
    weight: Float[np.ndarray, " d_model"], parts: dict[str, ksparse.Columns], prompts: pd.DataFrame
) -> Iterator[dict]:
    """AUROC of fixed weights on the reconstruction, the error and their sum, and each part's share of the logit's
    variance.

    The share is cov(part, sum) / var(sum), so that the two add to one.
    """
    logits = {name: parts[name] @ weight for name in ("reconstruction", "error")}
    total = logits["reconstruction"] + logits["error"]
    for split, rows in prompts.reset_index(drop=True).groupby("split", sort=False):
        for name, values in (logits | {"whole": total}).items():
            part, whole = values[rows.index], total[rows.index]
            area = auroc(rows["label"].to_numpy(), part, np.ones((1, len(part))))[0]
            share = float(np.cov(part, whole)[0, 1] / whole.var(ddof=1))
            yield {"part": name, "split": split, "auroc": float(area), "variance_share": share}
