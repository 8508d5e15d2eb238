"""Learning rates that are chosen and not typed: whole trainings, compared on a calibration split of the text.

A rate that suits one model does not suit another: of JumpReLU, the best one for a sentence encoder was two to four
times that for a chat model. A learning rate of ``CHOSEN`` is replaced by the one that :func:`choose` finds.
"""

import dataclasses
from pathlib import Path
from typing import Any

from lib.sae import folders
from lib.sae.harvest import Stores
from lib.sae.recipes import Recipe
from lib.sae.token_blocks import Source
from lib.sae.training import train

CHOSEN = 0.0  # as a learning rate: choose one
RATES = tuple(2.5e-4 * 2**i for i in range(8))  # 2.5e-4 to 3.2e-2
FIRST = 3  # the place in RATES where the search begins


def settled(recipe: Recipe, stores: Stores, parent: Path, **options: Any) -> Recipe:
    """The recipe itself, or with a learning rate of ``CHOSEN`` the same with the one that :func:`choose` finds.

    Raises:
        ValueError: a rate is to be chosen and ``stores`` has no calibration tokens, or as in :func:`choose`.
    """
    if recipe.lr != CHOSEN:
        return recipe
    if stores.calibration is None:
        raise ValueError(f"lr {recipe.lr} is to be chosen on calibration tokens, and there are none")
    return dataclasses.replace(recipe, lr=choose(recipe, stores.training, stores.calibration, parent, **options))


def choose(recipe: Recipe, store: Source | list[Source], calibration: Path, parent: Path, **options: Any) -> float:
    """The rate of smallest FVU on the calibration tokens, found by stepping along ``RATES`` as long as the FVU falls.

    Each trial is the recipe's whole training, with ``options`` of :func:`lib.sae.training.train`, kept in ``parent``.
    A rate at which training fails is worse than any other.

    Raises:
        ValueError: no target L0, as FVU at unequal L0 cannot be compared, or a recipe that fails at every rate.
    """
    if not recipe.target_l0:
        raise ValueError(f"target_l0 is {recipe.target_l0}, so no lr can be chosen at equal L0; give an lr or a target")
    fvu: dict[int, float] = {}
    failures: dict[int, ValueError] = {}

    def measured(place: int) -> float:
        if not 0 <= place < len(RATES):
            return float("inf")
        if place not in fvu:
            trial = dataclasses.replace(recipe, lr=RATES[place])
            try:
                folder = train(trial, store, calibration, parent, **options)
                fvu[place] = folders.training_record(folder)["held_out"]["fvu"]
            except ValueError as error:
                fvu[place], failures[place] = float("inf"), error
        return fvu[place]

    best = FIRST
    while (nearer := min((best, best - 1, best + 1), key=measured)) != best:
        best = nearer
    if best in failures:
        raise failures[best]
    return RATES[best]
