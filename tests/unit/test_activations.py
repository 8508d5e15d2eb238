import errno

import numpy as np
import pytest
import torch

from lib.model import activations, forward, models, poolings, shards, weights

LONGER = "this is a rather longer text about nothing at all"
TEXTS = ["a short one", LONGER, "word", "two words", "the end of the list"] * 4


def test_pooling_by_hand_ignores_padding():
    resid = torch.tensor([[[1.0, -3.0], [2.0, -5.0], [99.0, 99.0]]])
    mask = torch.tensor([[True, True, False]])
    assert poolings.pool(resid, mask, "max").tolist() == [[2.0, -3.0]]
    assert poolings.pool(resid, mask, "mean").tolist() == [[1.5, -4.0]]
    assert poolings.pool(resid, mask, "fixed").tolist() == [[2.0, -5.0]]
    left = torch.tensor([[False, True, True]])
    assert poolings.pool(resid.roll(1, 1), left, "fixed").tolist() == [[2.0, -5.0]]
    with pytest.raises(ValueError, match="unknown pooling 'median'; allowed are max, mean"):
        poolings.pool(resid, mask, "median")


def test_a_name_that_is_no_pooling_is_one_sentence_before_anything_is_harvested(minilm, tmp_path):
    allowed = ", ".join([*poolings.POOLINGS, "position -n"])
    with pytest.raises(ValueError, match=f"^unknown pooling 'median'; allowed are {allowed}$"):
        activations.harvest_pooled(minilm, {}, TEXTS, [0], tmp_path, poolings=("max", "median"))
    assert not list(tmp_path.iterdir())
    assert [poolings.exact_or(name) for name in ("max", "mean", "fixed")] == ["fixed", "mean", "fixed"]


def test_batches_respect_the_budget_and_keep_everything():
    lengths = sorted(np.random.default_rng(0).integers(1, 50, 300).tolist())
    batches = list(forward.batches(lengths, 200))
    assert [i for batch in batches for i in batch] == list(range(300))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 200 for batch in batches)
    assert list(forward.batches([500], 200)) == [[0]], "a text longer than the budget is a batch of its own"


def test_pooled_store_does_not_depend_on_batching_or_order(minilm, tmp_path):
    identity = {"model": "m", "revision": "r"}
    one_shard = activations.harvest_pooled(minilm, identity, TEXTS, [1, 4], tmp_path / "a")
    many_shards = activations.harvest_pooled(minilm, identity, TEXTS, [4, 1], tmp_path / "b", shard_tokens=25)
    first, second = activations.load_pooled(one_shard), activations.load_pooled(many_shards)
    assert set(first) == {(layer, pooling) for layer in (1, 4) for pooling in poolings.POOLINGS}
    for key in first:
        np.testing.assert_allclose(first[key], second[key], atol=1e-5)
        np.testing.assert_allclose(first[key][:5], first[key][5:10], atol=1e-5)
    table = activations.describe(many_shards)
    assert table["tokens"].sum() == sum(map(len, models.tokenise(minilm, TEXTS)))


def test_harvest_resumes_to_the_same_bytes(minilm, tmp_path, monkeypatch):
    arguments = (minilm, {"model": "m"}, TEXTS, [0])
    whole = activations.harvest_pooled(*arguments, tmp_path / "whole", shard_tokens=25)
    real, calls = forward.resid_post_at, []

    def dies(*a):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*a)

    monkeypatch.setattr(forward, "resid_post_at", dies)
    with pytest.raises(KeyboardInterrupt):
        activations.harvest_pooled(*arguments, tmp_path / "cut", shard_tokens=25)
    cut = activations.harvest_pooled(*arguments, tmp_path / "cut", shard_tokens=25)
    assert len(calls) == 6, "five shards, one of them twice"
    assert shards.read_manifest(cut)["shards"] == shards.read_manifest(whole)["shards"]


def places(shard):
    """Sequence and position of every token."""
    return list(zip(shard["sequence"].tolist(), shard["position"].tolist(), strict=True))


