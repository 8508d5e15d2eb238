"""SAEs of a share of the training tokens, other things equal: what a cheaper training is worth."""

import dataclasses
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pandas as pd

from lib.base.files import relative
from lib.sae import architectures, comparison
from lib.sae.harvest import Stores
from lib.sae.recipes import Recipe

ALL = "all tokens"
COLUMNS = ["variant", "seed", "share", "tokens", "lr", "l0", "fvu", "dead", "fvu_change", "converged", "folder"]


def variant(share: int | float) -> str:
    """The name of a share: ``1/10 of the tokens``."""
    fraction = Fraction(share).limit_denominator(1_000_000)
    return ALL if fraction == 1 else f"{fraction.numerator}/{fraction.denominator} of the tokens"


def recipes(recipe: Recipe, shares: list[int | float], seeds: list[int]) -> dict[comparison.Cell, Recipe]:
    """The recipe with each share of its tokens and each seed, by the cell of a grid of trainings.

    Batches have that share of their tokens too, so that all take as many steps of one schedule: with batches as large
    as before, a small share would be nothing but warm-up. A given learning rate is that of all tokens, and is lowered
    to lr · share^¼: of lr, lr · share^¼ and lr · share^½ (the rule of Malladi et al. 2022, arXiv 2205.10330, for
    smaller batches) it gave the best held-out FVU over shares of 1/10 and 1/100, the first diverging at 1/100. The
    sample that sets scale and first thresholds stays as large as it is.

    Raises:
        ValueError: a share that is not above 0 and at most 1, that leaves no token in a batch, or that is there twice.
    """
    repeated = [name for name, n in Counter(map(variant, shares)).items() if n > 1]
    if repeated:
        raise ValueError(f"shares {list(shares)} have {repeated[0]!r} more than once; each may be there once")
    grid = {}
    for share in shares:
        batch_tokens = round(share * recipe.batch_tokens)
        if not 0 < share <= 1 or not batch_tokens:
            raise ValueError(
                f"share {share} must lie above 0, up to 1, and leave a token of each batch of {recipe.batch_tokens}"
            )
        of_share = {"tokens": batch_tokens * recipe.steps, "batch_tokens": batch_tokens, "stop_tokens": 0}
        of_share["lr"] = recipe.lr * share**0.25
        for seed in sorted(seeds):
            changed = dataclasses.replace(recipe, **of_share, seed=seed)
            grid[comparison.Cell(variant(share), recipe.target_l0, seed)] = architectures.check(changed)
    return grid


def train_shares(
    recipe: Recipe, shares: list[int | float], stores: Stores, parent: Path, seeds: list[int], **options: Any
) -> pd.DataFrame:
    """Train (or find) an SAE of each share and seed, with ``options`` of ``train``.

    A learning rate that is to be chosen is chosen for each share, with the first seed, as for the variants of
    :func:`lib.sae.comparison.train_grid`. A row each, with the columns ``COLUMNS``: ``tokens`` are those that were
    trained on; l0, fvu, dead, fvu_change and converged are those of
    :func:`lib.sae.comparison.measured`.

    Raises:
        ValueError: as :func:`recipes`, or a training that fails (:func:`lib.sae.training.train`).
    """
    grid = recipes(recipe, shares, seeds)
    table = comparison.train_grid(grid, stores, parent, **options)
    tokens = [trained.last_step * trained.batch_tokens for trained in grid.values()]
    share_of = {variant(share): share for share in shares}
    table = table.assign(tokens=tokens, share=table["variant"].map(share_of), folder=table["folder"].map(relative))
    return table[COLUMNS]
