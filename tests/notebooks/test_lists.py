"""List parameters: which may be empty, and all notebooks with one entry, with none, and in another order."""

import ast
import json
import shutil

import nbformat
import pandas as pd
import pytest

from lib.base import build_graph
from lib.base.files import run_dir
from lib.runs import profiles
from tests.tiny_gemma import D_SAE, LAYER

MAY_BE_EMPTY = {
    *("layers", "f0s", "comparators", "resample_shares", "prompt_repeats", "train_sizes"),
    *("noise_shares", "positive_shares", "positions", "penalties", "base_saes", "rotated_controls"),
    *("token_shares", "sae_widths", "aggregations", "tasks", "folder_tasks", "positive_label"),
    *("task_sizes", "task_positives", "task_noise"),
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
    "n_jailbroken": 1,
    "response_tokens": 4,
    "n_harmful": 20,
    "n_harmless": 40,
    "n_ood_harmful": 10,
    "n_ood_toxic_looking": 10,
    "n_ood_chat": 10,
    "benign_jailbreak_share": 0.2,
    "n_bootstrap": 20,
    "grid_bootstrap": 20,
    "max_tokens": 5000,
    "held_out_tokens": 1000,
    "lm_loss_tokens": 500,
    "d_sae": 96,
    "train_tokens": 5000,
    "pretraining_tokens": 5000,
    "chat_tokens": 5000,
    "base_train_tokens": 8192,
    "finetune_tokens": 4096,
    "scratch_tokens": 4096,
    "sae_target_l0": 10.0,
    "show_k": 5,
    "stress_draws": 2,
    "interp_tokens": 3000,
    "n_latents": 6,
    "n_cards": 2,
    "task_rows": 100,
    "task_draws": 1,
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
def run_lists(tiny_gemma, run_all, tmp_path_factory):
    """Run all notebooks on the tiny Gemma with these lists; what they found, and what they show, by notebook.

    Notebook 01, whose one list is for labels of one's own files, runs once for all.
    """
    sae = str(tiny_gemma / "gemma-scope" / f"layer_{LAYER}" / f"width_{D_SAE}" / "average_l0_10")
    task = tmp_path_factory.mktemp("tasks") / "fruit.csv"
    words = [("saw", "drill"), ("apple", "pear")]
    texts = [f"please buy one {words[i % 2][i % 3 % 2]} number {i}" for i in range(100)]
    pd.DataFrame({"text": texts, "label": [i % 2 for i in range(100)]}).to_csv(task, index=False)
    values = SMALL | {"model": str(tiny_gemma), "prompts_sae": sae, "tasks_folder": str(task.parent)}
    stems = {path.stem[:2]: path.stem for path in build_graph.notebooks()}
    once, *with_lists = stems.values()
    assert {name for path, name in LISTS if path.stem == once} == {"positive_label"}
    shared = run_dir("lists-test/cells/shared")
    run_all(values | {"profile": "lists-test/cells/shared"}, left_out=with_lists)

    def run(name, lists):
        profile = f"lists-test/cells/{name}"
        folder = shutil.copytree(shared, run_dir(profile), dirs_exist_ok=True)
        base_saes = {"base_saes": [sae] if lists["base_saes"] else []}
        run_all(values | lists | base_saes | {"profile": profile}, left_out=[once])
        found = {number: metrics(folder / "results" / f"{stem}.json") for number, stem in stems.items()}
        return found, {number: shown(folder / "notebooks" / f"{stem}.ipynb") for number, stem in stems.items()}

    yield run
    shutil.rmtree(run_dir("lists-test"), ignore_errors=True)


def metrics(record):
    """The headline of a record; of notebook 10 the verdicts of this profile by part of a claim."""
    if record.stem != "10_scorecard":
        return json.loads(record.read_text())["metrics"]
    table = pd.read_parquet(record.with_suffix(".parquet"))
    return table[table["profile"].str.startswith("lists-test")].set_index("id")["verdict"].to_dict()


def shown(path):
    """All that the cells of an executed notebook show as text."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    return "\n".join(str(output.get("data", output.get("text", ""))) for output in outputs)


@pytest.mark.slow
def test_one_entry_in_every_list(run_lists):
    lists = {name: default[:1] or [1] for (_, name), default in LISTS.items()}
    lists |= {"layers": [0], "penalties": ["squared_frequency"], "tasks": [], "positive_label": []}
    lists |= {"folder_tasks": ["fruit"]}
    rows, texts = run_lists("one-entry", lists)
    costs = [row for row in rows["03"] if row["metric"] == "fvu_cost_at_matched_l0"]
    assert costs and all(row["value"] is None for row in costs if row["n"] == 0)
    recalls = [row for row in rows["07"] if row["metric"] == "recall_at_10"]
    assert recalls and all(row["low"] <= row["value"] <= row["high"] for row in recalls), "intervals are over artefacts"
    apart = [row for row in rows["05"] if row["metric"] == "auroc_difference"]
    column = {"method": "probe"}  # of a level, where the name is another one
    differing = [row[column.get(row["level"], row["level"])] != row["against"] for row in apart]
    assert differing and all(differing), "nothing differs from itself"
    undecided = {"not applicable", "inconclusive"}
    assert {rows["10"][part] for part in ("C10a", "C11a", "C11c", "C11d")} <= undecided, "one seed has no interval"
    published = "Not measured: `published_results` is false"
    shown_texts = [text.replace(published, "") for text in texts.values()]
    assert not any("Not applicable" in text or "Not measured" in text for text in shown_texts)


@pytest.mark.slow
def test_no_entry_where_that_is_allowed_and_another_order_elsewhere(run_lists):
    lists = {name: [] if name in MAY_BE_EMPTY else default[1::-1] for (_, name), default in LISTS.items()}
    rows, texts = run_lists("no-entry", lists)
    assert {row["variant"] for row in rows["03"]} == {"JumpReLU, L0"}
    assert "Not applicable: `f0s` is empty" in texts["03"]
    assert "Not measured: `train_sizes` is empty" in texts["08"]
    assert "Not measured: `noise_shares` is empty" in texts["08"]
    assert "Not measured: `positive_shares` is empty" in texts["08"]
    assert "Not measured: `aggregations` is empty" in texts["08"]
    assert "Not measured: notebook 04 trained no other widths (`sae_widths`)" in texts["08"]
    assert {rows["10"][part] for part in ("C10a", "C10b", "C11a", "C11c", "C11d")} == {"not applicable"}
