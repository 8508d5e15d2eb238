"""Sweeps on Ray: stub notebooks in an empty project, and notebook 03 in a warm kernel beside a cold one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from lib.base import build_graph, cluster
from lib.base.files import run_dir
from lib.model import activations, models, shards, weights
from lib.runs import runner, sweep_cells, sweeps
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
    out, err = process.communicate(timeout=600)
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


def expected(layers):
    return {(layer, share): layer + share for layer in layers for share in (0.1, 0.2)}


EXPECTED = expected((1, 2, 3))


def test_cells_run_once_are_gathered_and_found_from_another_machine_in_an_s3_bucket(swept):
    from moto.server import ThreadedMotoServer

    code, out, err = sweep(swept, "--dry-run")
    assert code == 0 and "6 cells of 02_second, 7 runs with those they read" in out, err
    assert not (swept / "data/runs/embedded/cells").exists()
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
        outcome = "data/runs/embedded/sweeps/mine.parquet, data/runs/embedded/sweeps/mine.png"
        assert code == 0 and f"6 of 6 cells finished; {outcome}" in out, err
        assert runs(swept) == ((6, 1), EXPECTED)
        kept = bucket.find("results/try")
        assert sum(name.endswith("02_second.ipynb") for name in kept) == 6
        assert any(name.endswith("sweeps/mine.png") for name in kept)
        assert sweep(swept)[0] == 0 and runs(swept) == ((6, 1), EXPECTED), "finished cells are skipped"

        (swept / "data" / "runs").rename(swept / "data" / "elsewhere")  # another machine: nothing here but the bucket
        (swept / "mine.yaml").write_text(SWEEP.replace("[1, 2, 3]", "[1, 2, 3, 4]"))
        code, out, err = sweep(swept, "--store", "s3://results/try", **place)
        assert code == 0 and "8 of 8 cells finished" in out, err
        larger = expected((1, 2, 3, 4))
        assert runs(swept) == ((2, 1), larger), "a larger grid runs what is new, and what was there is fetched"
        files = [path for path in (swept / "data" / "runs").rglob("*") if path.is_file()]
        everything = "".join(path.read_text(errors="ignore") for path in files)
        assert "secret-of-test" not in everything + out + err
    finally:
        server.stop()


def test_cells_that_fail_or_take_too_long_are_reported_and_do_not_stop_the_others(swept):
    paths = [swept / "notebooks" / f"{name}.py" for name in ("01_first", "02_second")]
    whole = [path.read_text() for path in paths]
    write(swept, "01_first", "a", body="1 / (layer - 2)")
    paths[0].write_text(paths[0].read_text().replace("share = 0.5\n", ""))
    # The one that is late begins early: the other worker runs all others meanwhile.
    code = "if layer == 1 and share == 0.1: time.sleep(1000)\nif layer == 1: raise ValueError('that is out')"
    before_each_cell(swept, code)
    code, out, err = sweep(swept, "--limit", "90")
    assert code == 1 and "2 of 6 cells finished" in out, err
    failed = {line.split(" ")[1]: line for line in err.splitlines() if line.startswith("failed: ")}
    upstream = next(name for name in failed if name.startswith("01_first-"))
    assert sorted(line.split("}: ")[1].split(" data/")[0].rstrip() for line in failed.values()) == [
        "TimeoutError: the limit of 90 s was reached",
        "cell 4: ValueError: that is out",
        "cell 4: ZeroDivisionError: division by zero",
        f"not run, as {upstream} failed",
        f"not run, as {upstream} failed",
    ]
    line = next(line for line in failed.values() if "that is out" in line)
    assert '"layer": 1, "share": 0.2' in line
    notebook = swept / line.split()[-1]
    assert notebook.name == "02_second.failed.ipynb" and "that is out" in notebook.read_text()

    for path, text in zip(paths, whole):
        path.write_text(text)
    once = """
mark = run.results / "failed-once"
if layer == 2 and not mark.exists():
    mark.write_text("")
    raise ValueError("the first time")
"""
    before_each_cell(swept, once)
    assert sweep(swept, "--retries", "1")[0] == 0 and runs(swept)[1] == EXPECTED, "a failed cell is tried again"


def test_a_sweep_that_is_stopped_or_killed_goes_on_and_is_alone(swept):
    """Cells wait until their layer may run, so that a sweep ends in the middle of one at any speed."""
    allowed = swept / "allowed"
    waits = f"""
from pathlib import Path
while layer > int(Path({str(allowed)!r}).read_text() or 0):
    time.sleep(0.05)
