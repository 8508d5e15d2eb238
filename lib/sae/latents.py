"""SAE latents of prompts: encoded once per SAE, pooled over a prompt's tokens, kept as sparse matrices."""

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int
from sae_lens import SAE

from lib.model.activations import PromptTokens
from lib.sae.folders import check_fits

POOLINGS = ("max", "mean", "fixed")
BATCH_TOKENS = 2048
Pooled = dict[str, scipy.sparse.csr_matrix]


@torch.inference_mode()
def pool_latents(sae: SAE, tokens: PromptTokens) -> Pooled:
    """Latents of every prompt as (prompts, d_sae) matrices: max and mean over its tokens, and at its fixed position.

    Raises:
        ValueError: the SAE's width is not the activations'.
    """
    check_fits(sae, tokens.activations.shape[1])
    parts: dict[str, list] = {pooling: [] for pooling in POOLINGS}
    for first, last in prompt_batches(tokens.starts.numpy(), BATCH_TOKENS):
        starts = tokens.starts[first : last + 1]
        flat, values = active_entries(sae, tokens.activations[starts[0] : starts[-1]].float())
        for pooling, part in _pooled(flat, values, sae.cfg.d_sae, (starts - starts[0]).numpy(), tokens.fixed).items():
            parts[pooling].append(part)
    return {pooling: scipy.sparse.vstack(part, format="csr") for pooling, part in parts.items()}


def prompt_batches(starts: Int[np.ndarray, " prompts_plus_1"], batch_tokens: int):
    """Yield (first, last) ranges of prompts that hold about ``batch_tokens`` tokens."""
    first = 0
    while first < len(starts) - 1:
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + batch_tokens, side="right")) - 1)
        yield first, last
        first = last


def active_entries(sae: SAE, x: Float[torch.Tensor, "tokens d_model"]) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions (token · d_sae + latent, ascending) and values of the latents of ``sae.encode(x)`` that are active.

    For a plain JumpReLU SAE the encoder product is compared with the threshold once, and only active entries are read.
    """
    x = x.to(sae.W_dec.device)
    plain = sae.cfg.architecture() == "jumprelu" and sae.cfg.normalize_activations == "none" and bool((sae.threshold >= 0).all())
    if plain:
        x = x - sae.b_dec if sae.cfg.apply_b_dec_to_input else x
        latents = torch.addmm(sae.b_enc, x, sae.W_enc)
        flat = np.flatnonzero((latents > sae.threshold).cpu().numpy())
    else:
        latents = sae.encode(x)
        latents = latents.to_dense() if latents.is_sparse else latents
        flat = np.flatnonzero((latents > 0).cpu().numpy())
    return flat, latents.cpu().numpy().ravel()[flat]


def _pooled(flat: np.ndarray, values: np.ndarray, d_sae: int, starts: np.ndarray, fixed: int = -1) -> Pooled:
    """Entries (prompt, latent) sorted by their flat index; one reduction per run of equal index."""
    n, lengths = len(starts) - 1, np.diff(starts)
    token, latent = np.divmod(flat, d_sae)
    prompt = np.repeat(np.arange(n), lengths)
    key = prompt[token] * d_sae + latent
    last = token == np.maximum(starts[1:] + fixed, starts[:-1])[prompt[token]]
    order = np.argsort(key, kind="stable")
    key, ordered = key[order], values[order]
    runs = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if len(key) else np.zeros(0, dtype=int)
    where = np.divmod(key[runs], d_sae)
    high, total = (f.reduceat(ordered, runs) if len(runs) else ordered for f in (np.maximum, np.add))
    shape = (n, d_sae)
    return {
        "max": scipy.sparse.csr_matrix((high, where), shape=shape),
        "mean": scipy.sparse.csr_matrix((total / lengths[where[0]].astype(np.float32), where), shape=shape),
        "fixed": scipy.sparse.csr_matrix((values[last], (prompt[token[last]], latent[last])), shape=shape),
    }


@torch.inference_mode()
def reconstruction(sae: SAE, latents: scipy.sparse.csr_matrix) -> Float[np.ndarray, "prompts d_model"]:
    """Pooled reconstruction from pooled latents. Decoding is affine, so it is exact for mean and fixed, not for max."""
    parts = [sae.decode(torch.from_numpy(latents[i : i + BATCH_TOKENS].toarray()).to(sae.W_dec.device)).cpu() for i in range(0, latents.shape[0], BATCH_TOKENS)]
    return torch.cat(parts).numpy()


def pooled_fvu(sae: SAE, latents: scipy.sparse.csr_matrix, resid: Float[np.ndarray, "prompts d_model"]) -> float:
    """FVU of the pooled reconstruction over prompts (fraction of the pooled activations' variance)."""
    error = resid - reconstruction(sae, latents)
    return float((error**2).sum() / ((resid - resid.mean(0)) ** 2).sum())
