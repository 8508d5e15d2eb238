"""Poolings: how the tokens of a prompt become one vector, for dense activations and for sparse SAE latents alike.

A pooling is one entry of ``POOLINGS``, or ``position -n``: one token, counted from the first response token. What is
harvested, how latents are pooled, what linear probes can read and how much disk is needed follow from it.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.base.registry import lookup

POSITION = re.compile(r"position (-[1-9]\d*)")


class ActiveLatents:
    """The active latents of a few prompts; those of one prompt and one latent are neighbours, in the order of tokens.

    Attributes:
        lengths: pooled tokens of every prompt.
    """

    def __init__(
        self,
        flat: Int[np.ndarray, " entries"],
        values: Float[np.ndarray, " entries"],
        d_sae: int,
        starts: Int[np.ndarray, " prompts_plus_1"],
        in_turn: Bool[np.ndarray, " tokens"] | None = None,
    ):
        """``flat`` is token · d_sae + latent, ascending.

        Prompt ``i`` has the tokens ``starts[i]`` to ``starts[i + 1] - 1``, of which those ``in_turn`` are pooled (None:
        all of them).
        """
        in_turn = np.ones(starts[-1], dtype=bool) if in_turn is None else in_turn
        self.starts, self.shape = starts, (len(starts) - 1, d_sae)
        self.lengths = np.add.reduceat(in_turn, starts[:-1], dtype=np.int64)
        token, latent = np.divmod(flat, d_sae)
        key = np.repeat(np.arange(self.shape[0]), np.diff(starts))[token] * d_sae + latent
        order = np.argsort(key, kind="stable")
        self._key, self._values, self._token = key[order], values[order], token[order]
        pooled = in_turn[self._token]
        self._pooled_key, self._pooled_values = self._key[pooled], self._values[pooled]
        is_first = np.diff(self._pooled_key, prepend=-1) != 0
        self._runs = np.flatnonzero(is_first)  # the first entry of each prompt and latent

    def reduced(self, function: np.ufunc) -> scipy.sparse.csr_matrix:
        """``function``, such as ``numpy.maximum``, over each prompt's pooled tokens at which a latent is active."""
        values = function.reduceat(self._pooled_values, self._runs) if len(self._runs) else self._pooled_values
        return self._matrix(values, self._pooled_key[self._runs])

    def at(self, position: int) -> scipy.sparse.csr_matrix:
        """The (prompts, d_sae) activations at one token of every prompt, counted from its end (its first token, if it
        is shorter)."""
        token = np.maximum(self.starts[1:] + position, self.starts[:-1])
        entries = np.flatnonzero(self._token == token[self._key // self.shape[1]])
        return self._matrix(self._values[entries], self._key[entries])

    def _matrix(self, values: np.ndarray, key: np.ndarray) -> scipy.sparse.csr_matrix:
        return scipy.sparse.csr_matrix((values, np.divmod(key, self.shape[1])), shape=self.shape)


class Tokens(NamedTuple):
    """The tokens of a batch of prompts.

    Attributes:
        pooled: which tokens are pooled; padding and a causal model's BOS are not.
        end: the token behind each prompt's last one.
        fixed: the fixed position, counted from there.
    """

    pooled: Bool[Tensor, "batch pos"]
    end: Int[Tensor, " batch"]
    fixed: int = -1


class Pooling(NamedTuple):
    """How a prompt's own tokens become one vector.

    Attributes:
        dense: takes residual streams (batch, pos, d_model) and their ``Tokens``; returns the pooled vectors
            (batch, d_model).
        sparse: takes active latents and the fixed position, counted from a prompt's end; returns the pooled latents
            (prompts, d_sae).
        exact: whether decoding pooled latents gives the pooled reconstruction. Decoding is affine, so it does if the
            pooling is a weighted mean of tokens.
        position: of the one token that is read, counted from a prompt's end, from the fixed position; None where the
            pooled tokens are read.
    """

    dense: Callable[[Tensor, Tokens], Tensor]
    sparse: Callable[[ActiveLatents, int], scipy.sparse.csr_matrix]
    exact: bool
    position: Callable[[int], int] | None = None


def _max(resid: Tensor, tokens: Tokens) -> Tensor:
    return resid.masked_fill(~tokens.pooled[..., None], -torch.inf).amax(1)


def _mean(resid: Tensor, tokens: Tokens) -> Tensor:
    weights = tokens.pooled.to(resid.dtype)[..., None]
    return (resid * weights).sum(1) / weights.sum(1)


def _mean_latents(latents: ActiveLatents, fixed: int) -> scipy.sparse.csr_matrix:
    return scipy.sparse.diags(1 / latents.lengths.astype(np.float32)).dot(latents.reduced(np.add)).tocsr()


def _at(resid: Tensor, end: Tensor, position: int) -> Tensor:
    return resid[torch.arange(len(resid), device=resid.device), (end + position).clamp(min=0)]


def at_position(position: int) -> Pooling:
    """The token at a position, counted from the first response token (−1: the last token before the response)."""
    return Pooling(
        dense=lambda resid, tokens: _at(resid, tokens.end, position),
        sparse=lambda latents, _: latents.at(position),
        exact=True,
        position=lambda _: position,
    )


POOLINGS = {
    "max": Pooling(_max, lambda latents, _: latents.reduced(np.maximum), exact=False),
    "mean": Pooling(_mean, _mean_latents, exact=True),
    # The end of the user's turn for a chat model, else the last token.
    "fixed": Pooling(
        lambda resid, tokens: _at(resid, tokens.end, tokens.fixed),
        lambda latents, fixed: latents.at(fixed),
        exact=True,
        position=lambda fixed: fixed,
    ),
}
ALL_POOLINGS = tuple(POOLINGS)
MEANING = (  # of those whose names do not say it, for captions
    "fixed: the end of the user's turn (the last token where there are no turns); position -n: the n-th token before "
    "the response."
)


def pooling(name: str) -> Pooling:
    """The pooling of a name: an entry of ``POOLINGS``, or :func:`at_position` of ``position -n``.

    Raises:
        ValueError: no such pooling; the sentence lists those that there are.
    """
    in_name = POSITION.fullmatch(name)
    return at_position(int(in_name[1])) if in_name else lookup(POOLINGS | {"position -n": None}, "pooling", name)


def named(names: Iterable[str]) -> dict[str, Pooling]:
    """The poolings of these names, in their order.

    Raises:
        ValueError: see :func:`pooling`.
    """
    return {name: pooling(name) for name in names}


def tokens_read(
    entries: Iterable[Pooling],
    starts: Int[np.ndarray, " prompts_plus_1"],
    in_turn: Bool[np.ndarray, " tokens"] | None,
    fixed: int,
) -> Bool[np.ndarray, " tokens"]:
    """Which tokens some of the poolings read, of prompts as in :class:`ActiveLatents`."""
    read = np.zeros(starts[-1], dtype=bool)
    for entry in entries:
        if entry.position:
            read[np.maximum(starts[1:] + entry.position(fixed), starts[:-1])] = True
        else:
            read |= True if in_turn is None else in_turn
    return read


def with_positions(positions: Iterable[int], fixed: int) -> tuple[str, ...]:
    """The names of all poolings, with those of further ``positions`` than the ``fixed`` one.

    Raises:
        ValueError: a position that is not before the first response token.
    """
    further = [f"position {position}" for position in dict.fromkeys(positions) if position != fixed]
    named(further)
    return (*ALL_POOLINGS, *further)


def exact_or(name: str, otherwise: str = "fixed") -> str:
    """``name`` if decoding pooled latents is exact under that pooling, else ``otherwise``.

    Raises:
        ValueError: see :func:`pooling`.
    """
    return name if pooling(name).exact else otherwise


def pool(
    resid: Float[Tensor, "batch pos d_model"], mask: Bool[Tensor, "batch pos"], name: str, fixed: int = -1
) -> Float[Tensor, "batch d_model"]:
    """Aggregate over all tokens of ``mask``; the fixed position is counted from behind the last of them.

    Raises:
        ValueError: see :func:`pooling`.
    """
    last = torch.arange(mask.shape[1], device=mask.device).masked_fill(~mask, -1).amax(1)
    return pooling(name).dense(resid, Tokens(mask, last + 1, fixed))
