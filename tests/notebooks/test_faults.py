"""Power cuts, full disks, damaged and foreign files, read-only folders: nothing is lost, changed, or half written."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib.base import files
from lib.model import shards
from lib.sae import folders, training
from tests import faults

TRIALS = {faults.harvest: 22, faults.training: 18, faults.answers: 6}


@pytest.fixture(scope="module")
def whole(tiny_gemma, tmp_path_factory):
    """Each work's argument, its uninterrupted result, and the seconds that takes."""
    store = tmp_path_factory.mktemp("store")
    arguments = {faults.harvest: str(tiny_gemma), faults.training: "", faults.answers: str(tiny_gemma)}
    found = {}
    for work in TRIALS:
        faults.finish(work, tmp_path_factory.mktemp("first"), arguments[work])  # which also starts the server of processes
        folder = tmp_path_factory.mktemp(work.__name__)
        seconds = faults.finish(work, folder, arguments[work])
        if work is faults.harvest:
            shutil.copytree(next(folder.glob("tokens-*")), store / "tokens")
            arguments[faults.training] = str(store / "tokens")
        found[work] = arguments[work], faults.digest(folder), seconds
    return found


@pytest.mark.slow
@pytest.mark.parametrize("work", TRIALS, ids=lambda work: work.__name__)
def test_killed_at_random_moments(work, whole, tmp_path):
    argument, expected, seconds = whole[work]
    assert len(expected) >= 2
    rng = random.Random(work.__name__)
    for trial in range(TRIALS[work]):
        folder = tmp_path / str(trial)
        folder.mkdir()
        seconds = faults.kill_and_go_on(work, folder, argument, seconds, rng)
        assert faults.digest(folder) == expected, trial


@pytest.mark.slow
def test_a_killed_notebook_run_goes_on(project):
    """Kill −9 make and all that it started, then run it again."""
    from tests.stubs import write

    write(project, "01_first", "a", body="import time; time.sleep(1)")
    environment = os.environ | {"PYTHONPATH": str(project)}
    command = ["make", "-o", ".venv/installed", "reproduce"]
    rng = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(command, cwd=project, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(3, 15))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shown = [path for path in (project / "data/runs/embedded/notebooks").glob("*.ipynb")] if (project / "data/runs/embedded").exists() else []
        assert all(path.stat().st_size > 1000 for path in shown)
    subprocess.run(command, cwd=project, env=environment, check=True, capture_output=True)
    assert {path.name for path in (project / "data/runs/embedded/notebooks").glob("*.ipynb")} == {"01_first.ipynb", "02_second.ipynb"}
    assert (project / "data/runs/embedded/results/02_second.txt").read_text() == "b"


