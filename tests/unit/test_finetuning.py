import dataclasses
import json

import numpy as np
import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from test_training import D_MODEL, D_SAE, RECIPE, activations, store

from lib.base.files import DATA
from lib.model import shards, weights
from lib.sae import finetuning, folders, training
from lib.sae.architectures import make_trainer
from lib.sae.harvest import Stores


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    train, held = store(folder / "train", 20_000, 0), store(folder / "held", 3_000, 1)
    return training.train(RECIPE, train, held, folder / "saes", progress=False), train, held, folder


def test_parameters_of_an_sae_give_the_sae_back(base):
    sae, x = folders.load(base[0]), activations(50, 9)
    mean, scale = torch.full((D_MODEL,), 0.4), 2.5
    p = folders.to_parameters(sae, mean, scale)
    torch.testing.assert_close(folders.from_parameters(p, mean, scale, {})(x), sae(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_any_jumprelu_sae_becomes_parameters_with_unit_rows(apply_b_dec):
    g = torch.Generator().manual_seed(0)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=6, d_sae=9, apply_b_dec_to_input=apply_b_dec))
    for parameter in sae.parameters():
        parameter.data = torch.randn(parameter.shape, generator=g)
    sae.threshold.data.abs_()
    p = folders.to_parameters(sae, torch.ones(6), 3.0)
    torch.testing.assert_close(p.dec.norm(dim=1), torch.ones(9))
    x = torch.randn(40, 6, generator=g)
    torch.testing.assert_close(folders.from_parameters(p, torch.ones(6), 3.0, {})(x), sae(x), atol=1e-5, rtol=1e-4)


def test_finetuning_adapts_to_the_new_data_and_keeps_the_rest(base, tmp_path):
    start, train, held, _ = base
    chat, chat_held = store(tmp_path / "chat", 20_000, 2), store(tmp_path / "chat-held", 3_000, 3)
    for folder in (chat, chat_held):  # another mean: the base SAE reconstructs it badly
        for path in folder.glob("*.safetensors"):
            path.unlink()
        (folder / "manifest.json").unlink()
    shifted = torch.linspace(-1, 1, D_MODEL)
    about = {"model": "m", "revision": "r", "hook_name": "blocks.1.hook_resid_post", "shifted": True}
    for folder, n, seed in ((chat, 20_000, 2), (chat_held, 3_000, 3)):
        x = activations(n, seed) + shifted
        shards.build(folder, about | {"n": n, "seed": seed}, 1, lambda i, x=x: {"activations": x}, "shard")
    recipe = dataclasses.replace(RECIPE, tokens=12_000, lr=5e-3)
    other = dataclasses.replace(RECIPE, seed=1)
    other = training.train(other, train, held, tmp_path / "saes", progress=False)
    starts = {finetuning.BASE: {0: start, 1: other}, finetuning.IT_FORMATTED: {0: start}}
    ways = finetuning.variants(starts, {"tokens": 4_000}, [0.5], [2])
    tokens = finetuning.Tokens(Stores(chat, chat_held, None), Stores(train, held, None), train)
    table = finetuning.train_variants(ways, recipe, tokens, tmp_path / "saes", progress=False)
    names = ["finetuned from pretraining SAE", finetuning.PLACEBO, "finetuned from IT-formatted SAE"]
    assert table["variant"].unique().tolist() == [*names, "resampled 50%", "prompts ×2", "from scratch"]
    by_way = table.groupby("variant", sort=False)
    assert by_way["seed"].agg(list).map(len).tolist() == [2, 2, 1, 2, 2, 2]
    bases = finetuning.untrained(starts)
    began = bases[bases["variant"] == finetuning.BASE].set_index("seed")["folder"]
    for name in (*names[:2], "resampled 50%", "prompts ×2"):
        assert by_way.get_group(name).set_index("seed")["start"].equals(began.rename("start")), "each from its own base"
    assert by_way.get_group("from scratch")["start"].isna().all() and table["lr"].eq(5e-3).all()
    measured = finetuning.measure(table, {"chat": chat_held})
    mean = measured[measured["seed"] == 0].set_index(["variant", "metric"])["value"]
    before = folders.evaluate(folders.load(start), activations(3_000, 3) + shifted)["fvu"]
    assert mean[names[0], "fvu"] < 0.75 * before
    assert mean[finetuning.PLACEBO, "fvu"] > mean[names[0], "fvu"], "the placebo saw no chat"
    assert mean["resampled 50%", "moved"] >= 0.45 > mean[names[0], "moved"]
    assert ("from scratch", "cosine") not in mean
    summary = finetuning.over_seeds(measured).set_index(["variant", "metric"])
    low, value, high = summary.loc[("resampled 50%", "fvu"), ["low", "value", "high"]]
    assert low < value < high and np.isnan(summary.loc[(names[2], "fvu"), "low"]), "one SAE has no interval"


BASES = {2: "b2", 0: "b0", 1: "b1"}


@pytest.mark.parametrize(("other_bases", "first"), [(1, [0]), (2, [0, 1]), (0, [0, 1, 2]), (7, [0, 1, 2])])
def test_chat_and_placebo_begin_at_every_base_and_other_ways_at_the_first(other_bases, first):
    starts = {finetuning.BASE: BASES, finetuning.IT_FORMATTED: {0: "prompts"}}
    ways = finetuning.variants(starts, {"tokens": 9}, [0.25], [1, 4], other_bases)
    for name in (f"finetuned from {finetuning.BASE}", finetuning.PLACEBO):
        assert ways.pop(name).starts == BASES
    assert ways.pop(f"finetuned from {finetuning.IT_FORMATTED}").starts == {0: "prompts"}
    assert ways.pop("from scratch").starts == dict.fromkeys(first)
    assert list(ways) == ["resampled 25%", "prompts ×1", "prompts ×4"]
    assert all(way.starts == {seed: f"b{seed}" for seed in first} for way in ways.values())


