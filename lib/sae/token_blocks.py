"""Training tokens in shuffled blocks: from a store on disk, or straight from the model without one.

A block is a run of shards, in an order drawn anew for each epoch, that holds at most ``buffer_tokens`` tokens (one shard at
least). Its tokens are shuffled and read in batches; what is left of it, less than a batch, waits for the next epoch. So only
one block is in memory, and from disk the next one, which is read while the present one is trained on; a step's tokens depend on the step alone, and a resumed run makes only its own block again. Where all
tokens fit into one block, the shuffle is perfect.
"""

import functools
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from lib.model.activations import TokenShards
from lib.model.shards import read_all, read_manifest, read_shard

BUFFER_TOKENS = 4_000_000
Source = Path | TokenShards


def load_tokens(*stores: Path) -> Float[Tensor, "tokens d_model"]:
    """The activations of one or more token stores, in their stored (half) precision; a store given twice counts twice.

    Raises:
        ValueError: unfinished, damaged or empty store, or values that are not finite.
    """
    parts = [_read_tokens(store, (store / "manifest.json").stat().st_mtime_ns) for store in stores]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


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
        raise ValueError(f"{source} has {len(manifest['shards'])} of {manifest['n_shards']} shards; run the harvest again to finish it")
    found = []
    for name in sorted(manifest["shards"]):
        with safe_open(source / name, "pt") as handle:
            found.append(handle.get_slice("activations").get_shape()[0])
    return found


class Blocks:
    """The tokens of several sources (one given twice counts twice), by step.

    Raises:
        ValueError: an unfinished, damaged or empty source.
    """

    def __init__(self, sources: list[Source], buffer_tokens: int = BUFFER_TOKENS):
        self.sources, self.buffer_tokens = sources, buffer_tokens
        self.shards = [(source, i, n) for source in sources for i, n in enumerate(counts(source))]
        self._held: tuple[tuple[int, ...], Tensor] | None = None
        self._ahead: tuple[tuple[int, ...], Future] | None = None
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
            for i, (block, n) in enumerate(plan):
                if step < n // batch_tokens:
                    rows = _order(n, seed, epoch)[step * batch_tokens :][:batch_tokens]
                    found = self._read(block)
                    self._read_ahead(plan[i + 1][0] if i + 1 < len(plan) else self._plan(epoch + 1, seed)[0][0])
                    return found[rows]
                step -= n // batch_tokens
            if all(n < batch_tokens for _, n in plan):
                raise ValueError(f"blocks of {max(n for _, n in plan)} tokens at most have no batch of {batch_tokens}; raise buffer_tokens {self.buffer_tokens}")
            epoch += 1

    def sample(self, n: int, seed: int) -> Float[Tensor, "tokens d_model"]:
        """Random tokens of the first epoch's first block."""
        x = self._read(self._plan(0, seed)[0][0])
        return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:n]]

    def _plan(self, epoch: int, seed: int) -> list[tuple[tuple[int, ...], int]]:
        """Blocks of an epoch: their shards, and how many tokens they hold."""
        return _blocks(tuple(n for *_, n in self.shards), self.buffer_tokens, seed, epoch)

    def _read(self, block: tuple[int, ...]) -> Tensor:
        if self._held is None or self._held[0] != block:
            self._held, ahead = None, self._ahead  # let go before the next one is made
            self._ahead = None
            self._held = block, ahead[1].result() if ahead and ahead[0] == block else self._make(block)
        return self._held[1]

    def _read_ahead(self, block: tuple[int, ...]) -> None:
        """Begin to read a block from disk; one from the model has to wait, as the training needs the device."""
        if self._ahead is None and self._held and self._held[0] != block and all(isinstance(self.shards[j][0], Path) for j in block):
            self._ahead = block, self._reader.submit(self._make, block)

    def _make(self, block: tuple[int, ...]) -> Tensor:
        if len(block) == len(self.shards) and all(isinstance(source, Path) for source in self.sources):
            return load_tokens(*self.sources)
        parts = []
        for source, i, _ in (self.shards[j] for j in block):
            shard = read_shard(source, i) if isinstance(source, Path) else source.make(i)
            parts.append(_checked(shard["activations"], source if isinstance(source, Path) else "the stream"))
        return torch.cat(parts)


@functools.lru_cache(maxsize=4)
def _blocks(sizes: tuple[int, ...], buffer_tokens: int, seed: int, epoch: int) -> list[tuple[tuple[int, ...], int]]:
    if sum(sizes) <= buffer_tokens:
        return [(tuple(range(len(sizes))), sum(sizes))]
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(1_000_003 * seed + epoch)).tolist()
    found: list[tuple[tuple[int, ...], int]] = []
    for shard in order:
        block, n = found[-1] if found else ((), buffer_tokens)
        if n + sizes[shard] > buffer_tokens:
            found.append(((shard,), sizes[shard]))
        else:
            found[-1] = (*block, shard), n + sizes[shard]
    return found


@functools.lru_cache(maxsize=1)
def _order(n_tokens: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n_tokens, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
