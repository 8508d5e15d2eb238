"""Aggregations: how the scores of a prompt's tokens become the score of the prompt, in a probe that reads every token.

An aggregation is one entry of ``AGGREGATIONS``. It takes linear projections p_t = w·z_t of the tokens t = 1 … n of a
prompt, z the standardised activations, of several settings side by side; a bias b is added to what it returns. Most
read one projection, the token's score s_t; those with parameters of their own read several.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.base.registry import lookup

Projected = Float[Tensor, "batch pos settings projections"]
Mask = Bool[Tensor, "batch pos"]
Pooled = Float[Tensor, "batch settings"]
Option = float | int | None


class Aggregation(NamedTuple):
    """An entry of ``AGGREGATIONS``.

    Attributes:
        pool: takes projections, the mask of a prompt's tokens (padding is on the right) and the value of ``option``.
        option: the name of its own hyperparameter; None if it has none.
        values: the values of that hyperparameter that are tried unless others are given.
        projections_per_head: projections that each head reads; 0 if it has no heads, and reads the score s_t alone.
        allowed: the range of that hyperparameter in words, and ``allows`` whether a value lies in it.
    """

    pool: Callable[[Projected, Mask, Option], Pooled]
    option: str | None = None
    values: tuple[Option, ...] = (None,)
    projections_per_head: int = 0
    allowed: str = ""
    allows: Callable[[float | int], bool] = lambda value: False

    @property
    def has_own_parameters(self) -> bool:
        """Whether it has weights of its own, beside the w and b of the token's score."""
        return self.projections_per_head > 0

    def projections(self, value: Option) -> int:
        """How many projections it reads, where ``value`` is that of its hyperparameter."""
        return value * self.projections_per_head if self.projections_per_head else 1


def mean(projected: Projected, mask: Mask, _: None = None) -> Pooled:
    """Mean of the tokens' scores, (1/n) Σₜ sₜ: a linear probe on mean-pooled activations (the usual baseline, as in
    McKenzie et al., arXiv 2506.10805)."""
    inside = mask[..., None].to(projected.dtype)
    return (projected[..., 0] * inside).sum(1) / inside.sum(1)


def maximum(projected: Projected, mask: Mask, _: None = None) -> Pooled:
    """The highest score of a token, maxₜ sₜ (McKenzie et al., arXiv 2506.10805)."""
    return _filled(projected[..., 0], mask).amax(1)


def last(projected: Projected, mask: Mask, _: None = None) -> Pooled:
    """The score of the last token, sₙ (McKenzie et al., arXiv 2506.10805)."""
    end = mask.sum(1) - 1
    return projected[torch.arange(len(end), device=end.device), end][..., 0]


def softmax(projected: Projected, mask: Mask, temperature: float | int) -> Pooled:
    """Σₜ softmaxₜ(sₜ / τ) sₜ, between the maximum (τ → 0) and the mean (τ → ∞) (McKenzie et al., arXiv 2506.10805)."""
    scores = projected[..., 0]
    return (_filled(scores / temperature, mask).softmax(1) * scores).sum(1)


def attention(projected: Projected, mask: Mask, heads: int) -> Pooled:
    """Σₕ Σₜ softmaxₜ(qₕ·zₜ) (vₕ·zₜ): what is said of a token, vₕ, is apart from how much it counts, qₕ (Kantamneni et
    al., arXiv 2502.16681, one head; McKenzie et al., arXiv 2506.10805; Kramár et al., arXiv 2601.11516, several).

    The first half of the projections are the values vₕ·zₜ, the second the queries qₕ·zₜ.
    """
    values, queries = projected.split(heads, dim=-1)
    return (_filled(queries, mask).softmax(1) * values).sum((1, -1))


def multimax(projected: Projected, mask: Mask, heads: int) -> Pooled:
    """MultiMax, Σₕ maxₜ vₕ·zₜ: several value heads, each of which reads one token (Kramár et al., arXiv 2601.11516).

    No weight is spread over the tokens, so a long harmless context does not drown a harmful passage. It is trained as
    it is used, with the hard maximum.
    """
    return _filled(projected, mask).amax(1).sum(-1)


def rolling_mean_max(projected: Projected, mask: Mask, window: int) -> Pooled:
    """The highest mean of consecutive tokens, maxₜ (1/m) Σⱼ₌ₜ₋ₘ₊₁ᵗ sⱼ over t = m … n, m = min(window, n) (McKenzie et
    al., arXiv 2506.10805).

    A prompt shorter than the window has the mean of all of its tokens.
    """
    scores = projected[..., 0] * mask[..., None]
    total = torch.nn.functional.pad(scores.cumsum(1), (0, 0, window, 0))
    width = mask.sum(1).clamp(max=window)
    means = (total[:, window:] - total[:, :-window]) / width[:, None, None]
    is_whole = torch.arange(mask.shape[1], device=mask.device) >= width[:, None] - 1
    return _filled(means, mask & is_whole).amax(1)


def ema_max(projected: Projected, mask: Mask, alpha: float | int) -> Pooled:
    """The highest exponential moving average, maxₜ eₜ with e₁ = s₁ and eₜ = α sₜ + (1 − α) eₜ₋₁ (Kramár et al., arXiv
    2601.11516).

    It begins with the first score and not with zero, so that adding a constant to all scores adds it to the result,
    and it is trained as it is used.
    """
    position = torch.arange(mask.shape[1], device=mask.device)
    decay = (1 - alpha) ** (position[:, None] - position).clamp(min=0).to(projected.dtype)
    weights = torch.where(position == 0, decay, alpha * decay).tril()
    return _filled(torch.einsum("tj,bjs->bts", weights, projected[..., 0]), mask).amax(1)


def _filled(scores: Tensor, mask: Tensor) -> Tensor:
    """``scores`` with −∞ for padding."""
    return scores.masked_fill(~mask.view(*mask.shape, *(1,) * (scores.ndim - 2)), -torch.inf)


def _is_count(value: float | int) -> bool:
    return isinstance(value, int) and value >= 1


COUNT = ("a whole number from 1", _is_count)
AGGREGATIONS = {
    "mean": Aggregation(mean),
    "max": Aggregation(maximum),
    "last": Aggregation(last),
    "softmax": Aggregation(softmax, "temperature", (1.0, 5.0), 0, "above 0", lambda value: value > 0),
    "attention": Aggregation(attention, "heads", (1, 4), 2, *COUNT),
    "MultiMax": Aggregation(multimax, "heads", (4,), 1, *COUNT),
    "rolling mean, max": Aggregation(rolling_mean_max, "window", (10, 40), 0, *COUNT),
    "EMA, max": Aggregation(ema_max, "alpha", (0.1, 0.5), 0, "above 0 and at most 1", lambda value: 0 < value <= 1),
}


def named(names: Iterable[str]) -> dict[str, Aggregation]:
    """The aggregations of these names, in their order.

    Raises:
        ValueError: no entry of that name; the sentence lists those that there are.
    """
    return {name: lookup(AGGREGATIONS, "aggregation", name) for name in names}
