"""Profiles: values as people write them, the shipped ones of published SAEs, and the kernel that runs them."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

from lib.base import build_graph
from lib.base.files import ROOT
from lib.runs import profiles, runner, sizing, sweep_cells, warm_kernel
from lib.sae import folders, names

# As their configurations on the hub say: block count, d_model, width of the MLP.
GEMMA_3 = {"gemma-3-270m": (18, 640, 2048), "gemma-3-1b": (26, 1152, 6912)}


@pytest.mark.parametrize(
    "text, value",
    [
        ("[1e-3, 1e-2]", [1e-3, 1e-2]),
        ("1e-3", 1e-3),
        ("+2E5", 2e5),
        (".5e1", 5.0),
        ("-1.e-1", -0.1),
        ("1.0e-3", 1e-3),
        ("1_000", 1000),
        ("12", 12),
        ("'1e-3'", "1e-3"),
        ("1e-3x", "1e-3x"),
        ("e-3", "e-3"),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01 10:00:00", "2024-01-01 10:00:00"),
        ("true", True),
        ("[yes, No, on, OFF, y]", ["yes", "No", "on", "OFF", "y"]),
        ("[010, 0x1f, 0b1, 1:30, 1:30.5, 00, 08]", ["010", "0x1f", "0b1", "1:30", "1:30.5", "00", "08"]),
        ("[0, -1, +2, -0.5, 3.]", [0, -1, 2, -0.5, 3.0]),
        ("-.inf", float("-inf")),
        ("~", None),
    ],
)
def test_plain_values_are_what_they_look_like(text, value):
    read = profiles.flat_yaml(text, "here")
    assert read == value and type(read) is type(value)


def test_exponents_without_a_point_are_numbers_in_a_profile(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("c_grid: [1e-3, 1e-2]\nlr: 2e-3\n")
    values, (notebook,) = profiles.read_profile(path), build_graph.NOTEBOOKS.glob("05_*.py")
    assert profiles.select(notebook, values)["c_grid"] == [1e-3, 1e-2]


def test_a_whole_number_is_the_text_of_a_parameter_that_is_a_text(tmp_path, monkeypatch):
    path, (notebook,) = tmp_path / "2024.yaml", build_graph.NOTEBOOKS.glob("01_*.py")
    path.write_text("profile: 2024\ntext_column: 0\nseed: 1\npositive_label: [1, 010]\n")
    values = profiles.read_profile(path)
    assert values == {"profile": "2024", "text_column": "0", "seed": 1, "positive_label": [1, "010"]}
    assert profiles.select(notebook, values) == values
    ran = []
    monkeypatch.setattr(runner, "_run", lambda notebook, values: ran.append(values))
    monkeypatch.setattr("sys.argv", ["runner", "01_datasets", "-p", "label_column", "1", "-p", "profile", "5"])
    runner.main()
    assert ran == [{"profile": "5", "label_column": "1"}]
    content = "notebooks: [01_datasets]\nfixed: {text_column: 0}\ngrid: {label_column: [1, 2]}\n"
    (tmp_path / "mine.yaml").write_text(content)
    sweep = sweep_cells.read(tmp_path / "mine.yaml")
    assert sweep.shared["text_column"] == "0" and sweep.points == [{"label_column": "1"}, {"label_column": "2"}]


def test_a_key_is_refused_where_the_name_of_its_variable_belongs(tmp_path, monkeypatch, capsys):
    key, sentence = "sk-secret-0123", "parameter llm_key_variable must be the name of an environment variable"
    path, sweep = tmp_path / "mine.yaml", tmp_path / "sweep.yaml"
    path.write_text(f"llm_key_variable: {key}\n")
    sweep.write_text(f"notebooks: [06_autointerp]\ngrid: {{llm_key_variable: [{key}]}}\n")
    monkeypatch.setattr("sys.argv", ["runner", "02_activations", "-p", "llm_key_variable", key])
    for read in (lambda: profiles.read_profile(path), lambda: sweep_cells.read(sweep), runner.main):
        with pytest.raises((ValueError, SystemExit), match=sentence) as raised:
            read()
        assert key not in str(raised.value)
    assert key not in "".join(capsys.readouterr())


def test_what_is_published_is_held_to_the_profile(monkeypatch):
    published = []
    monkeypatch.setattr(runner, "publish", lambda *arguments: published.append(arguments))
    for profile in ("public", "embedded-tasks-core"):
        monkeypatch.setattr("sys.argv", ["runner", "--publish", "--profile", profile])
        runner.main()
    public = profiles.read_profile(profiles.profile_path("public"))
    assert published == [("public", public), ("embedded-tasks-core",)]


def test_a_sweep_reads_numbers_as_a_profile_does(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("grid:\n  lr: [1e-3, 2e-3]\n")
    assert sweep_cells._yaml(path) == {"grid": {"lr": [1e-3, 2e-3]}}


def test_a_profile_may_have_the_name_of_a_day(tmp_path, monkeypatch):
    path = tmp_path / "2024-01-01.yaml"
    path.write_text("profile: 2024-01-01\nseed: 1\n")
    assert profiles.read_profile(path) == {"profile": "2024-01-01", "seed": 1}
    ran = []
    monkeypatch.setattr(runner, "_run", lambda notebook, values: ran.append(values))
    monkeypatch.setattr("sys.argv", ["runner", "01_datasets", "-p", "profile", "2024-01-01"])
    runner.main()
    assert ran == [{"profile": "2024-01-01"}]


@pytest.mark.parametrize("profile", GEMMA_3)
def test_a_pair_of_gemma_scope_2_is_of_one_place_size_and_model(profile):
    """Both are in SAELens' registry, and differ in the version of the model alone."""
    values = profiles.read_profile(profiles.profile_path(profile))
    (base,), chat = values["base_saes"], values["prompts_sae"]
    models = []
    for place in (base, chat):
        release, sae_id = place.split(":")
        registered = get_pretrained_saes_directory()[release]
        assert registered.saes_map[sae_id] == f"resid_post/{sae_id}" and registered.conversion_func == "gemma_3"
        assert sae_id == base.split(":")[1] and f"layer_{values['layer']}_" in sae_id
        assert folders.recorded_l0(place) == values["sae_target_l0"]
        layers = {int(layer) for layer in re.findall(r"layer_(\d+)_", " ".join(registered.saes_map))}
        assert layers == {*values["layers"], values["layer"]}
        models.append(registered.model)
        assert sizing._width(place) == values["base_d_sae"]
    assert models[1] == values["model"]
    assert names.relation(models[0], models[1]) == names.VARIANT


