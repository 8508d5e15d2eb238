"""Text sequences with the activations of one latent: what a judge explains and is tested on, and what it says.

Passages are divided into two sides once, for all latents: explanations are learned on one and scored on the other.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from lib.model import activations, models
from lib.model.shards import read_all
from lib.sae.folders import check_fits
from lib.sae.latents import BATCH_TOKENS, active_entries

MAX_LEVEL = 10  # activations are shown as levels from 0 (silent) to this (the latent's maximum)
SHORTEST = 8  # tokens of a sequence, at least


class Sequences(NamedTuple):
    """Short runs of tokens: sequence i is ``tokens[starts[i]:starts[i + 1]]``, and as many rows of ``activations``."""

    tokens: list[str]
    starts: Int[np.ndarray, " sequences_plus_1"]
    scoring: np.ndarray  # of each sequence: is it on the scoring side?
    activations: Float[np.ndarray, "tokens d_model"]

    def words(self, i: int) -> list[str]:
        """The tokens of sequence ``i``."""
        return self.tokens[self.starts[i] : self.starts[i + 1]]


class Encoded(NamedTuple):
    """Sequences with the latents of one SAE at their tokens, a sparse (tokens, d_sae) matrix by columns."""

    sequences: Sequences
    latents: scipy.sparse.csc_matrix

    def column(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens at which a latent is active, ascending, and its activations there."""
        span = slice(*self.latents.indptr[latent : latent + 2])
        return self.latents.indices[span], self.latents.data[span]


class Example(NamedTuple):
    """A sequence with the level (0 to ``MAX_LEVEL``) of one latent at each token."""

    tokens: list[str]
    levels: Int[np.ndarray, " tokens"]
    index: int  # among the sequences

    @property
    def peak(self) -> int:
        """The level of the highest-activating token, which judges estimate."""
        return int(self.levels.max())


class Explanation(NamedTuple):
    """What a judge says of a latent; ``rule`` is what it applies in place of the text, where it has such a thing."""

    text: str
    rule: Any = None


class Plan(NamedTuple):
    """How many sequences show a latent. Quantiles are of the peaks of its activating sequences, highest first."""

    top: int = 8
    quantiles: int = 4
    per_quantile: int = 3
    inactive: int = 8
    scoring_per_quantile: int = 4
    scoring_inactive: int = 10
    least: int = 5  # activating sequences on either side, below which a latent is not scored
    shuffled: int = 1  # explanations of other latents that a latent is scored with


