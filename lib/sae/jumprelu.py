"""JumpReLU SAE training steps whose cost follows the number of active latents.

A step needs one dense product (the encoder), which finds the entries (token, latent) that are active or within half a
bandwidth of their threshold. Where the CPU multiplies bfloat16, that product is of rounded factors, the search is wider
by their error, and what it finds is computed anew in float32. Decoding and all gradients are exact on these entries.
With inputs x scaled to unit mean square per coordinate, pre = x W_enc + b_enc, f = pre · H(pre − θ),
x̂ = f W_dec + b_dec,

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
ROUNDOFF = 2.0**-8  # of bfloat16: the largest relative error of a rounded number
SIGMAS = 8.0  # of a rounded product's error, by which the search is widened


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


def entries_of(x: Float[Tensor, "tokens d_model"], p: Parameters, bandwidth: float) -> Entries:
    """Entries of a batch that are above their threshold, or at most half a bandwidth below it."""
    if multiplies_bfloat16(x):
        candidates = rounded_candidates(x, p, bandwidth)
        if len(candidates) <= DENSE_ABOVE * len(x) * len(p.threshold):
            row, col = candidates // len(p.threshold), candidates % len(p.threshold)
            sampled = _sampled(_offsets(row, len(x)), col.int(), (len(x), len(p.threshold)))
            return _within(row, col, sampled(x, p.enc).add_(p.b_enc[col]), p.threshold, bandwidth)
    return find_entries(torch.addmm(p.b_enc, x, p.enc.T), p.threshold, bandwidth)


def multiplies_bfloat16(x: Tensor) -> bool:
    """Whether the CPU that holds the float32 ``x`` has instructions for products of bfloat16, some times as fast."""
    is_supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return x.device.type == "cpu" and x.dtype == torch.float32 and is_supported()


def rounded_candidates(
    x: Float[Tensor, "tokens d_model"], p: Parameters, bandwidth: float
) -> Int[Tensor, " n"]:
    """Places (token · d_sae + latent, rising) of the entries that a product of bfloat16 finds.

    With u = 2⁻⁸ the largest relative error of a rounding, and errors uniform and independent (as in the statistical
    analysis of Higham 2002, 2.8), x·w of rounded factors has an error of standard deviation u √(2/3) √(Σᵢ xᵢ²wᵢ²). The
    search goes down by ``SIGMAS`` of it, with the batch's mean xᵢ², and by 2 u for the rounded result and threshold.
    Errors grow with a token's norm: for one of more than twice the root mean square, as an attention sink is, the
    search goes down by as many times more.
    """
    least = p.threshold - p.b_enc - bandwidth / 2
    squares = x.square()
    deviation = (p.enc.square() @ squares.mean(0)).sqrt_().mul_(ROUNDOFF * (2 / 3) ** 0.5)
    least = (least - SIGMAS * deviation - 2 * ROUNDOFF * least.abs()).bfloat16()
    pre = x.bfloat16() @ p.enc.bfloat16().T
    squared_norms = squares.sum(1)
    times = (squared_norms / squared_norms.mean()).sqrt_()
    large = (times > 2).nonzero()[:, 0]
    pre[large] += (SIGMAS * deviation * (times[large, None] - 1)).bfloat16()
    if (least >= 0).all():  # Numbers above zero have the order of their bits, and others have negative ones.
        pre, least = pre.view(torch.int16), least.view(torch.int16)
        return torch.from_numpy(np.flatnonzero(pre.numpy() > least.numpy()))
    return torch.from_numpy(np.flatnonzero((pre > least).numpy()))


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
    return _within(row, col, pre.take(flat), threshold, bandwidth)


def _within(row: Tensor, col: Tensor, pre: Tensor, threshold: Tensor, bandwidth: float) -> Entries:
    """The entries of some candidates, in their order."""
    over = pre - threshold[col]
    kept = over > -bandwidth / 2
    if not kept.all():
        row, col, pre, over = row[kept], col[kept], pre[kept], over[kept]
    return Entries(row, col, pre, (over > 0).nonzero()[:, 0], over.abs() < bandwidth / 2)


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
    entries = entries_of(x, p, bandwidth)
    is_dense = len(entries.col) > DENSE_ABOVE * len(x) * len(p.threshold)
    products = _dense_products if is_dense else _sparse_products
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
    return StepResult(gradients, loss.item(), frequency.sum().item(), frequency, residual, balance)


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
    sampled_at_all = _sampled(_offsets(e.row, n), e.col.int(), (n, len(dec)))

    def times(crow, col, values, shape, dense):
        matrix = torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)
        # `matrix @ dense` would fill its output with zeros first, and copy it.
        return dense.new_empty(shape[0], dense.shape[1]).addmm_(matrix, dense, beta=0)

    def recon(values):
        return times(crow, col, values, (n, len(dec)), dec)

    def sampled(upstream):
        return sampled_at_all(upstream, dec)

    def transposed(values, x):
        return times(ccol, row_of, values[order], (len(dec), n), x)

    return Products(recon, sampled, transposed)


def _sampled(crow: Tensor, col: Tensor, shape: tuple[int, int]) -> Callable[[Tensor, Tensor], Tensor]:
    """The function (a, b) → a bᵀ at the entries of a matrix whose places these are."""

    def product(a, b):
        zeros = torch.zeros(len(col), dtype=a.dtype, device=a.device)
        empty = torch.sparse_csr_tensor(crow, col, zeros, shape, check_invariants=False)
        return torch.sparse.sampled_addmm(empty, a, b.T, beta=0.0).values()

    return product


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
