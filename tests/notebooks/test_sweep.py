"""Sweeps on Ray: stub notebooks in an empty project, and notebook 03 in a warm kernel beside a cold one."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from lib.base import cluster
from lib.base.files import run_dir
from lib.model import shards
from lib.runs import profiles, runner, sweep_cells, sweeps
from tests.stubs import write

pytestmark = pytest.mark.slow
BODY = """records.read(run, "01_first")
import time
(run.results / f"ran-{time.time_ns()}").write_text("")
"""
SWEEP = """
notebooks: [02_second]
grid: {layer: [1, 2, 3], share: [0.1, 0.2]}
figure: {x: cell.layer, hue: cell.share}
"""


@pytest.fixture
def swept(project):
    """The stub project with a sweep of six cells, whose product is their layer."""
    first = project / "notebooks" / "01_first.py"
    first.write_text(first.read_text().replace("layer = 3\nshare = 0.5\n", ""))
    write(project, "02_second", "b", body=BODY)
    text = (project / "notebooks" / "02_second.py").read_text()
    (project / "notebooks" / "02_second.py").write_text(text.replace('"value": 1.0', '"value": layer + share'))
    (project / "mine.yaml").write_text(SWEEP)
    return project


def start(project, *arguments, workers=2, **environment):
    environment = os.environ | {"PYTHONPATH": str(project), "WORKERS": str(workers)} | environment
    command = [sys.executable, "-m", "lib.runs.sweeps", "mine.yaml", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def let_interrupt():
        signal.signal(signal.SIGINT, signal.default_int_handler)

    return subprocess.Popen(command, cwd=project, env=environment, preexec_fn=let_interrupt, **pipes)


def sweep(project, *arguments, **environment):
    process = start(project, *arguments, **environment)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def runs(project):
    """How often each notebook ran, and the values of the outcome by layer and share."""
    folder = project / "data" / "runs" / "embedded"
    seconds = list(folder.glob("cells/02_second-*/results/ran-*"))
    firsts = list(folder.glob("cells/01_first-*/notebooks/01_first.ipynb"))
    outcome = folder / "sweeps" / "mine.parquet"
    values = None
    if outcome.exists():
        values = pd.read_parquet(outcome).set_index(["cell.layer", "cell.share"])["value"].to_dict()
    return (len(seconds), len(firsts)), values


def before_each_cell(project, code):
    """Put code at the beginning of what notebook 02 does."""
    notebook = project / "notebooks" / "02_second.py"
    notebook.write_text(notebook.read_text().replace("\nimport time\n", f"\nimport time\n{code}\n"))


EXPECTED = {(layer, share): layer + share for layer in (1, 2, 3) for share in (0.1, 0.2)}


def test_cells_run_once_share_what_they_read_and_are_gathered(swept):
    code, out, err = sweep(swept, "--dry-run")
    assert code == 0 and "6 cells of 02_second, 7 runs with those they read" in out, err
    assert not (swept / "data/runs/embedded/cells").exists()
    code, out, err = sweep(swept)
    outcome = "data/runs/embedded/sweeps/mine.parquet, data/runs/embedded/sweeps/mine.png"
    assert code == 0 and f"6 of 6 cells finished; {outcome}" in out, err
    assert runs(swept) == ((6, 1), EXPECTED)
    assert sweep(swept)[0] == 0 and runs(swept) == ((6, 1), EXPECTED), "finished cells are skipped"
    (swept / "mine.yaml").write_text(SWEEP.replace("[1, 2, 3]", "[1, 2, 3, 4]"))
    assert sweep(swept)[0] == 0 and runs(swept)[0] == (8, 1), "a larger grid runs what is new"


def test_a_cell_that_fails_or_takes_too_long_is_reported_and_does_not_stop_the_others(swept):
    notebook = swept / "notebooks" / "02_second.py"
    whole = notebook.read_text()
    code = "if layer == 2: raise ValueError('layer two is out')\nif layer == 3: time.sleep(1000)"
    before_each_cell(swept, code)
    code, out, err = sweep(swept, "--limit", "15")
    assert code == 1 and "2 of 6 cells finished" in out
    assert err.count("TimeoutError: the limit of 15 s was reached") == 2
    lines = [line for line in err.splitlines() if line.startswith("failed: ") and "layer two is out" in line]
    assert len(lines) == 2 and all("ValueError: layer two is out" in line for line in lines)
    assert all('"layer": 2' in line for line in lines)
    failed = swept / lines[0].split()[-1]
    assert failed.name == "02_second.failed.ipynb" and "layer two is out" in failed.read_text()
    notebook.write_text(whole)
    once = """
