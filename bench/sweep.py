"""A sweep of 60 cells of notebook 05 on two workers, beside a plain papermill loop over every fifth of them.

The loop's time is scaled to 60. The prompts are few, so that what a cell costs beside its computation shows. Notebooks
01 to 04, which the cells share, are run before and are in neither time. The computation is the record's wall time, from
the parameters cell to the record.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jupytext
import papermill
import yaml
from tqdm import tqdm

from lib.base import build_graph
from lib.base.files import run_dir
from lib.runs import profiles, sweep_cells, sweeps

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
GRID = {
    "k_poolings": [["max"], ["mean"], ["fixed"]],
    "show_k": [5, 10, 20, 50],
    "grid_bootstrap": [40, 45, 50, 55, 60],
}


def measure() -> Iterator[tuple[str, str, list[float]]]:
    """Seconds of the sweep and of the loop, and what a cell costs beside its computation."""
    shutil.rmtree(run_dir(PROFILE), ignore_errors=True)
    cells, wanted = _plan()
    sixty = {name: cells[name] for name in wanted}
    _run_one_by_one({name: cell for name, cell in cells.items() if name not in sixty})
    looped = list(sixty.values())[::EVERY]
    loop_s = _timed(lambda: _papermill_loop(looped, cells)) * len(sixty) / len(looped)
    sweep_s = _timed(lambda: _sweep(cells))
    computation_s = [_record(cell.record)["wall_time_s"] for cell in sixty.values()]
    for cell in looped:
        if _record(cell.record)["metrics"] != _record(_beside(cell))["metrics"]:
            raise RuntimeError(f"{cell.name} differs from its run in a kernel of its own")
    yield "cells", "cells", [float(len(sixty))]
    yield "sweep_s", "s", [sweep_s]
    yield "papermill_loop_s", "s", [loop_s]
    yield "computation_s_per_cell", "s", computation_s
    yield "overhead_s_per_cell", "s", [(WORKERS * sweep_s - sum(computation_s)) / len(sixty)]
    yield "wall_vs_serial", "ratio", [sweep_s / loop_s]


def _plan() -> tuple[dict[str, sweep_cells.Cell], list[str]]:
    """All cells by name, and the names of the sixty."""
    with tempfile.TemporaryDirectory() as scratch:
        profile = Path(scratch) / f"{PROFILE}.yaml"
        of_encoder = profiles.read_profile(profiles.profile_path("minilm"))
        profile.write_text(yaml.safe_dump(of_encoder | yaml.safe_load(SMALL) | {"profile": PROFILE}))
        sweep = Path(scratch) / "sixty.yaml"
        sweep.write_text(json.dumps({"notebooks": ["05_probing"], "profile": str(profile), "grid": GRID}))
        cells, wanted = sweep_cells.plan(sweep_cells.read(sweep))
    return cells, [name for _, name in wanted]


def _record(path: Path) -> dict:
    return json.loads(path.read_text())


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _run_one_by_one(cells: dict[str, sweep_cells.Cell]) -> None:
    runner = sweep_cells.CellRunner()
    for cell in cells.values():
        if why := runner((cell, [cells[need] for need in cell.needs])):
            raise RuntimeError(f"{cell.name}: {why}")
    runner.kernel.kill()


def _sweep(cells: dict[str, sweep_cells.Cell]) -> None:
    os.environ["WORKERS"] = str(WORKERS)
    if failed := sweeps.run(cells, WORKERS, 0, 0, ""):
        raise RuntimeError(str(failed))


def _beside(cell: sweep_cells.Cell) -> Path:
    """The record of a cell's run in the loop."""
    return run_dir(f"{PROFILE}/loop/{cell.name}") / "results" / cell.record.name


def _papermill_loop(looped: list[sweep_cells.Cell], cells: dict[str, sweep_cells.Cell]) -> None:
    source = Path(tempfile.mkdtemp()) / "05_probing.ipynb"
    jupytext.write(jupytext.read(build_graph.NOTEBOOKS / "05_probing.py"), source)
    run = partial(
        papermill.execute_notebook, source, cwd=build_graph.NOTEBOOKS, kernel_name="python3", progress_bar=False
    )
    for cell in tqdm(looped, desc="papermill loop", unit="cell"):
        folder = _beside(cell).parent
        folder.mkdir(parents=True)
        for need in cell.needs:
            shutil.copy(cells[need].record, folder)
        run(folder / "executed.ipynb", cell.values | {"profile": f"{PROFILE}/loop/{cell.name}"})