def test_token_store_for_training_leaves_special_tokens_out_and_shuffles(minilm, tmp_path):
    token_ids = models.split_tokens(minilm, TEXTS, 8)
    common = (minilm, {"model": "m"}, "hash", token_ids, 2, tmp_path)
    plain = activations.harvest_tokens(*common, special=True)
    mixed = activations.harvest_tokens(*common, special=False, shuffle_seed=1, shard_tokens=60, dtype="float32")
    everything = shards.read_all(plain)[0]
    training = shards.read_all(mixed)
    assert len(training) > 1
    cls, sep = minilm.tokenizer.cls_token_id, minilm.tokenizer.sep_token_id
    ids = torch.cat([shard["token_id"] for shard in training])
    assert not torch.isin(ids, torch.tensor([cls, sep])).any()
    assert len(ids) == len(everything["token_id"]) - 2 * len(token_ids)
    row_of = {place: row for row, place in enumerate(places(everything))}
    for shard in training:
        rows = [row_of[place] for place in places(shard)]
        torch.testing.assert_close(shard["activations"], everything["activations"][rows].float(), atol=5e-3, rtol=1e-2)
        assert rows != sorted(rows)
    with pytest.raises(ValueError, match="is shuffled"):
        activations.load_prompt_tokens(mixed)


def test_prompt_tokens_are_grouped_by_prompt(minilm, tmp_path):
    tokens = activations.prompt_tokens(minilm, {"model": "m"}, TEXTS, 3, tmp_path)
    pooled = activations.load_pooled(activations.harvest_pooled(minilm, {"model": "m"}, TEXTS, [3], tmp_path))
    for i in (0, 7, 19):
        own = tokens.activations[tokens.starts[i] : tokens.starts[i + 1]].float()
        np.testing.assert_allclose(own.amax(0), pooled[3, "max"][i], atol=5e-3)
        np.testing.assert_allclose(own[-1], pooled[3, "fixed"][i], atol=5e-3)


def test_one_pass_stores_pooled_and_token_activations(minilm, tmp_path, monkeypatch):
    common = (minilm, {"model": "m"}, TEXTS)
    pooled_apart = activations.load_pooled(
        activations.harvest_pooled(*common, [1, 4], tmp_path / "apart", shard_tokens=25)
    )
    tokens_apart = activations.prompt_tokens(*common, 2, tmp_path / "apart")
    real, read, cuts = forward.resid_post_at, [], [3]

    def counted(bridge, ids, mask, layers):
        read.append(layers)
        if cuts == [len(read)]:
            cuts.clear()
            raise KeyboardInterrupt
        return real(bridge, ids, mask, layers)

    monkeypatch.setattr(forward, "resid_post_at", counted)
    arguments = (*common, [1, 4], tmp_path)
    with pytest.raises(KeyboardInterrupt):
        activations.harvest_pooled(*arguments, token_layer=2, shard_tokens=25)
    store = activations.harvest_pooled(*arguments, token_layer=2, shard_tokens=25)
    assert read == [[1, 2, 4]] * 6, "five shards, one of them twice"
    for key, values in pooled_apart.items():
        np.testing.assert_array_equal(activations.load_pooled(store)[key], values)
    (token_store,) = tmp_path.glob("tokens-*")
    tokens = activations.load_prompt_tokens(token_store)
    assert torch.equal(tokens.starts, tokens_apart.starts)
    torch.testing.assert_close(tokens.activations, tokens_apart.activations, atol=2e-3, rtol=1e-3)
    read.clear()
    assert activations.harvest_pooled(*arguments, token_layer=2, shard_tokens=25) == store and not read
    activations.harvest_pooled(*arguments, token_layer=3, shard_tokens=25)
    assert read == [[3]] * 5, "the pooled store is there, so only the tokens are read"
    with pytest.raises(ValueError, match="out of range"):
        activations.harvest_pooled(*arguments, token_layer=6)