"""
    before_each_cell(swept, waits)
    cells = swept / "data/runs/embedded/cells"

    def n_finished():
        return len(list(cells.glob("02_second-*/notebooks/02_second.ipynb")))

    allowed.write_text("1")
    process = start(swept, workers=1)
    wait_for(lambda: n_finished() == 2)
    code, _, err = sweep(swept)
    assert code == 1 and "another process is at work on data/runs/embedded/sweeps/mine" in err
    assert "Traceback" not in err
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    sentence = "stopped; finished cells are kept, and the same command goes on with the others"
    assert process.returncode == 1 and err.rstrip().endswith(sentence)

    allowed.write_text("2")
    process = start(swept)
    wait_for(lambda: n_finished() == 4)
    process.kill()
    process.communicate()

    allowed.write_text("3")
    code, _, err = sweep(swept)
    assert code == 0 and runs(swept) == ((6, 1), EXPECTED), err
    hidden = cells.glob("*/notebooks/.*")
    assert not list((swept / "data").rglob("*.tmp")) and not [path for path in hidden if path.is_dir()]


def wait_for(true, seconds=600):
    until = time.time() + seconds
    while not true():
        assert time.time() < until
        time.sleep(0.05)


def test_what_is_wrong_is_one_sentence(swept, monkeypatch):
    code, _, err = sweep(swept, CLUSTER="ray://127.0.0.1:1")
    message = "error: the cluster 'ray://127.0.0.1:1' cannot be reached"
    assert code == 1 and message in err and "Traceback" not in err, err
    monkeypatch.setenv("WORKERS", "two")
    with pytest.raises(ValueError, match="^WORKERS='two' must be a whole number of at least 1$"):
        cluster.workers()
    with pytest.raises(ValueError, match="^STORE='nowhere://x' cannot be used"):
        sweeps.run({}, 1, 0.0, 0, "nowhere://x")


WARM = "own-data-warm-test"


@pytest.fixture
def tokens_only(small_run):
    """A run folder with the small run's activations, and without its SAEs; its profile's name."""
    shutil.rmtree(run_dir(WARM), ignore_errors=True)
    run_dir(WARM).mkdir(parents=True)
    (run_dir(WARM) / "activations").symlink_to(run_dir(small_run["profile"]) / "activations")
    yield WARM
    shutil.rmtree(run_dir(WARM))


def test_a_warm_kernel_gives_what_a_cold_one_gives(small_run, tokens_only, beside, run_all):
    """Notebook 03 twice in one kernel, the second time with the parameters of the run in a kernel of its own."""
    others = [path.stem for path in build_graph.notebooks() if path.stem != "03_sae_training"]
    for name, change in (("another", {"lr": small_run["lr"] / 2}), ("same", {})):
        values = beside(f"{tokens_only}/cells/{name}") | change
        run_all(values, left_out=others)
    folder = run_dir(values["profile"])
    warm = json.loads((folder / "results" / "03_sae_training.json").read_text())
    cold = json.loads((run_dir(small_run["profile"]) / "results" / "03_sae_training.json").read_text())
    assert warm["parameters"] == cold["parameters"] | {"profile": values["profile"]}
    assert warm["metrics"] == cold["metrics"]
    executed = (folder / "notebooks" / "03_sae_training.ipynb").read_text()
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


def harvest(parent):
    """A store of pooled activations, one of a layer's tokens, and one of a corpus."""
    minilm, identity = models.load_model(weights.MINILM), models.identity(weights.MINILM)
    texts = [f"text {i} of a few words, {'and some more ' * (i % 7)}to the end" for i in range(60)]
    activations.harvest_pooled(minilm, identity, texts, [1, 4], parent, shard_tokens=300, token_layer=2)
    token_ids = models.split_tokens(minilm, texts, 16)
    options = {"special": False, "shuffle_seed": 0, "shard_tokens": 200}
    activations.harvest_tokens(minilm, identity, "hash", token_ids, 2, parent, **options)


def test_two_workers_harvest_what_one_does(tmp_path):
    """Two in a process of its own, as jaxtyping's hook makes functions that cannot be sent to a worker."""
    harvest(tmp_path / "1")
    code = "import sys, pathlib; from tests.notebooks import test_sweep; test_sweep.harvest(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "2")]
    environment = os.environ | {"PYTHONPATH": str(runner.ROOT), "WORKERS": "2"}
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True)
    manifests = {}
    for workers in ("1", "2"):
        stores = [folder for folder in (tmp_path / workers).iterdir() if folder.is_dir()]
        manifests[workers] = {store.name: shards.read_manifest(store) | {"seconds": None} for store in stores}
    assert manifests["1"] == manifests["2"] and len(manifests["1"]) == 3
    assert all(len(manifest["shards"]) > 3 for manifest in manifests["1"].values())
