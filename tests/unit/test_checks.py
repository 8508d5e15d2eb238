"""SAEs that somebody gives, with planted faults: what the notebooks show of them before they are used."""

import ast
import types
import warnings

import jupytext
import nbformat
import pandas as pd
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook, new_output

from lib.base import build_graph
from lib.model import forward, models
from lib.probing import task_features
from lib.results import task_tables
from lib.runs import runner
from lib.sae import checks, finetuning, folders, token_blocks
from lib.texts import sources
from tests.planted_saes import LAYER, MODEL, SHIPPED, planted

FAR = 5  # a layer whose residual stream is unlike that of the shipped SAE's
SUSPECT = "its scale, its place in the model or the model is another one than here"


@pytest.fixture(scope="module")
def activations(minilm):
    """The residual stream of prompts' tokens, by layer."""
    texts = sources.base_prompts("embedded")["text"].tolist()[:120]
    ids, mask = forward.padded(models.tokenise(minilm, texts), minilm.tokenizer.pad_token_id)
    layers = [LAYER, LAYER + 1, FAR]
    return {layer: x[mask.bool()] for layer, x in forward.resid_post_at(minilm, ids, mask, layers).items()}


def cell(notebook, marker):
    """The source of a notebook's one code cell with ``marker``."""
    (path,) = build_graph.NOTEBOOKS.glob(f"{notebook}_*.py")
    cells = [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "code" and marker in cell.source]
    (source,) = cells
    return source


def shown(notebook, place, x, layer, parent, insist=False, monkeypatch=None):
    """What a notebook's own cell shows of the SAE at ``place``, the warnings, and the names that it leaves."""
    displayed = []
    scope = {
        "checks": checks, "finetuning": finetuning, "folders": folders, "models": models, "pd": pd, "torch": torch,
        "token_blocks": token_blocks, "task_tables": task_tables, "Markdown": str, "display": displayed.append,
        "layer": layer, "model": MODEL, "insist": insist, "base_saes": [str(place)], "prompts_sae": "",
        "device": "cpu", "dtype": "float32", "task_tokens": 64, "measured": ["a task"], "has_tasks": True,
        "run": types.SimpleNamespace(folder=parent), "chat": types.SimpleNamespace(held_out=parent),
        "run_dir": lambda name: parent / name, "place": str(place),
    }  # fmt: skip
    source = cell(notebook, "checks.")
    if notebook == "07":
        scope |= {"base": folders.load(place), "raw": types.SimpleNamespace(activations=x.numpy())}
        bridge = types.SimpleNamespace(cfg=types.SimpleNamespace(d_model=x.shape[1]))
        loading = cell("07", "folders.check_fits(")
        source = loading[loading.index("folders.check_fits(") :] + "\n" + source
        scope |= {"bridge": bridge}
    monkeypatch.setattr(token_blocks, "load_tokens", lambda store: x)
    monkeypatch.setattr(task_features, "sample_tokens", lambda *_: x)
    scope["task_features"] = task_features
    statements = ast.parse(source).body
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        exec(compile(ast.Module(statements[:-1], []), notebook, "exec"), scope)
        last = ast.unparse(statements[-1])
        if isinstance(statements[-1], ast.Expr):
            displayed.append(eval(last, scope))
        else:
            exec(last, scope)
    (text,) = displayed
    return text, [f"{warning.category.__name__}: {warning.message}" for warning in told], scope


NOTEBOOKS = pytest.mark.parametrize("notebook", ["04", "07", "09"])


@NOTEBOOKS
def test_an_sae_of_its_own_activations_is_measured_and_nothing_is_wrong(notebook, activations, tmp_path, monkeypatch):
    text, told, _ = shown(notebook, SHIPPED, activations[LAYER], LAYER, tmp_path, monkeypatch=monkeypatch)
    assert "the SAE has an FVU of 0.2" in text and "; its record says an L0 of 30.2 and an FVU of 0." in text
    assert "data/pretrained/all-MiniLM-L6-v2-layer-2-base" in text
    assert not any(warning.startswith("SAEWarning") for warning in told) and "Warning" not in text
    assert not list(tmp_path.iterdir())


