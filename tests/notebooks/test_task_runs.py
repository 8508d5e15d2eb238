"""``make tasks`` on two workers that share nothing but a store, beside a run in one process."""

import json
import os
import shutil
import subprocess
import sys
import uuid

import pandas as pd
import pytest

from lib.base.files import ROOT, run_dir
from tests.tiny_gemma import D_SAE, LAYER

pytestmark = pytest.mark.slow
SMALL = """
layer: {layer}
prompts_sae: ""
tasks_ks: [4]
tasks_show_k: 4
k_poolings: [mean]
c_grid: [0.01, 1.0]
task_sizes: [16]
task_positives: []
task_noise: []
task_draws: 1
n_bootstrap: 50
grid_bootstrap: 20
"""
PROFILE = "tiny-test-tasks-two"


@pytest.fixture
def two_tasks(tmp_path, tiny_gemma):
    """A profile, and a folder with two tasks whose texts no run has seen; what is made of them is removed."""
    sae = f"{tiny_gemma}/gemma-scope/layer_{LAYER}/width_{D_SAE}/average_l0_10"
    own = f"model: {tiny_gemma}\nbase_saes: ['{sae}']\n"
    (tmp_path / "tiny-test.yaml").write_text(SMALL.format(layer=LAYER) + own)
    (tmp_path / "two").mkdir()
    for name in ("a", "b"):
        rows = [f"{name} {uuid.uuid4()} {'apple' if i % 2 else 'hammer'},{i % 2}" for i in range(80)]
        (tmp_path / "two" / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    yield tmp_path
    for path in measured():
        path.unlink(missing_ok=True)
    shutil.rmtree(run_dir(PROFILE), ignore_errors=True)
    shutil.rmtree(ROOT / "figures" / PROFILE, ignore_errors=True)


def measured():
    """Where the results of the tasks lie that the last run lists."""
    record = run_dir(PROFILE) / "results" / "09_many_tasks.json"
    outputs = json.loads(record.read_text())["outputs"] if record.exists() else {}
    return [ROOT / output["path"] for name, output in outputs.items() if name.startswith("task ")]


def run(folder, **variables):
    """What ``make tasks DIR=two`` prints; the table of results."""
    environment = os.environ | {"DIR": str(folder / "two"), "WORKERS": "1", "OMP_NUM_THREADS": "1"} | variables
    command = [sys.executable, "-m", "lib.runs.task_runs", "--tasks", "--profile", str(folder / "tiny-test.yaml")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = run_dir(PROFILE) / "results" / "many_tasks.parquet"
    return done.stdout, pd.read_parquet(table) if table.exists() else None


def test_tasks_on_two_workers_are_those_of_one_process_and_come_from_a_store(two_tasks):
    said, table = run(two_tasks, DRY="1")
    assert said.startswith(f"{PROFILE}: 2 tasks, 160 rows; at most ") and table is None
    _, alone = run(two_tasks)
    for path in measured():
        path.unlink()
    shutil.rmtree(run_dir(PROFILE))
    store = {"WORKERS": "2", "STORE": str(two_tasks / "store")}
    said, apart = run(two_tasks, **store)
    pd.testing.assert_frame_equal(apart, alone, check_exact=True)
    assert f"the page: figures/{PROFILE}/tasks.html" in said and (ROOT / "figures" / PROFILE / "tasks.html").exists()
    parts = sorted((run_dir(PROFILE) / "cells").glob("*/results/09_many_tasks.json"))
    of_parts = [name for part in parts for name in json.loads(part.read_text())["outputs"]]
    assert sorted(of_parts) == ["task a", "task b", "tasks", "tasks"]
    # Another machine, which has the store alone: each task is fetched, not measured.
    times = {path: path.stat().st_mtime_ns for path in (two_tasks / "store").rglob("*.parquet")}
    for path in measured():
        path.unlink()
    shutil.rmtree(run_dir(PROFILE))
    pd.testing.assert_frame_equal(run(two_tasks, **store)[1], alone, check_exact=True)
    assert {path: path.stat().st_mtime_ns for path in (two_tasks / "store").rglob("*.parquet")} == times
