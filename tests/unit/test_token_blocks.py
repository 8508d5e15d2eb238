import dataclasses

import pytest
import torch

from lib.model import activations, models, shards
from lib.sae import folders, harvest, token_blocks, training
from lib.sae.recipes import Recipe
from lib.sae.token_blocks import Blocks

WORDS = ["apples", "pears", "saws", "drills", "birds"] * 12
TEXTS = [f"passage {i} tells of {word} and of the sea, the {word} and the ship" for i, word in enumerate(WORDS)]


def numbered(sizes):
    """A source whose tokens are their own number."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]

    def make(i):
        return {"activations": torch.arange(starts[i], starts[i] + sizes[i]).float()[:, None]}

    return activations.TokenShards({"model": "m"}, list(sizes), make)


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
    shards_of = [set((batch // 300).tolist()) for batch in seen]
    assert all(len(mixed) == 2 for mixed in shards_of), "the two shards of a block are mixed"


def test_a_source_given_twice_counts_twice():
    blocks = Blocks([numbered([100]), numbered([50])] + [numbered([50])], 1000)
    counted = torch.cat(batches(blocks, 2)).bincount()
    assert counted[:50].tolist() == [3] * 50 and counted[50:].tolist() == [1] * 50


def test_the_buffer_decides_only_where_one_block_does_not_hold_all():
    sources = [numbered([60, 40]), numbered([50])]
    assert token_blocks.deciding_buffer(sources, 150) is None
    assert token_blocks.deciding_buffer(sources, 149) == 149


def test_blocks_smaller_than_a_batch_are_an_error():
    with pytest.raises(ValueError, match="blocks of 60 tokens at most have no batch of 100; raise buffer_tokens 70"):
        Blocks([numbered([60, 60])], 70).batch(0, 100, 0)


@pytest.mark.parametrize("buffer_tokens", [100_000, 500])
def test_training_from_the_stream_equals_training_from_disk(gemma, tiny_gemma, tmp_path, buffer_tokens):
    reader = models.Reader(str(tiny_gemma), context=32)
    identity, ids = models.identity(str(tiny_gemma)), models.split_tokens(gemma, TEXTS, 32)
    options = {"special": False, "shuffle_seed": 0, "shard_tokens": 200}
    stream = activations.token_shards(gemma, identity, "hash", ids, 1, **options)
    store = activations.harvest_tokens(gemma, identity, "hash", ids, 1, tmp_path, **options)
    assert token_blocks.counts(store) == stream.counts and len(stream.counts) > 5
    assert token_blocks.parameters(store) == stream.parameters
    held = harvest.held_out_store(reader, TEXTS[:5], 1, tmp_path, 0, 0)
    recipe = Recipe(d_sae=64, target_l0=4, tokens=4000, batch_tokens=200)
    weights = {}
    for kind, source in {"disk": store, "stream": stream}.items():
        parent = tmp_path / kind
        folder = training.train(recipe, source, held, parent, progress=False, buffer_tokens=buffer_tokens)
        weights[kind] = folders.load(folder).state_dict()
    for name, tensor in weights["disk"].items():
        assert torch.equal(tensor, weights["stream"][name]), name


def test_an_unfinished_store_and_an_unknown_kind_are_named(tmp_path, tiny_gemma):
    folder = shards.build(tmp_path / "s", {}, 2, lambda i: {"activations": torch.ones(3, 2)}, "shard")
    manifest = shards.read_manifest(folder)
    shards.write_json(folder / "manifest.json", manifest | {"finished": False, "n_shards": 3})
    with pytest.raises(ValueError, match="has 2 of 3 shards"):
        Blocks([folder])
    with pytest.raises(ValueError, match="unknown store 'ram'; allowed are"):
        harvest.token_store(models.Reader(str(tiny_gemma), keeping="ram"), TEXTS, 1, tmp_path, 0, 0)


def test_a_recipe_needs_room_on_the_device(tmp_path, monkeypatch):
    about = {"model": "m", "hook_name": "blocks.1.hook_resid_post"}
    folder = shards.build(tmp_path / "s", about, 1, lambda i: {"activations": torch.randn(500, 8)}, "shard")

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "make_trainer", full)
    recipe = dataclasses.replace(Recipe(), d_sae=32, target_l0=4, tokens=1000, batch_tokens=100)
    with pytest.raises(ValueError, match="the memory of cpu does not suffice for d_sae 32 with batches of 100 tokens"):
        training.train(recipe, folder, folder, tmp_path / "saes", progress=False)
