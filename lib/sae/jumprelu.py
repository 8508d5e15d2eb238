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

from lib.base.registry import lookup

DENSE_ABOVE = 0.12  # share of entries above which dense products are faster


class Parameters(NamedTuple):
    """Weights in the normalised space. The encoder is kept in rows, one latent each, like the decoder."""

    enc: Float[Tensor, "d_sae d_model"]
    dec: Float[Tensor, "d_sae d_model"]
    b_enc: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_model"]
    threshold: Float[Tensor, " d_sae"]


class Entries(NamedTuple):
    """Candidate (token, latent) pairs in row-major order; those at ``active`` are above their threshold."""

    row: Int[Tensor, " n"]
    col: Int[Tensor, " n"]
    pre: Float[Tensor, " n"]
    active: Int[Tensor, " n_active"]
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


class Penalty(NamedTuple):
    """A sparsity penalty: its value P(f, f₀), and its derivative ∂P/∂f by each firing frequency f.

    Frequencies are fractions of the batch's tokens, and f₀ is the frequency scale of the penalties that have one.
    """

    value: Callable[[Tensor, float], Tensor]
    slope: Callable[[Tensor, float], Tensor]


PENALTIES = {
    # P = Σ f is the mean number of active latents per token.
    "l0": Penalty(
        value=lambda f, f0: f.sum(),
        slope=lambda f, f0: torch.ones_like(f),
    ),
    # P = Σ f (1 + f / f₀) is linear below f₀ and quadratic above (the paper, section on high-frequency latents).
    "quadratic_frequency": Penalty(
        value=lambda f, f0: (f * (1 + f / f0)).sum(),
        slope=lambda f, f0: 1 + 2 * f / f0,
    ),
    # P = Σ f² / f₀ is the quadratic part alone.
    "squared_frequency": Penalty(
        value=lambda f, f0: (f**2 / f0).sum(),
        slope=lambda f, f0: 2 * f / f0,
    ),
}


def penalty(frequency: Float[Tensor, " d_sae"], kind: str, f0: float) -> Float[Tensor, ""]:
    """Sparsity penalty P of the firing frequencies f (fractions of the batch's tokens): an entry of ``PENALTIES``.

    Raises:
        ValueError: an unknown penalty.
    """
    return lookup(PENALTIES, "penalty", kind).value(frequency, f0)


def penalty_slope(frequency: Float[Tensor, " d_sae"], kind: str, f0: float) -> Float[Tensor, " d_sae"]:
    """Derivative of :func:`penalty` by each frequency.

    Raises:
        ValueError: an unknown penalty.
    """
    return lookup(PENALTIES, "penalty", kind).slope(frequency, f0)


def find_entries(
    pre: Float[Tensor, "tokens d_sae"], threshold: Float[Tensor, " d_sae"], bandwidth: float
) -> Entries:
    """Entries above their threshold, or at most half a bandwidth below it."""
    mask = pre > threshold - bandwidth / 2
    if pre.device.type == "cpu":
        flat = torch.from_numpy(np.flatnonzero(mask.numpy()))  # NumPy is faster here than torch on the CPU
    else:
        flat = mask.flatten().nonzero()[:, 0]
    row, col = flat // pre.shape[1], flat % pre.shape[1]
    values = pre.take(flat)
    over = values - threshold[col]
    return Entries(row, col, values, (over > 0).nonzero()[:, 0], over.abs() < bandwidth / 2)