def test_batches_shrink_when_memory_does_not_suffice(minilm, tmp_path, monkeypatch):
    expected = activations.load_pooled(activations.harvest_pooled(minilm, {"model": "m"}, TEXTS, [1], tmp_path / "a"))
    real, sizes = forward.resid_post_at, []

    def small(bridge, ids, mask, layers):
        sizes.append(len(ids))
        if len(ids) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(bridge, ids, mask, layers)

    monkeypatch.setattr(forward, "resid_post_at", small)
    pooled = activations.load_pooled(activations.harvest_pooled(minilm, {"model": "m"}, TEXTS, [1], tmp_path / "b"))
    for key, values in expected.items():
        np.testing.assert_allclose(pooled[key], values, atol=1e-5)
    assert sizes[0] == len(TEXTS) and sum(size > 4 for size in sizes) <= 5, "each failure halves what comes after it"

    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(forward, "resid_post_at", never)
    message = "the memory of cpu does not suffice for one text of 3 tokens; take dtype bfloat16"
    with pytest.raises(ValueError, match=message):
        activations.harvest_pooled(minilm, {"model": "m"}, TEXTS, [2], tmp_path)


def test_a_full_disk_keeps_what_is_complete(minilm, tmp_path, monkeypatch):
    arguments = (minilm, {"model": "m"}, TEXTS, [0], tmp_path)
    real, written = shards.save_file, []

    def full(tensors, path):
        if len(written) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        real(tensors, path)

    monkeypatch.setattr(shards, "save_file", full)
    with pytest.raises(ValueError, match="the disk is full .* 2 of 5 shards are complete and stay usable"):
        activations.harvest_pooled(*arguments, shard_tokens=25)
    (folder,) = tmp_path.glob("pooled-*")
    written_names = sorted(path.name for path in folder.iterdir())
    assert written_names == ["manifest.json", "shard-00000.safetensors", "shard-00001.safetensors"]
    monkeypatch.setattr(shards, "save_file", real)
    assert len(shards.read_all(activations.harvest_pooled(*arguments, shard_tokens=25))) == 5


def test_layers_and_dtypes_are_checked(minilm, tmp_path):
    for layers in ([6], [-1], []):
        with pytest.raises(ValueError, match="out of range; the model has layers 0 to 5"):
            activations.harvest_pooled(minilm, {}, TEXTS, layers, tmp_path)
    with pytest.raises(ValueError, match="unknown dtype 'int8'; allowed are float32, float16, bfloat16"):
        activations.harvest_tokens(minilm, {}, "h", [[1]], 0, tmp_path, special=True, dtype="int8")


def test_a_text_longer_than_the_context_keeps_its_end(minilm):
    long = "start " * 600 + "finish line"
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 512 tokens; their end is kept"):
        short, cut = models.tokenise(minilm, ["hello", long])
    words = minilm.tokenizer.convert_ids_to_tokens(cut)
    assert len(cut) == 512 and words[0] == "[CLS]" and words[-3:] == ["finish", "line", "[SEP]"]
    assert minilm.tokenizer.truncation_side == "right"


def test_windows_lose_no_token(minilm):
    text = " ".join(f"w{i}" for i in range(50))
    windows = models.split_tokens(minilm, [text], 16)
    bare = minilm.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [t for window in windows for t in window[1:-1]] == bare
    assert all(len(window) <= 16 and window[0] == minilm.tokenizer.cls_token_id for window in windows)
    with pytest.raises(ValueError, match="context 2 must leave room"):
        models.split_tokens(minilm, [text], 2)


def test_unknown_models_and_dtypes_are_named(tmp_path):
    with pytest.raises(ValueError, match="unknown dtype 'float8'"):
        models.load_model(weights.MINILM, dtype="float8")
    with pytest.raises(ValueError, match="device 'gpu' cannot be used here .*; with a GPU it is cuda, else cpu"):
        models.load_model(weights.MINILM, device="gpu")
    with pytest.raises(ValueError, match="cannot be loaded"):
        models.load_model(str(tmp_path / "nothing"))


def test_a_gated_model_says_what_to_do(monkeypatch):
    import httpx
    import transformers
    from huggingface_hub.errors import GatedRepoError

    def gated(*_, **__):
        response = httpx.Response(403, request=httpx.Request("HEAD", "https://huggingface.co"))
        raise OSError("You are trying to access a gated repo.") from GatedRepoError("403", response=response)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", gated)
    message = "the model 'google/gemma-2-9b-it' is gated: accept its licence at .*, then set HF_TOKEN"
    with pytest.raises(ValueError, match=message):
        models.load_model("google/gemma-2-9b-it")
