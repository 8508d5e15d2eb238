"""Formats of published SAEs: each that SAELens knows is read, or refused by name and with the reason."""

import json
import warnings

import numpy as np
import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file, save_file

from lib.base.files import ROOT
from lib.sae import folders, formats, latents

D_MODEL, D_SAE, HOOK = 16, 32, "blocks.7.hook_resid_post"
OF_ARCHITECTURE = {
    "topk": {"k": 4},
    "abstopk": {"k": 4},
    "batchtopk": {"k": 4.0},
    "matryoshka_batchtopk": {"k": 4.0, "matryoshka_widths": [8, D_SAE]},
    "temporal": {"n_heads": 2, "bottleneck_factor": 2, "kval_topk": 4, "apply_b_dec_to_input": True},
}


def made(architecture, registry=SAE_CLASS_REGISTRY, **options):
    """A small random SAE of SAELens."""
    sae_class, config_class = registry[architecture]
    options = {"apply_b_dec_to_input": False} | OF_ARCHITECTURE.get(architecture, {}) | options
    if "transcoder" in architecture:
        options.setdefault("d_out", D_MODEL)
    metadata = options.pop("metadata", {"hook_name": HOOK, "model_name": "m"})
    torch.manual_seed(0)
    sae = sae_class(config_class(d_in=D_MODEL, d_sae=D_SAE, metadata=SAEMetadata(**metadata), **options))
    for name, parameter in sae.named_parameters():
        if name.startswith(("b_", "threshold", "r_mag")):
            parameter.data.uniform_(0, 0.1)
    return sae


def saved(sae, folder):
    sae.save_model(folder)
    return folder


def with_config(folder, **changes):
    """The folder with some entries of ``cfg.json`` changed."""
    path = folder / formats.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def refusal(place):
    """The one sentence with which a place is refused."""
    with pytest.raises(ValueError) as error:
        folders.load(place)
    sentence = str(error.value)
    assert str(place) in sentence and "\n" not in sentence and "damaged" not in sentence
    return sentence


def test_every_architecture_of_saelens_is_decided_on():
    """One that SAELens adds fails here until it stands in READ, or in UNREAD with the reason, or in TRAINED."""
    own = {"crosscoder"}  # of others
    assert {*formats.READ, *formats.UNREAD} - own == set(SAE_CLASS_REGISTRY)
    assert set(formats.TRAINED) == set(SAE_TRAINING_CLASS_REGISTRY) - set(SAE_CLASS_REGISTRY)
    assert not {*formats.READ} & {*formats.UNREAD}


@pytest.mark.parametrize("architecture", formats.READ)
def test_what_is_read_encodes_as_in_saelens(architecture, tmp_path):
    theirs = made(architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = folders.load(saved(theirs, tmp_path / "sae"))
    x = torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        encoded = theirs.encode(x)
        encoded = encoded.to_dense() if encoded.is_sparse else encoded
        torch.testing.assert_close(ours(x), theirs(x))
        flat, values = latents.active_entries(ours, x)
    assert (encoded >= 0).all(), "a latent is active where it is above 0"
    np.testing.assert_array_equal(flat, np.flatnonzero(encoded.numpy()))
    np.testing.assert_allclose(values, encoded.numpy().ravel()[flat], atol=1e-5)
    assert folders.evaluate(ours, x)["l0"] == pytest.approx((encoded > 0).sum(1).float().mean().item())
    folders.check_fits(ours, D_MODEL, HOOK, "m")


@pytest.mark.parametrize("architecture", [name for name in formats.UNREAD if name in SAE_CLASS_REGISTRY])
def test_what_is_no_sae_of_single_tokens_is_refused_by_name(architecture, tmp_path):
    sentence = refusal(saved(made(architecture), tmp_path / "sae"))
    assert formats.UNREAD[architecture] in sentence


@pytest.mark.parametrize("architecture", formats.TRAINED)
def test_a_training_checkpoint_is_named_and_the_export_that_is_named_works(architecture, tmp_path):
    trained = made(architecture, SAE_TRAINING_CLASS_REGISTRY)
    sentence = refusal(saved(trained, tmp_path / "checkpoint"))
    assert f"is a training checkpoint of SAELens ({architecture}); export it with" in sentence
    assert "sae_lens.TrainingSAE.load_from_disk(folder).save_inference_model(another_folder)" in sentence
    TrainingSAE.load_from_disk(tmp_path / "checkpoint").save_inference_model(tmp_path / "exported")
    assert folders.load(tmp_path / "exported").cfg.architecture() == "jumprelu"


@pytest.mark.parametrize("architecture", sorted({*SAE_TRAINING_CLASS_REGISTRY} & {*formats.READ}))
def test_a_training_checkpoint_that_is_an_sae_is_read(architecture, tmp_path):
    trained = made(architecture, SAE_TRAINING_CLASS_REGISTRY)
    ours, x = folders.load(saved(trained, tmp_path / "sae")), torch.randn(50, D_MODEL)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), trained(x))