def sparse_step(
    x: Float[Tensor, "tokens d_model"],
    p: Parameters,
    coefficient: float,
    bandwidth: float,
    kind: str = "l0",
    f0: float = 0.1,
) -> StepResult:
    """Loss and exact straight-through gradients of one batch, computed on the candidate entries.

    Falls back to dense products when more than ``DENSE_ABOVE`` of all entries are candidates.
    """
    pre = torch.addmm(p.b_enc, x, p.enc.T)
    entries = find_entries(pre, p.threshold, bandwidth)
    products = _dense_products if len(entries.col) > DENSE_ABOVE * pre.numel() else _sparse_products
    recon, sampled, transposed = products(entries, p.dec, len(x))
    col, activation = entries.col[entries.active], entries.pre[entries.active]
    residual = recon(activation).add_(p.b_dec).sub_(x)
    upstream = residual * (2 / residual.numel())
    on_latent = sampled(upstream)
    on_active = on_latent[entries.active]
    frequency = torch.bincount(col, minlength=len(p.threshold)).to(x.dtype) / len(x)
    slope = penalty_slope(frequency, kind, f0) / len(x)
    kernel = entries.in_band / bandwidth
    by_reconstruction = -p.threshold[entries.col] * on_latent * kernel
    by_penalty = -slope[entries.col] * kernel
    gradients = Parameters(
        enc=transposed(on_active, x),
        dec=transposed(activation, upstream),
        b_enc=_sum_by(col, on_active, len(p.threshold)),
        b_dec=upstream.sum(0),
        threshold=_sum_by(entries.col, by_reconstruction + coefficient * by_penalty, len(p.threshold)),
    )
    loss = residual.square().mean() + coefficient * penalty(frequency, kind, f0)
    balance = (by_reconstruction.sum().item(), by_penalty.sum().item())
    return StepResult(gradients, loss.item(), frequency.sum().item(), frequency, residual, pre, balance)


def _sum_by(index: Tensor, values: Tensor, length: int) -> Tensor:
    return torch.zeros(length, dtype=values.dtype, device=values.device).index_add_(0, index, values)


class Products(NamedTuple):
    """The three products of a step, of the entries' values with dense matrices."""

    recon: Callable[[Tensor], Tensor]  # active → active W_dec
    sampled: Callable[[Tensor], Tensor]  # upstream → upstream W_decᵀ at all entries
    transposed: Callable[[Tensor, Tensor], Tensor]  # (active, x) → activeᵀ x


def _sparse_products(e: Entries, dec: Tensor, n: int) -> Products:
    """The products on sparse matrices."""
    row, col = e.row[e.active], e.col[e.active].int()
    crow, ccol = _offsets(row, n), _offsets(col, len(dec))
    order = torch.argsort(col, stable=True)
    row_of = row[order].int()
    all_crow, all_col = _offsets(e.row, n), e.col.int()

    def times(crow, col, values, shape, dense):
        matrix = torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)
        # `matrix @ dense` would fill its output with zeros first, and copy it.
        return dense.new_empty(shape[0], dense.shape[1]).addmm_(matrix, dense, beta=0)

    def recon(values):
        return times(crow, col, values, (n, len(dec)), dec)

    def sampled(upstream):
        zeros = torch.zeros(len(all_col), dtype=upstream.dtype, device=col.device)
        empty = torch.sparse_csr_tensor(all_crow, all_col, zeros, (n, len(dec)), check_invariants=False)
        return torch.sparse.sampled_addmm(empty, upstream, dec.T, beta=0.0).values()

    def transposed(values, x):
        return times(ccol, row_of, values[order], (len(dec), n), x)

    return Products(recon, sampled, transposed)


def _offsets(index: Tensor, length: int) -> Int[Tensor, " length_plus_1"]:
    """Where each row begins in sorted indices, and their number at the end."""
    counts = torch.bincount(index, minlength=length).cumsum(0)
    return torch.nn.functional.pad(counts, (1, 0)).int()


def _dense_products(e: Entries, dec: Tensor, n: int) -> Products:
    """The products on dense matrices."""
    row, col = e.row[e.active], e.col[e.active]

    def matrix(values):
        out = torch.zeros(n, len(dec), dtype=values.dtype, device=values.device)
        out[row, col] = values
        return out

    return Products(
        recon=lambda values: matrix(values) @ dec,
        sampled=lambda upstream: (upstream @ dec.T)[e.row, e.col],
        transposed=lambda values, x: matrix(values).T @ x,
    )