@pytest.mark.parametrize("profile, disk, memory", [("gemma-3-270m", 12, 6), ("gemma-3-1b", 60, 14)])
def test_a_gemma_3_profile_fits_its_machine(profile, disk, memory, monkeypatch, tiny_gemma):
    """In GiB, of a disk and of a laptop's memory or a GPU's, by the configurations of the real models."""
    n_layers, d_model, d_mlp = GEMMA_3[profile]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_gemma)
    config = transformers.Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=d_model,
        intermediate_size=d_mlp,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        architectures=["Gemma3ForCausalLM"],
    )
    monkeypatch.setattr(sizing.models, "load_config", lambda name: config)
    monkeypatch.setattr(sizing.models, "load_tokenizer", lambda name: tokenizer)
    sizing._shape.cache_clear()
    values = profiles.read_profile(profiles.profile_path(profile))
    table = sizing.estimate(values, flops=1e12)
    sizing._shape.cache_clear()
    weights = table.set_index("step").loc["weights of the model", "disk_gib"] * sizing.GIB / 2
    assert weights == pytest.approx({"gemma-3-270m": 268e6, "gemma-3-1b": 1e9}[profile], rel=0.01)
    assert table["disk_gib"].sum() < disk and table["memory_gib"].max() < memory
    assert torch.finfo(sizing.models.DTYPES[profiles.complete(values)["dtype"]]).bits in (16, 32)


def test_every_profile_has_a_row_in_the_table():
    rows = [line for line in (ROOT / "docs" / "profiles.md").read_text().splitlines() if line.startswith("| ")]
    named = {name for row in rows for name in re.findall(r"`([\w.-]+)`", row.split("|")[1])}
    assert {path.stem for path in profiles.PROFILES.glob("*.yaml")} <= named


def kernel(folder, program):
    place = folder / "kernels" / warm_kernel.KERNEL
    place.mkdir(parents=True)
    spec = {"argv": [program, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "x"}
    (place / "kernel.json").write_text(json.dumps(spec | {"language": "python"}))


def test_a_kernel_of_another_environment_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    warm_kernel.check_interpreter()
    kernel(tmp_path, "/other/bin/python3")
    sentence = "Jupyter's kernel 'python3' in .* starts /other/bin/python3, and notebooks need .*; remove that kernel"
    with pytest.raises(ValueError, match=sentence):
        warm_kernel.check_interpreter()
    with pytest.raises(ValueError, match=sentence), warm_kernel.WarmKernel().hold():
        pass
    monkeypatch.setattr(runner, "run_dir", lambda profile: tmp_path / profile)
    monkeypatch.setattr("sys.argv", ["runner", "01_datasets"])
    with pytest.raises(SystemExit, match=f"^error: {sentence}"):
        runner.main()


@pytest.mark.parametrize("program", ["python", "python3", sys.executable, "another name in this environment"])
def test_a_kernel_of_this_environment_is_taken(program, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    is_name = program.startswith("another")
    kernel(tmp_path, str(Path(sys.executable).with_name("python3")) if is_name else program)
    warm_kernel.check_interpreter()


def test_the_yaml_of_shipped_profiles_means_the_same_to_pyyaml():
    """Plain papermill reads them with PyYAML."""
    for path in profiles.PROFILES.glob("*.yaml"):
        assert profiles.read_profile(path) == {"profile": path.stem} | yaml.safe_load(path.read_text())


def test_a_typed_parameter_that_the_notebook_does_not_have_is_named(monkeypatch):
    monkeypatch.setattr("sys.argv", ["runner", "05_probing", "-p", "layer", "3"])
    with pytest.raises(SystemExit, match="^error: 05_probing has no parameter 'layer'; 02, 03, 04, 07, 09 have"):
        runner.main()
