"""Training tokens in shuffled blocks: from a store on disk, or straight from the model without one.

A block is a run of shards, in an order drawn anew for each epoch, that holds at most ``buffer_tokens`` tokens (one
shard at least). Its tokens are shuffled and read in batches; what is left of it, less than a batch, waits for the next
epoch. So only one block is in memory, and from disk the next one, which is read while the present one is trained on. A
step's tokens depend on the step alone, and a resumed run makes only its own block again. Where all tokens fit into one
block, the shuffle is perfect.
"""

import functools
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from lib.model.activations import TokenShards
from lib.model.shards import read_all, read_manifest, read_shard

BUFFER_TOKENS = 4_000_000
NORM_ROWS = 65_536  # tokens at a time
SINK = 3.0  # a token of more than so many median norms is an attention sink
Source = Path | TokenShards


def load_tokens(*stores: Path) -> Float[Tensor, "tokens d_model"]:
    """The activations of one or more token stores without attention sinks, in their stored (half) precision.

    A store given twice counts twice.

    Raises:
        ValueError: unfinished, damaged or empty store, or values that are not finite.
    """
    x = _read(*stores)
    return without_sinks(x, sink_limit(x))


def _read(*stores: Path) -> Tensor:
    parts = [_read_tokens(store, (store / "manifest.json").stat().st_mtime_ns) for store in stores]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def sink_limit(x: Float[Tensor, "tokens d_model"]) -> float:
    """Norm above which a token is an attention sink: ``SINK`` times the median norm.

    Some tokens draw attention away from all others and carry next to nothing of the text (Xiao et al. 2023,
    arXiv 2309.17453). A few hold most of the squared norm, so that an SAE that is trained on them, or measured by them,
    knows hardly anything else. Those of a chat model (one token in 10,000) have from 2 to 95 median norms, and other
    tokens 1.5 at most. With a limit of 10, a dozen of 240,000 tokens were left that took JumpReLU's FVU from 0.18 to
    0.22 in a short training, and one of 12,000 that took a Gated SAE's held-out FVU from 0.28 to 0.46.
    """
    return SINK * _norms(x).median().item()


def without_sinks(x: Float[Tensor, "tokens d_model"], limit: float) -> Float[Tensor, "tokens_left d_model"]:
    """The tokens of a norm of at most ``limit``."""
    is_sink = _norms(x) > limit
    return x[~is_sink] if is_sink.any() else x


def _norms(x: Tensor) -> Tensor:
    """L2 norms of tokens, in float32: float16 ends at 65,504, and a sink's squares lie beyond."""
    return torch.cat([rows.float().norm(dim=1) for rows in x.split(NORM_ROWS)])


@functools.lru_cache(maxsize=2)  # a grid of trainings reads the same two stores again and again
def _read_tokens(store: Path, modified: int) -> Tensor:
    return _checked(torch.cat([shard["activations"] for shard in read_all(store)]), store)


def _checked(x: Tensor, store: Any) -> Tensor:
    if not len(x) or not torch.isfinite(x).all():
        raise ValueError(f"{store}: {len(x)} tokens, or values that are not finite; it cannot be trained on")
    return x


def parameters(source: Source) -> dict[str, Any]:
    """What decides a source's tokens; the same for a store and for the shards that it was made of."""
    return read_manifest(source)["parameters"] if isinstance(source, Path) else source.parameters


def counts(source: Source) -> list[int]:
    """Tokens in each shard.

    Raises:
        ValueError: a store that is not finished.
    """
    if not isinstance(source, Path):
        return source.counts
    manifest = read_manifest(source)
    if not manifest["finished"]:
        shards = f"{len(manifest['shards'])} of {manifest['n_shards']} shards"
        raise ValueError(f"{source} has {shards}; run the harvest again to finish it")
    sizes = []
    for name in sorted(manifest["shards"]):
        with safe_open(source / name, "pt") as handle:
            sizes.append(handle.get_slice("activations").get_shape()[0])
    return sizes


def deciding_buffer(sources: list[Source], buffer_tokens: int) -> int | None:
    """``buffer_tokens`` where it decides the order of the tokens; None where one block holds them all.

    Raises:
        ValueError: a store that is not finished.
    """
    tokens = sum(sum(counts(source)) for source in sources)
    return buffer_tokens if tokens > buffer_tokens else None


