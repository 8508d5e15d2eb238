"""Attention sinks: left out of SAE training and its measurement, counted, and kept where an SAE is spliced in."""

import dataclasses
import warnings

import pytest
import torch
import transformers

from lib.model import forward, models, shards
from lib.sae import folders, harvest, splice, training
from lib.sae.recipes import Recipe, scaling
from lib.sae.token_blocks import load_tokens, sink_limit, without_sinks
from tests import tiny_gguf

D_MODEL = 16
RECIPE = Recipe(d_sae=48, target_l0=3, tokens=60_000, batch_tokens=500, lr=2e-3)


def plain(n, seed):
    """Sparse combinations of planted directions, with an offset."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(24, D_MODEL, generator=torch.Generator().manual_seed(9)), dim=1)
    on = torch.rand(n, 24, generator=g) < 0.08
    return 5 + 3 * ((on * (1 + torch.rand(n, 24, generator=g))) @ rows)


def with_sinks(x, every=1000):
    """Every so many tokens one of a hundred times the norm, in one direction."""
    x = x.clone()
    x[::every] = 100 * x.norm(dim=1).median() * torch.eye(D_MODEL)[3]
    return x


def store(folder, x):
    about = {"model": "m", "revision": "r", "hook_name": "blocks.1.hook_resid_post", "n": len(x)}
    return shards.build(folder, about, 2, lambda i: {"activations": x[i::2].half()}, "shard")


def test_a_sink_is_told_by_its_norm():
    x = plain(2000, 0)
    assert len(without_sinks(x, sink_limit(x))) == 2000
    sunk = with_sinks(x)
    kept = without_sinks(sunk, sink_limit(sunk))
    assert len(kept) == 1998 and kept.norm(dim=1).max() < sink_limit(x)
    large = torch.full((3, 2), 6e4).half()  # its squares are beyond float16
    assert sink_limit(large) == pytest.approx(3 * 2**0.5 * 6e4, rel=1e-3)


def test_the_scale_is_that_of_typical_tokens():
    x = plain(5000, 0)
    _, scale = scaling(x)
    _, with_outliers = scaling(torch.cat([x, x[:20] * 9]))
    assert with_outliers == pytest.approx(scale, rel=0.05)
    assert scale == pytest.approx((x - x.mean(0)).square().mean().sqrt().item(), rel=0.05)


@pytest.mark.parametrize("architecture", ["jumprelu", "topk"])
def test_an_sae_is_trained_and_measured_without_sinks(tmp_path, architecture):
    recipe = dataclasses.replace(RECIPE, architecture=architecture)
    x, held = plain(20_000, 0), plain(3000, 1)
    without = training.train(recipe, store(tmp_path / "a", x), store(tmp_path / "b", held), tmp_path, progress=False)
    places = store(tmp_path / "c", with_sinks(x)), store(tmp_path / "d", with_sinks(held))
    assert len(load_tokens(places[1])) == 2997
    record = folders.training_record(training.train(recipe, *places, tmp_path / "saes", progress=False))
    assert record["sinks"] == 3 * 20  # three epochs of twenty
    fvu = folders.training_record(without)["held_out"]["fvu"]
    assert record["held_out"]["fvu"] == pytest.approx(fvu, abs=0.05) and fvu < 0.4


def test_a_training_that_is_worse_than_none_stops_with_one_sentence(tmp_path):
    places = store(tmp_path / "a", plain(4000, 0)), store(tmp_path / "b", plain(1000, 1))
    wild = dataclasses.replace(RECIPE, architecture="topk", lr=3.0)
    with pytest.raises(ValueError, match="the topk SAE with d_sae 48, lr 3.0 and 60000 tokens .*; lower lr") as error:
        training.train(wild, *places, tmp_path / "saes", progress=False)
    assert "\n" not in str(error.value) and not list((tmp_path / "saes").glob("[!.]*"))


def test_what_a_training_may_not_end_with():
    good = {"fvu": 0.3, "dead": 0.1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training.check_trained(RECIPE, good)
    for bad, sentence in (
        ({"fvu": 1.2}, "a held-out FVU of 1.2, and may have 1.0 at most; lower lr, or give it more tokens"),
        ({"fvu": float("nan")}, "a held-out FVU of nan"),
        ({"dead": 0.6}, "lost 60% of its latents, and may lose 50% at most; lower lr or d_sae"),
    ):
        with pytest.raises(ValueError, match=sentence):
            training.check_trained(RECIPE, good | bad)
        short = dataclasses.replace(RECIPE, tokens=training.LEAST_STEPS * 500 - 1)
        with pytest.warns(UserWarning, match=sentence):
            training.check_trained(short, good | bad)


def test_a_diverging_training_stops_where_it_diverges(tmp_path, monkeypatch):
    places = store(tmp_path / "a", plain(4000, 0)), store(tmp_path / "b", plain(1000, 1))

    class Diverging:
        def __init__(self, *_):
            self.steps = 0

        def step(self, x, lr_factor):
            self.steps += 1
            return {"fvu": float("nan") if self.steps == 7 else 0.5, "l0": 3.0, "dead": 0, "high_frequency": 0}

        finish = export = state = load_state = step

    monkeypatch.setattr(training, "make_trainer", Diverging)
    with pytest.raises(ValueError, match="the jumprelu SAE diverged in step 7 of 120; lower lr 0.002"):
        training.train(RECIPE, *places, tmp_path / "saes", progress=False)


@pytest.fixture(params=["llama", "gemma"])
def planted(request, tmp_path, tiny_gemma):
    """A random causal model in which one ordinary token, the letter q, has a hundred times the norm of the others."""
    if request.param == "llama":
        path = str(tiny_gguf.write(tmp_path / "sunk.gguf", tiny_gguf.model()))
        folder = tmp_path / "llama"
    else:
        path, folder = str(tiny_gemma), tmp_path / "gemma"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(path) if request.param == "gemma" else tiny_gguf.model()
    tokenizer = models.load_model(path).tokenizer
    tokenizer.save_pretrained(folder)
    with torch.no_grad():
        embedding = loaded.get_input_embeddings().weight
        embedding[tokenizer.encode("q", add_special_tokens=False)[-1]] *= 200
    loaded.save_pretrained(folder)
    models.load_model.cache_clear()
    yield str(folder)
    models.load_model.cache_clear()


def test_planted_sinks_of_a_model(planted, tmp_path):
    letters = "abcdefghijklmnoprstuvwxyz"
    texts = [" ".join(letters[(7 * i + j * j) % 25] for j in range(60)) for i in range(80)]
    texts = [text[:40] + " q" + text[40:] if i % 4 == 0 else text for i, text in enumerate(texts)]
    reader = models.Reader(planted, context=64)
    tokens, held, _ = harvest.token_stores(reader, texts, 0, tmp_path, max_tokens=0, held_out_tokens=0, seed=0)
    recipe = Recipe(d_sae=128, target_l0=8, tokens=40_000, batch_tokens=400, lr=4e-3)
    folder = training.train(recipe, tokens, held, tmp_path / "saes", progress=False)
    record = folders.training_record(folder)
    assert record["sinks"] > 0 and record["held_out"]["fvu"] < 1
    bridge = models.load_model(planted)
    ids = models.split_tokens(bridge, texts[:1], 64)[0]
    resid = forward.resid_post_at(bridge, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long), [0])[0]
    norm, ordinary = resid.norm(dim=-1), ~torch.isin(torch.tensor([ids]), models.special_ids(bridge))
    is_sink = ordinary & (norm > 3 * norm[ordinary].median())
    assert is_sink.sum() == 1
    spliced = splice.Sequences(bridge, [ids], 0).losses(torch.zeros_like)
    as_they_are = (~ordinary | is_sink, ~ordinary)
    by_hand = [loss_with(bridge, ids, torch.where(kept[..., None], resid, 0)) for kept in as_they_are]
    assert spliced[0] == pytest.approx(by_hand[0], rel=1e-4) and spliced[0] != pytest.approx(by_hand[1], rel=1e-4)


@torch.inference_mode()
def loss_with(bridge, ids, resid):
    """Summed cross-entropy of the ordinary tokens of ``ids`` with ``resid`` after block 0."""
    ids = torch.tensor([ids])
    with bridge.hooks(fwd_hooks=[(models.resid_post(0), lambda tensor, hook: resid)]):
        logits = bridge.original_model(input_ids=ids).logits
    each = torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="none")
    return each[~torch.isin(ids[0, 1:], models.special_ids(bridge))].sum().item()
