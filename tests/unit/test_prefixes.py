"""Prompts read in packs, which compute each shared prefix once, give what padded batches give."""

import gc
import weakref

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from lib.model import activations, forward, models, prefill, prefixes, shards
from lib.model.unwrapped import Unwrapped

WORDS = [f"w{i}" for i in range(60)]
MODEL = {"model": "m"}
HEAD = " ".join(WORDS[:20])
OTHER = " ".join(WORDS[30:42])
TEXTS = [f"{head} w{i} {tail}" for i in range(40, 52) for head in (HEAD, OTHER) for tail in ("w5 w6", "w7")]
LAYERS = [0, 2]


def causal(folder, config, **options):
    """A small random causal model of the class of ``config``, whose words are ``WORDS``."""
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(["<pad>", "<eos>", *WORDS])}, unk_token="<eos>"))
    tokenizer.pre_tokenizer = Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    options = {"vocab_size": len(WORDS) + 2, "initializer_range": 0.2} | options
    transformers.AutoModelForCausalLM.from_config(config(**options)).save_pretrained(folder)
    return models.load_model(str(folder))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return causal(
        tmp_path_factory.mktemp("llama"),
        transformers.LlamaConfig,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )


def in_order(token_ids, batches):
    """Each prompt's own tokens by layer, and whether each counts, in the order of ``token_ids``."""
    values = {}
    for rows, mask, resid in batches:
        for place, row in enumerate(rows):
            n_tokens = len(token_ids[row])
            assert row not in values and not mask[place, n_tokens:].any()
            values[row] = mask[place, :n_tokens], {layer: resid[layer][place, :n_tokens] for layer in resid}
    return [values[row] for row in range(len(token_ids))]


def check(bridge, token_ids, atol=1e-4, layers=LAYERS):
    """Packs give every token's residual stream as batches do, relative to its standard deviation."""
    reader = forward.pack_reader(bridge)
    packed = in_order(token_ids, forward._in_packs(bridge, reader, token_ids, layers))
    plain = in_order(token_ids, forward._in_batches(bridge, token_ids, layers))
    for (mask, resid), (plain_mask, plain_resid) in zip(packed, plain, strict=True):
        assert torch.equal(mask, plain_mask)
        for layer in layers:
            scale = plain_resid[layer].std()
            torch.testing.assert_close(resid[layer] / scale, plain_resid[layer] / scale, atol=atol, rtol=0)


def test_what_is_computed_by_hand():
    token_ids = [[1, 2, 3, 4], [1, 2, 5], [1, 2], [1, 2, 5], [7]]
    order = prefixes.lexicographic(token_ids)
    assert order == [2, 0, 1, 3, 4]
    pack = prefixes.next_pack(token_ids, order, 100)
    assert pack == [(2, 0), (0, 2), (1, 2), (3, 3), (4, 0)]
    assert prefixes.computed_tokens(token_ids, 100) == 6
    assert prefixes.next_pack(token_ids, order, 4) == pack[:2]
    assert prefixes.next_pack(token_ids, [0, 4], 1) == [(0, 0)], "a prompt beyond the budget is a pack of its own"
    assert prefixes.computed_tokens(token_ids, 4) == 4 + 3 + 1, "a new pack begins with a whole prompt"
    assert forward.computed_tokens(token_ids) == 6 and forward.computed_tokens([[1, 2], [3, 4]]) == 4
    assert activations.computed_tokens(token_ids, shard_tokens=4) == 1 + 2 + 3 + 3 + 4
    packed = prefixes.Pack(token_ids, pack, "cpu")
    assert packed.ids.tolist() == [[1, 2, 3, 4, 5, 7]] and packed.position.tolist() == [[0, 1, 2, 3, 2, 0]]
    assert [path.tolist() for path in packed.paths] == [[0, 1], [0, 1, 2, 3], [0, 1, 4], [0, 1, 4], [5]]


tokens = st.lists(st.integers(2, 6), max_size=12)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(tokens, min_size=1, max_size=3), st.lists(tokens, min_size=1, max_size=4), st.integers(8, 60))
def test_packs_equal_batches_for_any_templates(llama, heads, rests, budget):
    """Prompts that repeat or begin each other, with one token behind the shared ones, and alone, are among these."""
    token_ids = [[1, *head, *rest] for head in heads for rest in rests]
    before, forward.PACK_TOKENS = forward.PACK_TOKENS, budget
    try:
        check(llama, token_ids)
    finally:
        forward.PACK_TOKENS = before