@pytest.mark.slow
def test_two_make_reproduce_at_once(project):
    from tests.stubs import write

    write(project, "01_first", "a", body="import time; time.sleep(8)")
    environment = os.environ | {"PYTHONPATH": str(project)}
    command = ["make", "-o", ".venv/installed", "reproduce"]
    first = subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lock = project / "data/runs/embedded/.reproduce.lock"
    while not lock.exists():
        time.sleep(0.05)
    time.sleep(1)
    second = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert second.returncode != 0 and "error: another make reproduce is at work on profile 'embedded'; wait for it" in second.stderr
    assert "Traceback" not in second.stderr and first.wait(300) == 0
    assert subprocess.run(command, cwd=project, env=environment, capture_output=True).returncode == 0, "the lock is free again"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB; needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("cannot mount a file system here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def shard(i):
    return {"activations": torch.full((100, 500), float(i))}


def test_a_full_disk_during_a_harvest(small_disk, tmp_path):
    with pytest.raises(ValueError, match=r"the disk is full .* of 9 shards are complete and stay usable"):
        shards.build(small_disk / "store", {"a": 1}, 9, shard, "shard")
    manifest = shards.read_manifest(small_disk / "store")
    done = len(manifest["shards"])
    assert 2 <= done < 9 and not manifest["finished"]
    assert [shards.read_shard(small_disk / "store", i)["activations"][0, 0].item() for i in range(done)] == list(range(done))
    assert not [path for path in (small_disk / "store").iterdir() if path.name.startswith(".") and path.suffix != ".lock"], "no half file stays"
    moved = shutil.copytree(small_disk / "store", tmp_path / "store")  # more room
    shards.build(moved, {"a": 1}, 9, shard, "shard")
    plain = shards.build(tmp_path / "plain", {"a": 1}, 9, shard, "shard")
    assert shards.read_manifest(moved)["shards"] == shards.read_manifest(plain)["shards"]


def test_a_full_disk_for_other_files(small_disk):
    files.write_text(small_disk / "x.txt", "old")
    with pytest.raises(files.WriteError, match=r"x.txt cannot be written: the disk is full \(No space left on device\)"):
        files.write_text(small_disk / "x.txt", "new" * 500_000)
    assert (small_disk / "x.txt").read_text() == "old" and len(list(small_disk.iterdir())) == 1
    with pytest.raises(files.WriteError, match="the disk is full"):
        folders.save(folders.from_parameters(_parameters(400), torch.zeros(400), 1.0, {}), small_disk / "sae", {})
    assert not [path for path in small_disk.iterdir() if path.is_dir()]


def _parameters(d_model):
    from lib.sae.jumprelu import Parameters

    rows = torch.eye(d_model)
    return Parameters(rows, rows.clone(), torch.zeros(d_model), torch.zeros(d_model), torch.zeros(d_model))


def test_a_read_only_folder(tmp_path):
    code = f"""
import os
from pathlib import Path
from lib import files, stores
folder = Path({str(tmp_path)!r})
folder.chmod(0o555)
os.setuid(65534)
for write in (lambda: files.write_text(folder / "x.txt", "new"), lambda: stores.build(folder / "store", {{}}, 1, lambda i: {{}}, "shard")):
    try:
        write()
    except ValueError as error:
        print(type(error).__name__, error)
"""
    if os.geteuid():
        pytest.skip("needs root, which becomes nobody")
    for parent in [tmp_path, *tmp_path.parents][:4]:
        parent.chmod(parent.stat().st_mode | 0o055)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all(line.startswith("WriteError ") and "its folder is not writable (Permission denied)" in line for line in lines)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "empty"])
def test_a_damaged_shard_and_a_damaged_checkpoint_are_named(damage, tmp_path, monkeypatch):
    store = shards.build(tmp_path / "tokens", {"model": "m", "hook_name": "h"}, 2, lambda i: {"activations": torch.randn(600, 8, generator=torch.Generator().manual_seed(i))}, "shard")
    recipe = training.Recipe(d_sae=16, target_l0=2, tokens=2000, batch_tokens=100)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)

    def cut(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lib.sae.trainers.JumpReLUTrainer.finish", cut)
        with pytest.raises(KeyboardInterrupt):
            training.train(recipe, store, store, tmp_path / "saes", progress=False)
    checkpoint = next((tmp_path / "saes").glob("*.checkpoint"))
    for path, rerun, message in (
        (checkpoint, lambda: training.train(recipe, store, store, tmp_path / "saes", progress=False), "is a damaged checkpoint|is the checkpoint of another recipe"),
        (store / "shard-00001.safetensors", lambda: shards.read_all(store), "shard-00001.safetensors is damaged"),
    ):
        good = path.read_bytes()
        _damage(path, good, damage)
        with pytest.raises(ValueError, match=message) as caught:
            rerun()
        assert path.name in str(caught.value) and "delete it" in str(caught.value)
        path.write_bytes(good)
        rerun()


def _damage(path, good, damage):
    if damage == "foreign":
        save_file({"x": torch.zeros(3)} | ({} if path.suffix == ".checkpoint" else load_file(path)), path)
    else:
        middle = len(good) // 2
        path.write_bytes({"truncated": good[:middle], "empty": b"", "flipped": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]}[damage])
