import json

import pytest
import torch

from lib.model import shards


def make(i):
    return {"x": torch.full((4, 2), float(i)), "i": torch.tensor([i])}


def test_parameters_decide_the_folder(tmp_path):
    first, second = (shards.store_path(tmp_path, "pooled", {"layer": layer, "model": "m"}) for layer in (1, 2))
    same = shards.store_path(tmp_path, "pooled", {"model": "m", "layer": 1})
    assert first != second and first == same


def test_interrupted_build_resumes_at_the_first_missing_shard(tmp_path):
    calls = []

    def failing(i):
        calls.append(i)
        if i == 2 and calls.count(2) == 1:
            raise KeyboardInterrupt
        return make(i)

    with pytest.raises(KeyboardInterrupt):
        shards.build(tmp_path, {}, 4, failing, "shard")
    assert not shards.read_manifest(tmp_path)["finished"]
    with pytest.raises(ValueError, match="2 of 4 shards; run the harvest again"):
        shards.read_all(tmp_path)
    shards.build(tmp_path, {}, 4, failing, "shard")
    assert calls == [0, 1, 2, 2, 3]
    assert [shard["i"].item() for shard in shards.read_all(tmp_path)] == [0, 1, 2, 3]
    shards.build(tmp_path, {}, 4, failing, "shard")
    assert len(calls) == 5, "a finished store is left alone"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_missing_and_damaged_shards_are_named(tmp_path):
    shards.build(tmp_path, {}, 3, make, "shard")
    shard = tmp_path / "shard-00001.safetensors"
    whole = shard.read_bytes()
    for damaged in (whole[:-5], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match="shard-00001.safetensors is damaged"):
            shards.read_all(tmp_path)
    shard.unlink()
    with pytest.raises(ValueError, match="shard-00001.safetensors is missing; run the harvest again"):
        shards.read_all(tmp_path)
    shards.build(tmp_path, {}, 3, make, "shard")
    assert shard.read_bytes() == whole


def test_a_shard_that_the_manifest_does_not_list_is_made_again(tmp_path):
    shards.build(tmp_path, {}, 2, make, "shard")
    manifest = shards.read_manifest(tmp_path)
    del manifest["shards"]["shard-00001.safetensors"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "shard-00001.safetensors").write_bytes(b"half")
    shards.build(tmp_path, {}, 2, make, "shard")
    assert shards.read_all(tmp_path)[1]["i"].item() == 1


def test_foreign_and_broken_manifests_and_nan(tmp_path):
    shards.build(tmp_path, {"a": 1}, 1, make, "shard")
    with pytest.raises(ValueError, match="holds another store"):
        shards.build(tmp_path, {"a": 2}, 1, make, "shard")
    (tmp_path / "manifest.json").write_text('{"shards"')
    with pytest.raises(ValueError, match="manifest.json is not a readable manifest"):
        shards.read_all(tmp_path)
    with pytest.raises(ValueError, match="x has values that are not finite; nothing was saved"):
        shards.build(tmp_path / "new", {}, 1, lambda i: {"x": torch.tensor([float("nan")])}, "shard")
    assert not list((tmp_path / "new").glob("*.safetensors"))
