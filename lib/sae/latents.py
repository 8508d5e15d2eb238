"""SAE latents of prompts: encoded once per SAE, pooled over a prompt's tokens, kept as sparse matrices."""

from collections.abc import Iterable, Iterator

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int
from sae_lens import SAE

from lib.model.activations import PromptTokens
from lib.model.poolings import ALL_POOLINGS, ActiveLatents, named
from lib.sae.folders import check_fits

BATCH_TOKENS = 2048
Pooled = dict[str, scipy.sparse.csr_matrix]


@torch.inference_mode()
def pool_latents(sae: SAE, tokens: PromptTokens, poolings: Iterable[str] = ALL_POOLINGS) -> Pooled:
    """Latents of every prompt as a (prompts, d_sae) matrix for each of ``poolings`` (see ``lib.model.poolings``).

    Raises:
        ValueError: the SAE's width is not the activations', or an unknown pooling.
    """
    check_fits(sae, tokens.activations.shape[1])
    entries = named(poolings)
    parts: dict[str, list] = {name: [] for name in entries}
    for first, last in prompt_batches(tokens.starts.numpy(), BATCH_TOKENS):
        starts = tokens.starts[first : last + 1]
        flat, values = active_entries(sae, tokens.activations[starts[0] : starts[-1]].float())
        in_turn = None if tokens.in_turn is None else tokens.in_turn[starts[0] : starts[-1]].numpy()
        active = ActiveLatents(flat, values, sae.cfg.d_sae, (starts - starts[0]).numpy(), in_turn)
        for name, pooling in entries.items():
            parts[name].append(pooling.sparse(active, tokens.fixed))
    return {name: scipy.sparse.vstack(part, format="csr") for name, part in parts.items()}


def prompt_batches(starts: Int[np.ndarray, " prompts_plus_1"], batch_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last) ranges of prompts that hold about ``batch_tokens`` tokens."""
    first = 0
    while first < len(starts) - 1:
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + batch_tokens, side="right")) - 1)
        yield first, last
        first = last


def active_entries(sae: SAE, x: Float[torch.Tensor, "tokens d_model"]) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions (token · d_sae + latent, ascending) and values of the active latents of ``sae.encode(x)``.

    The encoder product of a plain JumpReLU SAE is compared with the threshold once, and only active entries are read.
    """
    x = x.to(sae.W_dec.device)
    is_plain = sae.cfg.architecture() == "jumprelu" and sae.cfg.normalize_activations == "none"
    if is_plain and bool((sae.threshold >= 0).all()):
        x = x - sae.b_dec if sae.cfg.apply_b_dec_to_input else x
        latents = torch.addmm(sae.b_enc, x, sae.W_enc)
        flat = np.flatnonzero((latents > sae.threshold).cpu().numpy())
    else:
        latents = sae.encode(x)
        latents = latents.to_dense() if latents.is_sparse else latents
        flat = np.flatnonzero((latents > 0).cpu().numpy())
    return flat, latents.cpu().numpy().ravel()[flat]


@torch.inference_mode()
def reconstruction(sae: SAE, latents: scipy.sparse.csr_matrix) -> Float[np.ndarray, "prompts d_model"]:
    """Pooled reconstruction from pooled latents, in the units of the residual stream.

    It is the pooling of the tokens' reconstructions if the pooling is ``exact`` (see ``lib.model.poolings.Pooling``).
    """
    parts = []
    for first in range(0, latents.shape[0], BATCH_TOKENS):
        dense = torch.from_numpy(latents[first : first + BATCH_TOKENS].toarray())
        parts.append(sae.decode(dense.to(sae.W_dec.device)).cpu())
    return torch.cat(parts).numpy()


def pooled_fvu(sae: SAE, latents: scipy.sparse.csr_matrix, resid: Float[np.ndarray, "prompts d_model"]) -> float:
    """FVU of the pooled reconstruction over prompts (fraction of the pooled activations' variance)."""
    error = resid - reconstruction(sae, latents)
    return float((error**2).sum() / ((resid - resid.mean(0)) ** 2).sum())