def test_an_sae_of_the_heads_outputs_is_refused(tmp_path):
    place = {"hook_name": "blocks.7.attn.hook_z"}
    reshaped = saved(made("standard", metadata=place, reshape_activations="hook_z"), tmp_path / "reshaped")
    assert "is an SAE of the attention heads' outputs (hook_z)" in refusal(reshaped)
    flat = saved(made("standard", metadata=place), tmp_path / "flat")
    assert "(hook_z)" in refusal(flat)
    old = {"d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32", "hook_point": "blocks.7.attn.hook_z"}
    (flat / formats.CONFIG).write_text(json.dumps(old))
    assert "(hook_z)" in refusal(flat)


@pytest.mark.parametrize("out", ["blocks.8.hook_resid_post", "blocks.7.hook_mlp_out"])
def test_what_writes_to_another_place_is_a_transcoder_whatever_its_architecture(out, tmp_path):
    metadata = {"hook_name": HOOK, "hook_name_out": out}
    assert formats.TRANSCODER in refusal(saved(made("jumprelu", metadata=metadata), tmp_path / "sae"))


def test_what_writes_to_the_place_that_it_reads_is_an_sae(tmp_path):
    metadata = {"hook_name": HOOK, "hook_name_out": "blocks.8.hook_resid_pre"}
    folder = saved(made("jumprelu", metadata=metadata), tmp_path / "sae")
    assert folders.load(with_config(folder, d_out=D_MODEL)).cfg.d_sae == D_SAE
    assert formats.TRANSCODER in refusal(with_config(folder, d_out=D_MODEL + 1))


@pytest.mark.parametrize("architecture", ["crosscoder", "batchtopk_crosscoder", "AcausalCrosscoder"])
def test_a_crosscoder_is_refused(architecture, tmp_path):
    folder = with_config(saved(made("jumprelu"), tmp_path / "sae"), architecture=architecture)
    assert formats.UNREAD["crosscoder"] in refusal(folder)


def test_a_crosscoder_that_calls_itself_an_sae_is_refused(tmp_path):
    folder = saved(made("jumprelu"), tmp_path / "sae")
    weights = load_file(folder / formats.WEIGHTS) | {"W_dec": torch.zeros(3, D_SAE, D_MODEL)}
    save_file(weights, folder / formats.WEIGHTS)
    assert formats.UNREAD["crosscoder"] in refusal(folder)


def test_an_unknown_architecture_is_named(tmp_path):
    folder = with_config(saved(made("jumprelu"), tmp_path / "sae"), architecture="future")
    assert "is an SAE of the architecture 'future', which is unknown; read are ('standard'," in refusal(folder)


@pytest.mark.parametrize("setting", formats.UNSCALED)
def test_a_scale_that_is_not_folded_in_is_told(setting, tmp_path):
    folder = saved(made("jumprelu", normalize_activations=setting), tmp_path / "sae")
    with pytest.warns(UserWarning, match=rf"activations scaled to .* \(normalize_activations: {setting}\), and its"):
        folders.load(folder)
    (folder / formats.SCALER).write_text('{"scaling_factor": 0.3}')
    with pytest.warns(UserWarning, match="activation_scaler.json beside it has it"):
        folders.load(folder)


