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

    The schedule is that of the tokens that are left, to its end. Warm-up, and what else is counted in steps, stays as
    it is, so that a share of few steps is mostly warm-up: a rate that is chosen can make up for it, a given one cannot.
    The tokens of one seed are the first ones of those of a larger share.

    Raises:
        ValueError: a share that is not above 0 and at most 1, that is less than one batch, or that is there twice.
    """
    repeated = [name for name, n in Counter(map(variant, shares)).items() if n > 1]
    if repeated:
        raise ValueError(f"shares {list(shares)} have {repeated[0]!r} more than once; each may be there once")
    grid = {}
    steered_by = architectures.architecture(recipe.architecture).steered_by
    for share in shares:
        tokens = round(share * recipe.tokens)
        if not 0 < share <= 1 or tokens < recipe.batch_tokens:
            raise ValueError(
                f"share {share} of {recipe.tokens} tokens must lie between one batch, "
                f"{recipe.batch_tokens / recipe.tokens:.3g} ({recipe.batch_tokens} tokens), and 1"
            )
        for seed in sorted(seeds):
            changed = dataclasses.replace(recipe, tokens=tokens, stop_tokens=0, seed=seed)
            grid[comparison.Cell(variant(share), getattr(recipe, steered_by), seed)] = architectures.check(changed)
    return grid


def train_shares(
    recipe: Recipe, shares: list[int | float], stores: Stores, parent: Path, seeds: list[int], **options: Any
) -> pd.DataFrame:
    """Train (or find) an SAE of each share and seed, with ``options`` of ``train``.

    A learning rate that is to be chosen is chosen for each share, with the first seed, as for the variants of
    :func:`lib.sae.comparison.train_grid`. A row each, with the columns ``COLUMNS``: ``tokens`` are those that were
    trained on, in whole batches; l0, fvu, dead, fvu_change and converged are those of
    :func:`lib.sae.comparison.measured`. (The sample that sets scale and first thresholds is of one size for all.)

    Raises:
        ValueError: as :func:`recipes`, or a training that fails (:func:`lib.sae.training.train`).
    """
    grid = recipes(recipe, shares, seeds)
    table = comparison.train_grid(grid, stores, parent, **options)
    tokens = [trained.last_step * trained.batch_tokens for trained in grid.values()]
    share_of = {variant(share): share for share in shares}
    table = table.assign(tokens=tokens, share=table["variant"].map(share_of), folder=table["folder"].map(relative))
    return table[COLUMNS]