@NOTEBOOKS
@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_an_sae_of_another_scale_is_told(notebook, scale, activations, tmp_path, monkeypatch):
    place = planted(tmp_path / "scaled", scale)
    text, told, _ = shown(notebook, place, activations[LAYER], LAYER, tmp_path, monkeypatch=monkeypatch)
    assert len(told) == 2 and all(warning.startswith("SAEWarning: ") and SUSPECT in warning for warning in told)
    assert "above 1, is worse than the mean of the tokens" in text and "of the recorded 30.2 is far off" in text
    assert text.count("**Warning: ") == 2


@NOTEBOOKS
def test_an_sae_of_another_layer_whose_record_says_nothing_is_told(notebook, activations, tmp_path, monkeypatch):
    place = planted(tmp_path / "elsewhere", hook_name=None)
    text, told, _ = shown(notebook, place, activations[FAR], FAR, tmp_path, monkeypatch=monkeypatch)
    assert [warning.startswith("SAEWarning: ") and warning.endswith(SUSPECT) for warning in told] == [True]
    assert "above 1, is worse than the mean of the tokens" in text


def test_a_neighbouring_layer_is_told_by_the_record_alone(activations):
    """Why the record is asked: next to its own layer an SAE rebuilds nearly as well."""
    sae = folders.load(SHIPPED)
    own, next_to_it = (folders.evaluate(sae, activations[layer])["fvu"] for layer in (LAYER, LAYER + 1))
    assert own < next_to_it < 1.5 * own


@NOTEBOOKS
@pytest.mark.parametrize("metadata, layer", [({}, LAYER + 1), ({"model_name": "gemma-2-9b"}, LAYER)])
def test_another_place_or_model_is_used_if_one_insists(notebook, metadata, layer, activations, tmp_path, monkeypatch):
    place = planted(tmp_path / "foreign", **metadata)
    with pytest.raises(ValueError, match="the SAE was trained on .*; give an SAE of theirs, or none, or insist"):
        shown(notebook, place, activations[layer], layer, tmp_path, monkeypatch=monkeypatch)
    text, told, scope = shown(notebook, place, activations[layer], layer, tmp_path, True, monkeypatch)
    assert any("the SAE was trained on" in warning and "is used all the same" in warning for warning in told)
    assert "the SAE has an FVU of 0." in text
    if notebook == "07":
        return  # which reads it there and then
    taken = {"04": lambda: scope["starts"][finetuning.BASE][0], "09": lambda: scope["saes"]["folder"][0]}[notebook]()
    sae = folders.load(taken)
    folders.check_fits(sae, 384, models.resid_post(layer), MODEL)  # as every later reader does
    assert sae.cfg.metadata.adopted_from["place"] == str(place)
    torch.testing.assert_close(sae(activations[layer]), folders.load(place)(activations[layer]))
    assert folders.recorded_l0(taken) == folders.recorded_l0(SHIPPED)


def test_an_sae_of_another_width_is_refused_whether_one_insists_or_not(tmp_path):
    site = checks.Site(models.resid_post(LAYER), MODEL, insists=True)
    with pytest.raises(ValueError, match="d_in 384, the activations have d_model 8"):
        checks.check({"an SAE": {0: SHIPPED}}, torch.randn(10, 8), site, tmp_path)
    with pytest.raises(ValueError, match="0 tokens have no variance"):
        checks.measured("an SAE", folders.load(SHIPPED), torch.zeros(0, 384))


def test_what_no_record_says_is_said(activations):
    text = checks.measured("mine", folders.load(SHIPPED), activations[LAYER])
    assert text.endswith("; no record says what they were.")


def test_what_a_notebook_warns_of_is_said_by_the_command(tmp_path):
    said = "lib/sae/checks.py:71: SAEWarning: an SAE: wrong\n  warnings.warn(\nx.py:1: UserWarning: something else\n"
    outputs = [new_output("stream", name=name, text=said) for name in ("stderr", "stderr", "stdout")]
    cell = new_code_cell("x", outputs=outputs)
    (tmp_path / "x.ipynb").write_text(nbformat.writes(new_notebook(cells=[cell])))
    assert runner.warned(tmp_path / "x.ipynb") == ["an SAE: wrong"]
