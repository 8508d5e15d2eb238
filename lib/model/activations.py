"""Residual-stream activations: pooled per prompt for probing, per token for SAE training and token probes.

Padded positions never count. Results are stores (see ``lib.model.shards``): resumable, checksummed.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from lib.base.registry import lookup
from lib.model import forward
from lib.model.chat import has_template, reading
from lib.model.collectors import STORED, PooledShard, Prompts, TokenShard
from lib.model.models import check_layers, fixed_position, resid_post, seeing, special_ids, tokenise_with_spans
from lib.model.poolings import ALL_POOLINGS, named
from lib.model.shards import Shard, build, build_together, read_all, read_manifest, store_path

SHARD_TOKENS = 65_536


def texts_hash(texts: list[str]) -> str:
    """SHA-256 of a list of texts, their order included."""
    return hashlib.sha256("\x00".join(texts).encode()).hexdigest()


class _Store(NamedTuple):
    """A store to be harvested: what decides it, and what collects its shard of a chunk of sequences."""

    parameters: dict[str, Any]
    collector: Callable[[list[int]], PooledShard | TokenShard]


def _collected(
    bridge: TransformerBridge,
    token_ids: list[list[int]],
    chunk: list[int],
    collectors: list[PooledShard | TokenShard],
) -> list[Shard]:
    """The shard of each of ``collectors``, from one forward pass over the sequences ``chunk``."""
    layers = sorted({layer for collector in collectors for layer in collector.layers})
    for batch in forward.run(bridge, [token_ids[i] for i in chunk], layers):
        for collector in collectors:
            collector.add(*batch)
    return [collector.shard() for collector in collectors]


def _harvest_prompts(
    bridge: TransformerBridge,
    model: dict[str, str],
    texts: list[str],
    parent: Path,
    *,
    layers: list[int],
    poolings: tuple[str, ...],
    token_layer: int | None,
    shard_tokens: int,
    over: str,
    to_end: bool = True,
) -> list[Path]:
    """The stores of activations under the given ``poolings`` (unless ``layers`` is empty) and of the tokens at
    ``token_layer`` (unless None), from one forward pass where both are wanting.

    Prompts of like length share a shard. Without ``to_end`` they are read up to the end of what is pooled.
    """
    if not texts:
        raise ValueError("nothing to harvest: there are no texts")
    prompts, dtype = Prompts(*tokenise_with_spans(bridge, texts, over)), _stored_dtype(bridge)
    if not to_end:
        ends = prompts.spans[:, 1].tolist()
        prompts = prompts._replace(token_ids=[ids[:end] for ids, end in zip(prompts.token_ids, ends, strict=True)])
    token_ids = prompts.token_ids
    chunks = _by_tokens(_by_length(token_ids), token_ids, shard_tokens)
    common = model | {"texts": texts_hash(texts), "shard_tokens": shard_tokens}
    common |= reading(bridge.tokenizer, texts)
    if has_template(bridge.tokenizer):
        common |= {"over": over} | ({} if to_end else {"to_end": False})
    stores: dict[Path, _Store] = {}
    if layers:
        parameters = common | {"kind": "pooled", "layers": layers, "poolings": list(poolings), "dtype": "float32"}
        stores[store_path(parent, "pooled", parameters)] = _Store(
            parameters, lambda chunk: PooledShard(bridge, prompts, chunk, layers, poolings)
        )
    if token_layer is not None:
        check_layers(bridge, [token_layer])
        parameters = common | {"kind": "prompt tokens", "layer": token_layer}
        parameters |= {"hook_name": resid_post(token_layer), "dtype": dtype}
        stores[store_path(parent, "tokens", parameters)] = _Store(
            parameters, lambda chunk: TokenShard(token_ids, chunk, token_layer, dtype, prompts.spans)
        )

    def make(i: int, folders: list[Path]) -> list[Shard]:
        collectors = [stores[folder].collector(chunks[i]) for folder in folders]
        return _collected(bridge, token_ids, chunks[i], collectors)

    build_together({folder: store.parameters for folder, store in stores.items()}, len(chunks), make, unit="shard")
    return list(stores)


def harvest_pooled(
    bridge: TransformerBridge,
    model: dict[str, str],
    texts: list[str],
    layers: list[int],
    parent: Path,
    *,
    poolings: tuple[str, ...] = ALL_POOLINGS,
    shard_tokens: int = SHARD_TOKENS,
    token_layer: int | None = None,
    over: str = "turn",
) -> Path:
    """Store the residual stream of every text after every layer under the given ``poolings``; returns the folder.

    ``model`` is ``lib.model.models.identity``. A shard holds ``index``, ``length`` (tokens), per layer and
    pooling ``resid_post.<layer>.<pooling>`` (prompts, d_model) in float32, and per layer ``norm.<layer>``, the mean
    L2 norm of a prompt's tokens. Max and mean cover the user's turn, or the whole sequence (``over``; see
    ``lib.model.models.tokenise_with_spans``). The same pass stores what :func:`prompt_tokens` reads at ``token_layer``.

    Raises:
        ValueError: a layer out of range, an unknown pooling, or a damaged store.
    """
    named(poolings)
    options = {"poolings": poolings, "token_layer": token_layer, "shard_tokens": shard_tokens, "over": over}
    return _harvest_prompts(bridge, model, texts, parent, layers=check_layers(bridge, layers), **options)[0]


def computed_tokens(token_ids: list[list[int]], shard_tokens: int = SHARD_TOKENS) -> int:
    """Tokens that a harvest of prompts really computes with a causal model: prefixes are shared within a shard."""
    chunks = _by_tokens(_by_length(token_ids), token_ids, shard_tokens)
    return sum(forward.computed_tokens([token_ids[i] for i in chunk]) for chunk in chunks)


class TokenShards(NamedTuple):
    """The shards of a token store, before they are made: what decides them, tokens in each, and how to make one."""

    parameters: dict[str, Any]
    counts: list[int]
    make: Callable[[int], Shard]


def token_shards(
    bridge: TransformerBridge,
    model: dict[str, str],
    texts_sha256: str,
    token_ids: list[list[int]],
    layer: int,
    *,
    special: bool,
    shuffle_seed: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    dtype: str | None = None,
) -> TokenShards:
    """The residual stream of every token after one layer, in shards.

    A shard holds ``activations`` (tokens, d_model), ``sequence`` (index into ``token_ids``), ``position`` and
    ``token_id``. For SAE training ``special=False`` leaves special tokens out, and ``shuffle_seed`` shuffles the
    sequences over the shards and the tokens within a shard; for probing, rows stay in order. A causal model's BOS
    is never stored (see ``models.seeing``). ``dtype`` is bfloat16 for a model in bfloat16, whose range float16
    lacks, else float16.

    Raises:
        ValueError: layer out of range, nothing to store, or unknown dtype.
    """
    check_layers(bridge, [layer])
    dtype = dtype or _stored_dtype(bridge)
    lookup(STORED, "dtype", dtype)
    if not token_ids:
        raise ValueError("nothing to harvest: there are no texts")
    order = np.arange(len(token_ids))
    if shuffle_seed is not None:
        order = np.random.default_rng(shuffle_seed).permutation(order)
    chunks = _by_tokens(order, token_ids, shard_tokens)
    left_out = torch.tensor([], dtype=torch.long) if special else special_ids(bridge)
    parameters = model | {
        "kind": "tokens",
        "layer": layer,
        "hook_name": resid_post(layer),
        "dtype": dtype,
        "texts": texts_sha256,
        "n_sequences": len(token_ids),
        "special": special,
        "shuffle_seed": shuffle_seed,
        "shard_tokens": shard_tokens,
    }

    def kept(ids: Tensor) -> Tensor:
        return ~torch.isin(ids, left_out) & seeing(bridge, ids)

    def make(i: int) -> Shard:
        (shard,) = _collected(bridge, token_ids, chunks[i], [TokenShard(token_ids, chunks[i], layer, dtype)])
        wanted = kept(shard["token_id"])
        rows = _row_order(shard["sequence"][wanted], shard["position"][wanted], shuffle_seed, i)
        return {name: tensor[wanted][rows] for name, tensor in shard.items()}

    counts = [int(kept(torch.tensor([token for j in chunk for token in token_ids[j]])).sum()) for chunk in chunks]
    return TokenShards(parameters, counts, make)


def harvest_tokens(
    bridge: TransformerBridge,
    model: dict[str, str],
    texts_sha256: str,
    token_ids: list[list[int]],
    layer: int,
    parent: Path,
    **options: Any,
) -> Path:
    """Store :func:`token_shards`, with the same ``options``; returns the store's folder.

    Raises:
        ValueError: see :func:`token_shards`, or a damaged store.
    """
    shards = token_shards(bridge, model, texts_sha256, token_ids, layer, **options)
    folder = store_path(parent, "tokens", shards.parameters)
    return build(folder, shards.parameters, len(shards.counts), shards.make, unit="shard")


def _stored_dtype(bridge: TransformerBridge) -> str:
    return "bfloat16" if bridge.original_model.dtype == torch.bfloat16 else "float16"


def _row_order(sequence: Tensor, position: Tensor, shuffle_seed: int | None, shard: int) -> Tensor:
    if shuffle_seed is None:
        return torch.from_numpy(np.lexsort((position.numpy(), sequence.numpy())))
    return torch.from_numpy(np.random.default_rng([shuffle_seed, shard]).permutation(len(sequence)))


def _by_length(token_ids: list[list[int]]) -> np.ndarray:
    return np.array(sorted(range(len(token_ids)), key=lambda i: (len(token_ids[i]), i)))


def _by_tokens(order: np.ndarray, token_ids: list[list[int]], shard_tokens: int) -> list[list[int]]:
    ends = np.cumsum([len(token_ids[i]) for i in order])
    shard_of = (ends - 1) // shard_tokens
    return [order[shard_of == shard].tolist() for shard in np.unique(shard_of)]


def load_pooled(folder: Path) -> dict[tuple[int, str], Float[np.ndarray, "prompts d_model"]]:
    """A pooled store as (layer, pooling) -> activations in the order of the harvested texts.

    Raises:
        ValueError: the store is unfinished or damaged.
    """
    parameters = read_manifest(folder)["parameters"]
    shards = read_all(folder)
    rows = torch.argsort(torch.cat([shard["index"] for shard in shards]))
    return {
        (layer, pooling): torch.cat([shard[f"resid_post.{layer}.{pooling}"] for shard in shards])[rows].numpy()
        for layer in parameters["layers"]
        for pooling in parameters["poolings"]
    }


def at_layer(
    pooled: dict[tuple[int, str], Float[np.ndarray, "prompts d_model"]], layer: int
) -> dict[str, Float[np.ndarray, "prompts d_model"]]:
    """One layer of a loaded pooled store, by pooling.

    Raises:
        ValueError: that layer was not harvested.
    """
    by_pooling = {pooling: x for (harvested, pooling), x in pooled.items() if harvested == layer}
    if not by_pooling:
        harvested = sorted({harvested for harvested, _ in pooled})
        raise ValueError(
            f"layer {layer} was not harvested, only {harvested}; add it to layers, or use SAEs of another layer"
        )
    return by_pooling


def describe(folder: Path) -> pd.DataFrame:
    """A row per shard of a pooled store: mean length (tokens), tokens per second, mean token norm by layer."""
    manifest, rows = read_manifest(folder), []
    for shard, seconds in zip(read_all(folder), manifest["seconds"].values(), strict=True):
        length = shard["length"].float()
        norms = {f"norm.{layer}": shard[f"norm.{layer}"].numpy() for layer in manifest["parameters"]["layers"]}
        rows.append({"length": length.mean().item(), "tokens": int(length.sum()), "seconds": seconds} | norms)
    return pd.DataFrame(rows).assign(tokens_per_s=lambda t: t["tokens"] / t["seconds"])


class PromptTokens(NamedTuple):
    """Token activations of prompts: ``activations[starts[i]:starts[i + 1]]`` belongs to prompt ``i``.

    ``fixed`` is the fixed position, counted from a prompt's end; ``in_turn`` says which tokens are pooled (None: all).
    """

    activations: Float[Tensor, "tokens d_model"]
    starts: Int[Tensor, " prompts_plus_1"]
    fixed: int = -1
    in_turn: Bool[Tensor, " tokens"] | None = None


class MappedTokens(NamedTuple):
    """:class:`PromptTokens` as arrays, which joblib maps into memory once for all processes (numpy has no bfloat16)."""

    bits: np.ndarray
    starts: np.ndarray
    dtype: torch.dtype
    fixed: int
    in_turn: np.ndarray | None

    @classmethod
    def of(cls, tokens: PromptTokens) -> "MappedTokens":
        """The tokens, without a copy."""
        of_size = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tokens.activations.element_size()]
        in_turn = None if tokens.in_turn is None else tokens.in_turn.numpy()
        bits = tokens.activations.view(of_size).numpy()
        return cls(bits, tokens.starts.numpy(), tokens.activations.dtype, tokens.fixed, in_turn)

    def tokens(self) -> PromptTokens:
        """They themselves again, without a copy."""
        in_turn = None if self.in_turn is None else torch.from_numpy(self.in_turn)
        activations = torch.from_numpy(self.bits).view(self.dtype)
        return PromptTokens(activations, torch.from_numpy(self.starts), self.fixed, in_turn)


def load_prompt_tokens(folder: Path, fixed: int = -1) -> PromptTokens:
    """All tokens of a token store, grouped by prompt.

    Raises:
        ValueError: a shuffled store, or see ``lib.model.shards.read_all``.
    """
    shards = read_all(folder)
    sequence, position = (torch.cat([shard[name] for shard in shards]) for name in ("sequence", "position"))
    order = torch.argsort(sequence, stable=True)
    if ((sequence[order].diff() == 0) & (position[order].diff() <= 0)).any():
        raise ValueError(f"{folder} is shuffled (a training store); prompts need a store without shuffle_seed")
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    of_first = shards[0]["activations"]
    activations = torch.empty(len(order), of_first.shape[1], dtype=of_first.dtype)
    for part, shard in zip(place.split([len(shard["sequence"]) for shard in shards]), shards, strict=True):
        activations[part] = shard["activations"]
    counts = torch.bincount(sequence)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    in_turn = torch.cat([shard["in_turn"] for shard in shards])[order] if "in_turn" in shards[0] else None
    return PromptTokens(activations, starts, fixed, in_turn)


def prompt_tokens(
    bridge: TransformerBridge,
    model: dict[str, str],
    texts: list[str],
    layer: int,
    parent: Path,
    over: str = "turn",
    *,
    to_end: bool = True,
    shard_tokens: int = SHARD_TOKENS,
) -> PromptTokens:
    """Harvest (or find) the activations of the prompts' tokens at one layer.

    They are those of the user's turn and, unless ``to_end`` is false, what the template puts behind it; or of the whole
    sequence (``over``), but for the BOS of a causal model, which sees nothing. Without what is behind the turn there is
    no fixed position.
    """
    options = {"layers": [], "poolings": (), "token_layer": layer, "shard_tokens": shard_tokens, "over": over}
    (store,) = _harvest_prompts(bridge, model, texts, parent, to_end=to_end, **options)
    return load_prompt_tokens(store, fixed_position(bridge))
