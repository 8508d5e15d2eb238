import dataclasses
import json
from pathlib import Path

import pytest
import torch
from sae_lens import SAE

from lib.base import build_graph
from lib.base.files import WriteError
from lib.model import shards
from lib.sae import architectures, checkpoints, comparators, comparison, folders, training
from lib.sae.architectures import ARCHITECTURES, make_trainer
from lib.sae.harvest import Stores
from lib.sae.jumprelu import Parameters
from lib.sae.recipes import Recipe
from lib.sae.trainers import fresh, tied

D_MODEL, D_SAE = 16, 48
RECIPE = Recipe(d_sae=D_SAE, target_l0=3, tokens=60_000, batch_tokens=500, lr=2e-3)


def dictionary(seed=0):
    rows = torch.randn(D_SAE // 2, D_MODEL, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def activations(n, seed):
    """Sparse non-negative combinations of a planted dictionary, with an offset and another scale."""
    g = torch.Generator().manual_seed(seed)
    on = torch.rand(n, D_SAE // 2, generator=g) < 0.08
    return 5 + 3 * ((on * (1 + torch.rand(n, D_SAE // 2, generator=g))) @ dictionary())


def store(folder, n, seed, hook="blocks.1.hook_resid_post"):
    parameters = {"model": "m", "revision": "r", "hook_name": hook, "n": n, "seed": seed}
    x = activations(n, seed)
    return shards.build(folder, parameters, 2, lambda i: {"activations": x[i::2]}, "shard")


@pytest.fixture
def data(tmp_path):
    return store(tmp_path / "train", 20_000, 0), store(tmp_path / "held", 3_000, 1), tmp_path / "saes"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_learns_the_planted_dictionary(data, architecture):
    recipe = dataclasses.replace(RECIPE, architecture=architecture, lr=8e-3 if architecture == "gated" else 2e-3)
    folder = training.train(recipe, *data, progress=False)
    record = folders.training_record(folder)
    assert record["held_out"]["fvu"] < 0.35 and 1 < record["held_out"]["l0"] < 16
    cosine = (torch.nn.functional.normalize(folders.load(folder).W_dec.data, dim=1) @ dictionary().T).amax(0)
    assert cosine.mean() > 0.75, "most planted directions have a latent"
    assert training.train(recipe, *data, progress=False) == folder
    lens = SAE.load_from_disk(folder)
    x = activations(100, 5)
    torch.testing.assert_close(lens(x), folders.load(folder)(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("target", [1, 3, 8])
@pytest.mark.parametrize("penalty", ["l0", "quadratic_frequency", "squared_frequency"])
def test_target_l0_is_reached(data, target, penalty):
    recipe = dataclasses.replace(RECIPE, target_l0=target, penalty=penalty)
    metrics = folders.training_record(training.train(recipe, *data, progress=False))["held_out"]
    assert abs(metrics["l0"] / target - 1) < 0.1


@pytest.mark.parametrize("architecture", ["gated", "topk", "batchtopk", "matryoshka"])
def test_saelens_classes_have_their_l0_after_few_steps_too(data, architecture):
    recipe = dataclasses.replace(RECIPE, architecture=architecture, target_l0=4.0, tokens=20 * RECIPE.batch_tokens)
    folder = training.train(recipe, *data, progress=False)
    assert folders.training_record(folder)["held_out"]["l0"] == pytest.approx(4.0, rel=0.1)


def test_export_equals_the_normalised_model_by_hand(data):
    x = training.load_tokens(data[0])
    trainer = make_trainer(RECIPE, x[:4000])
    for step in range(20):
        trainer.step(x[step * 500 :][:500], 1.0)
    sae = trainer.export({})
    z = (x[:50] - trainer.mean) / trainer.scale
    pre = z @ trainer.p.enc.T + trainer.p.b_enc
    f = pre * (pre > trainer.p.threshold)
    torch.testing.assert_close(sae.encode(x[:50]), trainer.scale * f, atol=1e-4, rtol=1e-5)
    expected = trainer.mean + trainer.scale * (f @ trainer.p.dec + trainer.p.b_dec)
    torch.testing.assert_close(sae(x[:50]), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))


def test_decoder_rows_stay_unit_and_seeds_differ(data):
    x = training.load_tokens(data[0])
    rows = []
    for seed in (0, 1):
        trainer = make_trainer(dataclasses.replace(RECIPE, seed=seed), x[:4000])
        trainer.step(x[:500], 1.0)
        rows.append(trainer.p.dec.data.clone())
        torch.testing.assert_close(rows[-1].norm(dim=1), torch.ones(D_SAE))
    assert not torch.allclose(*rows)


@pytest.mark.parametrize("architecture", ["jumprelu", "batchtopk", "gated"])
def test_interrupted_training_resumes_bit_for_bit(data, tmp_path, monkeypatch, architecture):
    recipe = dataclasses.replace(RECIPE, architecture=architecture)
    whole = training.train(recipe, data[0], data[1], tmp_path / "whole", progress=False)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    real, calls = training.lr_factor, []

    def dies(r, step):
        calls.append(step)
        if step == 70 and calls.count(70) == 1:
            raise KeyboardInterrupt
        return real(r, step)

    monkeypatch.setattr(training, "lr_factor", dies)
    with pytest.raises(KeyboardInterrupt):
        training.train(recipe, data[0], data[1], tmp_path / "cut", progress=False)
    cut = training.train(recipe, data[0], data[1], tmp_path / "cut", progress=False)
    assert len(calls) == recipe.steps + 1, "only the step that died was done twice"
    assert (whole / "sae_weights.safetensors").read_bytes() == (cut / "sae_weights.safetensors").read_bytes()
    assert not list((tmp_path / "cut").glob("*.checkpoint"))


def test_a_training_whose_save_fails_goes_on_at_its_checkpoint(data, monkeypatch):
    recipe = dataclasses.replace(RECIPE, tokens=5_000)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)

    def full_disk(*arguments):
        raise WriteError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(WriteError):
        patch.setattr(folders, "save", full_disk)
        training.train(recipe, *data, progress=False)
    assert list(data[2].glob("*.checkpoint"))
    real, steps = training.lr_factor, []
    monkeypatch.setattr(training, "lr_factor", lambda recipe, step: steps.append(step) or real(recipe, step))
    folder = training.train(recipe, *data, progress=False)
    assert not steps and folders.training_record(folder)["held_out"], "no step is done twice"
    assert not list(data[2].glob("*.checkpoint"))


def test_a_training_that_came_out_bad_leaves_no_checkpoint(data, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(training, "WORST_FVU", 0.0)
    with pytest.raises(ValueError, match="ended with a held-out FVU of"):
        training.train(RECIPE, *data, progress=False)
    assert not list(data[2].glob("*.checkpoint"))


def test_damaged_and_foreign_checkpoints_are_named(data):
    path = training.sae_path(data[2], RECIPE, [data[0]], data[1]).with_suffix(".checkpoint")
    trainer = make_trainer(RECIPE, activations(4000, 0))
    other = dataclasses.replace(RECIPE, lr=1.0)
    checkpoints.save(trainer, other, path, checkpoints.Progress(3, [], 1.0))
    with pytest.raises(ValueError, match="checkpoint of another recipe"):
        training.train(RECIPE, *data, progress=False)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is a damaged checkpoint"):
        training.train(RECIPE, *data, progress=False)


def with_edits(monkeypatch, folder, *edits):
    """The training code as copies in which texts are replaced: (module, old text, new text)."""
    real = training.code_paths

    def copies(architecture):
        paths = []
        for path in real(architecture):
            text = path.read_text()
            for module, old, new in edits:
                if path.stem == module:
                    assert old in text
                    text = text.replace(old, new)
            paths.append(folder / path.name)
            paths[-1].write_text(text)
        return paths

    folder.mkdir()
    monkeypatch.setattr(training, "code_paths", copies)


SCHEDULE = ("training", "decay = (recipe.steps - step)", "decay = (recipe.steps - step) ** 2")
CALIBRATION = ("training", "CALIBRATION_TOKENS = 16_384", "CALIBRATION_TOKENS = 8_192")
SHUFFLE = ("token_blocks", "1_000_003 * seed", "1_000_033 * seed")
STEP = ("jumprelu", "bandwidth / 2\n", "bandwidth / 3\n")
CONTROLLER = ("trainers", "SHIFT = 7.5", "SHIFT = 7.0")
EXPORT = ("folders", "mean + scale * p.b_dec", "mean - scale * p.b_dec")
DOCSTRING = ("training", "Linear warm-up over", "A linear rise over")
MODULE_DOCSTRING = ("trainers", '"""The JumpReLU trainer:', '"""JumpReLU\'s trainer:')
COMMENT = ("jumprelu", "# share of entries above which", "# part of the entries above which")
LINES = ("training", "decay = (recipe.steps - step) /", "decay = (\n        (recipe.steps - step)\n    ) /")
OTHER_TRAINER = ("comparators", "k=round(recipe.target_l0)", "k=int(recipe.target_l0)")


@pytest.mark.parametrize("edit", [SCHEDULE, CALIBRATION, SHUFFLE, STEP, CONTROLLER, EXPORT])
def test_changed_code_names_another_folder(data, tmp_path, monkeypatch, edit):
    before = training.sae_path(data[2], RECIPE, [data[0]], data[1])
    with_edits(monkeypatch, tmp_path / "code", edit)
    assert training.sae_path(data[2], RECIPE, [data[0]], data[1]) != before


@pytest.mark.parametrize("edits", [[], [DOCSTRING, MODULE_DOCSTRING, COMMENT, LINES], [OTHER_TRAINER]])
def test_what_decides_nothing_keeps_the_name(data, tmp_path, monkeypatch, edits):
    """Docstrings, comments, line breaks, and the trainers of other architectures."""
    before = training.sae_path(data[2], RECIPE, [data[0]], data[1])
    with_edits(monkeypatch, tmp_path / "code", *edits)
    assert training.sae_path(data[2], RECIPE, [data[0]], data[1]) == before
    if edits == [OTHER_TRAINER]:
        topk = dataclasses.replace(RECIPE, architecture="topk")
        edited = training.sae_path(data[2], topk, [data[0]], data[1])
        monkeypatch.undo()
        assert training.sae_path(data[2], topk, [data[0]], data[1]) != edited


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_module_that_a_training_uses_is_left_out_of_the_name(architecture):
    """All of ``lib.sae`` that loop and trainer import is hashed, but for registry, names, and other trainers."""
    hashed = {path.stem for path in training.code_paths(architecture)}
    loop = {"training", "checkpoints", "token_blocks", "recipes", "folders", "formats", "jumprelu"}
    trainer = {"trainers"} if architecture == "jumprelu" else {"comparators"}
    assert hashed == loop | trainer
    imported = build_graph.modules(Path(training.__file__))
    used = {name.removeprefix("sae/") for name in imported if name.startswith("sae/")}
    assert used - hashed == {"architectures", "names"} | {"trainers", "comparators"} - trainer


def test_the_buffer_is_in_the_name_where_it_decides_the_order_of_tokens(data):
    def name(**options):
        return training.sae_path(data[2], RECIPE, [data[0]], data[1], **options)

    assert name(buffer_tokens=20_000) == name(buffer_tokens=50_000) == name(), "one block holds all 20,000 tokens"
    assert len({name(), name(buffer_tokens=19_999), name(buffer_tokens=10_000)}) == 3


def test_a_changed_schedule_trains_anew_and_leaves_the_old_checkpoint_alone(data, tmp_path, monkeypatch):
    recipe = dataclasses.replace(RECIPE, tokens=5_000)
    old = training.train(recipe, *data, progress=False)
    checkpoint = old.with_suffix(".checkpoint")
    trainer = make_trainer(recipe, activations(4000, 0))
    checkpoints.save(trainer, recipe, checkpoint, checkpoints.Progress(9, [], 1.0))
    with_edits(monkeypatch, tmp_path / "code", SCHEDULE)
    monkeypatch.setattr(training, "lr_factor", lambda recipe, step: 0.5)
    new = training.train(recipe, *data, progress=False)
    assert new != old and checkpoint.exists()
    record = folders.training_record(new)
    assert record["curve"][0]["tokens"] == recipe.batch_tokens, "it began at the first step"
    assert (new / "sae_weights.safetensors").read_bytes() != (old / "sae_weights.safetensors").read_bytes()


def half(recipe, calibration):
    """A toy architecture: TopK with half of k."""
    return comparators.topk(dataclasses.replace(recipe, target_l0=recipe.target_l0 / 2), calibration)


def test_one_entry_makes_an_architecture(data, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "half", architectures.Architecture(half, lr=5e-3, target_l0s=(4, 8)))
    changes = comparison.variants([], [], ["half"], {})
    assert changes["half"] == {"architecture": "half", "lr": 5e-3}
    grid = comparison.recipes(RECIPE, {"half": changes["half"]}, [16], [0])
    assert [recipe.target_l0 for recipe in grid.values()] == [4, 8]
    store, held_out, parent = data
    table = comparison.train_grid(grid, Stores(store, held_out, None), parent, progress=False)
    assert table["l0"].round(3).tolist() == [2, 4] and (table["fvu"] < 0.6).all()
    assert table["folder"][0].name.startswith("half-")
    with pytest.raises(ValueError, match="finetuning is for jumprelu, the recipe says 'half'"):
        training.train(grid["half", 4, 0], *data, table["folder"][0], progress=False)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"target_l0": D_SAE}, f"target_l0 {D_SAE} must lie between 0 and d_sae {D_SAE}"),
        ({"target_l0": -1}, "target_l0 -1 must lie"),
        ({"architecture": "relu"}, "unknown architecture 'relu'; allowed are jumprelu, gated, topk"),
        ({"penalty": "l1"}, "unknown penalty 'l1'; allowed are l0, quadratic_frequency, squared_frequency"),
        ({"tokens": 10}, "tokens 10 "),
    ],
)
def test_impossible_recipes_are_refused(data, change, message):
    with pytest.raises(ValueError, match=message):
        training.train(dataclasses.replace(RECIPE, **change), *data)


def test_bad_stores_are_refused(data, tmp_path):
    small = store(tmp_path / "small", 100, 2)
    with pytest.raises(ValueError, match="100 tokens, fewer than one batch of 500"):
        training.train(RECIPE, small, data[1], data[2])
    other = store(tmp_path / "other", 100, 2, hook="blocks.2.hook_resid_post")
    message = "hook_name 'blocks.1.hook_resid_post', another or the held-out store 'blocks.2"
    with pytest.raises(ValueError, match=message):
        training.train(RECIPE, data[0], other, data[2])


def test_damaged_folders_and_misfits_are_named(data, tmp_path):
    folder = training.train(dataclasses.replace(RECIPE, tokens=2000), *data, progress=False)
    sae = folders.load(folder)
    with pytest.raises(ValueError, match="d_in 16, the activations have d_model 384"):
        folders.check_fits(sae, 384)
    with pytest.raises(ValueError, match="hook_name 'blocks.1.hook_resid_post', the activations are of 'blocks.4"):
        folders.check_fits(sae, 16, "blocks.4.hook_resid_post")
    with pytest.raises(ValueError, match="is no SAE folder"):
        folders.load(tmp_path / "none")
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(ValueError, match=f"{folder} is damaged"):
        folders.load(folder)


def test_a_failed_save_leaves_the_old_folder(data, tmp_path):
    folder = training.train(dataclasses.replace(RECIPE, tokens=2000), *data, progress=False)
    before = sorted((p.name, p.stat().st_size) for p in folder.iterdir())
    sae = folders.load(folder)
    sae.W_dec.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="W_dec.* not finite; nothing was saved"):
        folders.save(sae, folder, {})
    assert before == sorted((p.name, p.stat().st_size) for p in folder.iterdir())
    json.loads((folder / "training.json").read_text())


def test_metrics_by_hand():
    eye = torch.eye(2)
    p = Parameters(eye, eye, torch.zeros(2), torch.zeros(2), torch.tensor([0.5, 10.0]))
    sae = folders.from_parameters(p, torch.zeros(2), 1.0, {})
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.2, 0.0]])
    metrics = folders.evaluate(sae, x)
    error, total = 1 + 0.04, ((x - x.mean(0)) ** 2).sum().item()
    assert metrics["fvu"] == pytest.approx(error / total)
    assert (metrics["l0"], metrics["dead"], metrics["high_frequency"]) == (0.5, 0.5, 1)
    assert metrics["high_frequency_mass"] == 1.0 and metrics["frequency"].tolist() == [0.5, 0.0]


