"""List parameters: which may be empty, and all notebooks with one entry, with none, and in another order."""

import ast
import json
import shutil

import nbformat
import pytest

from lib.base import build_graph
from lib.base.files import run_dir
from lib.runs import profiles
from tests.tiny_gemma import D_SAE, LAYER

MAY_BE_EMPTY = {
    *("layers", "gated_coefficients", "f0s", "comparators", "resample_shares", "prompt_repeats", "train_sizes"),
    "noise_shares",
}
LISTS = {
    (path, name): default
    for path in build_graph.notebooks()
    for name, default in build_graph.parameters(path).items()
    if isinstance(default, list)
}
by_name = {"argvalues": LISTS, "ids": [name for _, name in LISTS]}
SMALL = {
    "layer": LAYER,
    "show_layer": LAYER,
    "attention_probe": False,
    "corpus": "own:prompts",
    "chat_corpus": "own:prompts",
    "context": 32,
    "n_rollouts": 60,
    "rollout_tokens": 8,
    "n_jailbroken": 2,
    "response_tokens": 4,
    "n_harmful": 30,
    "n_harmless": 60,
    "n_ood_harmful": 16,
    "n_ood_toxic_looking": 16,
    "n_ood_chat": 16,
    "benign_jailbreak_share": 0.2,
    "n_bootstrap": 40,
    "grid_bootstrap": 40,
    "max_tokens": 5000,
    "held_out_tokens": 1000,
    "lm_loss_tokens": 500,
    "d_sae": 96,
    "train_tokens": 5000,
    "pretraining_tokens": 5000,
    "chat_tokens": 5000,
    "finetune_tokens": 4096,
    "scratch_tokens": 4096,
    "sae_target_l0": 10.0,
    "show_k": 5,
    "stress_draws": 2,
    "interp_tokens": 4000,
    "n_latents": 10,
    "n_cards": 2,
}


@pytest.mark.parametrize("place", **by_name)
def test_a_list_is_empty_only_where_its_comment_says_what_that_means(place):
    path, name = place
    if name in MAY_BE_EMPTY:
        default = LISTS[place]
        assert profiles.select(path, {name: []}) == ({name: []} if default else {})
    else:
        sentence = rf"^parameter {name}: an empty list; it needs one entry or more, the default is \["
        with pytest.raises(ValueError, match=sentence):
            profiles.select(path, {name: []})


@pytest.mark.parametrize("place", **by_name)
def test_an_entry_that_stands_twice_is_refused(place):
    path, name = place
    entry = (LISTS[place] or [1])[0]
    with pytest.raises(ValueError, match=f"^parameter {name}: {entry!r} stands in the list twice"):
        profiles.select(path, {name: [entry, entry]})


def test_every_list_that_may_be_empty_is_a_parameter():
    assert {name for _, name in LISTS} >= MAY_BE_EMPTY


@pytest.mark.parametrize("path", build_graph.notebooks(), ids=lambda path: path.stem)
def test_no_cell_takes_an_entry_of_a_list_parameter_by_its_place(path):
    names = {name for of_path, name in LISTS if of_path == path}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            assert node.value.id not in names, f"line {node.lineno}: {ast.unparse(node)}"


@pytest.fixture(scope="module")
def run_lists(tiny_gemma, run_all_alone):
    """Run all notebooks on the tiny Gemma with these lists; returns records and texts by notebook."""
    sae = str(tiny_gemma / "gemma-scope" / f"layer_{LAYER}" / f"width_{D_SAE}" / "average_l0_10")
    model = {"model": str(tiny_gemma), "base_sae": sae, "prompts_sae": sae}

    def run(name, lists):
        profile = f"lists-test/cells/{name}"
        run_all_alone({"profile": profile} | SMALL | model | lists)
        folder = run_dir(profile)
        records = {path.stem[:2]: json.loads(path.read_text()) for path in (folder / "results").glob("*.json")}
        return records, {path.stem[:2]: shown(path) for path in (folder / "notebooks").glob("*.ipynb")}

    yield run
    shutil.rmtree(run_dir("lists-test"), ignore_errors=True)


def shown(path):
    """All that the cells of an executed notebook show as text."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    return "\n".join(str(output.get("data", output.get("text", ""))) for output in outputs)


@pytest.mark.slow
def test_one_entry_in_every_list(run_lists):
    lists = {name: default[:1] or [1] for (_, name), default in LISTS.items()}
    records, texts = run_lists("one-entry", lists)
    costs = [row for row in records["03"]["metrics"] if row["metric"] == "fvu_cost_at_matched_l0"]
    assert costs and all(row["value"] is None for row in costs if row["n"] == 0)
    assert all(row["low"] is None for row in records["07"]["metrics"] if row["metric"] == "recall_at_10")
    apart = [row for row in records["05"]["metrics"] if row["metric"] == "auroc_difference"]
    assert apart and all(row[row["level"]] != row["against"] for row in apart)
    assert not any("Not applicable" in text for number, text in texts.items() if number != "10")


@pytest.mark.slow
def test_no_entry_where_that_is_allowed_and_another_order_elsewhere(run_lists):
    lists = {name: [] if name in MAY_BE_EMPTY else default[1::-1] for (_, name), default in LISTS.items()}
    records, texts = run_lists("no-entry", lists)
    assert {row["variant"] for row in records["03"]["metrics"]} == {"JumpReLU, L0"}
    assert "Not applicable: `f0s` is empty" in texts["03"]
    assert "Not measured: `train_sizes` is empty" in texts["08"]
    assert "Not measured: `noise_shares` is empty" in texts["08"]
    verdicts = {row["id"]: row["value"] for row in records["10"]["metrics"] if row.get("id")}
    assert verdicts is not None
