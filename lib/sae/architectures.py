"""The architectures of SAEs, by name, and how each is trained. A new one is an entry here."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from lib.base.registry import lookup
from lib.sae import comparators, jumprelu, trainers
from lib.sae.recipes import Recipe, Trainer


class Architecture(NamedTuple):
    """An entry of ``ARCHITECTURES``.

    ``trainer`` is a class or function that makes a trainer (``lib.sae.recipes.Trainer``) from a recipe, a sample of
    training activations and, where it ``finetunes``, the SAE to begin with or None. It steers to the recipe's
    ``target_l0``; ``coefficient_alone`` says that ``target_l0=0`` leaves the sparsity to the coefficient. ``lr`` and
    ``target_l0s`` stand for those that notebook 03 has for all, where these do not suit the architecture.
    """

    trainer: Callable[..., Trainer]
    coefficient_alone: bool = False
    finetunes: bool = False
    lr: float | None = None  # peak learning rate
    target_l0s: tuple[int | float, ...] = ()


ARCHITECTURES = {
    "jumprelu": Architecture(trainers.JumpReLUTrainer, coefficient_alone=True, finetunes=True),
    "gated": Architecture(comparators.gated),
    "topk": Architecture(comparators.topk),
    "batchtopk": Architecture(comparators.batchtopk),
    "matryoshka": Architecture(comparators.matryoshka),
}


def architecture(name: str) -> Architecture:
    """The entry of an architecture.

    Raises:
        ValueError: an unknown name.
    """
    return lookup(ARCHITECTURES, "architecture", name)


def target_l0s(name: str, of_all: list[int | float]) -> list[int | float]:
    """The L0s at which an architecture is trained: its own, or those of all.

    Raises:
        ValueError: an unknown name.
    """
    return list(architecture(name).target_l0s or of_all)


def make_trainer(recipe: Recipe, calibration: Float[Tensor, "tokens d_model"], start: SAE | None = None) -> Trainer:
    """The trainer of a recipe, initialised on a sample of training activations, or from an SAE that is finetuned.

    Raises:
        ValueError: an unknown architecture, one that cannot be finetuned, or an SAE of another width than the recipe's.
    """
    entry = architecture(recipe.architecture)
    if entry.finetunes:
        return entry.trainer(recipe, calibration, start)
    if start is not None:
        able = ", ".join(name for name, other in ARCHITECTURES.items() if other.finetunes)
        raise ValueError(f"finetuning is for {able}, the recipe says {recipe.architecture!r}")
    return entry.trainer(recipe, calibration)


def check(recipe: Recipe) -> Recipe:
    """Return the recipe if its values are possible.

    Raises:
        ValueError: names the value and what is allowed.
    """
    entry = architecture(recipe.architecture)
    lookup(jumprelu.PENALTIES, "penalty", recipe.penalty)
    has_target = not (entry.coefficient_alone and recipe.target_l0 == 0)
    if has_target and not 0 < recipe.target_l0 < recipe.d_sae:
        raise ValueError(f"target_l0 {recipe.target_l0} must lie between 0 and d_sae {recipe.d_sae}")
    if recipe.tokens < recipe.batch_tokens or recipe.f0 <= 0 or recipe.bandwidth <= 0:
        raise ValueError(
            f"tokens {recipe.tokens} (at least batch_tokens {recipe.batch_tokens}), f0 {recipe.f0} and "
            f"bandwidth {recipe.bandwidth} must be positive"
        )
    if not 0 <= recipe.resample < 1 or not 0 <= recipe.stop_tokens <= recipe.tokens:
        raise ValueError(
            f"resample {recipe.resample} must be a share below 1, "
            f"stop_tokens {recipe.stop_tokens} at most tokens {recipe.tokens}"
        )
    return recipe
