"""What the training loop can train: our JumpReLU, and SAELens' own classes, behind one small interface."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from sae_lens import SAE
from sae_lens.saes import batchtopk_sae, gated_sae, matryoshka_batchtopk_sae, topk_sae
from sae_lens.saes.sae import SAEMetadata, TrainStepInput
from torch import Tensor

from lib import sae as saes
from lib.jumprelu import PENALTIES, Parameters, sparse_step

ARCHITECTURES = ("jumprelu", "gated", "topk", "batchtopk", "matryoshka")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides an SAE's training; the defaults suit runs of 0.5 to 5 million tokens.

    ``target_l0`` (active latents per token) holds for every architecture but gated, which is steered by
    ``coefficient`` (its L1 coefficient). JumpReLU with ``target_l0=0`` uses the fixed ``coefficient`` λ.
    ``bandwidth`` is in units of the normalised input. Peak learning rate ``lr``, linear warm-up over
    ``warmup_steps``, linear decay to 0 over the last ``decay_share`` of the steps.
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
    decay_share: float = 0.3
    dead_after: int = 20  # steps without firing after which a latent is helped
    k_aux: int = 8  # dead latents per token that reconstruct the residual
    seed: int = 0

    def check(self) -> "Recipe":
        """Return the recipe if its values are possible.

        Raises:
            ValueError: names the value and what is allowed.
        """
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"unknown architecture {self.architecture!r}; allowed are {ARCHITECTURES}")
        if self.penalty not in PENALTIES:
            raise ValueError(f"unknown penalty {self.penalty!r}; allowed are {PENALTIES}")
        steered = self.architecture != "gated" and not (self.architecture == "jumprelu" and self.target_l0 == 0)
        if steered and not 0 < self.target_l0 < self.d_sae:
            raise ValueError(f"target_l0 {self.target_l0} must lie between 0 and d_sae {self.d_sae}")
        if self.tokens < self.batch_tokens or self.f0 <= 0 or self.bandwidth <= 0:
            raise ValueError(f"tokens {self.tokens} (at least batch_tokens {self.batch_tokens}), f0 {self.f0} and bandwidth {self.bandwidth} must be positive")
        return self

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return self.tokens // self.batch_tokens


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


def make_trainer(recipe: Recipe, calibration: Float[Tensor, "tokens d_model"]) -> Trainer:
    """The trainer of a recipe, initialised on a sample of training activations."""
    return (JumpReLUTrainer if recipe.architecture == "jumprelu" else SAELensTrainer)(recipe, calibration)


def _scaling(x: Tensor) -> tuple[Tensor, float]:
    """Mean, and the root mean square per coordinate of what is left."""
    mean = x.mean(0)
    return mean, (x - mean).square().mean().sqrt().item()


def _fold_scaling(sae: SAE, mean: Tensor, scale: float) -> SAE:
    """Make an SAE on (x − mean) / scale one on x: with b_dec' = mean + scale·b_dec taken off the input, every
    pre-activation is scale times the old one, so biases and thresholds are scaled too."""
    if not sae.cfg.apply_b_dec_to_input:
        raise ValueError(f"{type(sae).__name__} without apply_b_dec_to_input cannot be rescaled here")
    for name, parameter in sae.named_parameters():
        if name in ("b_enc", "b_gate", "b_mag", "threshold"):
            parameter.data.mul_(scale)
    sae.b_dec.data.mul_(scale).add_(mean)
    return sae


def _fvu(residual: Tensor, x: Tensor) -> float:
    return (residual.square().sum() / (x - x.mean(0)).square().sum()).item()


class JumpReLUTrainer:
    """JumpReLU with sparse-exact steps, thresholds calibrated at the start, and a controller for ``target_l0``.

    Each threshold starts at the quantile of its pre-activation that gives the wanted firing rate. With ``target_l0``
    two things hold L0: all thresholds move together by ``SHIFT`` × learning rate × the batch's relative error, and λ is the
    multiplier at which the penalty balances the reconstruction on the thresholds, λ = −Σ∂rec/∂θ / Σ∂penalty/∂θ
    (exponential means over steps), so that the penalty keeps its full weight between latents. Latents unused for
    ``dead_after`` steps reconstruct the residual (AuxK, arXiv 2406.04093), and their thresholds come down.
    """

    SHIFT = 7.5  # of all thresholds, in learning rates per relative error: more than Adam moves a threshold in a step
    MEMORY = 0.95

    def __init__(self, recipe: Recipe, calibration: Float[Tensor, "tokens d_model"]):
        self.recipe = recipe
        self.mean, self.scale = _scaling(calibration)
        x = self._normalise(calibration)[:8192]
        generator = torch.Generator().manual_seed(recipe.seed)
        dec = torch.randn(recipe.d_sae, x.shape[1], generator=generator).to(x)
        dec /= dec.norm(dim=1, keepdim=True)
        rate = (recipe.target_l0 or 0.02 * recipe.d_sae) / recipe.d_sae
        threshold = torch.quantile(dec @ x.T, 1 - rate, dim=1)
        start = Parameters(dec.clone(), dec, x.new_zeros(recipe.d_sae), x.new_zeros(x.shape[1]), threshold)
        self.p = Parameters(*(torch.nn.Parameter(tensor) for tensor in start))
        self.optimizer = torch.optim.Adam([
            {"params": self.p[:4], "factor": 1.0}, {"params": self.p[4:], "factor": 3.0},
        ], lr=recipe.lr, fused=True)  # fmt: skip
        self.unused = x.new_zeros(recipe.d_sae)
        self.balance = [0.0, 0.0]

    def _normalise(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale

    @property
    def coefficient(self) -> float:
        """λ of the next step."""
        if self.recipe.target_l0 == 0:
            return self.recipe.coefficient
        reconstruction, penalty = self.balance
        return max(0.0, -reconstruction / penalty) if penalty else 0.0

    @torch.no_grad()
    def step(self, x: Float[Tensor, "tokens d_model"], lr_factor: float) -> dict[str, float]:
        """See ``Trainer``."""
        recipe, x = self.recipe, self._normalise(x)
        found = sparse_step(x, Parameters(*(p.data for p in self.p)), self.coefficient, recipe.bandwidth, recipe.penalty, recipe.f0)
        self.unused = torch.where(found.frequency > 0, 0.0, self.unused + 1)
        self._help_dead(x, found)
        dec = self.p.dec.data
        found.gradients.dec.sub_((found.gradients.dec * dec).sum(1, keepdim=True) * dec)
        for parameter, gradient in zip(self.p, found.gradients, strict=True):
            parameter.grad = gradient
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr * group["factor"] * lr_factor
        self.optimizer.step()
        dec.div_(dec.norm(dim=1, keepdim=True))
        if recipe.target_l0:
            self.balance = [self.MEMORY * old + (1 - self.MEMORY) * new for old, new in zip(self.balance, found.balance, strict=True)]
            error = max(-1.0, min(1.0, found.l0 / recipe.target_l0 - 1))
            self.p.threshold.data.add_(self.SHIFT * recipe.lr * lr_factor * error)
        self.p.threshold.data.clamp_(min=0.0)
        return {"l0": found.l0, "fvu": _fvu(found.residual, x), "dead": int((self.unused > recipe.dead_after).sum()),
                "high_frequency": int((found.frequency > saes.HIGH_FREQUENCY).sum())}  # fmt: skip

    def _help_dead(self, x: Tensor, found) -> None:
        """Add to the gradients: the dead latents' best ``k_aux`` per token reconstruct the residual."""
        dead = (self.unused > self.recipe.dead_after).nonzero()[:, 0]
        if not len(dead):
            return
        pre, dec, target = found.pre[:, dead], self.p.dec.data[dead], -found.residual
        best, index = pre.topk(min(self.recipe.k_aux, len(dead)), dim=1)
        latents = torch.zeros_like(pre).scatter_(1, index, best.relu())
        error = latents @ dec - target
        upstream = error * (2 / error.numel())
        on_pre = (upstream @ dec.T) * (latents > 0)
        found.gradients.dec[dead] += latents.T @ upstream
        found.gradients.enc[dead] += on_pre.T @ x
        found.gradients.b_enc[dead] += on_pre.sum(0)
        above = (self.p.threshold.data[dead] - pre.amax(0)).clamp(min=0)
        self.p.threshold.data[dead] -= 0.03 * above

    @torch.no_grad()
    def finish(self, x: Float[Tensor, "tokens d_model"]) -> None:
        """Move all thresholds by the one amount that gives ``target_l0`` on training tokens."""
        if not self.recipe.target_l0:
            return
        over = torch.addmm(self.p.b_enc, self._normalise(x), self.p.enc.T) - self.p.threshold
        rank = over.numel() - round(self.recipe.target_l0 * len(x))
        shift = over.flatten().kthvalue(max(1, rank)).values
        self.p.threshold.data.add_(shift).clamp_(min=0.0)

    def export(self, metadata: dict[str, Any]) -> SAE:
        """See ``Trainer``."""
        return saes.from_parameters(Parameters(*(p.data for p in self.p)), self.mean, self.scale, metadata)

    def state(self) -> dict[str, Any]:
        """See ``Trainer``."""
        return {"parameters": [p.data for p in self.p], "optimizer": self.optimizer.state_dict(), "unused": self.unused,
                "balance": self.balance}  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """See ``Trainer``."""
        for parameter, tensor in zip(self.p, state["parameters"], strict=True):
            parameter.data.copy_(tensor)
        self.optimizer.load_state_dict(state["optimizer"])
        self.unused, self.balance = state["unused"], list(state["balance"])


