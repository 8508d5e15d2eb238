"""Bring your own CSV, from the command line to the record."""

import json
import shutil

import nbformat
import pandas as pd
import pytest

from lib.base import build_graph
from lib.base.files import run_dir
from lib.runs import profiles, runner
from tests import planted_saes


@pytest.mark.slow
def test_own_csv_end_to_end(small_run):
    results = run_dir("own-data-test") / "results"
    prompts = pd.read_parquet(results / "prompts.parquet")
    assert prompts["split"].value_counts().to_dict() == {"train": 128, "ood": 60, "val": 32}
    assert set(prompts["transform"]) == {"plain"}
    metrics = json.loads((results / "05_probing.json").read_text())["metrics"]
    dense = {m["split"]: m["value"] for m in metrics if m["probe"] == "dense" and m["metric"] == "auroc"}
    assert dense["val"] > 0.9 and dense["ood"] > 0.7
    executed = nbformat.read(run_dir("own-data-test") / "notebooks" / "01_datasets.ipynb", as_version=4)
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    html = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert any("&lt;script&gt;" in text for text in html) and not any("<script>alert" in text for text in html)


@pytest.mark.slow
def test_without_ood_the_values_are_null(profile, run_all):
    changes = {"profile": "own-data-test/cells/no-ood", "ood_csv": "", "attention_probe": False}
    read_no_split = ("06_autointerp", "10_scorecard")
    run_all(profiles.read_profile(profile) | changes, left_out=read_no_split)
    record = json.loads((run_dir("own-data-test/cells/no-ood") / "results" / "05_probing.json").read_text())
    assert {m["split"] for m in record["metrics"]} == {"train", "val"}


@pytest.mark.slow
def test_an_sae_of_another_scale_and_model_is_told_by_the_command(beside, tmp_path, capsys):
    place = planted_saes.planted(tmp_path / "sae", 10.0, model_name="gemma-2-9b")
    values = beside("given-sae-test") | {"base_saes": [str(place)]}
    notebook = build_graph.NOTEBOOKS / "04_chat_finetune.py"
    with pytest.raises(SystemExit, match="the SAE was trained on model_name 'gemma-2-9b', .* or insist"):
        runner._run(notebook, values)
    capsys.readouterr()
    runner._run(notebook, values | {"insist": True})
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning in 04_chat_finetune: ")]
    assert len(told) == 2 and all(f"pretraining SAE 0 (`{place}`): " in line for line in told)
    saes = pd.read_parquet(run_dir("given-sae-test") / "results" / "chat_saes.parquet").set_index("variant")
    assert saes.loc["pretraining SAE", "folder"].startswith("data/runs/given-sae-test/saes/adopted-")


def test_a_wrong_csv_ends_with_its_sentence(tmp_path, capsys, monkeypatch):
    (tmp_path / "bad.csv").write_text("text,label\nhello,5\n")
    values = {"profile": "bad-csv-test", "train_csv": str(tmp_path / "bad.csv")}
    with pytest.raises(SystemExit) as stop:
        runner._run(build_graph.NOTEBOOKS / "01_datasets.py", values)
    assert "its only label is '5' (1); two classes are needed" in str(stop.value)
    assert "01_datasets.failed.ipynb" in str(stop.value)
    shutil.rmtree(run_dir("bad-csv-test"))
