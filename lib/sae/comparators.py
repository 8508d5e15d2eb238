"""SAELens' own training classes as comparators, on the same inputs and in our loop: Gated, TopK and its kin."""

import math
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from sae_lens.saes import batchtopk_sae, gated_sae, matryoshka_batchtopk_sae, topk_sae
from sae_lens.saes.sae import SAEMetadata, TrainingSAE, TrainingSAEConfig, TrainStepInput
from torch import Tensor

from lib.sae.recipes import Recipe, batch_metrics, scaling


def gated(recipe: Recipe, calibration: Float[Tensor, "tokens d_model"]) -> "GatedTrainer":
    """Gated SAE (arXiv 2404.16014), whose L1 penalty is steered to ``recipe.target_l0``."""
    config = gated_sae.GatedTrainingSAEConfig(**_sizes(recipe, calibration))
    return GatedTrainer(recipe, calibration, gated_sae.GatedTrainingSAE, config)


def topk(recipe: Recipe, calibration: Float[Tensor, "tokens d_model"]) -> "SAELensTrainer":
    """TopK SAE (arXiv 2406.04093); k is ``recipe.target_l0``, rounded."""
    config = topk_sae.TopKTrainingSAEConfig(**_sizes(recipe, calibration), k=round(recipe.target_l0))
    return SAELensTrainer(recipe, calibration, topk_sae.TopKTrainingSAE, config)


def batchtopk(recipe: Recipe, calibration: Float[Tensor, "tokens d_model"]) -> "SAELensTrainer":
    """BatchTopK SAE (arXiv 2412.06410); k is ``recipe.target_l0``, a mean over the batch."""
    config = batchtopk_sae.BatchTopKTrainingSAEConfig(**_sizes(recipe, calibration), k=recipe.target_l0)
    return SAELensTrainer(recipe, calibration, batchtopk_sae.BatchTopKTrainingSAE, config)


