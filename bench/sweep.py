"""A sweep of 60 cells of notebook 05 on two workers, beside a plain papermill loop over every fifth of them, whose time is scaled to 60.

The prompts are few, so that what a cell costs beside its computation shows. Notebooks 01 to 04, which the cells share, are run before
and are in neither time. The computation is the record's wall time, from the parameters cell to the record.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jupytext
import papermill
from tqdm import tqdm

from lib.base import build_graph
from lib.base.files import run_dir
from lib.runs import sweep_cells, sweeps

PROFILE = "bench-sweep"
WORKERS = 2
EVERY = 5  # of the 60 cells, those that the loop runs
SMALL = """
n_harmful: 60
n_harmless: 140
n_ood_harmful: 40
n_ood_toxic_looking: 40
n_ood_chat: 40
layers: [2]
n_bootstrap: 50
grid_bootstrap: 50
finetune_seeds: [0]
resample_shares: []
prompt_repeats: []
ks: [1, 5, 20]
finetune_tokens: 20000
scratch_tokens: 20000
attention_probe: false
train_sizes: [0]
noise_shares: [0.2]
stress_draws: 2
"""
GRID = {"k_poolings": [["max"], ["mean"], ["fixed"]], "show_k": [5, 10, 20, 50], "c_grid": [[1e-4], [1e-3], [1e-2], [1e-1], [1.0]]}


def measure() -> Iterator[tuple[str, str, list[float]]]:
    """Seconds of the sweep and of the loop, and what a cell costs beside its computation."""
    shutil.rmtree(run_dir(PROFILE), ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        profile = Path(scratch) / f"{PROFILE}.yaml"
        profile.write_text(SMALL)
        path = Path(scratch) / "sixty.yaml"
        path.write_text(json.dumps({"notebooks": ["05_probing"], "profile": str(profile), "grid": GRID}))
        found, wanted = sweep_cells.plan(sweep_cells.read(path))
    sixty = {name: found[name] for _, name in wanted}
    _run_one_by_one({name: cell for name, cell in found.items() if name not in sixty})
    looped = list(sixty.values())[::EVERY]
    loop_s = _timed(lambda: _papermill_loop(looped, found)) * len(sixty) / len(looped)
    swept = _timed(lambda: _sweep(found))
    computed = [json.loads(cell.record.read_text())["wall_time_s"] for cell in sixty.values()]
    for cell in looped:
        if json.loads(cell.record.read_text())["metrics"] != json.loads(_beside(cell).read_text())["metrics"]:
            raise RuntimeError(f"{cell.name} differs from its run in a kernel of its own")
    yield "cells", "cells", [float(len(sixty))]
    yield "sweep_s", "s", [swept]
    yield "papermill_loop_s", "s", [loop_s]
    yield "computation_s_per_cell", "s", computed
    yield "overhead_s_per_cell", "s", [(WORKERS * swept - sum(computed)) / len(sixty)]
    yield "wall_vs_serial", "ratio", [swept / loop_s]


def _timed(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _run_one_by_one(some: dict[str, sweep_cells.Cell]) -> None:
    work = sweep_cells.CellRunner()
    for cell in some.values():
        if why := work((cell, [some[need] for need in cell.needs])):
            raise RuntimeError(f"{cell.name}: {why}")
    work.kernel.kill()


def _sweep(found: dict[str, sweep_cells.Cell]) -> None:
    os.environ["WORKERS"] = str(WORKERS)
    if failed := sweeps.run(found, WORKERS, 0, 0, ""):
        raise RuntimeError(str(failed))


def _beside(cell: sweep_cells.Cell) -> Path:
    """The record of a cell's run in the loop."""
    return run_dir(f"{PROFILE}/loop/{cell.name}") / "results" / cell.record.name


def _papermill_loop(some: list[sweep_cells.Cell], found: dict[str, sweep_cells.Cell]) -> None:
    source = Path(tempfile.mkdtemp()) / "05_probing.ipynb"
    jupytext.write(jupytext.read(build_graph.NOTEBOOKS / "05_probing.py"), source)
    run = partial(papermill.execute_notebook, source, cwd=build_graph.NOTEBOOKS, kernel_name="python3", progress_bar=False)
    for cell in tqdm(some, desc="papermill loop", unit="cell"):
        folder = _beside(cell).parent
        folder.mkdir(parents=True)
        for need in cell.needs:
            shutil.copy(found[need].record, folder)
        run(folder / "executed.ipynb", cell.values | {"profile": f"{PROFILE}/loop/{cell.name}"})
