"""The forward pass: the residual stream of batches that fit into memory, stopped at the last wanted layer."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from lib.model.models import check_layers, resid_post, seeing

BATCH_TOKENS = 4096  # padded tokens per forward pass
Batch = tuple[list[int], Bool[Tensor, "batch pos"], dict[int, Float[Tensor, "batch pos d_model"]]]


class _Stop(Exception):
    """Ends a forward pass once the last wanted layer has been read."""


@torch.inference_mode()
def resid_post_at(
    bridge: TransformerBridge,
    ids: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"],
    layers: list[int],
) -> dict[int, Float[Tensor, "batch pos d_model"]]:
    """The residual stream after each block of ``layers``, from one forward pass that stops at the last one."""
    resid: dict[int, Tensor] = {}

    def keep(tensor, hook, layer):
        resid[layer] = tensor
        if layer == layers[-1]:
            raise _Stop

    def hook_of(layer):
        return lambda tensor, hook: keep(tensor, hook, layer)

    layers = check_layers(bridge, layers)
    with bridge.hooks(fwd_hooks=[(resid_post(layer), hook_of(layer)) for layer in layers]):
        try:
            bridge.original_model(input_ids=ids, attention_mask=mask)
        except _Stop:
            pass
    return resid


def batches(lengths: list[int], batch_tokens: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Consecutive positions of ``lengths`` (sorted by the caller) in batches of at most ``batch_tokens``, padded."""
    start = 0
    for stop in range(1, len(lengths) + 1):
        full = stop < len(lengths) and (stop - start + 1) * max(lengths[start : stop + 1]) > batch_tokens
        if full or stop == len(lengths):
            yield list(range(start, stop))
            start = stop


def padded(
    token_ids: list[list[int]], pad: int, device: str | torch.device = "cpu", left: bool = False
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Ids padded on the right (``left``: on the left, for generation) and their attention mask."""
    width = max(map(len, token_ids))
    ids = torch.full((len(token_ids), width), pad)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(token_ids):
        place = slice(width - len(tokens), width) if left else slice(len(tokens))
        ids[row, place] = torch.tensor(tokens)
        mask[row, place] = 1
    return ids.to(device), mask.to(device)


def run(bridge: TransformerBridge, token_ids: list[list[int]], layers: list[int]) -> Iterator[Batch]:
    """Yield (rows, tokens that count, residual stream by layer) for batches of ``token_ids`` of like length.

    A batch for which memory does not suffice is halved, and so are all that come after it.

    Raises:
        ValueError: memory does not suffice for one text.
    """
    waiting = sorted(range(len(token_ids)), key=lambda i: (len(token_ids[i]), i))
    device = next(bridge.original_model.parameters()).device
    budget = BATCH_TOKENS
    while waiting:
        rows = [waiting[i] for i in next(batches([len(token_ids[i]) for i in waiting], budget))]
        ids, mask = padded([token_ids[i] for i in rows], bridge.tokenizer.pad_token_id, device)
        try:
            resid = resid_post_at(bridge, ids, mask, layers)
        except torch.OutOfMemoryError as error:
            if len(rows) == 1:
                raise ValueError(
                    f"the memory of {device} does not suffice for one text of {ids.shape[1]} tokens; "
                    "take dtype bfloat16, or cut it"
                ) from error
            budget = max(ids.shape[1], ids.numel() // 2)
            torch.cuda.empty_cache()
            continue
        waiting = waiting[len(rows) :]
        yield rows, mask.bool() & seeing(bridge, ids), resid
