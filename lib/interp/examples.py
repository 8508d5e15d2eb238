"""Text sequences with the activations of one latent: what a judge explains, and what it is tested on.

Passages are divided into two sides once, for all latents: explanations are learned on one and scored on the other.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from lib.model import activations, models
from lib.model.shards import read_all
from lib.sae.folders import check_fits
from lib.sae.latents import BATCH_TOKENS, active_entries

LEVELS = 10  # activations are shown as 0 (silent) to 10 (the latent's maximum)
SHORTEST = 8  # tokens of a sequence, at least


class Sequences(NamedTuple):
    """Short runs of tokens: sequence i holds ``tokens[starts[i]:starts[i + 1]]`` and as many rows of ``activations``."""

    tokens: list[str]
    starts: Int[np.ndarray, " sequences_plus_1"]
    scoring: np.ndarray  # of each sequence: is it on the scoring side?
    activations: Float[np.ndarray, "tokens d_model"]

    def words(self, i: int) -> list[str]:
        """The tokens of sequence ``i``."""
        return self.tokens[self.starts[i] : self.starts[i + 1]]


class Example(NamedTuple):
    """A sequence with the quantised activation (0 to ``LEVELS``) of one latent at each token."""

    tokens: list[str]
    levels: Int[np.ndarray, " tokens"]
    index: int  # among the sequences

    @property
    def peak(self) -> int:
        """The quantised activation of the highest-activating token, which judges estimate."""
        return int(self.levels.max())


class Plan(NamedTuple):
    """How many sequences a latent is shown by. Quantiles are of the peaks of its activating sequences, highest first."""

    top: int = 8
    quantiles: int = 4
    per_quantile: int = 3
    inactive: int = 8
    scoring_per_quantile: int = 4
    scoring_inactive: int = 10
    least: int = 5  # activating sequences on either side, below which a latent is not scored


class Drawn(NamedTuple):
    """The examples of one latent; no passage is in both lists."""

    explaining: list[Example]
    scoring: list[Example]


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Each token as it reads, with a space before it where a word begins, so that joined tokens give the text."""
    pieces = tokenizer.convert_ids_to_tokens(ids)
    wordpiece = any(token.startswith("##") for token in tokenizer.get_vocab())
    return [_token_text(tokenizer, piece, wordpiece) for piece in pieces]


def _token_text(tokenizer: PreTrainedTokenizerBase, piece: str, wordpiece: bool) -> str:
    if wordpiece:
        return piece.removeprefix("##") if piece.startswith("##") else f" {piece}"
    return piece.replace("▁", " ") if "▁" in piece else tokenizer.convert_tokens_to_string([piece])


def harvest(
    bridge: TransformerBridge, model: dict[str, str], texts: list[str], layer: int, parent: Path, max_tokens: int, seed: int, width: int = 32, context: int = 128
) -> Sequences:
    """Activations of texts, read by the model in windows of ``context`` tokens and cut into sequences of ``width``.

    Texts are taken in random order, up to ``max_tokens`` (0: all); half of them are for scoring. Special tokens are left out.

    Raises:
        ValueError: fewer than two texts fit into ``max_tokens``.
    """
    order = np.random.default_rng(seed).permutation(len(texts))
    windows, of_text, total = [], [], 0
    for text in order:
        parts = models.split_tokens(bridge, [texts[text]], context)
        total += sum(map(len, parts))
        if max_tokens and total > max_tokens:
            break
        windows += parts
        of_text += [text] * len(parts)
    if len(set(of_text)) < 2:
        raise ValueError(f"{len(texts)} texts within max_tokens {max_tokens} are too few: explaining and scoring need one each, at least")
    content = activations.texts_hash([str(ids) for ids in windows])
    store = activations.harvest_tokens(bridge, model, content, windows, layer, parent, special=False)
    return _cut(bridge, store, np.array(of_text), width, seed)


