"""Comparing SAE architectures: grids of trainings, reconstruction cost at matched L0, and what becomes of a latent."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from sae_lens import SAE

from lib.sae import folders
from lib.sae.recipes import Recipe
from lib.sae.token_blocks import Source
from lib.sae.training import train
from lib.stats.metrics import Estimate, t_interval


def recipes(base: Recipe, variants: dict[str, dict], sparsities: dict[str, list[int | float]], seeds: list[int]) -> dict[tuple[str, int | float, int], Recipe]:
    """Recipes of a grid, by (variant, sparsity, seed). ``variants`` holds what differs from ``base``; a gated SAE's
    sparsity is its coefficient, every other one's is ``target_l0``."""
    grid = {}
    for variant, change in variants.items():
        architecture = change.get("architecture", base.architecture)
        name = "coefficient" if architecture == "gated" else "target_l0"
        for sparsity in sparsities[name]:
            for seed in seeds:
                grid[variant, sparsity, seed] = dataclasses.replace(base, **change, **{name: sparsity}, seed=seed).check()
    return grid


def train_grid(grid: dict[tuple[str, int | float, int], Recipe], store: Source, held_out: Path, parent: Path, **options) -> pd.DataFrame:
    """Train (or find) every SAE of a grid, with ``options`` of ``train``; a row each with its held-out metrics, speed and folder."""
    rows = []
    for (variant, sparsity, seed), recipe in grid.items():
        folder = train(recipe, store, held_out, parent, **options)
        record = folders.training_record(folder)
        row = {"variant": variant, "sparsity": sparsity, "seed": seed, "tokens_per_s": record["tokens_per_s"], "folder": folder}
        rows.append(row | record["held_out"])
    return pd.DataFrame(rows)


def matched_difference(table: pd.DataFrame, variant: str, baseline: str, l0: list[int | float]) -> tuple[Estimate, pd.DataFrame]:
    """FVU of ``variant`` minus ``baseline`` at equal L0, with a 95 % t interval, and the single differences.

    FVU is interpolated linearly in log L0 within each seed; an L0 that one of the two curves does not span is left
    out, never extrapolated. Differences of one seed at several L0 are not independent: the interval is over the seeds'
    means, n counts differences and n_groups seeds.
    """
    rows = []
    for seed in sorted(set(table["seed"])):
        curves = [table[(table["variant"] == name) & (table["seed"] == seed)].sort_values("l0") for name in (variant, baseline)]
        if any(curve.empty for curve in curves):
            continue
        low, high = max(curve["l0"].min() for curve in curves), min(curve["l0"].max() for curve in curves)
        for value in (v for v in l0 if low <= v <= high):
            ours, theirs = (np.interp(np.log(value), np.log(curve["l0"]), curve["fvu"]) for curve in curves)
            rows.append({"seed": seed, "l0": value, "difference": ours - theirs})
    found = pd.DataFrame(rows, columns=["seed", "l0", "difference"])
    found["difference"] = found["difference"].astype(float)
    by_seed = found.groupby("seed")["difference"].mean()
    return t_interval(by_seed.to_numpy())._replace(n=len(found), n_groups=len(by_seed)), found


@torch.no_grad()
def descendants(before: SAE, after: SAE, frequency: Float[np.ndarray, " d_sae"], cosine: float = 0.5) -> pd.DataFrame:
    """For each high-frequency latent of ``before``: its nearest decoder row in ``after`` and how many are near.

    Columns: latent, frequency, best (largest cosine), near (number of rows with a cosine above ``cosine``). A
    latent that was split has several near rows.
    """
    latents = np.flatnonzero(frequency > folders.HIGH_FREQUENCY)
    rows = [torch.nn.functional.normalize(sae.W_dec.float(), dim=1) for sae in (before, after)]
    similarity = rows[0][latents] @ rows[1].T
    best = similarity.amax(1).numpy() if len(latents) else np.zeros(0)
    near = (similarity > cosine).sum(1).numpy()
    return pd.DataFrame({"latent": latents, "frequency": frequency[latents], "best": best, "near": near})