def test_a_saelens_sae_is_usable_as_ours(tmp_path):
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig

    theirs = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_MODEL, d_sae=D_SAE, apply_b_dec_to_input=True))
    theirs.threshold.data.fill_(0.3)
    theirs.b_dec.data.normal_()
    theirs.save_model(tmp_path / "lens")
    ours, x = folders.load(tmp_path / "lens"), activations(200, 3)
    torch.testing.assert_close(ours.encode(x), theirs.encode(x), atol=1e-5, rtol=0)
    assert folders.evaluate(ours, x)["fvu"] == pytest.approx(
        ((x - theirs(x)) ** 2).sum().item() / ((x - x.mean(0)) ** 2).sum().item(), rel=1e-5
    )


def test_lr_schedule():
    recipe = dataclasses.replace(RECIPE, tokens=100 * 500, warmup_steps=10, decay_share=0.5)
    factors = [training.lr_factor(recipe, step) for step in range(recipe.steps)]
    assert factors[0] == 0.2 and max(factors) == 1.0 and factors[-1] == pytest.approx(1 / 50), "a twentieth of 100"
    longer = dataclasses.replace(recipe, tokens=400 * 500)
    assert training.lr_factor(longer, 0) == 0.1, "as many as the recipe says"


def test_an_sae_of_the_base_model_fits_its_chat_model_and_no_other(data):
    sae = folders.load(training.train(dataclasses.replace(RECIPE, tokens=1000), *data, progress=False))
    sae.cfg.metadata.model_name = "gemma-2-9b"
    folders.check_fits(sae, D_MODEL, model="google/gemma-2-9b-it")
    with pytest.raises(ValueError, match="model_name 'gemma-2-9b', the activations are of 'gemma-2-2b-it'"):
        folders.check_fits(sae, D_MODEL, model="gemma-2-2b-it")


