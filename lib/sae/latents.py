"""SAE latents of prompts: encoded once per SAE, pooled over a prompt's tokens, kept as sparse matrices."""

from collections.abc import Iterable, Iterator

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int
from sae_lens import SAE

from lib.model.activations import PromptTokens
from lib.model.poolings import ALL_POOLINGS, ActiveLatents, named, tokens_read
from lib.sae.folders import check_fits
from lib.sae.jumprelu import Parameters, entries_of

BATCH_TOKENS = 2048
OWN_SCALE = ("layer_norm", "constant_norm_rescale")
Pooled = dict[str, scipy.sparse.csr_matrix]
Distinct = tuple[Int[np.ndarray, " distinct"], Int[np.ndarray, " tokens"]]  # see distinct_rows


@torch.inference_mode()
def pool_latents(
    sae: SAE, tokens: PromptTokens, poolings: Iterable[str] = ALL_POOLINGS, distinct: Distinct | None = None
) -> Pooled:
    """Latents of every prompt as a (prompts, d_sae) matrix for each of ``poolings`` (see ``lib.model.poolings``).

    ``distinct`` is :func:`distinct_rows` of the activations, for those who have it. What no pooling reads, such as the
    template behind the user's turn, is not encoded.

    Raises:
        ValueError: the SAE's width is not the activations', or an unknown pooling.
    """
    check_fits(sae, tokens.activations.shape[1])
    entries = named(poolings)
    parts: dict[str, list] = {name: [] for name in entries}
    first_of, same_as = distinct or distinct_rows(tokens.activations)
    in_turns = None if tokens.in_turn is None else tokens.in_turn.numpy()
    read = np.unique(same_as[tokens_read(entries.values(), tokens.starts.numpy(), in_turns, tokens.fixed)])
    row = np.full(len(first_of), len(read))  # of a distinct token in the latents; the last one is empty
    row[read] = np.arange(len(read))
    latents = _encoded(sae, tokens.activations, first_of[read])
    latents = scipy.sparse.vstack([latents, scipy.sparse.csr_matrix((1, sae.cfg.d_sae), dtype=latents.dtype)], "csr")
    row_of = row[same_as]
    for first, last in prompt_batches(tokens.starts.numpy(), BATCH_TOKENS):
        starts = tokens.starts[first : last + 1].numpy()
        batch = latents[row_of[starts[0] : starts[-1]]]
        flat = np.repeat(np.arange(batch.shape[0]), np.diff(batch.indptr)) * sae.cfg.d_sae + batch.indices
        in_turn = None if in_turns is None else in_turns[starts[0] : starts[-1]]
        active = ActiveLatents(flat, batch.data, sae.cfg.d_sae, starts - starts[0], in_turn)
        for name, pooling in entries.items():
            parts[name].append(pooling.sparse(active, tokens.fixed))
    return {name: scipy.sparse.vstack(part, format="csr") for name, part in parts.items()}


def distinct_rows(activations: Float[torch.Tensor, "tokens d_model"]) -> Distinct:
    """A place of each different row, and for every row which of those it equals.

    Prompts of a causal model that begin alike share the activations of their beginning to the bit, as these were
    computed once (``lib.model.prefixes``): of the embedded prompts' tokens less than half are different. Rows are
    compared by a random linear hash of 64 bits, under which two of a million different ones agree with a probability
    of 3e-8.
    """
    n_words = activations.shape[1] * activations.element_size() // 2
    factors = np.random.default_rng(0).integers(-(2**62), 2**62, size=n_words) | 1
    hashes = [
        part.contiguous().view(torch.int16).numpy().astype(np.int64) @ factors
        for part in activations.cpu().split(8 * BATCH_TOKENS)
    ]
    _, first_of, same_as = np.unique(np.concatenate(hashes), return_index=True, return_inverse=True)
    return first_of, same_as


def _encoded(
    sae: SAE, activations: Float[torch.Tensor, "tokens d_model"], rows: Int[np.ndarray, " rows"]
) -> scipy.sparse.csr_matrix:
    """The latents of some of the tokens, a row each."""
    d_sae, parts = sae.cfg.d_sae, []
    for batch in torch.from_numpy(rows).split(BATCH_TOKENS):
        flat, values = active_entries(sae, activations[batch].float())
        ends = np.searchsorted(flat, d_sae * np.arange(len(batch) + 1))
        parts.append(scipy.sparse.csr_matrix((values, flat % d_sae, ends), shape=(len(batch), d_sae)))
    return scipy.sparse.vstack(parts, format="csr")


def prompt_batches(starts: Int[np.ndarray, " prompts_plus_1"], batch_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last) ranges of prompts that hold about ``batch_tokens`` tokens."""
    first = 0
    while first < len(starts) - 1:
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + batch_tokens, side="right")) - 1)
        yield first, last
        first = last


def active_entries(sae: SAE, x: Float[torch.Tensor, "tokens d_model"]) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions (token · d_sae + latent, ascending) and values of the active latents of ``sae.encode(x)``.

    Those of a plain JumpReLU SAE are found as in its training (:func:`lib.sae.jumprelu.entries_of`).
    """
    x = x.to(sae.W_dec.device)
    is_plain = sae.cfg.architecture() == "jumprelu" and sae.cfg.normalize_activations == "none"
    if is_plain and bool((sae.threshold >= 0).all()):
        x = x - sae.b_dec if sae.cfg.apply_b_dec_to_input else x
        p = Parameters(sae.W_enc.T.contiguous(), sae.W_dec, sae.b_enc, sae.b_dec, sae.threshold)
        active = entries_of(x, p, bandwidth=0.0)
        return (active.row * sae.cfg.d_sae + active.col).cpu().numpy(), active.pre.cpu().numpy()
    latents = sae.encode(x)
    latents = latents.to_dense() if latents.is_sparse else latents
    flat = np.flatnonzero((latents > 0).cpu().numpy())
    return flat, latents.cpu().numpy().ravel()[flat]


@torch.inference_mode()
def reconstruction(sae: SAE, latents: scipy.sparse.csr_matrix) -> Float[np.ndarray, "prompts d_model"]:
    """Pooled reconstruction from pooled latents, in the units of the residual stream.

    It is the pooling of the tokens' reconstructions if the pooling is ``exact`` (see ``lib.model.poolings.Pooling``).

    Raises:
        ValueError: an SAE that scales each token by its own norm, which a pooled one does not have.
    """
    if sae.cfg.normalize_activations in OWN_SCALE:
        raise ValueError(
            f"the SAE scales each token by its own norm (normalize_activations: {sae.cfg.normalize_activations}), so "
            "that pooled latents cannot be decoded; give an SAE without, or none"
        )
    parts = []
    for first in range(0, latents.shape[0], BATCH_TOKENS):
        dense = torch.from_numpy(latents[first : first + BATCH_TOKENS].toarray())
        parts.append(sae.decode(dense.to(sae.W_dec.device)).cpu())
    return torch.cat(parts).numpy()


def pooled_fvu(sae: SAE, latents: scipy.sparse.csr_matrix, resid: Float[np.ndarray, "prompts d_model"]) -> float:
    """FVU of the pooled reconstruction over prompts (fraction of the pooled activations' variance)."""
    error = resid - reconstruction(sae, latents)
    return float((error**2).sum() / ((resid - resid.mean(0)) ** 2).sum())
