"""The forward pass: the residual stream of batches that fit into memory, stopped at the last wanted layer.

Prompts of a causal model that begin alike are read in packs, which compute each shared prefix once; all others in
padded batches. Both hand out the same: whole prompts, padded.
"""

import weakref
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from lib.model import prefixes
from lib.model.models import check_layers, is_causal, pad_id, resid_post, seeing
from lib.model.prefixes import Pack, PackReader
from lib.model.unwrapped import Unwrapped

BATCH_TOKENS = 4096  # padded tokens per forward pass
PACK_TOKENS = 2048  # new tokens of a pack; on a CPU twice as many took a tenth more time, as caches are left
WORTH_SHARING = 0.85  # largest share of the tokens left to compute for which packs are taken
TOLERANCE = {torch.float32: 1e-3}  # of a token's residual stream in packs, relative to its norm
HALF_TOLERANCE = 0.15  # Numbers in half precision have three digits or two, and every layer rounds.
READERS: weakref.WeakKeyDictionary[TransformerBridge, PackReader | None] = weakref.WeakKeyDictionary()
UNWRAPPED: weakref.WeakKeyDictionary[TransformerBridge, Unwrapped | None] = weakref.WeakKeyDictionary()
Batch = tuple[list[int], Bool[Tensor, "batch pos"], dict[int, Float[Tensor, "batch pos d_model"]]]


class _Stop(Exception):
    """Ends a forward pass once the last wanted layer has been read."""


def resid_post_at(
    bridge: TransformerBridge,
    ids: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"],
    layers: list[int],
) -> dict[int, Float[Tensor, "batch pos d_model"]]:
    """The residual stream after each block of ``layers``, from one forward pass that stops at the last one.

    A causal model is read without the bridge's hooks where that gives the same.
    """
    layers = check_layers(bridge, layers)
    unwrapped = _unwrapped(bridge) if is_causal(bridge) else None
    if unwrapped:
        return unwrapped.resid_post(layers, input_ids=ids, attention_mask=mask)
    return _hooked(bridge, ids, mask, layers)


@torch.inference_mode()
def _hooked(bridge: TransformerBridge, ids: Tensor, mask: Tensor, layers: list[int]) -> dict[int, Tensor]:
    """:func:`resid_post_at` through the bridge's hooks."""
    resid: dict[int, Tensor] = {}

    def keep(tensor, hook, layer):
        resid[layer] = tensor
        if layer == layers[-1]:
            raise _Stop

    def hook_of(layer):
        return lambda tensor, hook: keep(tensor, hook, layer)

    with bridge.hooks(fwd_hooks=[(resid_post(layer), hook_of(layer)) for layer in layers]):
        try:
            bridge.original_model(input_ids=ids, attention_mask=mask)
        except _Stop:
            pass
    return resid


@torch.inference_mode()
def logits_from(
    bridge: TransformerBridge,
    ids: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"],
    layer: int,
    resid: Float[Tensor, "batch pos d_model"],
) -> Float[Tensor, "batch pos d_vocab"]:
    """The logits of a causal model whose residual stream after block ``layer`` is ``resid``.

    Where that gives the same, the blocks up to ``layer`` are not computed.
    """
    unwrapped = _unwrapped(bridge)
    if unwrapped:
        return unwrapped.logits_from(layer, resid, input_ids=ids, attention_mask=mask)
    with bridge.hooks(fwd_hooks=[(resid_post(layer), lambda tensor, hook: resid)]):
        return bridge.original_model(input_ids=ids, attention_mask=mask).logits


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


def pack_reader(bridge: TransformerBridge) -> PackReader | None:
    """What reads packs, or None for a model that is not causal, or whose packs do not give what its plain pass gives.

    It is tried once per model, on a few random tokens.
    """
    if bridge not in READERS:
        READERS[bridge] = _tried(bridge) if is_causal(bridge) else None
    return READERS[bridge]


def _tried(bridge: TransformerBridge) -> PackReader | None:
    token_ids, deepest = _trial(bridge), bridge.cfg.n_layers - 1
    device = next(bridge.original_model.parameters()).device
    rows = prefixes.next_pack(token_ids, prefixes.lexicographic(token_ids), sum(map(len, token_ids)))
    try:
        reader, pack = PackReader(bridge), Pack(token_ids, rows, device)
        resid = reader.resid_post(pack, [deepest])[deepest]
    except Exception:  # Models that do not know the interface raise what they like, and are read without packs.
        return None
    by_prompt = {row.prompt: resid[path.to(device)] for row, path in zip(rows, pack.paths, strict=True)}
    return reader if _is_as_hooked(bridge, token_ids, by_prompt) else None


def plain_model(bridge: TransformerBridge) -> torch.nn.Module:
    """The Hugging Face model without the bridge's hooks, if it gives the same residual stream, else the one with them.

    It is tried once per model, on a few random tokens.
    """
    unwrapped = _unwrapped(bridge)
    return unwrapped.model if unwrapped else bridge.original_model


def _unwrapped(bridge: TransformerBridge) -> Unwrapped | None:
    if bridge not in UNWRAPPED:
        token_ids, deepest = _trial(bridge), bridge.cfg.n_layers - 1
        ids, mask = padded(token_ids, 0, next(bridge.original_model.parameters()).device)
        try:
            unwrapped = Unwrapped(bridge)
            resid = unwrapped.resid_post([deepest], input_ids=ids, attention_mask=mask)[deepest]
        except Exception:  # Such as a block that is called in a way of its own.
            UNWRAPPED[bridge] = None
        else:
            UNWRAPPED[bridge] = unwrapped if _is_as_hooked(bridge, token_ids, dict(enumerate(resid))) else None
    return UNWRAPPED[bridge]