def matryoshka(recipe: Recipe, calibration: Float[Tensor, "tokens d_model"]) -> "SAELensTrainer":
    """Matryoshka BatchTopK SAE (arXiv 2503.17547), nested at a sixteenth and a quarter of the latents, and all."""
    config = matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAEConfig(
        **_sizes(recipe, calibration),
        k=recipe.target_l0,
        matryoshka_widths=[recipe.d_sae // 16, recipe.d_sae // 4, recipe.d_sae],
    )
    return SAELensTrainer(recipe, calibration, matryoshka_batchtopk_sae.MatryoshkaBatchTopKTrainingSAE, config)


def _sizes(recipe: Recipe, calibration: Tensor) -> dict[str, int]:
    return {"d_in": calibration.shape[1], "d_sae": recipe.d_sae}


def _fold_scaling(sae: SAE, mean: Tensor, scale: float) -> SAE:
    """Make an SAE on (x − mean) / scale one on x.

    With b_dec' = mean + scale·b_dec taken off the input, every pre-activation is scale times the old one, so biases
    and thresholds are scaled too.
    """
    if not sae.cfg.apply_b_dec_to_input:
        raise ValueError(f"{type(sae).__name__} without apply_b_dec_to_input cannot be rescaled here")
    for name, parameter in sae.named_parameters():
        if name in ("b_enc", "b_gate", "b_mag", "threshold"):
            parameter.data.mul_(scale)
    sae.b_dec.data.mul_(scale).add_(mean)
    return sae


class SAELensTrainer:
    """The trainer of one of SAELens' training classes, on the same normalised inputs as JumpReLU's.

    SAELens' defaults, but for what ``config`` sets, and the learning rate and its schedule. Dead latents (unused for
    ``dead_after`` steps) are passed on to the classes' own auxiliary losses.
    """

    def __init__(
        self,
        recipe: Recipe,
        calibration: Float[Tensor, "tokens d_model"],
        sae_class: type[TrainingSAE],
        config: TrainingSAEConfig,
    ):
        self.recipe = recipe
        self.mean, self.scale = scaling(calibration)
        torch.manual_seed(recipe.seed)
        self.sae = sae_class(config).to(calibration.device)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=recipe.lr, fused=True)
        self.unused = calibration.new_zeros(recipe.d_sae)
        self.frequency = self.unused.clone()  # of the last batch
        self.steps = 0

    def step(self, x: Float[Tensor, "tokens d_model"], lr_factor: float) -> dict[str, float]:
        """See ``Trainer``."""
        x = (x - self.mean) / self.scale
        self.sae.train()
        dead = self.unused > self.recipe.dead_after
        inputs = TrainStepInput(
            sae_in=x,
            coefficients=self._coefficients(),
            dead_neuron_mask=dead,
            n_training_steps=self.steps,
            is_logging_step=False,
        )
        output = self.sae.training_forward_pass(inputs)
        self.optimizer.zero_grad()
        output.loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * lr_factor
        self.optimizer.step()
        self.steps += 1
        self.frequency = (output.feature_acts.detach() > 0).float().mean(0)
        self.unused = torch.where(self.frequency > 0, 0.0, self.unused + 1)
        return batch_metrics(output.sae_out.detach() - x, x, self.frequency, int(dead.sum()))

    def _coefficients(self) -> dict[str, float]:
        """SAELens gives a coefficient as a number, or as a schedule that holds one."""
        coefficients = self.sae.get_coefficients()
        return {name: c if isinstance(c, float | int) else c.value for name, c in coefficients.items()}

    @torch.no_grad()
    def finish(self, x: Float[Tensor, "tokens d_model"]) -> None:
        """Set the threshold that stands for a batch's TopK after training to that of these training tokens.

        SAELens has a running mean of it at a rate of 0.01, which starts at zero: after 50 steps it is at 0.4 of that,
        and an SAE that was trained at an L0 of 16 fires on 100 latents. TopK holds its own L0.
        """
        if hasattr(self.sae, "topk_threshold"):
            self.sae.train()
            acts, _ = self.sae.encode_with_hidden_pre((x - self.mean) / self.scale)
            self.sae.topk_threshold.copy_(acts[acts > 0].min())

    @torch.no_grad()
    def export(self, metadata: dict[str, Any]) -> SAE:
        """See ``Trainer``; the input scaling is folded into SAELens' inference class."""
        config = self.sae.cfg.get_inference_sae_cfg_dict() | {"metadata": metadata}
        state = {name: tensor.clone() for name, tensor in self.sae.state_dict().items()}
        self.sae.process_state_dict_for_saving_inference(state)
        sae = SAE.from_dict(config)
        sae.load_state_dict(state)
        sae.cfg.metadata = SAEMetadata(**metadata)
        return _fold_scaling(sae.cpu(), self.mean.cpu(), self.scale)

    def state(self) -> dict[str, Any]:
        """See ``Trainer``."""
        return {
            "sae": self.sae.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "unused": self.unused,
            "steps": self.steps,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """See ``Trainer``."""
        self.sae.load_state_dict(state["sae"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.unused, self.steps = state["unused"].to(self.unused), state["steps"]


class GatedTrainer(SAELensTrainer):
    """Gated SAEs with a controller for ``target_l0``: the coefficient λ of the L1 penalty follows the batches' L0.

    λ = −Σ∂aux/∂b_gate / Σ∂L1/∂b_gate · (L0 / ``target_l0``). The first factor is the multiplier at which penalty and
    auxiliary reconstruction balance on the gates' biases (exponential means over steps); the second one, of the last
    batch and within a factor e, moves L0 to the target.
    """

    MEMORY = 0.95

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.balance, self.error = [0.0, 0.0], 0.0

    def _coefficients(self) -> dict[str, float]:
        on_reconstruction, on_penalty = self.balance
        multiplier = max(0.0, -on_reconstruction / on_penalty) if on_penalty else 0.0
        return {"l1": multiplier * math.exp(self.error)}

    def step(self, x: Float[Tensor, "tokens d_model"], lr_factor: float) -> dict[str, float]:
        """See ``Trainer``."""
        coefficient, norms = self._coefficients()["l1"], self.sae.W_dec.detach().norm(dim=1)
        metrics = super().step(x, lr_factor)
        on_penalty = (self.frequency * norms).sum().item()  # A gate that is open where the magnitude is 0 is rare.
        on_reconstruction = self.sae.b_gate.grad.sum().item() - coefficient * on_penalty
        means = zip(self.balance, (on_reconstruction, on_penalty), strict=True)
        self.balance = [self.MEMORY * old + (1 - self.MEMORY) * new for old, new in means]
        ratio = max(metrics["l0"], 1e-3) / self.recipe.target_l0
        self.error = max(-1.0, min(1.0, math.log(ratio)))
        return metrics

    @torch.no_grad()
    def finish(self, x: Float[Tensor, "tokens d_model"]) -> None:
        """Move all gates' biases by the one amount that gives ``target_l0`` on training tokens."""
        sae_in = self.sae.process_sae_in((x - self.mean) / self.scale)
        gate = sae_in @ self.sae.W_enc + self.sae.b_gate
        has_magnitude = sae_in @ (self.sae.W_enc * self.sae.r_mag.exp()) + self.sae.b_mag > 0
        over = gate[has_magnitude]
        n_active = min(len(over) - 1, round(self.recipe.target_l0 * len(x)))
        self.sae.b_gate.sub_(over.kthvalue(len(over) - n_active).values)

    def state(self) -> dict[str, Any]:
        """See ``Trainer``."""
        return super().state() | {"balance": self.balance, "error": self.error}

    def load_state(self, state: dict[str, Any]) -> None:
        """See ``Trainer``."""
        super().load_state(state)
        self.balance, self.error = state["balance"], state["error"]
