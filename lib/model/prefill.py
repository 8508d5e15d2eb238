"""What generation begins with: keys and values of prompts that begin alike, computed once for each shared prefix."""

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from lib.model import forward, prefixes
from lib.model.prefixes import Pack, PackReader


def cache(bridge: TransformerBridge, token_ids: list[list[int]]) -> DynamicCache | None:
    """Keys and values of all tokens but the last of each prompt, padded on the left, for transformers' ``generate``.

    None where prompts share too little, or the model is not read in packs (:func:`lib.model.forward.pack_reader`).
    """
    read = [ids[:-1] for ids in token_ids]
    if not all(read) or forward.computed_tokens(read) == sum(map(len, read)):
        return None
    reader = forward.pack_reader(bridge)
    return _filled(reader, bridge, read) if reader else None


def _filled(reader: PackReader, bridge: TransformerBridge, token_ids: list[list[int]]) -> DynamicCache:
    width, waiting = max(map(len, token_ids)), prefixes.lexicographic(token_ids)
    padded: list[list[Tensor]] = []  # keys and values of each layer
    while waiting:
        rows = prefixes.next_pack(token_ids, waiting, forward.PACK_TOKENS)
        waiting = waiting[len(rows) :]
        pack = Pack(token_ids, rows, bridge.original_model.device)
        of_layers = reader.keys_and_values(pack)
        padded = padded or [[_zeros(part, len(token_ids), width) for part in pair] for pair in of_layers]
        for row, path in zip(rows, pack.paths, strict=True):
            places = path.to(pack.ids.device)
            for whole, new in zip(padded, of_layers, strict=True):
                for target, source in zip(whole, new, strict=True):
                    target[row.prompt, :, width - len(path) :] = source[:, places]
    filled = DynamicCache(config=bridge.original_model.config)
    for layer, (key, value) in enumerate(padded):
        filled.update(key, value, layer)
    return filled


def _zeros(part: Tensor, n_prompts: int, width: int) -> Tensor:
    heads, _, size = part.shape
    return torch.zeros(n_prompts, heads, width, size, dtype=part.dtype, device=part.device)
