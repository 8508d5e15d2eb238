"""What decides an SAE's training, and the interface of what the training loop can train."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from lib.sae import folders

TYPICAL = 0.99  # share of tokens


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides an SAE's training; the defaults suit runs of 0.5 to 5 million tokens.

    ``architecture`` is a name of ``lib.sae.architectures.ARCHITECTURES``, and ``target_l0`` (active latents per token)
    sets the sparsity. JumpReLU with ``target_l0=0`` uses the fixed ``coefficient`` λ of its penalty, reached linearly
    over ``sparsity_warmup_steps``.
    ``bandwidth`` is in units of the normalised input. Peak learning rate ``lr``, linear warm-up over
    ``warmup_steps`` and at most a twentieth of the steps, linear decay to 0 over the last ``decay_share`` of the steps.
    """

    architecture: str = "jumprelu"
    d_sae: int = 3072
    target_l0: int | float = 30.0
    coefficient: int | float = 1e-3
    penalty: str = "l0"
    f0: float = 0.1
    tokens: int = 1_500_000
    batch_tokens: int = 2048
    lr: float = 4e-3
    bandwidth: float = 0.7
    warmup_steps: int = 20
    sparsity_warmup_steps: int = 0
    decay_share: float = 0.3
    dead_after: int = 20  # steps without firing after which a latent is helped
    k_aux: int = 8  # dead latents per token that reconstruct the residual
    resample: float = 0.0  # share of a given SAE's latents, the least frequent here, made anew before finetuning
    stop_tokens: int = 0  # end at this many of ``tokens``, as an earlier checkpoint of the same schedule; 0: at the end
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimiser steps of the schedule."""
        return self.tokens // self.batch_tokens

    @property
    def last_step(self) -> int:
        """The step at which training ends: ``steps``, or earlier with ``stop_tokens``."""
        return self.stop_tokens // self.batch_tokens or self.steps


@runtime_checkable
class Trainer(Protocol):
    """One optimiser step at a time; ``state`` and ``load_state`` make a run resumable bit for bit."""

    def step(self, x: Float[Tensor, "tokens d_model"], lr_factor: float) -> dict[str, float]:
        """One step on raw activations; returns l0, fvu, dead and high_frequency counts of the batch."""

    def finish(self, x: Float[Tensor, "tokens d_model"]) -> None:
        """Called once, after the last step, with training activations."""

    def export(self, metadata: dict[str, Any]) -> SAE:
        """The trained SAE for unscaled activations."""

    def state(self) -> dict[str, Any]:
        """Tensors and numbers that continue the run."""

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``."""


def scaling(x: Float[Tensor, "tokens d_model"]) -> tuple[Float[Tensor, " d_model"], float]:
    """Mean over tokens, and the scale s of what is left, which the tokens of outlying norm do not decide.

    s = root mean square per coordinate of x − mean, in the units of x, over the ``TYPICAL`` tokens nearest the mean.
    """
    mean = x.mean(0)
    squared = (x - mean).square().mean(1)
    nearest = squared.topk(max(1, round(TYPICAL * len(x))), largest=False, sorted=False).values
    return mean, nearest.mean().sqrt().item()


def batch_metrics(
    residual: Float[Tensor, "tokens d_model"],
    x: Float[Tensor, "tokens d_model"],
    frequency: Float[Tensor, " d_sae"],
    dead: int,
) -> dict[str, float]:
    """What the progress bar and the training curve show of one batch."""
    return {
        "l0": frequency.sum().item(),
        "fvu": ((residual.norm() / (x - x.mean(0)).norm()) ** 2).item(),
        "dead": dead,
        "high_frequency": int((frequency > folders.HIGH_FREQUENCY).sum()),
    }