@pytest.mark.parametrize(
    "token_ids",
    [[[5]], [[5, 6, 7]], [[5, 6, 7]] * 3, [[5], [5, 6], [5, 6, 7], [5, 6]], [[3, 4, i] for i in range(5, 50)]],
    ids=["one token", "alone", "identical", "prefixes of each other", "one new token"],
)
def test_packs_equal_batches(llama, token_ids):
    check(llama, token_ids)


def test_markers_in_texts_do_not_part_what_is_shared(gemma):
    """A text that spells the template's control tokens has other tokens than one that the template ends."""
    token_ids = models.tokenise(gemma, ["x", "x<end_of_turn>\n<start_of_turn>model\n", "x<end_of_turn>", "xy"] * 2)
    assert token_ids[0] != token_ids[1][: len(token_ids[0])]
    check(gemma, token_ids, layers=[0, 1])


def test_a_window_shorter_than_the_prefix(gemma):
    trunk = torch.randint(10, 200, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    assert gemma.original_model.config.sliding_window == 64
    check(gemma, [[2, *trunk, *rest] for rest in ([], [5], [5, 6, 7], trunk[:70], trunk[30:])], layers=[0, 1, 2])


@pytest.mark.parametrize("config", ["GPT2Config", "GPTNeoXConfig", "Qwen3Config", "MistralConfig", "Gemma3TextConfig"])
def test_other_families(tmp_path, config):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    if config == "GPT2Config":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4}
    if config in ("Qwen3Config", "MistralConfig", "Gemma3TextConfig"):
        sizes |= {"num_key_value_heads": 2, "head_dim": 8}
    if config in ("MistralConfig", "Gemma3TextConfig"):
        sizes |= {"sliding_window": 6}
    bridge = causal(tmp_path, getattr(transformers, config), **sizes)
    assert forward.pack_reader(bridge) is not None
    check(bridge, [[2, 3, 4, 5, 6, 7, 8, 9, 10, *rest] for rest in ([], [5], [6, 7], [11] * 9)], layers=[0, 1])


def stores(bridge, folder, **options):
    """The shards of a pooled store and of one of every token, made together."""
    pooled = activations.harvest_pooled(bridge, MODEL, TEXTS, LAYERS, folder, token_layer=1, **options)
    (per_token,) = folder.glob("tokens-*")
    return [pooled, per_token]


def test_stores_are_the_same_on_both_paths(llama, tmp_path, monkeypatch):
    packed = stores(llama, tmp_path / "packs", shard_tokens=300)
    monkeypatch.setattr(forward, "pack_reader", lambda bridge: None)
    plain = stores(llama, tmp_path / "batches", shard_tokens=300)
    assert [folder.name for folder in packed] == [folder.name for folder in plain]
    for ours, theirs in zip(packed, plain, strict=True):
        for shard, plain_shard in zip(shards.read_all(ours), shards.read_all(theirs), strict=True):
            assert shard.keys() == plain_shard.keys()
            for name, tensor in plain_shard.items():
                torch.testing.assert_close(shard[name], tensor, atol=2e-3 if "activations" in name else 1e-4, rtol=1e-3)


def test_an_interrupted_harvest_goes_on_to_the_same_bytes(llama, tmp_path, monkeypatch):
    whole = stores(llama, tmp_path / "whole", shard_tokens=200)
    real, calls = prefixes.PackReader.resid_post, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(prefixes.PackReader, "resid_post", dies)
    with pytest.raises(KeyboardInterrupt):
        stores(llama, tmp_path / "cut", shard_tokens=200)
    cut = stores(llama, tmp_path / "cut", shard_tokens=200)
    n_shards = len(shards.read_all(cut[0]))
    assert n_shards > 3 and len(calls) == n_shards + 1, "a pack per shard, one of them twice"
    for ours, theirs in zip(cut, whole, strict=True):
        assert shards.read_manifest(ours)["shards"] == shards.read_manifest(theirs)["shards"]


def test_packs_shrink_when_memory_does_not_suffice(llama, monkeypatch):
    token_ids = models.tokenise(llama, TEXTS)
    expected = in_order(token_ids, forward.run(llama, token_ids, LAYERS))
    real, sizes = prefixes.PackReader.resid_post, []

    def small(reader, pack, layers):
        sizes.append(pack.ids.shape[1])
        if sizes[-1] > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(reader, pack, layers)

    monkeypatch.setattr(prefixes.PackReader, "resid_post", small)
    halved = in_order(token_ids, forward.run(llama, token_ids, LAYERS))
    assert sizes[0] > 120 and sum(size > 60 for size in sizes) <= 3, "each failure halves what comes after it"
    for (_, resid), (_, plain) in zip(halved, expected, strict=True):
        for layer in LAYERS:
            np.testing.assert_allclose(resid[layer], plain[layer], atol=1e-5)

    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(prefixes.PackReader, "resid_post", never)
    with pytest.raises(ValueError, match="the memory of cpu does not suffice for one text of 23 tokens; take dtype"):
        list(forward.run(llama, token_ids, LAYERS))


