"""Poolings: how the tokens of a prompt become one vector, for dense activations and for sparse SAE latents alike.

A pooling is one entry of ``POOLINGS``. What is harvested, how latents are pooled, what linear probes can read
and how much disk is needed follow from it.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.base.registry import lookup

Ints = Int[np.ndarray, " entries"]


class ActiveLatents:
    """The active latents of a few prompts; those of one prompt and one latent are neighbours, in the order of tokens.

    Attributes:
        values: activation of each entry.
        token: its token, counted over all the prompts.
        runs: the first entry of each (prompt, latent).
        lengths: tokens of every prompt.
        fixed_token: the token at the fixed position of every prompt.
    """

    def __init__(
        self,
        flat: Int[np.ndarray, " entries"],
        values: Float[np.ndarray, " entries"],
        d_sae: int,
        starts: Int[np.ndarray, " prompts_plus_1"],
        fixed: int,
    ):
        """``flat`` is token · d_sae + latent, ascending.

        Prompt ``i`` has the tokens ``starts[i]`` to ``starts[i + 1] - 1``, and its fixed position is ``fixed``,
        counted from its end.
        """
        self.lengths = np.diff(starts)
        self.shape = (len(starts) - 1, d_sae)
        token, latent = np.divmod(flat, d_sae)
        key = np.repeat(np.arange(len(self.lengths)), self.lengths)[token] * d_sae + latent
        order = np.argsort(key, kind="stable")
        self._key, self.values, self.token = key[order], values[order], token[order]
        self.runs = np.flatnonzero(np.r_[True, self._key[1:] != self._key[:-1]]) if len(key) else np.zeros(0, dtype=int)
        self.fixed_token = np.maximum(starts[1:] + fixed, starts[:-1])

    def prompt(self, entries: Ints | slice = slice(None)) -> Ints:
        """The prompts of some entries."""
        return self._key[entries] // self.shape[1]

    def reduced(self, function: np.ufunc) -> Float[np.ndarray, " runs"]:
        """``function``, such as ``numpy.maximum``, over the entries of each (prompt, latent), without silent tokens."""
        return function.reduceat(self.values, self.runs) if len(self.runs) else self.values

    def matrix(self, values: Float[np.ndarray, " entries"], entries: Ints) -> scipy.sparse.csr_matrix:
        """A (prompts, d_sae) matrix of ``values`` at the prompts and latents of ``entries``."""
        return scipy.sparse.csr_matrix((values, np.divmod(self._key[entries], self.shape[1])), shape=self.shape)

    def at(self, token: Int[np.ndarray, " prompts"]) -> scipy.sparse.csr_matrix:
        """The (prompts, d_sae) activations at one token of every prompt, counted over all the prompts."""
        entries = np.flatnonzero(self.token == token[self.prompt()])
        return self.matrix(self.values[entries], entries)


class Pooling(NamedTuple):
    """How a prompt's own tokens become one vector.

    Attributes:
        dense: takes residual streams (batch, pos, d_model), the tokens that count (batch, pos), and the fixed position
            counted from the prompt's end; returns the pooled vectors (batch, d_model). Padding, on either side, and a
            causal model's BOS do not count.
        sparse: takes active latents; returns the pooled latents (prompts, d_sae).
        exact: whether decoding pooled latents gives the pooled reconstruction. Decoding is affine, so it does if the
            pooling is a weighted mean of tokens.
    """

    dense: Callable[[Tensor, Tensor, int], Tensor]
    sparse: Callable[[ActiveLatents], scipy.sparse.csr_matrix]
    exact: bool


def _max(resid: Tensor, mask: Tensor, fixed: int) -> Tensor:
    return resid.masked_fill(~mask[..., None], -torch.inf).amax(1)


def _max_latents(latents: ActiveLatents) -> scipy.sparse.csr_matrix:
    return latents.matrix(latents.reduced(np.maximum), latents.runs)


def _mean(resid: Tensor, mask: Tensor, fixed: int) -> Tensor:
    weights = mask.to(resid.dtype)[..., None]
    return (resid * weights).sum(1) / weights.sum(1)


def _mean_latents(latents: ActiveLatents) -> scipy.sparse.csr_matrix:
    length = latents.lengths[latents.prompt(latents.runs)].astype(np.float32)
    return latents.matrix(latents.reduced(np.add) / length, latents.runs)


def _fixed(resid: Tensor, mask: Tensor, fixed: int) -> Tensor:
    last = torch.arange(mask.shape[1], device=mask.device).masked_fill(~mask, -1).amax(1)
    position = (last + 1 + fixed).clamp(min=0)
    return resid[torch.arange(len(resid), device=resid.device), position]


def _fixed_latents(latents: ActiveLatents) -> scipy.sparse.csr_matrix:
    return latents.at(latents.fixed_token)


POOLINGS = {
    "max": Pooling(_max, _max_latents, exact=False),
    "mean": Pooling(_mean, _mean_latents, exact=True),
    "fixed": Pooling(_fixed, _fixed_latents, exact=True),
}
ALL_POOLINGS = tuple(POOLINGS)


def named(names: Iterable[str]) -> dict[str, Pooling]:
    """The poolings of these names, in their order.

    Raises:
        ValueError: no pooling of one of the names; the sentence lists those that there are.
    """
    return {name: lookup(POOLINGS, "pooling", name) for name in names}


def exact_or(name: str, otherwise: str = "fixed") -> str:
    """``name`` if decoding pooled latents is exact under that pooling, else ``otherwise``.

    Raises:
        ValueError: no pooling of that name.
    """
    return name if lookup(POOLINGS, "pooling", name).exact else otherwise


def pool(
    resid: Float[Tensor, "batch pos d_model"], mask: Bool[Tensor, "batch pos"], pooling: str, fixed: int = -1
) -> Float[Tensor, "batch d_model"]:
    """Aggregate over a prompt's own tokens: by default the max per coordinate, the mean, or the fixed position.

    The fixed position is counted from the end of the prompt, on whichever side it is padded: its last token
    (MiniLM: the closing [SEP]), or ``models.fixed_position`` of a chat model.

    Raises:
        ValueError: unknown pooling.
    """
    return lookup(POOLINGS, "pooling", pooling).dense(resid, mask, fixed)