@pytest.mark.parametrize("setting", ["none", "layer_norm", "constant_norm_rescale"])
def test_a_scale_that_the_sae_takes_itself_is_no_warning(setting, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folders.load(saved(made("standard", normalize_activations=setting), tmp_path / "sae"))


def arrays():
    """Weights in the names of Gemma Scope."""
    return {name: tensor.clone() for name, tensor in made("jumprelu").state_dict().items()}


def scope(folder):
    """A file of Gemma Scope."""
    folder.mkdir(parents=True)
    np.savez(folder / formats.NPZ, **{name: tensor.numpy() for name, tensor in arrays().items()})
    return folder


@pytest.mark.parametrize(
    "repository, place, model",
    [
        ("gemma-scope-2b-pt-res", "blocks.12.hook_resid_post", "gemma-2-2b"),
        ("models--google--gemma-scope-9b-it-res", "blocks.12.hook_resid_post", "gemma-2-9b-it"),
        ("gemma-scope-2b-pt-mlp", "blocks.12.hook_mlp_out", "gemma-2-2b"),
        ("my-own-transcoders", "blocks.12.hook_resid_post", None),
    ],
)
def test_what_the_path_of_gemma_scope_tells(repository, place, model, tmp_path):
    folder = scope(tmp_path / repository / "snapshots" / "layer_12" / "width_16k" / "average_l0_82")
    metadata = folders.load(folder).cfg.metadata
    assert metadata.hook_name == place and metadata.model_name == model
    assert folders.recorded_l0(folder) == 82


def test_gemma_scopes_transcoders_and_attention_saes_are_refused(tmp_path):
    """Their files look like those of SAEs: d_in and d_out of a transcoder are equal."""
    of_transcoder = scope(tmp_path / "gemma-scope-2b-pt-transcoders" / "layer_12" / "width_16k" / "average_l0_8")
    assert formats.TRANSCODER in refusal(of_transcoder)
    assert "(hook_z)" in refusal(scope(tmp_path / "gemma-scope-2b-pt-att" / "layer_12" / "width_16k" / "average_l0_8"))


def scope_2(folder, config, **more):
    """Files of Gemma Scope 2."""
    folder.mkdir(parents=True)
    renamed = {name.replace("W_", "w_"): tensor for name, tensor in (arrays() | more).items()}
    save_file(renamed, folder / formats.SCOPE_2)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


OF_SCOPE_2 = {"architecture": "jump_relu", "model_name": "gemma-v3-270m-it"}
OF_SCOPE_2 |= {"hf_hook_point_in": "model.layers.12.output"}


@pytest.mark.parametrize("config", [OF_SCOPE_2, OF_SCOPE_2 | {"hf_hook_point_out": "model.layers.12.output"}, None])
def test_a_folder_of_gemma_scope_2(config, tmp_path):
    folder = scope_2(tmp_path / "resid_post" / "layer_12_width_16k_l0_medium", config)
    sae, theirs = folders.load(folder), made("jumprelu")
    x = torch.randn(20, D_MODEL)
    with torch.inference_mode():
        torch.testing.assert_close(sae(x), theirs(x))
    folders.check_fits(sae, D_MODEL, "blocks.12.hook_resid_post", "google/gemma-3-270m-it")
    assert sae.cfg.metadata.model_name == ("gemma-3-270m-it" if config else None)
    assert len(folders.identity(folder)) == 64


def test_what_else_is_in_gemma_scope_2_is_refused(tmp_path):
    elsewhere = OF_SCOPE_2 | {"hf_hook_point_out": "model.layers.12.post_feedforward_layernorm.output"}
    assert formats.TRANSCODER in refusal(scope_2(tmp_path / "transcoder", elsewhere))
    affine = {"affine_skip_connection": torch.zeros(D_MODEL, D_MODEL)}
    assert formats.TRANSCODER in refusal(scope_2(tmp_path / "affine", None, **affine))
    of_layers = {"W_dec": torch.zeros(D_SAE, 3, D_MODEL)}
    assert formats.UNREAD["crosscoder"] in refusal(scope_2(tmp_path / "crosscoder", None, **of_layers))


@pytest.mark.parametrize("name", formats.FOREIGN)
def test_folders_of_others_are_named(name, tmp_path):
    (tmp_path / name).touch()
    (tmp_path / formats.CONFIG).write_text("{}")
    assert f"is a folder of {formats.FOREIGN[name]}, which is not read here" in refusal(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(ValueError, match="is no SAE folder .*, nor 'release:sae_id'"):
        folders.load(tmp_path)


@pytest.mark.parametrize(
    "place, sentence",
    [
        ("gemma-scope-2b-pt-rs:x", "no release 'gemma-scope-2b-pt-rs' of SAELens; near it are ['gemma-scope-2b-pt-res"),
        ("gemma-scope-2-270m-pt-res:layer_12_width_16k", "no SAE 'layer_12_width_16k'; it has 52, such as ['layer_12_"),
    ],
)
def test_what_the_registry_does_not_have_is_said_with_what_is_near(place, sentence):
    with pytest.raises(ValueError) as error:
        folders.load(place)
    assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("config", [{"architecture": "transcoder"}, {"hook_name": HOOK, "hook_name_out": "elsewhere"}])
def test_a_transcoder_of_the_registry_is_refused_before_it_is_downloaded(config, monkeypatch):
    monkeypatch.setattr(formats, "load_sae_config_from_huggingface", lambda release, sae_id, device: config)
    monkeypatch.setattr(formats.SAE, "from_pretrained", lambda *_, **__: pytest.fail("it was downloaded"))
    place = "gemma-scope-2-270m-pt-res:layer_12_width_16k_l0_medium"
    assert f"{place!r} is a transcoder" in refusal(place)


def test_what_cannot_be_downloaded_is_one_sentence(monkeypatch):
    def fails(*_):
        raise AssertionError

    monkeypatch.setattr(formats, "load_sae_config_from_huggingface", fails)
    with pytest.raises(ValueError, match="cannot be had from the registry or its hub: AssertionError"):
        folders.load("gemma-scope-2-270m-pt-res:layer_12_width_16k_l0_medium")


def fitting(model=None, place=HOOK):
    return made("jumprelu", metadata={"hook_name": place, "model_name": model})


@pytest.mark.parametrize("place", ["blocks.8.hook_resid_pre", "model.layers.7", "blocks.7.hook_out"])
def test_the_same_place_under_another_name_fits(place):
    folders.check_fits(fitting(place=place), D_MODEL, HOOK)
    only_hugging_faces = made("jumprelu", metadata={"hf_hook_name": "model.layers.7.output"})
    folders.check_fits(only_hugging_faces, D_MODEL, HOOK)
    with pytest.raises(ValueError, match="hook_name 'model.layers.7.output', the activations are of 'blocks.8"):
        folders.check_fits(only_hugging_faces, D_MODEL, "blocks.8.hook_resid_post")


@pytest.mark.parametrize(
    "trained_on, model, says",
    [
        ("gpt2-small", "openai-community/gpt2", None),
        ("gemma-2-9b-it", "google/gemma-2-9b-it", None),
        (None, "google/gemma-2-9b-it", None),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", "are a base model and its chat model"),
        ("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B", "are a base model and its chat model"),
        ("google/gemma-3-1b-pt", "google/gemma-3-1b-it", "are a base model and its chat model"),
        ("google/gemma-2-9b-it", "/models/renamed", "is a folder or file, whose name does not tell"),
    ],
)
def test_a_model_that_is_the_same_or_near_fits(trained_on, model, says):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        folders.check_fits(fitting(trained_on), D_MODEL, HOOK, model)
    expected = f"the SAE was trained on model_name {trained_on!r}, the activations are of {model!r}"
    assert len(told) == bool(says)
    for warning in told:
        assert expected in str(warning.message) and says in str(warning.message)


@pytest.mark.parametrize(
    "sae, arguments",
    [
        (fitting("google/gemma-2-9b"), (HOOK, "google/gemma-3-1b-it")),
        (fitting("m", "blocks.7.hook_mlp_out"), (HOOK, "m")),
        (fitting("m"), ("blocks.6.hook_resid_post", "m")),
    ],
)
def test_another_model_or_place_is_refused_unless_one_insists(sae, arguments):
    with pytest.raises(ValueError, match="the SAE was trained on .*; give an SAE of theirs, or none, or insist"):
        folders.check_fits(sae, D_MODEL, *arguments)
    with pytest.warns(UserWarning, match="the SAE was trained on .*, and is used all the same"):
        folders.check_fits(sae, D_MODEL, *arguments, insist=True)
    with pytest.raises(ValueError, match="d_in 16, the activations have d_model 8"):
        folders.check_fits(sae, 8, *arguments, insist=True)


def tuned():
    """An SAE that rebuilds what :func:`of_its_model` draws, with an L0 of 3."""
    sae = made("topk", k=3)
    with torch.no_grad():
        sae.W_dec[:D_MODEL], sae.W_enc[:, :D_MODEL] = torch.eye(D_MODEL), torch.eye(D_MODEL)
        sae.W_enc[:, D_MODEL:] = 0
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae


def of_its_model(n=200):
    g = torch.Generator().manual_seed(0)
    x = torch.zeros(n, D_MODEL)
    return x.scatter(1, torch.rand(n, D_MODEL, generator=g).topk(3).indices, 1 + torch.rand(n, 3, generator=g))


def test_an_sae_on_its_own_activations_is_measured_and_nothing_is_wrong():
    (sentence,) = folders.sanity(tuned(), of_its_model())
    assert sentence == "on 200 tokens the SAE has an FVU of 0 and an L0 of 3"


def test_a_wrong_scale_or_model_is_said():
    sae = fitting()
    with torch.no_grad():
        sae.W_enc.mul_(30)
    measured, bad_fvu, bad_l0 = folders.sanity(sae, of_its_model(), recorded=0.5)
    assert measured.startswith("on 200 tokens the SAE has an FVU of ")
    assert ", above 1, is worse than the mean of the tokens; its scale, its place in the model or the model" in bad_fvu
    assert "in the place of the recorded 0.5 is far off" in bad_l0
    l0 = folders.evaluate(sae, of_its_model())["l0"]
    for recorded, n in ((l0 / 9, 2), (l0 * 9, 2), (l0 / 11, 3), (l0 * 11, 3), (None, 2), (0.0, 2)):
        assert len(folders.sanity(sae, of_its_model(), recorded)) == n


def test_the_k_of_a_topk_sae_is_its_recorded_l0():
    sae = tuned()
    sae.cfg.k = 40  # as if it had been saved with another
    assert "of the recorded 40 is far off" in folders.sanity(sae, of_its_model())[1]


def test_sanity_of_nothing_is_refused():
    with pytest.raises(ValueError, match="1 tokens have no variance; give two or more"):
        folders.sanity(tuned(), of_its_model(1))
    with pytest.raises(ValueError, match="d_in 16, the activations have d_model 3"):
        folders.sanity(tuned(), of_its_model()[:, :3])


def test_where_the_recorded_l0_stands(tmp_path):
    assert folders.recorded_l0("gemma-scope-2-270m-pt-res:layer_12_width_16k_l0_medium") == 60
    assert folders.recorded_l0("gemma-scope-2b-pt-res:layer_12/width_16k/average_l0_82") == 82
    assert folders.recorded_l0("some/repository:sae") is None and folders.recorded_l0(tmp_path) is None
    shipped = "data/pretrained/SmolLM2-135M-Instruct-layer-21-base"
    assert folders.recorded_l0(shipped) == folders.training_record(ROOT / shipped)["held_out"]["l0"]


def test_float16_weights_are_read_in_float32(tmp_path):
    folder = saved(made("jumprelu"), tmp_path / "sae")
    halves = {name: tensor.half() for name, tensor in load_file(folder / formats.WEIGHTS).items()}
    save_file(halves, folder / formats.WEIGHTS)
    assert folders.load(folder).W_enc.dtype == torch.float32
