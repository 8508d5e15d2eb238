"""The JumpReLU trainer: initial weights, resampled latents, the optimiser's step and the controller of L0."""

from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from lib.sae import folders
from lib.sae.jumprelu import Parameters, StepResult, sparse_step
from lib.sae.recipes import Recipe, batch_metrics, scaling

QUANTILE_ROWS = 8192  # latents at a time: 131,072 of them on 8,192 tokens would take 4 GiB
FITTED_TOKENS = 1024  # from which the encoder's scale before training is fitted


def fresh(recipe: Recipe, x: Float[Tensor, "tokens d_model"], generator: torch.Generator) -> Parameters:
    """:func:`tied` with random decoder rows, and encoder and thresholds times the scale a ≥ 0 of least squares.

    a = Σ x·x̂ / Σ x̂·x̂ over tokens, x̂ the reconstruction with a = 1, which is too long: latents that are active
    together share what each of them would reconstruct by itself.
    """
    p = tied(recipe, x, torch.randn(recipe.d_sae, x.shape[1], generator=generator).to(x))
    some = x[:FITTED_TOKENS]
    pre = some @ p.enc.T
    recon = (pre * (pre > p.threshold)) @ p.dec
    a = ((some * recon).sum() / recon.square().sum().clamp(min=1e-12)).clamp(min=0.0)
    return p._replace(enc=a * p.enc, threshold=a * p.threshold)


def tied(recipe: Recipe, x: Float[Tensor, "tokens d_model"], rows: Float[Tensor, "d_sae d_model"]) -> Parameters:
    """Decoder rows of unit norm, tied encoder, thresholds at the quantile that gives the wanted firing rate."""
    dec = rows / rows.norm(dim=1, keepdim=True)
    return Parameters(dec.clone(), dec, x.new_zeros(len(dec)), x.new_zeros(x.shape[1]), _quantile(recipe, dec, x))


def _quantile(recipe: Recipe, dec: Tensor, x: Tensor) -> Tensor:
    """``torch.quantile`` of each latent's pre-activation, of which only the largest are sorted."""
    rate = (recipe.target_l0 or 0.02 * recipe.d_sae) / recipe.d_sae
    rank = torch.tensor(1 - rate) * (len(x) - 1)
    quantiles = []
    for rows in dec.split(QUANTILE_ROWS):
        largest = (rows @ x.T).topk(len(x) - int(rank), dim=1, sorted=False).values
        around = largest.topk(min(2, largest.shape[1]), dim=1, largest=False).values
        quantiles.append(torch.lerp(around[:, 0], around[:, -1], rank.frac().to(around)))
    return torch.cat(quantiles)


def resampled(
    p: Parameters, recipe: Recipe, x: Float[Tensor, "tokens d_model"], generator: torch.Generator
) -> Parameters:
    """``p`` with the share ``recipe.resample`` of latents that fire least on ``x`` made anew.

    After Bricken et al. 2023: tokens are drawn with probability ∝ their squared error; a new decoder row is the unit
    residual of a token, the encoder row is tied to it, and the threshold is a quantile as in :func:`fresh`.
    """
    pre = torch.addmm(p.b_enc, x, p.enc.T)
    latents = pre * (pre > p.threshold)
    worst = (latents > 0).sum(0).argsort(stable=True)[: round(recipe.resample * len(p.threshold))]
    if not len(worst):
        return p
    residual = x - torch.addmm(p.b_dec, latents, p.dec)
    error = residual.square().sum(1).cpu()
    tokens = torch.multinomial(error, len(worst), replacement=len(worst) > len(x), generator=generator).to(x.device)
    rows = torch.nn.functional.normalize(residual[tokens], dim=1)
    p = Parameters(*(tensor.clone() for tensor in p))
    p.enc[worst] = rows
    p.dec[worst] = rows
    p.b_enc[worst] = 0.0
    p.threshold[worst] = _quantile(recipe, rows, x)
    return p


