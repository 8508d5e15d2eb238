"""Residual-stream activations: pooled per prompt for probing, per token for SAE training and token probes.

Padded positions never count. Results are stores (see ``lib.stores``): resumable, checksummed.
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

from lib.forward import run
from lib.models import check_layers, fixed_position, resid_post, seeing, special_ids, tokenise
from lib.stores import Shard, build, read_all, read_manifest, store_path

POOLINGS = ("max", "mean", "fixed")
STORED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pool(
    resid: Float[Tensor, "batch pos d_model"], mask: Bool[Tensor, "batch pos"], pooling: str, fixed: int = -1
) -> Float[Tensor, "batch d_model"]:
    """Aggregate over a prompt's own tokens: per-coordinate max, mean, or the fixed position.

    The fixed position is counted from the end of the prompt, on whichever side it is padded: its last token (MiniLM: the
    closing [SEP]), or ``models.fixed_position`` of a chat model.

    Raises:
        ValueError: unknown pooling.
    """
    if pooling == "max":
        return resid.masked_fill(~mask[..., None], -torch.inf).amax(1)
    if pooling == "mean":
        weights = mask.to(resid.dtype)[..., None]
        return (resid * weights).sum(1) / weights.sum(1)
    if pooling == "fixed":
        last = torch.arange(mask.shape[1], device=mask.device).masked_fill(~mask, -1).amax(1)
        position = (last + 1 + fixed).clamp(min=0)
        return resid[torch.arange(len(resid), device=resid.device), position]
    raise ValueError(f"unknown pooling {pooling!r}; allowed are {POOLINGS}")


def texts_hash(texts: list[str]) -> str:
    """SHA-256 of a list of texts, their order included."""
    return hashlib.sha256("\x00".join(texts).encode()).hexdigest()


def harvest_pooled(
    bridge: TransformerBridge,
    model: dict[str, str],
    texts: list[str],
    layers: list[int],
    parent: Path,
    poolings: tuple[str, ...] = POOLINGS,
    shard_prompts: int = 1024,
) -> Path:
    """Store the pooled residual stream of every text after every layer; returns the store's folder.

    ``model`` is ``lib.models.identity``. A shard holds ``index``, ``length`` (tokens), per layer and
    pooling ``resid_post.<layer>.<pooling>`` (prompts, d_model) in float32, and per layer ``norm.<layer>``, the mean
    L2 norm of a prompt's tokens.

    Raises:
        ValueError: a layer out of range, an unknown pooling, or a damaged store.
    """
    layers = check_layers(bridge, layers)
    token_ids = tokenise(bridge, texts)
    order = sorted(range(len(texts)), key=lambda i: (len(token_ids[i]), i))
    chunks = [order[start : start + shard_prompts] for start in range(0, len(order), shard_prompts)]
    parameters = model | {"kind": "pooled", "layers": layers, "poolings": list(poolings), "dtype": "float32",
                          "texts": texts_hash(texts), "shard_prompts": shard_prompts}  # fmt: skip

    def make(i: int) -> Shard:
        chunk = chunks[i]
        names = {(layer, pooling): f"resid_post.{layer}.{pooling}" for layer in layers for pooling in poolings}
        out = {name: torch.empty(len(chunk), bridge.cfg.d_model) for name in names.values()}
        norms, fixed = {layer: torch.empty(len(chunk)) for layer in layers}, fixed_position(bridge)
        for rows, mask, resid in run(bridge, [token_ids[j] for j in chunk], layers):
            resid = {layer: x.float() for layer, x in resid.items()}  # sums in bfloat16 keep three digits
            for (layer, pooling), name in names.items():
                out[name][rows] = pool(resid[layer], mask, pooling, fixed).cpu()
            for layer in layers:
                norms[layer][rows] = pool(resid[layer].norm(dim=-1, keepdim=True), mask, "mean")[:, 0].cpu()
        lengths = torch.tensor([len(token_ids[j]) for j in chunk])
        return out | {f"norm.{layer}": norm for layer, norm in norms.items()} | {"index": torch.tensor(chunk), "length": lengths}

    return build(store_path(parent, "pooled", parameters), parameters, len(chunks), make, unit="shard")


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
    special: bool,
    shuffle_seed: int | None = None,
    shard_tokens: int = 65_536,
    dtype: str | None = None,
) -> TokenShards:
    """The residual stream of every token after one layer, in shards.

    A shard holds ``activations`` (tokens, d_model), ``sequence`` (index into ``token_ids``), ``position`` and
    ``token_id``. For SAE training ``special=False`` leaves special tokens out, and ``shuffle_seed`` shuffles the
    sequences over the shards and the tokens within a shard; for probing, rows stay in order. A causal model's BOS is never
    stored (see ``models.seeing``). ``dtype`` is bfloat16 for a model in bfloat16, whose range float16 lacks, else float16.

    Raises:
        ValueError: layer out of range, nothing to store, or unknown dtype.
    """
    check_layers(bridge, [layer])
    if dtype is None:
        dtype = "bfloat16" if bridge.original_model.dtype == torch.bfloat16 else "float16"
    if not token_ids or dtype not in STORED:
        raise ValueError(f"nothing to harvest: {len(token_ids)} texts, dtype {dtype!r} (allowed {sorted(STORED)})")
    order = np.arange(len(token_ids))
    if shuffle_seed is not None:
        order = np.random.default_rng(shuffle_seed).permutation(order)
    chunks = _by_tokens(order, token_ids, shard_tokens)
    left_out = torch.tensor([], dtype=torch.long) if special else special_ids(bridge)
    parameters = model | {"kind": "tokens", "layer": layer, "hook_name": resid_post(layer), "dtype": dtype,
                          "texts": texts_sha256, "n_sequences": len(token_ids), "special": special,
                          "shuffle_seed": shuffle_seed, "shard_tokens": shard_tokens}  # fmt: skip

    def kept(ids: Tensor) -> Tensor:
        return ~torch.isin(ids, left_out) & seeing(bridge, ids)

    def make(i: int) -> Shard:
        parts = []
        for rows, mask, resid in run(bridge, [token_ids[j] for j in chunks[i]], [layer]):
            sequence, position = torch.nonzero(mask.cpu(), as_tuple=True)
            values = resid[layer][mask].to(STORED[dtype]).cpu()
            parts.append((torch.as_tensor(chunks[i])[rows][sequence], position, values))
        sequence, position, values = (torch.cat(column) for column in zip(*parts, strict=True))
        token_id = torch.tensor([token_ids[s][p] for s, p in zip(sequence.tolist(), position.tolist(), strict=True)])
        wanted = kept(token_id)
        shard = {"activations": values, "sequence": sequence, "position": position, "token_id": token_id}
        rows = _row_order(sequence[wanted], position[wanted], shuffle_seed, i)
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
    special: bool,
    **options: Any,
) -> Path:
    """Store :func:`token_shards`, with the same ``options``; returns the store's folder.

    Raises:
        ValueError: see :func:`token_shards`, or a damaged store.
    """
    shards = token_shards(bridge, model, texts_sha256, token_ids, layer, special, **options)
    return build(store_path(parent, "tokens", shards.parameters), shards.parameters, len(shards.counts), shards.make, unit="shard")


def _row_order(sequence: Tensor, position: Tensor, shuffle_seed: int | None, shard: int) -> Tensor:
    if shuffle_seed is None:
        return torch.from_numpy(np.lexsort((position.numpy(), sequence.numpy())))
    return torch.from_numpy(np.random.default_rng([shuffle_seed, shard]).permutation(len(sequence)))


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
    found = {pooling: x for (of, pooling), x in pooled.items() if of == layer}
    if not found:
        raise ValueError(f"layer {layer} was not harvested, only {sorted({of for of, _ in pooled})}; add it to layers, or use SAEs of another layer")
    return found


def describe(folder: Path) -> pd.DataFrame:
    """A row per shard of a pooled store: mean length (tokens), tokens per second, mean token norm by layer."""
    manifest, rows = read_manifest(folder), []
    for shard, seconds in zip(read_all(folder), manifest["seconds"].values(), strict=True):
        length = shard["length"].float()
        norms = {f"norm.{layer}": shard[f"norm.{layer}"].numpy() for layer in manifest["parameters"]["layers"]}
        rows.append({"length": length.mean().item(), "tokens": int(length.sum()), "seconds": seconds} | norms)
    return pd.DataFrame(rows).assign(tokens_per_s=lambda t: t["tokens"] / t["seconds"])


class PromptTokens(NamedTuple):
    """Token activations of prompts: ``activations[starts[i]:starts[i + 1]]`` belongs to prompt ``i``."""

    activations: Float[Tensor, "tokens d_model"]
    starts: Int[Tensor, " prompts_plus_1"]
    fixed: int = -1  # the fixed position, counted from a prompt's end


def load_prompt_tokens(folder: Path, fixed: int = -1) -> PromptTokens:
    """All tokens of an unshuffled token store, grouped by prompt."""
    shards = read_all(folder)
    sequence = torch.cat([shard["sequence"] for shard in shards])
    if (sequence.diff() < 0).any():
        raise ValueError(f"{folder} is shuffled (a training store); prompts need a store without shuffle_seed")
    counts = torch.bincount(sequence)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    return PromptTokens(torch.cat([shard["activations"] for shard in shards]), starts, fixed)


def prompt_tokens(
    bridge: TransformerBridge, model: dict[str, str], texts: list[str], layer: int, parent: Path
) -> PromptTokens:
    """Harvest (or find) the activations of every token of the prompts at one layer, special tokens included."""
    token_ids = tokenise(bridge, texts)
    store = harvest_tokens(bridge, model, texts_hash(texts), token_ids, layer, parent, special=True)
    return load_prompt_tokens(store, fixed_position(bridge))
