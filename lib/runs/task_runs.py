"""``python -m lib.runs.task_runs --tasks``: ``make tasks``, which says what it takes before it begins.

Several workers measure tasks as cells of a sweep.
"""

import os
import sys
from typing import Any

from lib.base import cluster
from lib.base.files import locked
from lib.runs import profiles, runner, sizing, sweeps, task_cells
from lib.runs.storage import Storage, products
from lib.runs.sweep_cells import Cell, Sweep, finished, plan


def size(values: dict[str, Any]) -> str:
    """One line on what a run of notebook 09 takes at most; what it finds measured takes nothing.

    Raises:
        ValueError: tasks that cannot be read, a model that cannot be had, or less disk than is needed.
    """
    tasks = task_cells.read(profiles.complete(values)).every()
    table = sizing.estimate(values)
    table = table[table["notebook"] == "09"]
    sizing.check(table)
    rows, disk, memory = sum(len(task.rows) for task in tasks), table["disk_gib"].sum(), table["memory_gib"].max()
    hours = f"about {table['hours'].sum():.2f} hours on one machine"
    memory = 0.0 if table.empty else memory
    return (
        f"{values['profile']}: {len(tasks)} tasks, {rows:,} rows; at most {disk:.2f} GiB of disk, {memory:.1f} GiB of "
        f"memory beside what Python takes, {hours}"
    )


def prepare(values: dict[str, Any]) -> bool:
    """Say what a run takes, and measure its tasks on the workers of ``WORKERS``; whether notebook 09 is then to be run.

    It finds there what the workers measured. With ``DRY`` of the environment nothing but the size is said.

    Raises:
        ValueError: see :func:`size`, no workers, or tasks that could not be measured.
    """
    print(size(values), flush=True)
    if os.environ.get("DRY"):
        return False
    workers, store = cluster.workers(), os.environ.get("STORE", "")
    if workers > 1 or store or not cluster.is_local():
        measure_apart(values, workers, store)
        os.environ["WORKERS"] = "1"  # nothing is left for them
    return True


def measure_apart(values: dict[str, Any], workers: int, store: str) -> list[Cell]:
    """Measure the tasks of a run of notebook 09 in cells of their own; finished ones are not run again.

    With a ``store`` (a folder, or a URL of fsspec) what they made is fetched from there.

    Raises:
        ValueError: tasks that could not be measured, by name and with their notebooks.
    """
    sweep = Sweep("tasks", values["profile"], [runner.MANY_TASKS], values, [{}], {}, by_task=True)
    cells, [(_, over_all)] = plan(sweep)
    parts = {name: cell for name, cell in cells.items() if name != over_all}
    limit, retries = float(os.environ.get("LIMIT") or 0), int(os.environ.get("RETRIES") or 0)
    with locked(sweeps.outcome(sweep), wait=False):
        failed = sweeps.run(parts, workers, limit, retries, sweeps.place_of(store))
    sweeps.tell(failed, parts)
    if failed:
        raise ValueError(f"{len(failed)} of {len(parts)} cells of tasks failed; the same command goes on with them")
    for cell in parts.values():
        if store and finished(cell):
            Storage(sweeps.place_of(store)).get(products(cell.record))
    return list(parts.values())


if __name__ == "__main__":
    try:
        runner.main(prepare)
    except KeyboardInterrupt:
        sys.exit("stopped; finished tasks are kept, and the same command goes on with the others")
