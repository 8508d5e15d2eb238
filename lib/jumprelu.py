"""JumpReLU SAE training steps whose cost follows the number of active latents.

A step needs one dense product (the encoder). Decoding and all gradients are computed exactly, on the entries
(token, latent) that are active or within half a bandwidth of their threshold. With inputs x scaled to unit mean
square per coordinate, pre = x W_enc + b_enc, f = pre · H(pre − θ), x̂ = f W_dec + b_dec,

    loss = mean (x − x̂)²  +  λ · penalty(firing frequencies),

and straight-through gradients that reach the threshold only (arXiv 2407.14435, eqs. 11–12), with K the rectangle
|u| < 1/2 and ε the bandwidth in units of the normalised input:

    ∂f/∂θ = −(θ / ε) K((pre − θ) / ε)        ∂H/∂θ = −(1 / ε) K((pre − θ) / ε)
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

DENSE_ABOVE = 0.12  # share of entries above which dense products are faster
PENALTIES = ("l0", "quadratic_frequency", "squared_frequency")


class Parameters(NamedTuple):
    """Weights in the normalised space. The encoder is kept in rows, one latent each, like the decoder."""

    enc: Float[Tensor, "d_sae d_model"]
    dec: Float[Tensor, "d_sae d_model"]
    b_enc: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_model"]
    threshold: Float[Tensor, " d_sae"]


class Entries(NamedTuple):
    """Candidate (token, latent) pairs in row-major order; ``active`` ones are above their threshold."""

    crow: Int[Tensor, " tokens_plus_1"]
    row: Int[Tensor, " n"]
    col: Int[Tensor, " n"]
    pre: Float[Tensor, " n"]
    active: Bool[Tensor, " n"]
    in_band: Bool[Tensor, " n"]


class StepResult(NamedTuple):
    """Gradients in the order of ``Parameters``, and what the step saw."""

    gradients: Parameters
    loss: float
    l0: float
    frequency: Float[Tensor, " d_sae"]
    residual: Float[Tensor, "tokens d_model"]
    pre: Float[Tensor, "tokens d_sae"]
    balance: tuple[float, float]  # Σ of the threshold gradients: reconstruction, and penalty per unit coefficient


def penalty(frequency: Float[Tensor, " d_sae"], kind: str, f0: float) -> Float[Tensor, ""]:
    """Sparsity penalty of the firing frequencies f (fractions of the batch's tokens).

    ``l0``: Σ f. ``quadratic_frequency``: Σ f (1 + f / f₀), linear below the frequency scale f₀ and quadratic above
    (the paper, section on high-frequency latents). ``squared_frequency``: Σ f² / f₀.
    """
    return {
        "l0": frequency.sum(),
        "quadratic_frequency": (frequency * (1 + frequency / f0)).sum(),
        "squared_frequency": (frequency**2 / f0).sum(),
    }[kind]


def penalty_slope(frequency: Float[Tensor, " d_sae"], kind: str, f0: float) -> Float[Tensor, " d_sae"]:
    """Derivative of :func:`penalty` by each frequency: 1, 1 + 2 f / f₀, or 2 f / f₀."""
    return {
        "l0": torch.ones_like(frequency),
        "quadratic_frequency": 1 + 2 * frequency / f0,
        "squared_frequency": 2 * frequency / f0,
    }[kind]


def find_entries(
    pre: Float[Tensor, "tokens d_sae"], threshold: Float[Tensor, " d_sae"], bandwidth: float
) -> Entries:
    """Entries above their threshold, or at most half a bandwidth below it."""
    n, d_sae = pre.shape
    mask = pre > threshold - bandwidth / 2
    flat = torch.from_numpy(np.flatnonzero(mask.numpy())) if pre.device.type == "cpu" else mask.flatten().nonzero()[:, 0]
    row, col = flat // d_sae, flat % d_sae
    values = pre.take(flat)
    over = values - threshold[col]
    crow = torch.zeros(n + 1, dtype=torch.long, device=pre.device)
    crow[1:] = torch.bincount(row, minlength=n).cumsum(0)
    return Entries(crow, row, col, values, over > 0, over.abs() < bandwidth / 2)


def sparse_step(
    x: Float[Tensor, "tokens d_model"], p: Parameters, coefficient: float, bandwidth: float, kind: str = "l0", f0: float = 0.1
) -> StepResult:
    """Loss and exact straight-through gradients of one batch, computed on the candidate entries.

    Falls back to dense products when more than ``DENSE_ABOVE`` of all entries are candidates.
    """
    pre = torch.addmm(p.b_enc, x, p.enc.T)
    entries = find_entries(pre, p.threshold, bandwidth)
    products = _dense_products if len(entries.col) > DENSE_ABOVE * pre.numel() else _sparse_products
    n, d_model = x.shape
    activation = entries.pre * entries.active
    recon, sampled, transposed = products(entries, p.dec, n)
    residual = recon(activation) + p.b_dec - x
    upstream = residual * (2 / residual.numel())
    on_latent = sampled(upstream)
    frequency = torch.bincount(entries.col[entries.active], minlength=len(p.threshold)).to(x.dtype) / n
    slope = penalty_slope(frequency, kind, f0) / n
    on_pre = on_latent * entries.active
    kernel = entries.in_band / bandwidth
    by_reconstruction, by_penalty = -p.threshold[entries.col] * on_latent * kernel, -slope[entries.col] * kernel
    gradients = Parameters(
        enc=transposed(on_pre, x),
        dec=transposed(activation, upstream),
        b_enc=_sum_by(entries.col, on_pre, len(p.threshold)),
        b_dec=upstream.sum(0),
        threshold=_sum_by(entries.col, by_reconstruction + coefficient * by_penalty, len(p.threshold)),
    )
    loss = residual.square().mean() + coefficient * penalty(frequency, kind, f0)
    balance = (by_reconstruction.sum().item(), by_penalty.sum().item())
    return StepResult(gradients, loss.item(), frequency.sum().item(), frequency, residual, pre, balance)


def _sum_by(index: Tensor, values: Tensor, length: int) -> Tensor:
    return torch.zeros(length, dtype=values.dtype, device=values.device).index_add_(0, index, values)


Products = tuple[Callable, Callable, Callable]


def _sparse_products(e: Entries, dec: Tensor, n: int) -> Products:
    """(values → values W_dec, upstream → upstream W_decᵀ at the entries, (values, x) → valuesᵀ x) on sparse matrices."""
    crow, col = e.crow.int(), e.col.int()
    order = torch.argsort(e.col, stable=True)
    ccol = torch.zeros(len(dec) + 1, dtype=torch.int32, device=col.device)
    ccol[1:] = torch.bincount(e.col, minlength=len(dec)).cumsum(0)
    row_of = e.row[order].int()

    def matrix(values):
        return torch.sparse_csr_tensor(crow, col, values, (n, len(dec)), check_invariants=False)

    def transposed(values, x):
        return torch.sparse_csr_tensor(ccol, row_of, values[order], (len(dec), n), check_invariants=False) @ x

    def sampled(upstream):
        empty = matrix(torch.zeros(len(col), dtype=upstream.dtype, device=col.device))
        return torch.sparse.sampled_addmm(empty, upstream, dec.T, beta=0.0).values()

    return lambda values: matrix(values) @ dec, sampled, transposed


def _dense_products(e: Entries, dec: Tensor, n: int) -> Products:
    """The same three products, dense."""

    def matrix(values):
        out = torch.zeros(n, len(dec), dtype=values.dtype, device=values.device)
        out[e.row, e.col] = values
        return out

    def sampled(upstream):
        return (upstream @ dec.T)[e.row, e.col]

    return lambda values: matrix(values) @ dec, sampled, lambda values, x: matrix(values).T @ x