class Drawn(NamedTuple):
    """The examples of one latent; no passage is in both lists."""

    explaining: list[Example]
    scoring: list[Example]


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Each token as it reads, with a space before it where a word begins, so that joined tokens give the text."""
    pieces = tokenizer.convert_ids_to_tokens(ids)
    # A vocabulary of bytes has tokens such as ## too, of headings; only WordPiece marks what goes on with a word so.
    is_wordpiece = type(tokenizer.backend_tokenizer.model).__name__ == "WordPiece"
    return [_token_text(tokenizer, piece, is_wordpiece) for piece in pieces]


def _token_text(tokenizer: PreTrainedTokenizerBase, piece: str, wordpiece: bool) -> str:
    if wordpiece:
        return piece.removeprefix("##") if piece.startswith("##") else f" {piece}"
    return piece.replace("▁", " ") if "▁" in piece else tokenizer.convert_tokens_to_string([piece])


def harvest(
    bridge: TransformerBridge,
    model: dict[str, str],
    texts: list[str],
    layer: int,
    parent: Path,
    *,
    max_tokens: int,
    seed: int,
    width: int = 32,
    context: int = 128,
) -> Sequences:
    """Activations of texts, read by the model in windows of ``context`` tokens and cut into sequences of ``width``.

    Texts are taken in random order, up to ``max_tokens`` (0: all); half of them are for scoring. Special tokens are
    left out.

    Raises:
        ValueError: fewer than two texts fit into ``max_tokens``.
    """
    order = np.random.default_rng(seed).permutation(len(texts))
    windows, text_of_window, total = [], [], 0
    for text in order:
        parts = models.split_tokens(bridge, [texts[text]], context)
        total += sum(map(len, parts))
        if max_tokens and total > max_tokens:
            break
        windows += parts
        text_of_window += [text] * len(parts)
    if len(set(text_of_window)) < 2:
        raise ValueError(
            f"{len(texts)} texts within max_tokens {max_tokens} are too few: "
            "explaining and scoring need one each, at least"
        )
    content = activations.texts_hash([str(ids) for ids in windows])
    store = activations.harvest_tokens(bridge, model, content, windows, layer, parent, special=False)
    return _cut(bridge, store, np.array(text_of_window), width, seed)


def _cut(bridge: TransformerBridge, store: Path, text_of_window: np.ndarray, width: int, seed: int) -> Sequences:
    """The stored tokens as sequences of ``width``, without those that are too short; texts go to sides at random."""
    shards = read_all(store)
    window, ids, x = (torch.cat([shard[name] for shard in shards]) for name in ("sequence", "token_id", "activations"))
    window = window.numpy()
    counts = np.bincount(window, minlength=len(text_of_window))
    place = np.arange(len(window)) - np.repeat(np.cumsum(counts) - counts, counts)  # of a token in its window
    key = window * (counts.max() // width + 1) + place // width
    _, sequence, lengths = np.unique(key, return_inverse=True, return_counts=True)
    kept = lengths[sequence] >= SHORTEST
    first = np.unique(sequence[kept], return_index=True)[1]
    texts = np.unique(text_of_window)
    on_scoring_side = np.random.default_rng([seed, 1]).permutation(len(texts)) % 2 == 1
    text_of_sequence = text_of_window[window[kept][first]]
    scoring = on_scoring_side[np.searchsorted(texts, text_of_sequence)]
    if x.dtype == torch.bfloat16:  # numpy has no such type
        x = x.float()
    tokens = token_texts(bridge.tokenizer, ids[kept].tolist())
    return Sequences(tokens, np.append(first, kept.sum()), scoring, x.numpy()[kept])


def encode(sae: SAE, sequences: Sequences) -> Encoded:
    """The sequences with all latents of an SAE at all tokens."""
    check_fits(sae, sequences.activations.shape[1])
    parts = []
    with torch.inference_mode():
        for first in range(0, len(sequences.tokens), BATCH_TOKENS):
            chunk = torch.from_numpy(sequences.activations[first : first + BATCH_TOKENS].astype(np.float32))
            flat, values = active_entries(sae, chunk)
            token, latent = np.divmod(flat, sae.cfg.d_sae)
            parts.append(scipy.sparse.csr_matrix((values, (token, latent)), shape=(len(chunk), sae.cfg.d_sae)))
    return Encoded(sequences, scipy.sparse.vstack(parts, format="csr").tocsc())


class Activating(NamedTuple):
    """Sequences in which one latent is active (ascending), and its largest activation in each."""

    sequence: Int[np.ndarray, " active"]
    peak: Float[np.ndarray, " active"]

    def where(self, chosen: Bool[np.ndarray, " active"]) -> "Activating":
        """Those of the sequences that are chosen."""
        return Activating(self.sequence[chosen], self.peak[chosen])

    def ordered(self) -> Int[np.ndarray, " active"]:
        """The sequences by their peak, highest first."""
        return self.sequence[np.argsort(-self.peak, kind="stable")]


def activating(encoded: Encoded, latent: int) -> Activating:
    """The activating sequences of a latent."""
    tokens, values = encoded.column(latent)
    sequence_of_token = np.searchsorted(encoded.sequences.starts, tokens, side="right") - 1
    active, first = np.unique(sequence_of_token, return_index=True)
    return Activating(active, np.maximum.reduceat(values, first) if len(first) else values)


def activating_counts(encoded: Encoded) -> Int[np.ndarray, "d_sae 2"]:
    """Number of activating sequences of each latent on the explaining and on the scoring side."""
    sequences, latents = encoded
    n_sequences, d_sae = len(sequences.scoring), latents.shape[1]
    sequence = np.repeat(np.arange(n_sequences), np.diff(sequences.starts))[latents.indices]
    latent = np.repeat(np.arange(d_sae), np.diff(latents.indptr))
    pairs = latent * n_sequences + sequence
    pairs = pairs[np.diff(pairs, prepend=-1) != 0]  # the entries of a column are sorted, so that equal pairs touch
    latent, scoring = pairs // n_sequences, sequences.scoring[pairs % n_sequences]
    return np.stack([np.bincount(latent[scoring == side], minlength=d_sae) for side in (False, True)], axis=1)


def quantiles(active: Activating, n: int) -> list[Int[np.ndarray, " _"]]:
    """The activating sequences in ``n`` groups of equal size by their peak, highest first."""
    return np.array_split(active.ordered(), n)


def shown(encoded: Encoded, latent: int, chosen: list[int], maximum: float) -> list[Example]:
    """The chosen sequences with the latent's levels: 0 where silent, else ⌈MAX_LEVEL · activation / maximum⌉."""
    sequences, (tokens, activation) = encoded.sequences, encoded.column(latent)
    levels = np.zeros(len(sequences.tokens), dtype=int)
    levels[tokens] = np.ceil(MAX_LEVEL * activation / maximum).clip(0, MAX_LEVEL).astype(int)
    starts = sequences.starts
    return [Example(sequences.words(i), levels[starts[i] : starts[i + 1]], i) for i in chosen]


def draw(encoded: Encoded, latent: int, plan: Plan, rng: np.random.Generator) -> Drawn | None:
    """Top, quantile and random silent sequences for explaining; quantile and silent ones of the other side for scoring.

    What a latent has too few of is shown as far as there is any. None with fewer than ``plan.least`` activating
    sequences on either side.
    """
    sequences = encoded.sequences
    active = activating(encoded, latent)
    on_scoring_side = sequences.scoring[active.sequence]
    for_explaining, for_scoring = active.where(~on_scoring_side), active.where(on_scoring_side)
    if min(len(for_explaining.sequence), len(for_scoring.sequence)) < plan.least:
        return None
    top = for_explaining.ordered()[: plan.top]
    rest = for_explaining.where(~np.isin(for_explaining.sequence, top))
    explaining = [
        top,
        _from_each(quantiles(rest, plan.quantiles), plan.per_quantile, rng),
        _silent(sequences, active, False, plan.inactive, rng),
    ]
    scoring = [
        _from_each(quantiles(for_scoring, plan.quantiles), plan.scoring_per_quantile, rng),
        _silent(sequences, active, True, plan.scoring_inactive, rng),
    ]
    maximum = float(active.peak.max())
    sides = []
    for parts in (explaining, scoring):
        chosen = np.concatenate(parts).astype(int).tolist()
        sides.append(shown(encoded, latent, chosen, maximum))
    return Drawn(*sides)


def _from_each(groups: list[np.ndarray], n: int, rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([rng.permutation(group)[:n] for group in groups])


def _silent(sequences: Sequences, active: Activating, side: bool, n: int, rng: np.random.Generator) -> np.ndarray:
    """``n`` random sequences of a side in which the latent is never active."""
    others = np.setdiff1d(np.flatnonzero(sequences.scoring == side), active.sequence, assume_unique=True)
    return rng.permutation(others)[:n]
