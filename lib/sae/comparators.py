"""SAELens' own training classes as comparators: Gated, TopK, BatchTopK and Matryoshka on the same inputs and in the same loop."""

from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from sae_lens.saes import batchtopk_sae, gated_sae, matryoshka_batchtopk_sae, topk_sae
from sae_lens.saes.sae import SAEMetadata, TrainStepInput
from torch import Tensor

from lib.sae.recipes import Recipe, batch_metrics, scaling


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


class SAELensTrainer:
    """Gated, TopK, BatchTopK and Matryoshka from SAELens' training classes, on the same normalised inputs.

    SAELens' defaults, but for what the recipe sets: k, the sparsity coefficient of gated, the learning rate and its
    schedule. Dead latents (unused for ``dead_after`` steps) are passed on to the classes' own auxiliary losses.
    """

    def __init__(self, recipe: Recipe, calibration: Float[Tensor, "tokens d_model"]):
        self.recipe = recipe
        self.mean, self.scale = scaling(calibration)
        torch.manual_seed(recipe.seed)
        config, build = self._config(calibration.shape[1])
        self.sae = build(config).to(calibration.device)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=recipe.lr, fused=True)
        self.unused = calibration.new_zeros(recipe.d_sae)
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
        return batch_metrics(found.sae_out.detach() - x, x, frequency, int(dead.sum()))

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
        return _fold_scaling(sae, self.mean.cpu(), self.scale)

    def state(self) -> dict[str, Any]:
        """See ``Trainer``."""
        return {"sae": self.sae.state_dict(), "optimizer": self.optimizer.state_dict(), "unused": self.unused, "steps": self.steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """See ``Trainer``."""
        self.sae.load_state_dict(state["sae"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.unused, self.steps = state["unused"].to(self.unused), state["steps"]
