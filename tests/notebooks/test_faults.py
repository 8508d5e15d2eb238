"""Power cuts, full disks, damaged and foreign files, read-only folders: nothing is lost, changed, or half written."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib.base import files
from lib.model import shards
from lib.sae import folders, training
from tests import faults, tiny_gguf

# Kills are at random moments, the same in every run of the tests, two in a trial; KILLS=4 tries four times as many, and
# KILLS=25 with -k chat_model kills the chat model's run 50 times.
KILLS = int(os.environ.get("KILLS", 1))
TRIALS = {faults.harvest: 6 * KILLS, faults.training: 5 * KILLS, faults.answers: 2 * KILLS, faults.chat_model: KILLS}
MAKE = ["make", "-o", ".venv/installed", "reproduce"]


@pytest.fixture(scope="module")
def whole(tiny_gemma, tmp_path_factory):
    """Each work's argument, its uninterrupted result, and the seconds that takes."""
    store = tmp_path_factory.mktemp("store")
    arguments = {faults.harvest: str(tiny_gemma), faults.training: "", faults.answers: str(tiny_gemma)}
    arguments[faults.chat_model] = str(tmp_path_factory.mktemp("chat model"))
    tiny_gguf.write(Path(arguments[faults.chat_model]) / "tiny.gguf", tiny_gguf.model())
    sae = folders.from_parameters(_parameters(64), torch.zeros(64), 1.0, {})
    folders.save(sae, Path(arguments[faults.chat_model]) / "sae", {})
    finished = {}
    for work in TRIALS:
        # The first run also starts the server of processes, so the second one is timed.
        faults.finish(work, tmp_path_factory.mktemp("first"), arguments[work])
        folder = tmp_path_factory.mktemp(work.__name__)
        seconds = faults.finish(work, folder, arguments[work])
        if work is faults.harvest:
            shutil.copytree(next(folder.glob("tokens-*")), store / "tokens")
            arguments[faults.training] = str(store / "tokens")
        finished[work] = arguments[work], faults.digest(folder), seconds
    return finished


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
def test_make_reproduce_is_killed_goes_on_and_is_alone(project):
    """Kill −9 make and all that it started, in notebook 01 and in 02; a second make meanwhile is refused."""
    from tests.stubs import write

    begun, go_on = project / "begun", project / "go-on"
    waits = f"""
import time
from pathlib import Path
Path({str(begun)!r}).touch()
while not Path({str(go_on)!r}).exists():
    time.sleep(0.05)
"""
    write(project, "01_first", "a", body=waits)
    environment = os.environ | {"PYTHONPATH": str(project)}
    executed = project / "data/runs/embedded/notebooks"

    def start():
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(MAKE, cwd=project, env=environment, start_new_session=True, **pipes)

    def wait(process, path):
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.05)

    def kill(process):
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert all(path.stat().st_size > 1000 for path in executed.glob("*.ipynb"))

    process = start()
    wait(process, begun)
    kill(process)
    assert not list(executed.glob("*.ipynb"))
    begun.unlink()
    process = start()
    wait(process, begun)  # the killed one holds no lock
    second = start()
    _, err = second.communicate()
    sentence = "error: another make reproduce is at work on profile 'embedded'; wait for it"
    assert second.returncode != 0 and sentence in err and "Traceback" not in err
    go_on.touch()
    wait(process, executed / "01_first.ipynb")  # the first one did not mind
    rng = random.Random(0)
    for _ in range(KILLS):
        time.sleep(rng.uniform(0, 6))
        kill(process)
        process = start()
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "lib.runs.runner 01_first" not in out, "what is finished is kept"
    assert {path.name for path in executed.glob("*.ipynb")} == {"01_first.ipynb", "02_second.ipynb"}
    assert (project / "data/runs/embedded/results/02_second.txt").read_text() == "b"


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
    firsts = [shards.read_shard(small_disk / "store", i)["activations"][0, 0].item() for i in range(done)]
    assert firsts == list(range(done))
    hidden = (small_disk / "store").glob(".*")
    assert all(path.suffix == ".lock" for path in hidden), "no half file stays"
    moved = shutil.copytree(small_disk / "store", tmp_path / "store")  # more room
    shards.build(moved, {"a": 1}, 9, shard, "shard")
    plain = shards.build(tmp_path / "plain", {"a": 1}, 9, shard, "shard")
    assert shards.read_manifest(moved)["shards"] == shards.read_manifest(plain)["shards"]


def test_a_full_disk_for_other_files(small_disk):
    files.write_text(small_disk / "x.txt", "old")
    full = r"x.txt cannot be written: the disk is full \(No space left on device\)"
    with pytest.raises(files.WriteError, match=full):
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
from lib.base import files
from lib.model import shards
folder = Path({str(tmp_path)!r})
folder.chmod(0o555)
os.setuid(65534)
for write in (
    lambda: files.write_text(folder / "x.txt", "new"),
    lambda: shards.build(folder / "store", {{}}, 1, lambda i: {{}}, "shard"),
):
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
    assert len(lines) == 2 and all(line.startswith("WriteError ") for line in lines)
    assert all("its folder is not writable (Permission denied)" in line for line in lines)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "empty"])
def test_a_damaged_shard_and_a_damaged_checkpoint_are_named(damage, tmp_path, monkeypatch):
    def make(i):
        return {"activations": torch.randn(600, 8, generator=torch.Generator().manual_seed(i))}

    def train():
        return training.train(recipe, store, store, tmp_path / "saes", progress=False)

    store = shards.build(tmp_path / "tokens", {"model": "m", "hook_name": "h"}, 2, make, "shard")
    recipe = training.Recipe(d_sae=16, target_l0=2, tokens=2000, batch_tokens=100)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)

    def cut(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lib.sae.trainers.JumpReLUTrainer.finish", cut)
        with pytest.raises(KeyboardInterrupt):
            train()
    checkpoint = next((tmp_path / "saes").glob("*.checkpoint"))
    for path, rerun, message in (
        (checkpoint, train, "is a damaged checkpoint|is the checkpoint of another recipe"),
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
        flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
        path.write_bytes({"truncated": good[:middle], "empty": b"", "flipped": flipped}[damage])