class JumpReLUTrainer:
    """JumpReLU with sparse-exact steps, thresholds calibrated at the start, and a controller for ``target_l0``.

    Each threshold starts at the quantile of its pre-activation that gives the wanted firing rate. With ``target_l0``
    two things hold L0. All thresholds move together by ``SHIFT`` × learning rate × (the batch's relative error +
    ``INTEGRAL`` × the sum of errors so far), a PI controller. And λ is the multiplier at which the penalty balances the
    reconstruction on the thresholds, λ = −Σ∂rec/∂θ / Σ∂penalty/∂θ (exponential means over steps), so that the penalty
    keeps its full weight between latents. Latents unused for ``dead_after`` steps reconstruct the residual (AuxK,
    arXiv 2406.04093), and their thresholds come down.
    """

    SHIFT = 7.5  # of all thresholds, in learning rates per relative error: more than Adam moves a threshold in a step
    INTEGRAL = 0.03  # the sum is held within ±1
    MEMORY = 0.95
    AUX_TOKENS = 512  # of a batch, whose order is random

    def __init__(self, recipe: Recipe, calibration: Float[Tensor, "tokens d_model"], start: SAE | None = None):
        self.recipe = recipe
        self.mean, self.scale = scaling(calibration)
        x = self._normalise(calibration)[:8192]
        generator = torch.Generator().manual_seed(recipe.seed)
        if start is None:
            p = fresh(recipe, x, generator)
        else:
            folders.check_fits(start, x.shape[1])
            p = resampled(folders.to_parameters(start.to(x.device), self.mean, self.scale), recipe, x, generator)
            if len(p.threshold) != recipe.d_sae:
                raise ValueError(
                    f"the SAE to finetune has d_sae {len(p.threshold)}, the recipe {recipe.d_sae}; they must be equal"
                )
        self.p = Parameters(*(torch.nn.Parameter(tensor) for tensor in p))
        self.optimizer = torch.optim.Adam(self.p, lr=recipe.lr, fused=True)
        self.unused = x.new_zeros(recipe.d_sae)
        self.balance, self.integral, self.steps = [0.0, 0.0], 0.0, 0

    def _normalise(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale

    @property
    def coefficient(self) -> float:
        """λ of the next step."""
        if self.recipe.target_l0 == 0:
            return self.recipe.coefficient * min(1.0, (self.steps + 1) / max(1, self.recipe.sparsity_warmup_steps))
        reconstruction, penalty = self.balance
        return max(0.0, -reconstruction / penalty) if penalty else 0.0

    @torch.no_grad()
    def step(self, x: Float[Tensor, "tokens d_model"], lr_factor: float) -> dict[str, float]:
        """See ``Trainer``."""
        recipe, x = self.recipe, self._normalise(x)
        p = Parameters(*(parameter.data for parameter in self.p))
        result = sparse_step(x, p, self.coefficient, recipe.bandwidth, recipe.penalty, recipe.f0)
        self.unused = torch.where(result.frequency > 0, 0.0, self.unused + 1)
        self._help_dead(x, result)
        dec, on_dec = self.p.dec.data, result.gradients.dec
        on_dec.sub_((on_dec * dec).sum(1, keepdim=True) * dec)  # rows stay unit: what points along them is taken off
        for parameter, gradient in zip(self.p, result.gradients, strict=True):
            parameter.grad = gradient
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr * lr_factor
        self.optimizer.step()
        dec.div_(dec.norm(dim=1, keepdim=True))
        if recipe.target_l0:
            self._steer(result, lr_factor)
        self.p.threshold.data.clamp_(min=0.0)
        self.steps += 1
        return batch_metrics(result.residual, x, result.frequency, int((self.unused > recipe.dead_after).sum()))

    def _steer(self, result: StepResult, lr_factor: float) -> None:
        """Move all thresholds towards ``target_l0``, and update the means that give λ."""
        means = zip(self.balance, result.balance, strict=True)
        self.balance = [self.MEMORY * old + (1 - self.MEMORY) * new for old, new in means]
        error = max(-1.0, min(1.0, result.l0 / self.recipe.target_l0 - 1))
        self.integral = max(-1.0, min(1.0, self.integral + self.INTEGRAL * error))
        self.p.threshold.data.add_(self.SHIFT * self.recipe.lr * lr_factor * (error + self.integral))

    def _help_dead(self, x: Tensor, result: StepResult) -> None:
        """Add the gradients with which the dead latents' best ``k_aux`` reconstruct ``AUX_TOKENS`` residuals."""
        dead = (self.unused > self.recipe.dead_after).nonzero()[:, 0]
        if not len(dead):
            return
        x, residual = x[: self.AUX_TOKENS], result.residual[: self.AUX_TOKENS]
        pre = torch.addmm(self.p.b_enc.data[dead], x, self.p.enc.data[dead].T)
        dec, scale = self.p.dec.data[dead], 2 / residual.numel()
        best, index = pre.topk(min(self.recipe.k_aux, len(dead)), dim=1)
        latents = torch.zeros_like(pre).scatter_(1, index, best.relu_())
        error = torch.addmm(residual, latents, dec)
        on_pre = (error @ dec.T) * (latents > 0)
        result.gradients.dec[dead] += scale * (latents.T @ error)
        result.gradients.enc[dead] += scale * (on_pre.T @ x)
        result.gradients.b_enc[dead] += scale * on_pre.sum(0)
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
        return folders.from_parameters(Parameters(*(p.data for p in self.p)), self.mean, self.scale, metadata)

    def state(self) -> dict[str, Any]:
        """See ``Trainer``."""
        return {
            "parameters": [p.data for p in self.p],
            "optimizer": self.optimizer.state_dict(),
            "unused": self.unused,
            "balance": self.balance,
            "integral": self.integral,
            "steps": self.steps,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """See ``Trainer``."""
        for parameter, tensor in zip(self.p, state["parameters"], strict=True):
            parameter.data.copy_(tensor)
        self.optimizer.load_state_dict(state["optimizer"])
        self.unused, self.balance = state["unused"].to(self.unused), list(state["balance"])
        self.integral, self.steps = state["integral"], state["steps"]
