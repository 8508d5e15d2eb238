"""What is kept of a forward pass over a chunk of sequences: pooled prompts, or tokens."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from lib.model.models import fixed_position
from lib.model.poolings import POOLINGS, Tokens, named
from lib.model.shards import Shard

STORED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Prompts(NamedTuple):
    """Prompts as token ids, and what is pooled of each (see ``lib.model.models.tokenise_with_spans``)."""

    token_ids: list[list[int]]
    spans: Int[Tensor, "prompts 2"]


def in_spans(spans: Int[Tensor, "batch 2"], mask: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Which tokens that count lie in the span of their row; all that count, where none does."""
    spans = spans.to(mask.device)
    position = torch.arange(mask.shape[1], device=mask.device)
    inside = mask & (position >= spans[:, :1]) & (position < spans[:, 1:])
    return torch.where(inside.any(1, keepdim=True), inside, mask)


class PooledShard:
    """Collects the pooled residual stream of the prompts ``chunk``."""

    def __init__(
        self,
        bridge: TransformerBridge,
        prompts: Prompts,
        chunk: list[int],
        layers: list[int],
        poolings: tuple[str, ...],
    ):
        self.spans = prompts.spans[chunk]
        self.layers, self.poolings, self.fixed = layers, named(poolings), fixed_position(bridge)
        self.tensors: Shard = {}
        for layer in layers:
            for pooling in poolings:
                self.tensors[f"resid_post.{layer}.{pooling}"] = torch.empty(len(chunk), bridge.cfg.d_model)
        for layer in layers:
            self.tensors[f"norm.{layer}"] = torch.empty(len(chunk))
        self.tensors["index"] = torch.tensor(chunk)
        self.tensors["length"] = torch.tensor([len(prompts.token_ids[i]) for i in chunk])

    def add(self, rows: list[int], mask: Tensor, resid: dict[int, Tensor]) -> None:
        """Take what ``lib.model.forward.run`` yields: rows of the chunk, the tokens that count, and the layers'
        residual streams."""
        end = self.tensors["length"][rows].to(mask.device)
        tokens = Tokens(in_spans(self.spans[rows], mask), end, self.fixed)
        for layer in self.layers:
            values = resid[layer].float()  # Sums in bfloat16 keep three digits.
            for name, pooling in self.poolings.items():
                self.tensors[f"resid_post.{layer}.{name}"][rows] = pooling.dense(values, tokens).cpu()
            norms = POOLINGS["mean"].dense(values.norm(dim=-1, keepdim=True), tokens)
            self.tensors[f"norm.{layer}"][rows] = norms[:, 0].cpu()

    def shard(self) -> Shard:
        """The whole chunk's, once all its rows were added."""
        return self.tensors


class TokenShard:
    """Collects the tokens of the sequences ``chunk`` at one layer; of prompts with ``spans``, only from these on."""

    def __init__(
        self,
        token_ids: list[list[int]],
        chunk: list[int],
        layer: int,
        dtype: str,
        spans: Int[Tensor, "sequences 2"] | None = None,
    ):
        self.token_ids, self.chunk = token_ids, torch.as_tensor(chunk)
        self.layers, self.dtype = [layer], STORED[dtype]
        self.spans = None if spans is None else spans[chunk]
        self.parts: list[tuple[Tensor, ...]] = []

    def add(self, rows: list[int], mask: Tensor, resid: dict[int, Tensor]) -> None:
        """See ``PooledShard.add``."""
        in_turn = mask if self.spans is None else in_spans(self.spans[rows], mask)
        wanted = mask & (in_turn.cumsum(1) > 0)
        row, position = torch.nonzero(wanted.cpu(), as_tuple=True)
        values = resid[self.layers[0]][wanted].to(self.dtype).cpu()
        self.parts.append((torch.tensor(rows)[row], position, values, in_turn[wanted].cpu()))

    def shard(self) -> Shard:
        """See ``PooledShard.shard``; tokens by sequence, the shorter sequences first."""
        row, position, values, in_turn = (torch.cat(column) for column in zip(*self.parts, strict=True))
        sequence, length = self.chunk[row], torch.tensor([len(self.token_ids[i]) for i in self.chunk.tolist()])[row]
        order = torch.from_numpy(np.lexsort((position.numpy(), row.numpy(), length.numpy())))
        if (order.diff() != 1).any():  # Packs come in another order than batches, and the store must not show it.
            sequence, position, values, in_turn = sequence[order], position[order], values[order], in_turn[order]
        places = zip(sequence.tolist(), position.tolist(), strict=True)
        token_id = torch.tensor([self.token_ids[i][j] for i, j in places])
        shard = {"activations": values, "sequence": sequence, "position": position, "token_id": token_id}
        return shard if self.spans is None else shard | {"in_turn": in_turn}