def _cut(bridge: TransformerBridge, store: Path, of_text: np.ndarray, width: int, seed: int) -> Sequences:
    shards = read_all(store)
    window, ids, x = (torch.cat([shard[name] for shard in shards]) for name in ("sequence", "token_id", "activations"))
    counts = torch.bincount(window, minlength=len(of_text)).numpy()
    place = np.arange(len(window)) - np.repeat(np.cumsum(counts) - counts, counts)
    key = window.numpy() * (counts.max() // width + 1) + place // width
    _, sequence, lengths = np.unique(key, return_inverse=True, return_counts=True)
    kept = lengths[sequence] >= SHORTEST
    first = np.unique(sequence[kept], return_index=True)[1]
    sides = dict(zip(np.unique(of_text), np.random.default_rng([seed, 1]).permutation(len(np.unique(of_text))) % 2 == 1, strict=True))
    scoring = np.array([sides[of_text[window[kept][i]]] for i in first])
    starts = np.append(first, kept.sum())
    return Sequences(token_texts(bridge.tokenizer, ids[kept].tolist()), starts, scoring, (x.float() if x.dtype == torch.bfloat16 else x).numpy()[kept])


def encode(sae: SAE, sequences: Sequences) -> scipy.sparse.csc_matrix:
    """All latents at all tokens, as a sparse (tokens, d_sae) matrix whose columns are cheap to read."""
    check_fits(sae, sequences.activations.shape[1])
    parts = []
    with torch.inference_mode():
        for first in range(0, len(sequences.tokens), BATCH_TOKENS):
            chunk = torch.from_numpy(sequences.activations[first : first + BATCH_TOKENS].astype(np.float32))
            flat, values = active_entries(sae, chunk)
            parts.append(scipy.sparse.csr_matrix((values, np.divmod(flat, sae.cfg.d_sae)), shape=(len(chunk), sae.cfg.d_sae)))
    return scipy.sparse.vstack(parts, format="csr").tocsc()


class Peaks(NamedTuple):
    """Where one latent is active: sequences (ascending) and its largest activation in each."""

    sequence: Int[np.ndarray, " active"]
    value: Float[np.ndarray, " active"]


def peaks(latents: scipy.sparse.csc_matrix, latent: int, sequences: Sequences) -> Peaks:
    """The activating sequences of a latent."""
    span = slice(*latents.indptr[latent : latent + 2])
    rows, values = latents.indices[span], latents.data[span]
    of = np.searchsorted(sequences.starts, rows, side="right") - 1
    found, first = np.unique(of, return_index=True)
    return Peaks(found, np.maximum.reduceat(values, first) if len(first) else values)


def activating_counts(latents: scipy.sparse.csc_matrix, sequences: Sequences) -> Int[np.ndarray, "d_sae 2"]:
    """Number of activating sequences of each latent on the explaining and on the scoring side."""
    of = np.repeat(np.arange(len(sequences.scoring)), np.diff(sequences.starts))[latents.indices]
    column = np.repeat(np.arange(latents.shape[1]), np.diff(latents.indptr))
    pairs = column * len(sequences.scoring) + of
    pairs = pairs[np.diff(pairs, prepend=-1) != 0]  # sorted already
    column, side = pairs // len(sequences.scoring), sequences.scoring[pairs % len(sequences.scoring)]
    return np.stack([np.bincount(column[side == which], minlength=latents.shape[1]) for which in (False, True)], axis=1)


def quantiles(found: Peaks, n: int) -> list[Int[np.ndarray, " _"]]:
    """The activating sequences in ``n`` groups of equal size by their peak, highest first."""
    return np.array_split(found.sequence[np.argsort(-found.value, kind="stable")], n)


def example(latents: scipy.sparse.csc_matrix, latent: int, sequences: Sequences, i: int, maximum: float) -> Example:
    """Sequence ``i`` with the latent's levels: 0 where silent, else ⌈LEVELS · activation / maximum⌉."""
    first, last = sequences.starts[i], sequences.starts[i + 1]
    span = slice(*latents.indptr[latent : latent + 2])
    rows = latents.indices[span]
    inside = slice(*np.searchsorted(rows, [first, last]))
    values = np.zeros(last - first, dtype=np.float32)
    values[rows[inside] - first] = latents.data[span][inside]
    return Example(sequences.words(i), np.ceil(LEVELS * values / maximum).clip(0, LEVELS).astype(int), int(i))


def draw(latents: scipy.sparse.csc_matrix, latent: int, sequences: Sequences, plan: Plan, rng: np.random.Generator) -> Drawn | None:
    """Top, quantile and random silent sequences for explaining; quantile and silent ones of the other side for scoring.

    What a latent has too few of is shown as far as there is any. None with fewer than ``plan.least`` activating
    sequences on either side.
    """
    found = peaks(latents, latent, sequences)
    sides = [Peaks(*(part[sequences.scoring[found.sequence] == side] for part in found)) for side in (False, True)]
    if min(len(side.sequence) for side in sides) < plan.least:
        return None
    order = sides[0].sequence[np.argsort(-sides[0].value, kind="stable")]
    rest = Peaks(*(part[~np.isin(sides[0].sequence, order[: plan.top])] for part in sides[0]))
    chosen = [
        np.concatenate([order[: plan.top], _from_each(quantiles(rest, plan.quantiles), plan.per_quantile, rng), _silent(sequences, found, False, plan.inactive, rng)]),
        np.concatenate([_from_each(quantiles(sides[1], plan.quantiles), plan.scoring_per_quantile, rng), _silent(sequences, found, True, plan.scoring_inactive, rng)]),
    ]
    return Drawn(*([example(latents, latent, sequences, i, float(found.value.max())) for i in part.astype(int).tolist()] for part in chosen))


def _from_each(groups: list[np.ndarray], n: int, rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([rng.permutation(group)[:n] for group in groups])


def _silent(sequences: Sequences, found: Peaks, side: bool, n: int, rng: np.random.Generator) -> np.ndarray:
    others = np.setdiff1d(np.flatnonzero(sequences.scoring == side), found.sequence, assume_unique=True)
    return rng.permutation(others)[:n]
