"""Work that tests kill: each function makes its artefacts in a folder, in a process that the test may end at any time.

Processes are forked from a server that has imported everything once (``forkserver``), so that a trial takes moments.
"""

import hashlib
import json
import multiprocessing
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from lib.base.files import write_table
from lib.model import activations, own_chat, rollouts, weights
from lib.model.activations import harvest_tokens
from lib.model.models import load_model, split_tokens
from lib.probing import many_tasks, task_features
from lib.sae import training as sae_training
from lib.sae.recipes import Recipe
from lib.texts import task_files

NUMBERS = [" ".join(str(i * j) for j in range(12)) for i in range(160)]
TEXTS = [f"number {i} of many short texts, each with a few words of its own: {own}" for i, own in enumerate(NUMBERS)]


def harvest(folder: Path, model: str) -> None:
    """A token store of about 20 shards."""
    bridge = load_model(model)
    token_ids = split_tokens(bridge, TEXTS, 64)
    options = {"special": False, "shuffle_seed": 0, "shard_tokens": 500}
    harvest_tokens(bridge, {"model": model}, "h", token_ids, 1, folder, **options)


def training(folder: Path, store: str) -> None:
    """An SAE from a store, with a checkpoint after every step."""
    sae_training.CHECKPOINT_SECONDS = 0.0
    recipe = Recipe(d_sae=64, target_l0=4, tokens=12_000, batch_tokens=200)
    sae_training.train(recipe, Path(store), Path(store), folder, progress=False, buffer_tokens=4000)


def answers(folder: Path, model: str) -> None:
    """Rollouts in parts of 8 prompts."""
    rollouts.PART_PROMPTS = 8
    rollouts.generate(load_model(model), {"model": model}, TEXTS[:80], folder, 4)


def chat_model(folder: Path, source: str) -> None:
    """All that a chat model in a GGUF file goes through, from its conversion to two tasks of notebook 09.

    ``source`` holds ``tiny.gguf`` and ``sae``. Prompts begin alike, so that the harvest shares prefixes.
    """
    weights.CONVERTED, weights.CHECKS = folder / "models", folder / "checked"
    rollouts.PART_PROMPTS, own_chat.PART_PROMPTS, own_chat.TURN_TOKENS, own_chat.ANSWER_TOKENS = 8, 8, 12, 12
    name = str(Path(source) / "tiny.gguf")
    bridge, identity = load_model(name), {"model": "tiny"}
    wrapped = [f"{wrapper} {text}" for wrapper in ("Tell me at length, as a story:", "Plainly:") for text in TEXTS[:60]]
    options = {"poolings": ("max", "mean", "fixed"), "token_layer": 1, "shard_tokens": 2000}
    activations.harvest_pooled(bridge, identity, wrapped, [1, 2], folder, **options)
    table, left_out = own_chat.written(bridge, identity, 32, folder, seed=0)
    write_table(folder / "own-chat.parquet", table.assign(left_out=str(left_out)))
    rollouts.generate(bridge, identity, TEXTS[:32], folder, 12, **own_chat.ANSWERS)  # a random model ends no turn
    saes = pd.DataFrame([("pretraining SAE", 0, f"{source}/sae")], columns=["variant", "seed", "folder"])
    reader = task_features.Reader(bridge, identity, 1, ("mean", "max"), saes, ("untrained SAE",), 64)
    plan = many_tasks.Plan(many_tasks.settings([16], [], [0.1]), [1, 4], [0.01, 1.0], ("coordinates",), 1, 20, 0)
    tasks, jobs = [_task(name, first) for name, first in (("a", 0), ("b", 40))], []
    for bundle in task_features.bundles(tasks):
        features = task_features.harvest(reader, bundle, folder)
        jobs += [many_tasks.job(task, features, plan, folder) for task in bundle]
    write_table(folder / "tasks.parquet", pd.concat(many_tasks.run(jobs, plan), ignore_index=True))


def _task(name: str, first: int) -> task_files.TaskTexts:
    texts = TEXTS[first : first + 120]
    rows = pd.DataFrame({"text": texts, "label": [i % 2 for i in range(len(texts))], "pool": ""})
    return task_files.of_rows(name, task_files.OTHER, rows.assign(group=rows["text"]), 120)


def digest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but times and locks: what a killed and an uninterrupted run must agree in."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == "manifest.json":
            manifest = json.loads(path.read_text(encoding="utf-8"))
            hashes[name] = str({key: value for key, value in manifest.items() if key != "seconds"})
        elif path.is_file() and path.name != "training.json" and path.suffix != ".lock":
            hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def _quietly(work: Callable[[Path, str], None], folder: Path, argument: str) -> None:
    torch.set_num_threads(1)
    work(folder, argument)


def begin(work: Callable[[Path, str], None], folder: Path, argument: str) -> multiprocessing.Process:
    """Start the work in a process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults"])
    process = context.Process(target=_quietly, args=(work, folder, argument))
    process.start()
    return process


def finish(work: Callable[[Path, str], None], folder: Path, argument: str) -> float:
    """Seconds of an uninterrupted run (or of what is left of one)."""
    began = time.perf_counter()
    process = begin(work, folder, argument)
    process.join(300)
    assert process.exitcode == 0
    return time.perf_counter() - began


def kill_and_go_on(
    work: Callable[[Path, str], None], folder: Path, argument: str, seconds: float, rng: random.Random
) -> float:
    """Kill −9 the work twice at random moments of the ``seconds`` it takes, then let it finish.

    Work that ended before its kill begins again from nothing, so that both kills meet it at work on a machine of any
    speed. Returns the seconds, shortened where a whole run took less.
    """
    kills = 0
    for _ in range(50):
        began = time.perf_counter()
        process = begin(work, folder, argument)
        process.join(rng.uniform(0.1, 0.9) * seconds)
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
        else:
            assert process.exitcode == 0
            seconds = seconds if kills else time.perf_counter() - began
            shutil.rmtree(folder)
            folder.mkdir()
            kills = 0
        if kills == 2:
            finish(work, folder, argument)
            return seconds
    raise AssertionError(f"{work.__name__}: no two kills in a row met it at work in 50 tries")