class SAELensTrainer:
    """Gated, TopK, BatchTopK and Matryoshka from SAELens' training classes, on the same normalised inputs.

    SAELens' defaults, but for what the recipe sets: k, the sparsity coefficient of gated, the learning rate and its
    schedule. Dead latents (unused for ``dead_after`` steps) are passed on to the classes' own auxiliary losses.
    """

    def __init__(self, recipe: Recipe, calibration: Float[Tensor, "tokens d_model"]):
        self.recipe = recipe
        self.mean, self.scale = _scaling(calibration)
        torch.manual_seed(recipe.seed)
        config, build = self._config(calibration.shape[1])
        self.sae = build(config)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=recipe.lr, fused=True)
        self.unused = torch.zeros(recipe.d_sae)
        self.steps = 0

    def _config(self, d_model: int):
        r = self.recipe
        common = {"d_in": d_model, "d_sae": r.d_sae}
        if r.architecture == "gated":
            return gated_sae.GatedTrainingSAEConfig(**common, l1_coefficient=r.coefficient), gated_sae.GatedTrainingSAE
        if r.architecture == "topk":
            return topk_sae.TopKTrainingSAEConfig(**common, k=round(r.target_l0)), topk_sae.TopKTrainingSAE
        if r.architecture == "batchtopk":
            return batchtopk_sae.BatchTopKTrainingSAEConfig(**common, k=r.target_l0), batchtopk_sae.BatchTopKTrainingSAE
        module = matryoshka_batchtopk_sae
        widths = [r.d_sae // 16, r.d_sae // 4, r.d_sae]
        config = module.MatryoshkaBatchTopKTrainingSAEConfig(**common, k=r.target_l0, matryoshka_widths=widths)
        return config, module.MatryoshkaBatchTopKTrainingSAE

    def step(self, x: Float[Tensor, "tokens d_model"], lr_factor: float) -> dict[str, float]:
        """See ``Trainer``."""
        x = (x - self.mean) / self.scale
        self.sae.train()
        coefficients = {name: c if isinstance(c, float | int) else c.value for name, c in self.sae.get_coefficients().items()}
        dead = self.unused > self.recipe.dead_after
        given = TrainStepInput(sae_in=x, coefficients=coefficients, dead_neuron_mask=dead, n_training_steps=self.steps, is_logging_step=False)
        found = self.sae.training_forward_pass(given)
        self.optimizer.zero_grad()
        found.loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * lr_factor
        self.optimizer.step()
        self.steps += 1
        frequency = (found.feature_acts.detach() > 0).float().mean(0)
        self.unused = torch.where(frequency > 0, 0.0, self.unused + 1)
        return {"l0": frequency.sum().item(), "fvu": _fvu(found.sae_out.detach() - x, x), "dead": int(dead.sum()),
                "high_frequency": int((frequency > saes.HIGH_FREQUENCY).sum())}  # fmt: skip

    def finish(self, x: Float[Tensor, "tokens d_model"]) -> None:
        """Nothing to do: SAELens' classes hold their own L0."""

    @torch.no_grad()
    def export(self, metadata: dict[str, Any]) -> SAE:
        """See ``Trainer``; the input scaling is folded into SAELens' inference class."""
        config = self.sae.cfg.get_inference_sae_cfg_dict() | {"metadata": metadata}
        state = {name: tensor.clone() for name, tensor in self.sae.state_dict().items()}
        self.sae.process_state_dict_for_saving_inference(state)
        sae = SAE.from_dict(config)
        sae.load_state_dict(state)
        sae.cfg.metadata = SAEMetadata(**metadata)
        return _fold_scaling(sae, self.mean, self.scale)

    def state(self) -> dict[str, Any]:
        """See ``Trainer``."""
        return {"sae": self.sae.state_dict(), "optimizer": self.optimizer.state_dict(), "unused": self.unused, "steps": self.steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """See ``Trainer``."""
        self.sae.load_state_dict(state["sae"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.unused, self.steps = state["unused"], state["steps"]