def test_a_negative_number_of_base_saes_is_refused():
    with pytest.raises(ValueError, match="^other_bases is -1; it must be a number of base SAEs, or 0 for all of them$"):
        finetuning.variants({finetuning.BASE: BASES}, {}, [], [], -1)


def test_base_saes_are_trained_where_none_is_given(base, tmp_path):
    _, train, held, _ = base
    recipe = dataclasses.replace(RECIPE, tokens=4_000, stop_tokens=2_000)
    starts = finetuning.train_bases(recipe, [5, 2], Stores(train, held, None), tmp_path, progress=False)
    assert {kind: list(by_seed) for kind, by_seed in starts.items()} == {
        "pretraining SAE": [2, 5],
        "earlier checkpoint": [2, 5],
    }
    seen = {kind: folders.training_record(by_seed[5])["curve"][-1]["tokens"] for kind, by_seed in starts.items()}
    assert seen == {"pretraining SAE": 4_000, "earlier checkpoint": 2_000}
    assert folders.training_record(starts["pretraining SAE"][2])["recipe"]["seed"] == 2
    fewer = finetuning.train_bases(
        recipe, [5, 2], Stores(train, held, None), tmp_path, other_bases=1, progress=False
    )
    assert fewer == starts | {"earlier checkpoint": {2: starts["earlier checkpoint"][2]}}
    given = finetuning.shipped(["a", "b"], "")
    assert (
        list(given) == [finetuning.BASE] and list(given[finetuning.BASE]) == [0, 1] and not finetuning.shipped([], "")
    )


def test_resampling_replaces_the_latents_that_fire_least(base):
    start = folders.load(base[0])
    recipe = dataclasses.replace(RECIPE, resample=0.25)
    x = activations(4_000, 5)
    before, after = (make_trainer(dataclasses.replace(recipe, resample=share), x, start) for share in (0.0, 0.25))
    changed = (before.p.dec != after.p.dec).any(1)
    count = (start.encode(x) > 0).sum(0)
    assert changed.sum() == D_SAE // 4 and count[changed].max() <= count[~changed].min()
    torch.testing.assert_close(after.p.enc[changed], after.p.dec[changed])


def test_an_earlier_checkpoint_is_the_same_schedule_ended_early(base, tmp_path):
    _, train, held, _ = base
    recipe = dataclasses.replace(RECIPE, tokens=10_000, stop_tokens=4_000)
    record = folders.training_record(training.train(recipe, train, held, tmp_path, progress=False))
    assert record["curve"][-1]["tokens"] == 4_000
    to_the_end = dataclasses.replace(recipe, stop_tokens=0)
    whole = folders.training_record(training.train(to_the_end, train, held, tmp_path, progress=False))
    assert whole["curve"][: len(record["curve"])] == record["curve"] and whole["curve"][-1]["tokens"] == 10_000


def test_a_start_that_does_not_fit_is_named(base, tmp_path):
    start, train, held, folder = base
    with pytest.raises(ValueError, match=f"d_sae {D_SAE}, the recipe 20"):
        training.train(dataclasses.replace(RECIPE, d_sae=20), train, held, tmp_path, start, progress=False)
    with pytest.raises(ValueError, match="finetuning is for jumprelu, the recipe says 'topk'"):
        training.train(dataclasses.replace(RECIPE, architecture="topk"), train, held, tmp_path, start, progress=False)
    elsewhere = [store(folder / f"other{i}", 3_000, i, "blocks.2.hook_resid_post") for i in (7, 8)]
    with pytest.raises(ValueError, match="hook_name 'blocks.1.hook_resid_post', the activations are of 'blocks.2"):
        training.train(RECIPE, *elsewhere, tmp_path, start, progress=False)
    with pytest.raises(ValueError, match="hook_name"):
        training.train(RECIPE, [train, elsewhere[0]], held, tmp_path, progress=False)
    short = dataclasses.replace(RECIPE, architecture="topk", tokens=1_000)
    topk = training.train(short, train, held, tmp_path, progress=False)
    with pytest.raises(ValueError, match="only a jumprelu SAE on .* and this one is 'topk' with normalize_activations"):
        training.train(RECIPE, train, held, tmp_path, topk, progress=False)


SHIPPED = sorted((DATA / "pretrained").glob("*-layer-*"))


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_the_shipped_saes_load_here_and_in_saelens(folder):
    record, sae = folders.training_record(folder), folders.load(folder)
    assert record["held_out"]["fvu"] < 0.25 and abs(record["held_out"]["l0"] / record["recipe"]["target_l0"] - 1) < 0.1
    assert record["held_out"]["dead"] <= 0.1
    rows = np.random.default_rng(0).standard_normal((20, sae.cfg.d_in))
    x = torch.from_numpy(rows.astype(np.float32))
    torch.testing.assert_close(SAE.load_from_disk(folder, dtype="float32")(x), sae(x))
    configuration = json.loads((folder / "cfg.json").read_text())
    assert configuration["device"] == "cpu", "a folder that was made on a GPU loads without one"


def test_what_is_shipped_is_small():
    of_model = {weights.SMOLLM2: 60e6, weights.MINILM: 12e6}
    for model, most in of_model.items():
        places = [folder for folder in SHIPPED if folder.name.startswith(model)]
        assert 0 < sum(path.stat().st_size for folder in places for path in folder.iterdir()) < most
