import dataclasses

import pytest
import torch

from lib.model import activations, models
from lib.model import shards as stores
from lib.sae import folders, token_blocks, training
from lib.sae.recipes import Recipe
from lib.sae.token_blocks import Blocks

TEXTS = [f"passage {i} tells of {w} and of the sea, the {w} and the ship" for i, w in enumerate(["apples", "pears", "saws", "drills", "birds"] * 12)]


def numbered(sizes):
    """A source whose tokens are their own number."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return activations.TokenShards({"model": "m"}, list(sizes), lambda i: {"activations": torch.arange(starts[i], starts[i] + sizes[i]).float()[:, None]})


def batches(blocks, n, batch=100, seed=0):
    return [blocks.batch(step, batch, seed)[:, 0].long() for step in range(n)]


def test_where_all_fits_into_one_block_an_epoch_sees_every_token_once_in_new_order():
    blocks = Blocks([numbered([250, 50, 700])], 1000)
    first, second = batches(blocks, 10), batches(blocks, 20)[10:]
    assert sorted(torch.cat(first).tolist()) == sorted(torch.cat(second).tolist()) == list(range(1000))
    assert not torch.equal(torch.cat(first), torch.cat(second))
    assert torch.equal(torch.cat(first), torch.cat(batches(blocks, 10))), "a step's tokens depend on the step alone"


def test_blocks_bound_memory_and_lose_less_than_a_batch_each():
    held = []
    source = numbered([300] * 10)
    watched = source._replace(make=lambda i: held.append(i) or source.make(i))
    blocks = Blocks([watched], 650)
    seen = batches(blocks, 30)
    assert held[:10] != sorted(held[:10]) and sorted(held) == list(range(10)), "each shard made once, in random order"
    assert len(blocks._held[1]) == 600
    assert len(torch.cat(seen).unique()) == 3000
    two = [set((batch // 300).tolist()) for batch in seen]
    assert all(len(shards) == 2 for shards in two), "the two shards of a block are mixed"


def test_a_source_given_twice_counts_twice():
    blocks = Blocks([numbered([100]), numbered([50])] + [numbered([50])], 1000)
    counted = torch.cat(batches(blocks, 2)).bincount()
    assert counted[:50].tolist() == [3] * 50 and counted[50:].tolist() == [1] * 50


def test_blocks_smaller_than_a_batch_are_an_error():
    with pytest.raises(ValueError, match="blocks of 60 tokens at most have no batch of 100; raise buffer_tokens 70"):
        Blocks([numbered([60, 60])], 70).batch(0, 100, 0)


@pytest.mark.parametrize("buffer_tokens", [100_000, 500])
def test_training_from_the_stream_equals_training_from_disk(gemma, tiny_gemma, tmp_path, buffer_tokens):
    reader = models.Reader(str(tiny_gemma), context=32)
    identity, ids = models.identity(str(tiny_gemma)), models.split_tokens(gemma, TEXTS, 32)
    shards = activations.token_shards(gemma, identity, "hash", ids, 1, special=False, shuffle_seed=0, shard_tokens=200)
    store = activations.harvest_tokens(gemma, identity, "hash", ids, 1, tmp_path, special=False, shuffle_seed=0, shard_tokens=200)
    assert token_blocks.counts(store) == shards.counts and len(shards.counts) > 5
    assert token_blocks.parameters(store) == shards.parameters
    held = training.held_out_store(reader, TEXTS[:5], 1, tmp_path, 0, 0)
    recipe = Recipe(d_sae=64, target_l0=4, tokens=4000, batch_tokens=200)
    found = [folders.load(training.train(recipe, source, held, tmp_path / name, progress=False, buffer_tokens=buffer_tokens))
             for name, source in (("disk", store), ("stream", shards))]  # fmt: skip
    for name, tensor in found[0].state_dict().items():
        assert torch.equal(tensor, found[1].state_dict()[name]), name


def test_an_unfinished_store_and_an_unknown_kind_are_named(tmp_path, tiny_gemma):
    folder = stores.build(tmp_path / "s", {}, 2, lambda i: {"activations": torch.ones(3, 2)}, "shard")
    manifest = stores.read_manifest(folder)
    stores.write_json(folder / "manifest.json", manifest | {"finished": False, "n_shards": 3})
    with pytest.raises(ValueError, match="has 2 of 3 shards"):
        Blocks([folder])
    with pytest.raises(ValueError, match="unknown store 'ram'; allowed are"):
        training.token_store(models.Reader(str(tiny_gemma), keeping="ram"), TEXTS, 1, tmp_path, 0, 0)


def test_a_recipe_needs_room_on_the_device(tmp_path, monkeypatch):
    folder = stores.build(tmp_path / "s", {"model": "m", "hook_name": "blocks.1.hook_resid_post"}, 1, lambda i: {"activations": torch.randn(500, 8)}, "shard")

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "make_trainer", full)
    recipe = dataclasses.replace(Recipe(), d_sae=32, target_l0=4, tokens=1000, batch_tokens=100)
    with pytest.raises(ValueError, match="the memory of cpu does not suffice for d_sae 32 with batches of 100 tokens"):
        training.train(recipe, folder, folder, tmp_path / "saes", progress=False)