def test_a_fixed_coefficient_is_reached_linearly():
    x = activations(4000, 0)
    trainer = make_trainer(dataclasses.replace(RECIPE, target_l0=0, coefficient=0.1, sparsity_warmup_steps=4), x)
    seen = []
    for _ in range(6):
        seen.append(trainer.coefficient)
        trainer.step(x[:500], 1.0)
    assert seen == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


@pytest.mark.parametrize(("d_sae", "target_l0", "n"), [(64, 3.3, 501), (64, 63.5, 400), (64, 0, 400), (32, 0.001, 300)])
def test_thresholds_begin_at_the_quantile_of_the_wanted_rate(d_sae, target_l0, n):
    generator = torch.Generator().manual_seed(0)
    x, recipe = torch.randn(n, 20, generator=generator), Recipe(d_sae=d_sae, target_l0=target_l0)
    begun = tied(recipe, x, torch.randn(d_sae, 20, generator=generator))
    rate = (target_l0 or 0.02 * d_sae) / d_sae
    assert torch.equal(begun.threshold, torch.quantile(begun.dec @ x.T, 1 - rate, dim=1))
    scaled = fresh(recipe, x, generator)
    torch.testing.assert_close(scaled.threshold, torch.quantile(scaled.enc @ x.T, 1 - rate, dim=1))


def test_the_encoder_begins_at_the_scale_of_least_squares():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 20, generator=generator)
    begun = fresh(Recipe(d_sae=64, target_l0=12), x, generator)
    torch.testing.assert_close(torch.nn.functional.normalize(begun.enc, dim=1), begun.dec)
    pre = x @ begun.enc.T
    recon = (pre * (pre > begun.threshold)) @ begun.dec
    error = [(x - a * recon).square().sum() for a in (0.99, 1.0, 1.01)]
    assert error[1] < min(error[0], error[2]) and error[1] < x.square().sum()