def _trial(bridge: TransformerBridge) -> list[list[int]]:
    """A few random prompts that begin alike."""
    config, generator = bridge.original_model.config.get_text_config(), torch.Generator().manual_seed(0)
    window = getattr(config, "sliding_window", None) or 0
    length = 24 + window * (window <= 256)  # A window that is short enough is looked at, too.
    trunk, other = torch.randint(config.vocab_size, (2, min(length, bridge.cfg.n_ctx)), generator=generator).tolist()
    return [trunk, trunk[:16] + other[16:], trunk[:-1], trunk[:8] + other[8:12]]


def _is_as_hooked(bridge: TransformerBridge, token_ids: list[list[int]], resid: dict[int, Tensor]) -> bool:
    """Whether every token's residual stream after the last block is the bridge's, by its relative error."""
    deepest, tolerance = bridge.cfg.n_layers - 1, TOLERANCE.get(bridge.original_model.dtype, HALF_TOLERANCE)
    ids, mask = padded(token_ids, 0, next(bridge.original_model.parameters()).device)
    expected = _hooked(bridge, ids, mask, [deepest])[deepest].float()
    for row, tokens in enumerate(token_ids):
        plain = expected[row, : len(tokens)]
        error = (resid[row][: len(tokens)].float() - plain).norm(dim=-1) / plain.norm(dim=-1)
        if not (error <= tolerance).all():
            return False
    return True


def computed_tokens(token_ids: list[list[int]]) -> int:
    """Tokens that :func:`run` computes for prompts of a causal model, padding left out."""
    total, shared = sum(map(len, token_ids)), prefixes.computed_tokens(token_ids, PACK_TOKENS)
    return shared if shared <= WORTH_SHARING * total else total


def run(bridge: TransformerBridge, token_ids: list[list[int]], layers: list[int]) -> Iterator[Batch]:
    """Yield (rows, tokens that count, residual stream by layer) for batches of ``token_ids`` of like length.

    A batch for which memory does not suffice is halved, and so are all that come after it. Prompts of which packs leave
    at most ``WORTH_SHARING`` to compute come pack by pack, others by length.

    Raises:
        ValueError: memory does not suffice for one text, or a layer out of range.
    """
    layers = check_layers(bridge, layers)
    is_shared = is_causal(bridge) and computed_tokens(token_ids) < sum(map(len, token_ids))
    reader = pack_reader(bridge) if is_shared else None
    return _in_packs(bridge, reader, token_ids, layers) if reader else _in_batches(bridge, token_ids, layers)


def _in_batches(bridge: TransformerBridge, token_ids: list[list[int]], layers: list[int]) -> Iterator[Batch]:
    waiting = sorted(range(len(token_ids)), key=lambda i: (len(token_ids[i]), i))
    device = next(bridge.original_model.parameters()).device
    budget = BATCH_TOKENS
    while waiting:
        rows = [waiting[i] for i in next(batches([len(token_ids[i]) for i in waiting], budget))]
        ids, mask = padded([token_ids[i] for i in rows], pad_id(bridge), device)
        try:
            resid = resid_post_at(bridge, ids, mask, layers)
        except torch.OutOfMemoryError as error:
            _check_halving(len(rows), ids.shape[1], device, error)
            budget = max(ids.shape[1], ids.numel() // 2)
            continue
        waiting = waiting[len(rows) :]
        yield rows, mask.bool() & seeing(bridge, ids), resid


def _in_packs(
    bridge: TransformerBridge, reader: PackReader, token_ids: list[list[int]], layers: list[int]
) -> Iterator[Batch]:
    waiting, device = prefixes.lexicographic(token_ids), next(bridge.original_model.parameters()).device
    budget = PACK_TOKENS
    while waiting:
        rows = prefixes.next_pack(token_ids, waiting, budget)
        pack = Pack(token_ids, rows, device)
        try:
            resid = reader.resid_post(pack, layers)
        except torch.OutOfMemoryError as error:
            _check_halving(len(rows), pack.ids.shape[1], device, error)
            budget = max(len(token_ids[rows[0].prompt]), pack.ids.shape[1] // 2)
            continue
        waiting = waiting[len(rows) :]
        # Whole prompts are taken out of the pack in batches of the plain size, for which the pass itself made room.
        order = sorted(range(len(rows)), key=lambda i: (len(pack.paths[i]), rows[i].prompt))
        for some in batches([len(pack.paths[i]) for i in order], budget):
            chosen = [order[i] for i in some]
            places, mask = padded([pack.paths[i].tolist() for i in chosen], 0, device)
            counted = mask.bool() & seeing(bridge, pack.ids[0][places])
            yield [rows[i].prompt for i in chosen], counted, {layer: resid[layer][places] for layer in layers}


def _check_halving(n_rows: int, n_tokens: int, device: torch.device, error: torch.OutOfMemoryError) -> None:
    """Raise ``ValueError`` if there is nothing to halve, and else free what the failed batch held."""
    if n_rows == 1:
        raise ValueError(
            f"the memory of {device} does not suffice for one text of {n_tokens} tokens; "
            "take dtype bfloat16, or cut it"
        ) from error
    torch.cuda.empty_cache()
