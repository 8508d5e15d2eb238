"""Texts as the model reads them: each token's characters, and where every unit has its largest value.

Units are SAE latents, or coordinates of the residual stream. Special tokens are left out.
"""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from transformer_lens.model_bridge import TransformerBridge

from lib.interp.examples import Sequences, token_texts
from lib.model.activations import SHARD_TOKENS, prompt_tokens
from lib.model.models import seeing, special_ids, token_offsets, tokenise_with_spans
from lib.sae.latents import active_entries
from lib.texts.artefacts import Spans

READ_TOKENS = 4 * SHARD_TOKENS  # of a shard: texts that begin alike differ in length, and share within a shard
Matrix = scipy.sparse.csr_matrix | np.ndarray


class Reading(NamedTuple):
    """Texts as the model reads them, without special tokens: ``offsets`` are a token's first and last character."""

    texts: list[str]
    starts: Int[np.ndarray, " texts_plus_1"]
    offsets: Int[np.ndarray, "tokens 2"]
    activations: Float[np.ndarray, "tokens d_model"]
    ids: Int[np.ndarray, " tokens"]

    def of(self, chosen: Int[np.ndarray, " chosen"]) -> "Reading":
        """The chosen texts, in this order."""
        tokens = np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in chosen])
        starts = np.r_[0, np.diff(self.starts)[chosen].cumsum()]
        texts = [self.texts[i] for i in chosen]
        return Reading(texts, starts, self.offsets[tokens], self.activations[tokens], self.ids[tokens])


def read(bridge: TransformerBridge, model: dict[str, str], texts: list[str], layer: int, parent: Path) -> Reading:
    """Token activations of texts with the characters that each token stands for; of a chat, of the user's turn.

    Of a text beyond the context the end is read.

    Raises:
        ValueError: a text without any token.
    """
    token_ids, spans = tokenise_with_spans(bridge, texts)
    first, ends = spans.T.tolist()
    token_ids = [ids[:end] for ids, end in zip(token_ids, ends, strict=True)]
    places = [of_text[:end] for of_text, end in zip(token_offsets(bridge, texts), ends, strict=True)]
    flat = np.concatenate(token_ids)
    is_late = np.concatenate([np.arange(len(ids)) >= start for ids, start in zip(token_ids, first, strict=True)])
    stored = is_late & seeing(bridge, torch.from_numpy(flat)).numpy()
    tokens = prompt_tokens(bridge, model, texts, layer, parent, to_end=False, shard_tokens=READ_TOKENS)
    flat, places = flat[stored], np.concatenate(places)[stored]
    kept = ~np.isin(flat, special_ids(bridge).numpy())
    kept &= True if tokens.in_turn is None else tokens.in_turn.numpy()
    counts = np.add.reduceat(kept, tokens.starts[:-1].numpy())
    if (counts == 0).any():
        raise ValueError(f"a text has no token that is not special: {texts[int(np.argmin(counts))][:80]!r}")
    return Reading(texts, np.r_[0, counts.cumsum()], places[kept], tokens.activations.float().numpy()[kept], flat[kept])


def read_all(
    bridge: TransformerBridge, model: dict[str, str], lists: list[list[str]], layer: int, parent: Path
) -> list[Reading]:
    """:func:`read` of several lists of texts in one pass, which reads equal texts once, and equal beginnings too.

    Raises:
        ValueError: a text without any token.
    """
    number = {text: i for i, text in enumerate(dict.fromkeys(itertools.chain(*lists)))}
    whole = read(bridge, model, list(number), layer, parent)
    return [whole.of(np.array([number[text] for text in texts])) for texts in lists]


def sequences(reading: Reading, bridge: TransformerBridge, chosen: Int[np.ndarray, " chosen"]) -> Sequences:
    """The chosen texts as sequences for explanations and cards; every second one is set apart for scoring."""
    part = reading.of(chosen)
    words = token_texts(bridge.tokenizer, part.ids.tolist())
    return Sequences(words, part.starts, np.arange(len(chosen)) % 2 == 1, part.activations)


class Peaks(NamedTuple):
    """Largest value of every unit over each text's tokens, and the token (index into the reading) that has it."""

    value: Matrix
    token: Matrix


@torch.inference_mode()
def latent_peaks(sae: SAE, reading: Reading) -> Peaks:
    """Peaks of SAE latents, sparse; ``token`` is counted from 1, so that 0 stands for a latent that does not fire."""
    flat, values = active_entries(sae, torch.from_numpy(reading.activations))
    token, latent = np.divmod(flat, sae.cfg.d_sae)
    prompt = np.searchsorted(reading.starts, token, side="right") - 1
    order = np.lexsort((-token, values, latent, prompt))  # of equal values the first token
    pair = prompt[order] * sae.cfg.d_sae + latent[order]
    peak = order[np.flatnonzero(np.diff(pair, append=-1) != 0)]  # the last entry of a prompt and latent
    where, shape = (prompt[peak], latent[peak]), (len(reading.texts), sae.cfg.d_sae)
    value = scipy.sparse.csr_matrix((values[peak], where), shape=shape)
    return Peaks(value, scipy.sparse.csr_matrix((token[peak] + 1, where), shape=shape))


def coordinate_peaks(reading: Reading) -> Peaks:
    """Peaks of the residual stream's coordinates and, as many again, of their negatives."""
    signed = np.concatenate([reading.activations, -reading.activations], axis=1)
    parts = [signed[first:last] for first, last in zip(reading.starts[:-1], reading.starts[1:], strict=True)]
    token = np.stack([part.argmax(0) for part in parts]) + reading.starts[:-1, None] + 1
    return Peaks(np.stack([part.max(0) for part in parts]), token)


def inside(reading: Reading, spans: list[Spans]) -> Bool[np.ndarray, " tokens"]:
    """Whether each token overlaps one of its text's spans of characters."""
    text_of_token = np.repeat(np.arange(len(reading.texts)), np.diff(reading.starts))
    overlaps = np.zeros(len(text_of_token), dtype=bool)
    for token, (text, (start, end)) in enumerate(zip(text_of_token, reading.offsets, strict=True)):
        overlaps[token] = any(low < end and start < high for low, high in spans[text])
    return overlaps


def token_means(reading: Reading) -> Float[np.ndarray, "texts d_model"]:
    """Mean activation over each text's tokens."""
    return np.add.reduceat(reading.activations, reading.starts[:-1]) / np.diff(reading.starts)[:, None]
