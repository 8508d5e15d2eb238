"""Shared prefixes: a causal model's token depends only on what stands before it, so equal beginnings are computed once.

Prompts in lexicographic order are a walk through their trie: of each prompt only the tokens behind the prefix that it
shares with the prompt before it are new. A *pack* is a run of such prompts. Its new tokens stand one behind the other
in a single row without padding, on which every linear layer works; only attention looks at prompts, each of which reads
the keys and values of its whole path through the trie. Nothing is kept between packs, and no cache is copied.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lib.model.unwrapped import Unwrapped

ATTENTION = "shared_prefixes"  # name in transformers' registry
GROUP_ROWS = 32  # prompts with a like number of new tokens whose attention is computed together
KNOWN_LAYERS = {"full_attention", "sliding_attention"}


class Row(NamedTuple):
    """A prompt of a pack: its number, and how many of its first tokens it shares with the prompt before it."""

    prompt: int
    shared: int


def lexicographic(token_ids: list[list[int]]) -> list[int]:
    """The prompts in the order in which neighbours share the longest prefixes."""
    return sorted(range(len(token_ids)), key=lambda i: (token_ids[i], i))


def next_pack(token_ids: list[list[int]], waiting: list[int], budget: int) -> list[Row]:
    """The first prompts of ``waiting`` (lexicographic) with at most ``budget`` new tokens together; at least one."""
    rows, new = [Row(waiting[0], 0)], len(token_ids[waiting[0]])
    for before, prompt in itertools.pairwise(waiting):
        shared = _shared_length(token_ids[before], token_ids[prompt])
        new += len(token_ids[prompt]) - shared
        if new > budget:
            break
        rows.append(Row(prompt, shared))
    return rows


def _shared_length(first: list[int], second: list[int]) -> int:
    differing = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differing, min(len(first), len(second)))


def computed_tokens(token_ids: list[list[int]], budget: int) -> int:
    """Tokens that are computed when the prompts are read in packs of at most ``budget`` new tokens."""
    waiting, total = lexicographic(token_ids), 0
    while waiting:
        pack = next_pack(token_ids, waiting, budget)
        total += sum(len(token_ids[row.prompt]) - row.shared for row in pack)
        waiting = waiting[len(pack) :]
    return total


class _Group(NamedTuple):
    """Prompts whose attention is computed together, padded on the right.

    Attributes:
        queries: place in the pack of each prompt's new tokens.
        keys: place in the pack of all of its tokens.
        position: of the queries in their prompt; padding repeats the last one.
    """

    queries: Int[Tensor, "rows new"]
    keys: Int[Tensor, "rows pos"]
    position: Int[Tensor, "rows new"]


class Pack:
    """The tensors of a pack.

    Attributes:
        ids: the new tokens of all its prompts.
        position: of each in its prompt.
        paths: for every row the places in ``ids`` of all tokens of the prompt.
    """

    def __init__(self, token_ids: list[list[int]], rows: list[Row], device: torch.device | str):
        ids: list[int] = []
        position: list[int] = []
        paths: list[Tensor] = []
        for prompt, shared in rows:
            new = torch.arange(len(ids), len(ids) + len(token_ids[prompt]) - shared)
            paths.append(torch.cat([paths[-1][:shared], new]) if shared else new)
            ids += token_ids[prompt][shared:]
            position += range(shared, len(token_ids[prompt]))
        self.ids, self.position = torch.tensor([ids], device=device), torch.tensor([position], device=device)
        self.paths, self._shared, self._device = paths, [row.shared for row in rows], device
        self._groups, self._output = self._grouped(len(ids))
        self._masks: dict[tuple[int | None, int], list[Tensor]] = {}

    def _grouped(self, n_new: int) -> tuple[list[_Group], Int[Tensor, " new"]]:
        """The groups, and for each new token its place in the padded queries of all groups, one behind the other."""
        new = [path[shared:] for path, shared in zip(self.paths, self._shared, strict=True)]
        # A prompt that repeats another, or begins it, has no new tokens.
        order = sorted((i for i in range(len(new)) if len(new[i])), key=lambda i: (len(new[i]), len(self.paths[i])))
        groups, output, n_padded = [], torch.empty(n_new, dtype=torch.long), 0
        for start in range(0, len(order), GROUP_ROWS):
            rows = order[start : start + GROUP_ROWS]
            queries, keys = (
                torch.nn.utils.rnn.pad_sequence([places[i] for i in rows], batch_first=True)
                for places in (new, self.paths)
            )
            lengths = torch.tensor([len(new[i]) for i in rows])[:, None]
            column = torch.arange(queries.shape[1])[None]
            position = torch.tensor([self._shared[i] for i in rows])[:, None] + torch.minimum(column, lengths - 1)
            is_new = column < lengths
            output[queries[is_new]] = torch.nonzero(is_new.flatten())[:, 0] + n_padded
            n_padded += queries.numel()
            groups.append(_Group(*(tensor.to(self._device) for tensor in (queries, keys, position))))
        return groups, output.to(self._device)

    def _visible(self, window: int | None, repeats: int) -> list[Bool[Tensor, "rows 1 queries pos"]]:
        """Per group which keys a query sees: those up to its own position, the last ``window`` of them.

        The queries' axis is repeated, for the heads that share their keys.
        """
        if (window, repeats) not in self._masks:
            masks = []
            for group in self._groups:
                key, query = torch.arange(group.keys.shape[1], device=self._device), group.position[..., None]
                sees = key <= query
                if window is not None:
                    sees &= key > query - window
                masks.append(sees[:, None].repeat(1, 1, repeats, 1))
            self._masks[window, repeats] = masks
        return self._masks[window, repeats]

    def attend(
        self,
        query: Float[Tensor, "1 heads new d_head"],
        key: Float[Tensor, "1 kv_heads new d_head"],
        value: Float[Tensor, "1 kv_heads new d_value"],
        scaling: float,
        *,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Float[Tensor, "1 new heads d_value"]:
        """Attention of every new token to the tokens on its path, softmax(cap(q kᵀ · scaling)) v.

        With ``softcap`` c, cap(s) = c tanh(s / c); with ``window`` a token sees only that many, itself included.
        """
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
        n_heads, kv_heads = query.shape[1], key.shape[1]
        per_kv = n_heads // kv_heads
        outputs = []
        for group, mask in zip(self._groups, self._visible(window, per_kv), strict=True):
            n_rows, n_new = group.queries.shape
            # Heads that share keys stand behind each other in the axis of queries, so that no key is copied per head.
            q = query.index_select(0, group.queries.flatten()).view(n_rows, n_new, kv_heads, per_kv, -1)
            q = q.permute(0, 2, 3, 1, 4).reshape(n_rows, kv_heads, per_kv * n_new, -1)
            k, v = (
                x.index_select(0, group.keys.flatten()).view(*group.keys.shape, kv_heads, -1).transpose(1, 2)
                for x in (key, value)
            )
            attended = _attention(q, k, v, mask, scaling, softcap)
            attended = attended.view(n_rows, kv_heads, per_kv, n_new, -1).permute(0, 3, 1, 2, 4)
            outputs.append(attended.reshape(n_rows * n_new, n_heads, -1))
        return torch.cat(outputs).index_select(0, self._output)[None]


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, softcap: float | None) -> Tensor:
    if softcap is None:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
    scores = torch.tanh((q @ k.transpose(2, 3)) * (scaling / softcap)) * softcap  # No fused kernel caps scores.
    return torch.softmax(scores.masked_fill(~mask, -torch.inf).float(), -1).to(q.dtype) @ v


class PackReader:
    """A causal model that reads packs, through transformers' interface for attention functions."""

    def __init__(self, bridge: TransformerBridge):
        """Raises ``ValueError`` for kinds of layers in which a token does not simply see what stands before it."""
        self._unwrapped = Unwrapped(bridge, ATTENTION)
        config = self._unwrapped.model.config.get_text_config()
        self._layer_types = getattr(config, "layer_types", None)
        self._window = getattr(config, "sliding_window", None)
        unknown = set(self._layer_types or []) - KNOWN_LAYERS
        if unknown:
            raise ValueError(f"layers of the kinds {sorted(unknown)} are not read in packs, only {KNOWN_LAYERS}")

    def resid_post(self, pack: Pack, layers: list[int]) -> dict[int, Float[Tensor, "new d_model"]]:
        """The residual stream of a pack's new tokens after each of ``layers`` (ascending)."""
        return self._read(pack, layers, lambda layer, key, value: None)

    def keys_and_values(self, pack: Pack) -> list[tuple[Float[Tensor, "heads new d"], Float[Tensor, "heads new d"]]]:
        """Keys and values of a pack's new tokens in each layer, as attention reads them."""
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        deepest = len(self._unwrapped.blocks) - 1
        self._read(pack, [deepest], lambda layer, key, value: kept.update({layer: (key[0], value[0])}))
        return [kept[layer] for layer in range(deepest + 1)]

    @torch.inference_mode()
    def _read(
        self, pack: Pack, layers: list[int], keep: Callable[[int, Tensor, Tensor], None]
    ) -> dict[int, Float[Tensor, "new d_model"]]:
        def attend(
            module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **options: Any
        ) -> tuple[Tensor, None]:
            window = options.get("sliding_window")
            self._check(module, window, options)
            keep(module.layer_idx, key, value)
            return pack.attend(query, key, value, scaling, window=window, softcap=options.get("softcap")), None

        ALL_ATTENTION_FUNCTIONS[ATTENTION] = attend  # It knows this pack, so each pass has its own.
        try:
            resid = self._unwrapped.resid_post(layers, input_ids=pack.ids, position_ids=pack.position)
        finally:
            del ALL_ATTENTION_FUNCTIONS[ATTENTION]  # It would keep the weights of a model that nobody needs any more.
        return {layer: tensor[0] for layer, tensor in resid.items()}

    def _check(self, module: Any, window: int | None, options: dict[str, Any]) -> None:
        """Raise ``ValueError`` if a layer wants an attention that packs do not have, or hides its window."""
        is_sliding = self._layer_types is None or self._layer_types[module.layer_idx] == "sliding_attention"
        if is_sliding and self._window is not None and window != self._window:
            raise ValueError(f"layer {module.layer_idx} does not hand on its window of {self._window} tokens")
        unknown = [name for name in ("s_aux", "position_bias") if options.get(name) is not None]
        if unknown:
            raise ValueError(f"attention with {unknown} is not computed in packs")
