"""SAEs of several widths at equal L0, and feature splitting: how many latents of a wide one are near a narrow one's."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from sae_lens import SAE

from lib.base.files import relative
from lib.sae import architectures, comparison
from lib.sae.harvest import Stores
from lib.sae.recipes import Recipe
from lib.stats.metrics import t_interval

WIDTHS = [1024, 2048, 4096, 8192, 16_384]
COLUMNS = ["variant", "d_sae", "seed", "lr", "l0", "fvu", "dead", "fvu_change", "converged", "folder"]
NEAR = 0.7  # cosine of decoder rows above which a latent of the wide SAE is near one of the narrow
CHOSEN, OTHERS, RANDOM = "chosen latents", "other latents", "random directions"


def variant(d_sae: int) -> str:
    """The name of a width: ``4,096 latents``."""
    return f"{d_sae:,} latents"


def recipes(recipe: Recipe, widths: list[int], seeds: list[int]) -> dict[comparison.Cell, Recipe]:
    """The recipe with each width and each seed, by the cell of a grid of trainings.

    A given learning rate is that of the recipe's own width, and falls with the root of the width, lr · √(d_sae / width)
    (Gao et al. 2024, arXiv 2406.04093, found such a law for TopK SAEs).

    Raises:
        ValueError: a recipe without a target L0, or a width that is not above it.
    """
    if recipe.target_l0 <= 0:
        raise ValueError(f"widths are compared at equal L0, and target_l0 is {recipe.target_l0}; give one above 0")
    grid = {}
    for d_sae in widths:
        lr = recipe.lr * (recipe.d_sae / d_sae) ** 0.5
        for seed in sorted(seeds):
            changed = dataclasses.replace(recipe, d_sae=d_sae, lr=lr, seed=seed)
            grid[comparison.Cell(variant(d_sae), recipe.target_l0, seed)] = architectures.check(changed)
    return grid


def train_widths(
    recipe: Recipe, widths: list[int], stores: Stores, parent: Path, seeds: list[int], **options: Any
) -> pd.DataFrame:
    """Train (or find) an SAE of each width and seed at the recipe's ``target_l0``, with ``options`` of ``train``.

    A learning rate that is to be chosen is chosen for each width, with the first seed. A row each, with the columns
    ``COLUMNS``; what is measured is that of :func:`lib.sae.comparison.measured`. A wide SAE may need more tokens than a
    narrow one: ``converged`` tells, and ``lib.sae.comparison.not_converged`` puts it into words.

    Raises:
        ValueError: as :func:`recipes`, or a training that fails (:func:`lib.sae.training.train`), such as one that
            loses most of its latents.
    """
    grid = recipes(recipe, widths, seeds)
    table = comparison.train_grid(grid, stores, parent, **options)
    d_sae = [trained.d_sae for trained in grid.values()]
    return table.assign(d_sae=d_sae, folder=table["folder"].map(relative))[COLUMNS]


@torch.no_grad()
def splitting(
    narrow: SAE,
    wide: SAE,
    chosen: Int[np.ndarray, " chosen"],
    rng: np.random.Generator,
    *,
    cosine: float = NEAR,
    others: Int[np.ndarray, " others"] | None = None,
    n_random: int = 1000,
) -> pd.DataFrame:
    """For each latent of ``narrow`` that a probe chose: how many latents of ``wide`` are near, and the nearest.

    With unit decoder rows dᵢ and eⱼ, near = |{j : dᵢ·eⱼ > ``cosine``}| and best = maxⱼ dᵢ·eⱼ. A latent that was split
    (Bricken et al. 2023, Towards Monosemanticity, "Feature Splitting") has several near ones, one that is kept has one.

    Two sorts of rows stand beside: ``others`` of the narrow SAE, such as those that fire (None: all that were not
    chosen); and random pairs, ``n_random`` random directions z E / ‖z E‖, z ~ N(0, I), in the place of dᵢ, which have
    the second moments of the wide SAE's rows E, and so no larger cosines because of directions that all rows share.
    Columns of (``CHOSEN``, ``OTHERS`` or ``RANDOM``), latent (null for random directions), near, best.

    Raises:
        ValueError: SAEs of different d_model, a wide one that is the narrower, a latent that is not there, or a cosine
            that is not between 0 and 1.
    """
    if narrow.cfg.d_in != wide.cfg.d_in or narrow.cfg.d_sae > wide.cfg.d_sae:
        sizes = [f"d_in {sae.cfg.d_in} and d_sae {sae.cfg.d_sae}" for sae in (narrow, wide)]
        raise ValueError(f"an SAE of {sizes[0]} beside a wide one of {sizes[1]}; d_in must be equal, d_sae no smaller")
    if not 0 < cosine < 1:
        raise ValueError(f"cosine {cosine} must lie between 0 and 1")
    if others is None:
        others = np.setdiff1d(np.arange(narrow.cfg.d_sae), chosen)
    missing = [int(i) for i in (*chosen, *others) if not 0 <= i < narrow.cfg.d_sae]
    if missing:
        raise ValueError(f"latents {missing[:5]} must lie between 0 and {narrow.cfg.d_sae - 1}")
    rows = torch.nn.functional.normalize(wide.W_dec.float(), dim=1)
    drawn = torch.from_numpy(rng.standard_normal((n_random, len(rows)), dtype=np.float32)).to(rows.device) @ rows
    parts = []
    for name, latents, directions in (
        (CHOSEN, chosen, narrow.W_dec[chosen]),
        (OTHERS, others, narrow.W_dec[others]),
        (RANDOM, np.full(n_random, -1), drawn),
    ):
        best, near = comparison.near_rows(directions.to(rows), rows, cosine)
        latent = pd.Series(latents, dtype="Int64").replace(-1, pd.NA)
        parts.append(pd.DataFrame({"of": name, "latent": latent, "near": near, "best": best}))
    return pd.concat(parts, ignore_index=True)


def over_latents(table: pd.DataFrame) -> pd.DataFrame:
    """Mean ``near`` and ``best`` of each sort of rows of :func:`splitting`, with 95 % t intervals over latents: columns
    of, metric, value, low, high, n, n_groups."""
    return pd.DataFrame([
        {"of": of, "metric": metric} | t_interval(rows[metric].to_numpy(dtype=np.float64))._asdict()
        for of, rows in table.groupby("of", sort=False)
        for metric in ("near", "best")
    ])
