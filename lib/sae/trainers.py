"""The JumpReLU trainer, and the trainer of any recipe."""

from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from lib.sae import folders
from lib.sae.comparators import SAELensTrainer
from lib.sae.jumprelu import Parameters, sparse_step
from lib.sae.recipes import Recipe, Trainer, batch_metrics, scaling

QUANTILE_ROWS = 8192  # latents at a time: 131,072 of them on 8,192 tokens would take 4 GiB


def make_trainer(recipe: Recipe, calibration: Float[Tensor, "tokens d_model"], start: SAE | None = None) -> Trainer:
    """The trainer of a recipe, initialised on a sample of training activations, or from an SAE that is finetuned.

    Raises:
        ValueError: finetuning of another architecture than JumpReLU, or an SAE of another width than the recipe's.
    """
    if recipe.architecture == "jumprelu":
        return JumpReLUTrainer(recipe, calibration, start)
    if start is not None:
        raise ValueError(f"finetuning is for jumprelu, the recipe says {recipe.architecture!r}")
    return SAELensTrainer(recipe, calibration)


def fresh(recipe: Recipe, x: Float[Tensor, "tokens d_model"], generator: torch.Generator) -> Parameters:
    """Random unit decoder rows, tied encoder, thresholds at the quantile that gives the wanted firing rate."""
    dec = torch.randn(recipe.d_sae, x.shape[1], generator=generator).to(x)
    dec /= dec.norm(dim=1, keepdim=True)
    return Parameters(dec.clone(), dec, x.new_zeros(recipe.d_sae), x.new_zeros(x.shape[1]), _quantile(recipe, dec, x))


def _quantile(recipe: Recipe, dec: Tensor, x: Tensor) -> Tensor:
    """``torch.quantile`` of each latent's pre-activation, of which only the largest are sorted."""
    rate = (recipe.target_l0 or 0.02 * recipe.d_sae) / recipe.d_sae
    rank = torch.tensor(1 - rate) * (len(x) - 1)
    found = []
    for rows in dec.split(QUANTILE_ROWS):
        over = (rows @ x.T).topk(len(x) - int(rank), dim=1, sorted=False).values
        two = over.topk(min(2, over.shape[1]), dim=1, largest=False).values
        found.append(torch.lerp(two[:, 0], two[:, -1], rank.frac().to(two)))
    return torch.cat(found)


def resampled(p: Parameters, recipe: Recipe, x: Float[Tensor, "tokens d_model"], generator: torch.Generator) -> Parameters:
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
    tokens = torch.multinomial(residual.square().sum(1).cpu(), len(worst), replacement=len(worst) > len(x), generator=generator).to(x.device)
    rows = torch.nn.functional.normalize(residual[tokens], dim=1)
    p = Parameters(*(tensor.clone() for tensor in p))
    p.enc[worst], p.dec[worst], p.b_enc[worst], p.threshold[worst] = rows, rows, 0.0, _quantile(recipe, rows, x)
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
                raise ValueError(f"the SAE to finetune has d_sae {len(p.threshold)}, the recipe {recipe.d_sae}; they must be equal")
        self.p = Parameters(*(torch.nn.Parameter(tensor) for tensor in p))
        self.optimizer = torch.optim.Adam([
            {"params": self.p[:4], "factor": 1.0}, {"params": self.p[4:], "factor": 3.0},
        ], lr=recipe.lr, fused=True)  # fmt: skip
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
            self.integral = max(-1.0, min(1.0, self.integral + self.INTEGRAL * error))
            self.p.threshold.data.add_(self.SHIFT * recipe.lr * lr_factor * (error + self.integral))
        self.p.threshold.data.clamp_(min=0.0)
        self.steps += 1
        return batch_metrics(found.residual, x, found.frequency, int((self.unused > recipe.dead_after).sum()))

    def _help_dead(self, x: Tensor, found) -> None:
        """Add to the gradients: the dead latents' best ``k_aux`` per token reconstruct the residual of ``AUX_TOKENS`` tokens."""
        dead = (self.unused > self.recipe.dead_after).nonzero()[:, 0]
        if not len(dead):
            return
        x, residual, pre = x[: self.AUX_TOKENS], found.residual[: self.AUX_TOKENS], found.pre[: self.AUX_TOKENS].index_select(1, dead)
        dec, scale = self.p.dec.data[dead], 2 / residual.numel()
        best, index = pre.topk(min(self.recipe.k_aux, len(dead)), dim=1)
        latents = torch.zeros_like(pre).scatter_(1, index, best.relu_())
        error = torch.addmm(residual, latents, dec)
        on_pre = (error @ dec.T) * (latents > 0)
        found.gradients.dec[dead] += scale * (latents.T @ error)
        found.gradients.enc[dead] += scale * (on_pre.T @ x)
        found.gradients.b_enc[dead] += scale * on_pre.sum(0)
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
        return {"parameters": [p.data for p in self.p], "optimizer": self.optimizer.state_dict(), "unused": self.unused,
                "balance": self.balance, "integral": self.integral, "steps": self.steps}  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """See ``Trainer``."""
        for parameter, tensor in zip(self.p, state["parameters"], strict=True):
            parameter.data.copy_(tensor)
        self.optimizer.load_state_dict(state["optimizer"])
        self.unused, self.balance = state["unused"].to(self.unused), list(state["balance"])
        self.integral, self.steps = state["integral"], state["steps"]
