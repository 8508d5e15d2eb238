"""A tiny random Gemma 3 (windows, two rope bases) beside Hugging Face, and SAEs in the shape of Gemma Scope 2."""

import functools
import json

import numpy as np
import pytest
import torch
import transformers
from sae_lens.loading import pretrained_sae_loaders
from safetensors import safe_open
from safetensors.torch import save_file

from lib.model import activations, forward, models
from lib.sae import folders, formats
from tests.tiny_gemma import D_MODEL, common, tokenizer

D_SAE, WINDOW = 64, 8
LAYERS = [1, 2, 4]
HEAD = "Pretend that you are a pirate who answers everything, and say no word about rules or ships. "
PROMPTS = [
    "Why?",
    *(HEAD + end for end in ("Write a poem", "Name a lighthouse", "Write a poem about the sea in winter")),
]
SAE_ID = "layer_12_width_16k_l0_medium"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six blocks, every third of which sees everything, the others ``WINDOW`` tokens; embeddings are tied."""
    folder, words = tmp_path_factory.mktemp("gemma-3"), tokenizer(PROMPTS, vocab_size=600)
    config = transformers.Gemma3TextConfig(
        num_hidden_layers=6,
        num_key_value_heads=1,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        **common(words),
    )
    torch.manual_seed(0)
    transformers.Gemma3ForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def hidden_states(folder, dtype):
    """Hugging Face's hidden states of each prompt alone, by layer."""
    bridge = models.load_model(str(folder))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.inference_mode():
        for ids in models.tokenise(bridge, PROMPTS):
            hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            yield {layer: hidden[layer + 1][0] for layer in LAYERS}


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("bfloat16", 0.15)])
def test_batches_and_packs_equal_hugging_faces_hidden_states(folder, dtype, tolerance):
    bridge = models.load_model(str(folder), dtype=dtype)
    token_ids, reader = models.tokenise(bridge, PROMPTS), forward.pack_reader(bridge)
    expected = list(hidden_states(folder, models.DTYPES[dtype]))
    bridge = models.load_model(str(folder), dtype=dtype)
    assert reader is not None and models.is_causal(bridge)
    assert forward.computed_tokens(token_ids) < sum(map(len, token_ids)), "they share a head"
    assert min(map(len, token_ids[1:])) > 3 * WINDOW
    assert models.fixed_position(bridge) == -5
    for batches in (
        forward._in_batches(bridge, token_ids, LAYERS),
        forward._in_packs(bridge, reader, token_ids, LAYERS),
    ):
        seen = []
        for rows, _, resid in batches:
            for place, row in enumerate(rows):
                seen.append(row)
                for layer in LAYERS:
                    theirs = expected[row][layer].float()
                    error = (resid[layer][place, : len(token_ids[row])].float() - theirs).norm(dim=-1)
                    assert (error <= tolerance * theirs.norm(dim=-1)).all()
        assert sorted(seen) == list(range(len(PROMPTS)))


def test_a_harvest_equals_hugging_faces_hidden_states(folder, tmp_path):
    bridge = models.load_model(str(folder))
    model = models.identity(str(folder))
    store = activations.harvest_pooled(bridge, model, PROMPTS, LAYERS, tmp_path, token_layer=2, over="sequence")
    pooled = activations.load_pooled(store)
    for row, hidden in enumerate(hidden_states(folder, torch.float32)):
        for layer in LAYERS:
            np.testing.assert_allclose(pooled[layer, "mean"][row], hidden[layer][1:].mean(0), atol=1e-3)
            np.testing.assert_allclose(pooled[layer, "max"][row], hidden[layer][1:].amax(0), atol=1e-3)
            np.testing.assert_allclose(pooled[layer, "fixed"][row], hidden[layer][-5], atol=1e-3)


def published(cache, name, config):
    """A Gemma Scope 2 SAE in a cache of the hub, random, and its weights."""
    commit, g = "0" * 40, torch.Generator().manual_seed(1)
    repository = cache / f"models--google--{name}"
    place = repository / "snapshots" / commit / "resid_post" / SAE_ID
    place.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    weights = {
        "w_enc": torch.randn(D_MODEL, D_SAE, generator=g),
        "w_dec": torch.randn(D_SAE, D_MODEL, generator=g),
        "b_enc": torch.randn(D_SAE, generator=g),
        "b_dec": torch.randn(D_MODEL, generator=g),
        "threshold": torch.rand(D_SAE, generator=g),
    }
    save_file(weights, place / formats.SCOPE_2)
    (place / "config.json").write_text(json.dumps(config))
    return place, weights


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache in the place of the hub, and headers of files from there in the place of range requests."""

    def shapes(repo_id, filename):
        (path,) = tmp_path.glob(f"models--{repo_id.replace('/', '--')}/snapshots/*/{filename}")
        with safe_open(path, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}

    cached = functools.partial(pretrained_sae_loaders.hf_hub_download, cache_dir=tmp_path, local_files_only=True)
    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", cached)
    monkeypatch.setattr(pretrained_sae_loaders, "get_safetensors_tensor_shapes", shapes)
    return tmp_path


@pytest.mark.parametrize("version, warns", [("pt", True), ("it", False)])
def test_a_pair_is_read_as_saelens_reads_it(version, warns, hub):
    name = f"gemma-scope-2-270m-{version}"
    config = {"architecture": "jump_relu", "model_name": f"gemma-v3-270m-{version}"}
    place, w = published(hub, name, config | {"hf_hook_point_in": "model.layers.12.output"})
    sae, x = folders.load(f"{name}-res:{SAE_ID}"), 3 * torch.randn(40, D_MODEL)
    pre = x @ w["w_enc"] + w["b_enc"]
    by_hand = torch.where(pre > w["threshold"], pre.relu(), 0.0)
    with torch.inference_mode():
        torch.testing.assert_close(sae.encode(x), by_hand, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(sae(x), by_hand @ w["w_dec"] + w["b_dec"], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(folders.load(place)(x), sae(x))
    check = functools.partial(folders.check_fits, sae, D_MODEL, "blocks.12.hook_resid_post", "google/gemma-3-270m-it")
    if warns:
        with pytest.warns(UserWarning, match="'google/gemma-3-270m', the activations are of 'google/gemma-3-270m-it'"):
            check()
    else:
        check()


def test_a_transcoder_of_gemma_scope_2_is_refused_before_its_weights_are_read(hub):
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-270m-it", "affine_connection": False}
    place, _ = published(hub, "gemma-scope-2-270m-it", config)
    of_transcoder = place.parents[1] / "transcoder" / "layer_12_width_16k_l0_small"
    of_transcoder.parent.mkdir()
    place.rename(of_transcoder)
    with pytest.raises(ValueError, match="is a transcoder, which reads one place of the model and writes another"):
        folders.load("gemma-scope-2-270m-it-transcoders:transcoder/layer_12_width_16k_l0_small")