def read_by(monkeypatch, bridge, token_ids):
    """Which of the two paths :func:`forward.run` takes."""
    taken = []
    for name in ("_in_packs", "_in_batches"):
        monkeypatch.setattr(forward, name, lambda *_, name=name: taken.append(name) or iter([]))
    list(forward.run(bridge, token_ids, [0]))
    return taken[0]


def test_encoders_and_texts_that_share_little_take_the_plain_path(llama, minilm, monkeypatch):
    alike = models.tokenise(minilm, TEXTS)
    assert read_by(monkeypatch, minilm, alike) == "_in_batches" and forward.pack_reader(minilm) is None
    assert read_by(monkeypatch, llama, models.tokenise(llama, TEXTS)) == "_in_packs"
    assert read_by(monkeypatch, llama, [[1, *range(i, i + 9)] for i in range(2, 40)]) == "_in_batches"


def test_a_model_whose_packs_differ_takes_the_plain_path(llama, monkeypatch):
    token_ids = models.tokenise(llama, TEXTS)
    real = prefixes.Pack.attend
    for wrong in (lambda *a, **k: 1.1 * real(*a, **k), lambda *a, **k: 1 / 0):
        monkeypatch.setattr(forward, "READERS", {})
        monkeypatch.setattr(prefixes.Pack, "attend", wrong)
        assert forward.pack_reader(llama) is None
    assert len(in_order(token_ids, forward.run(llama, token_ids, LAYERS))) == len(TEXTS)
    monkeypatch.setattr(llama.original_model.config, "layer_types", ["chunked_attention"] * 3, raising=False)
    with pytest.raises(ValueError, match="'chunked_attention'"):
        prefixes.PackReader(llama)


def test_the_unwrapped_model_shares_weights_and_leaves_the_bridge_alone(llama):
    unwrapped = Unwrapped(llama, prefixes.ATTENTION)
    weights = {parameter.data_ptr() for parameter in llama.original_model.parameters()}
    assert {parameter.data_ptr() for parameter in unwrapped.model.parameters()} == weights
    assert not any(type(module).__name__.endswith("Bridge") for module in unwrapped.model.modules())
    assert unwrapped.model.config._attn_implementation == prefixes.ATTENTION
    assert llama.original_model.config._attn_implementation != prefixes.ATTENTION


def test_a_model_that_nobody_needs_any_more_is_freed(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    bridge = causal(tmp_path, transformers.LlamaConfig, **sizes)
    token_ids = models.tokenise(bridge, TEXTS)
    list(forward.run(bridge, token_ids, [0]))
    forward.plain_model(bridge)
    weights = weakref.ref(bridge.original_model.get_input_embeddings().weight)
    models.load_model.cache_clear()
    del bridge
    gc.collect()
    assert weights() is None


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_what_is_generated_behind_a_shared_prefix_is_what_is_generated_without_one(family, request):
    """Of both the same logits at every step, up to rounding; so not only the tokens that a random model likes most."""
    bridge = request.getfixturevalue(family)
    trunk, n_words = list(range(5, 45)) * 2, min(50, bridge.cfg.d_vocab - 10)
    rests = [[7, 9, 11], [7, 9, 12, 13, 14], [3], [8] * 20]
    token_ids = [trunk + rest for rest in rests] + [trunk[:20] + [n_words - i] for i in range(3)]
    cache = prefill.cache(bridge, token_ids)
    assert cache is not None and cache.get_seq_length() == max(map(len, token_ids)) - 1
    model, (ids, mask) = forward.plain_model(bridge), forward.padded(token_ids, 0, left=True)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    options |= {"output_logits": True, "return_dict_in_generate": True, "input_ids": ids, "attention_mask": mask}
    plain, cached = model.generate(**options), model.generate(**options, past_key_values=cache)
    assert torch.equal(plain.sequences, cached.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(plain.logits), atol=1e-4, rtol=1e-3)


def test_prompts_that_share_little_or_are_one_token_have_no_cache(llama, minilm):
    assert prefill.cache(llama, [[1, 2, 3], [4, 5, 6]]) is None
    assert prefill.cache(llama, [[9], *([5] * 30 + [i] for i in range(9))]) is None