class Block(NamedTuple):
    """Shards that are in memory together: their places in ``Blocks.shards``, and the tokens that they hold."""

    shards: tuple[int, ...]
    tokens: int


class Blocks:
    """The tokens of several sources (one given twice counts twice), by step.

    Raises:
        ValueError: an unfinished, damaged or empty source.
    """

    def __init__(self, sources: list[Source], buffer_tokens: int = BUFFER_TOKENS):
        self.sources, self.buffer_tokens = sources, buffer_tokens
        self.shards = [(source, i, n) for source in sources for i, n in enumerate(counts(source))]
        self._held: tuple[Block, Tensor] | None = None
        self._ahead: tuple[Block, Future] | None = None
        self._reader = ThreadPoolExecutor(1)

    def __len__(self) -> int:
        return sum(n for *_, n in self.shards)

    def batch(self, step: int, batch_tokens: int, seed: int) -> Float[Tensor, "batch d_model"]:
        """The tokens of a training step, in stored precision.

        Raises:
            ValueError: no block holds a batch.
        """
        epoch = 0
        while True:
            plan = self._plan(epoch, seed)
            for i, block in enumerate(plan):
                if step < block.tokens // batch_tokens:
                    rows = _order(block.tokens, seed, epoch)[step * batch_tokens :][:batch_tokens]
                    x = self._read(block)
                    self._read_ahead(plan[i + 1] if i + 1 < len(plan) else self._plan(epoch + 1, seed)[0])
                    return x[rows]
                step -= block.tokens // batch_tokens
            if all(block.tokens < batch_tokens for block in plan):
                largest = max(block.tokens for block in plan)
                raise ValueError(
                    f"blocks of {largest} tokens at most have no batch of {batch_tokens}; "
                    f"raise buffer_tokens {self.buffer_tokens}"
                )
            epoch += 1

    def sample(self, n: int, seed: int) -> Float[Tensor, "tokens d_model"]:
        """Random tokens of the first epoch's first block, attention sinks among them."""
        x = self._read(self._plan(0, seed)[0])
        return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:n]]

    def _plan(self, epoch: int, seed: int) -> list[Block]:
        return _blocks(tuple(n for *_, n in self.shards), self.buffer_tokens, seed, epoch)

    def _read(self, block: Block) -> Tensor:
        if self._held is None or self._held[0] != block:
            self._held, ahead = None, self._ahead  # the old block is let go before the next one is made
            self._ahead = None
            self._held = block, ahead[1].result() if ahead and ahead[0] == block else self._make(block)
        return self._held[1]

    def _read_ahead(self, block: Block) -> None:
        """Begin to read a block from disk; one from the model has to wait, as the training needs the device."""
        wanted = self._ahead is None and self._held and self._held[0] != block
        if wanted and all(isinstance(self.shards[j][0], Path) for j in block.shards):
            self._ahead = block, self._reader.submit(self._make, block)

    def _make(self, block: Block) -> Tensor:
        if len(block.shards) == len(self.shards) and all(isinstance(source, Path) for source in self.sources):
            return _read(*self.sources)
        parts = []
        for source, i, _ in (self.shards[j] for j in block.shards):
            on_disk = isinstance(source, Path)
            shard = read_shard(source, i) if on_disk else source.make(i)
            parts.append(_checked(shard["activations"], source if on_disk else "the stream"))
        return torch.cat(parts)


@functools.lru_cache(maxsize=4)
def _blocks(sizes: tuple[int, ...], buffer_tokens: int, seed: int, epoch: int) -> list[Block]:
    """The blocks of an epoch."""
    if sum(sizes) <= buffer_tokens:
        return [Block(tuple(range(len(sizes))), sum(sizes))]
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(1_000_003 * seed + epoch)).tolist()
    blocks: list[Block] = []
    for shard in order:
        if blocks and blocks[-1].tokens + sizes[shard] <= buffer_tokens:
            blocks[-1] = Block((*blocks[-1].shards, shard), blocks[-1].tokens + sizes[shard])
        else:
            blocks.append(Block((shard,), sizes[shard]))
    return blocks


@functools.lru_cache(maxsize=1)
def _order(n_tokens: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n_tokens, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