mark = run.results / "failed-once"
if layer == 2 and not mark.exists():
    mark.write_text("")
    raise ValueError("the first time")
"""
    before_each_cell(swept, once)
    assert sweep(swept, "--retries", "1")[0] == 0 and runs(swept)[1] == EXPECTED, "a failed cell is tried again"


def test_what_a_failed_cell_makes_is_missing_for_those_that_read_it(swept):
    write(swept, "01_first", "a", body="1 / 0")
    code, out, err = sweep(swept)
    assert code == 1 and "0 of 6 cells finished" in out
    assert "failed: 01_first-" in err and err.count("not run, as 01_first-") == 6


def test_two_sweeps_at_once_and_ctrl_c(swept):
    before_each_cell(swept, "time.sleep(2)")
    first = start(swept, workers=1)
    wait_for(lambda: runs(swept)[0][0] >= 1)
    code, _, err = sweep(swept)
    assert code == 1 and "another process is at work on data/runs/embedded/sweeps/mine" in err
    assert "Traceback" not in err
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=120)
    sentence = "stopped; finished cells are kept, and the same command goes on with the others"
    assert first.returncode == 1 and err.rstrip().endswith(sentence)
    done = runs(swept)[0][0]
    assert sweep(swept)[0] == 0 and runs(swept)[1] == EXPECTED
    assert runs(swept)[0][0] <= 6 + 1 and done >= 1


def test_a_killed_sweep_goes_on(swept):
    before_each_cell(swept, "time.sleep(1)")
    process = start(swept)
    wait_for(lambda: runs(swept)[0][0] >= 2)
    process.kill()
    process.communicate()
    assert sweep(swept)[0] == 0 and runs(swept)[1] == EXPECTED
    hidden = (swept / "data/runs/embedded/cells").glob("*/notebooks/.*")
    assert not list((swept / "data").rglob("*.tmp")) and not [path for path in hidden if path.is_dir()]


def wait_for(true, seconds=120):
    until = time.time() + seconds
    while not true():
        assert time.time() < until
        time.sleep(0.05)


def test_results_in_an_s3_bucket_are_found_from_another_machine(swept, monkeypatch):
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        place = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "secret-of-test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        import s3fs

        bucket = s3fs.S3FileSystem(endpoint_url=place["AWS_ENDPOINT_URL"], key="test", secret="secret-of-test")
        bucket.mkdir("results")
        code, out, err = sweep(swept, "--store", "s3://results/try", **place)
        assert code == 0, err
        kept = bucket.find("results/try")
        assert sum(name.endswith("02_second.ipynb") for name in kept) == 6
        assert any(name.endswith("sweeps/mine.png") for name in kept)
        (swept / "data" / "runs").rename(swept / "data" / "elsewhere")  # another machine: nothing here but the bucket
        code, out, err = sweep(swept, "--store", "s3://results/try", **place)
        assert code == 0 and "6 of 6 cells finished" in out, err
        assert runs(swept) == ((0, 1), EXPECTED), "nothing ran, all was fetched"
        notebook = swept / "notebooks" / "02_second.py"
        notebook.write_text(notebook.read_text() + "\n# changed\n")
        (swept / "data" / "runs").rename(swept / "data" / "elsewhere2")
        code, out, err = sweep(swept, "--store", "s3://results/try", **place)
        assert code == 0 and runs(swept) == ((6, 1), EXPECTED), err
        files = [path for path in (swept / "data" / "runs").rglob("*") if path.is_file()]
        everything = "".join(path.read_text(errors="ignore") for path in files)
        assert "secret-of-test" not in everything + out + err
    finally:
        server.stop()


def test_what_is_wrong_is_one_sentence(swept):
    for environment, message in (
        ({"WORKERS": "two"}, "error: WORKERS='two' must be a whole number of at least 1"),
        ({"CLUSTER": "ray://127.0.0.1:1"}, "error: the cluster 'ray://127.0.0.1:1' cannot be reached"),
    ):
        code, _, err = sweep(swept, **environment)
        assert code == 1 and message in err and "Traceback" not in err, err
    code, _, err = sweep(swept, "--store", "nowhere://x")
    assert code == 1 and "error: STORE='nowhere://x' cannot be used" in err


def test_a_warm_kernel_gives_what_a_cold_one_gives(small_run, profile, tmp_path, monkeypatch):
    """Two cells of notebook 03 in one kernel; the second has the parameters of the run in a kernel of its own."""
    path = tmp_path / "warm.yaml"
    lr = profiles.read_profile(profile)["lr"]
    path.write_text(f"notebooks: [03_sae_training]\nprofile: {profile}\ngrid: {{lr: [{lr / 2}, {lr}]}}\n")
    cells, wanted = sweep_cells.plan(sweep_cells.read(path))
    work = sweep_cells.CellRunner()
    try:
        for cell in cells.values():
            assert work((cell, [cells[need] for need in cell.needs])) == ""
    finally:
        work.kernel.kill()
    second = cells[wanted[1].name]
    warm = json.loads(second.record.read_text())
    cold = json.loads((run_dir("own-data-test") / "results" / "03_sae_training.json").read_text())
    assert warm["parameters"] == cold["parameters"] | {"profile": f"own-data-test/cells/{second.name}"}
    assert warm["metrics"] == cold["metrics"]
    executed = second.executed.read_text()
    assert '"execution_count": 1,' in executed and runner.ROOT.as_posix() not in executed


@pytest.mark.parametrize("path", sorted(sweeps.SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_figure_of_a_shipped_sweep_names_columns_that_there_are(path, small_run):
    sweep = sweep_cells.read(path)
    table = pd.read_parquet(run_dir("own-data-test") / "results" / f"{sweep.notebooks[0]}.parquet")
    there = {*table.columns, *(f"cell.{name}" for name in sweep.points[0])}
    about = sweep.figure
    placed = {about[key] for key in ("x", "hue", "col", "row") if key in about}
    assert placed | set(about["where"]) | set(about.get("distinct", [])) <= there
    for name in {"metric", "probe", "selection", "change"} & set(about["where"]):
        allowed = about["where"][name]
        assert set(allowed if isinstance(allowed, list) else [allowed]) <= set(table[name].dropna()), name


def test_workers_that_die_are_begun_again(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKERS", "2")
    marks = str(tmp_path)

    def work(i):
        import os
        from pathlib import Path

        if i == 3 and not (Path(marks) / "died").exists():
            (Path(marks) / "died").write_text("")
            os.kill(os.getpid(), 9)
        (Path(marks) / f"{i}-{os.getpid()}-{time.time_ns()}").write_text("")
        return i * i

    assert dict(cluster.each(work, range(8))) == {i: i * i for i in range(8)}
    ran = sorted(int(path.name.split("-")[0]) for path in tmp_path.glob("*-*"))
    assert ran == list(range(8)), "a worker's death costs the one item it was at"
    with pytest.raises(ValueError, match="a worker takes 1 CPU and 1 GPU, the cluster has [0-9]+ and 0; set GPUS"):
        cluster.Pool(lambda: len, 2, gpus=1.0)


HARVEST = """
import sys
from pathlib import Path
from lib.model import activations, models, weights
parent, minilm, identity = Path(sys.argv[1]), models.load_model(weights.MINILM), models.identity(weights.MINILM)
texts = [f"text {i} of a few words, {'and some more ' * (i % 7)}to the end" for i in range(60)]
activations.harvest_pooled(minilm, identity, texts, [1, 4], parent, shard_tokens=300, token_layer=2)
token_ids = models.split_tokens(minilm, texts, 16)
options = {"special": False, "shuffle_seed": 0, "shard_tokens": 200}
activations.harvest_tokens(minilm, identity, "hash", token_ids, 2, parent, **options)
"""


def test_two_workers_harvest_what_one_does(tmp_path):
    """In a process of its own, as jaxtyping's hook makes functions that cannot be sent to a worker."""
    manifests = {}
    for workers in ("1", "2"):
        environment = os.environ | {"PYTHONPATH": str(runner.ROOT), "WORKERS": workers}
        command = [sys.executable, "-c", HARVEST, str(tmp_path / workers)]
        subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True)
        stores = [folder for folder in (tmp_path / workers).iterdir() if folder.is_dir()]
        manifests[workers] = {store.name: shards.read_manifest(store) | {"seconds": None} for store in stores}
    assert manifests["1"] == manifests["2"] and len(manifests["1"]) == 3
    assert all(len(manifest["shards"]) > 3 for manifest in manifests["1"].values())
