"""``python -m lib.runs.sweeps FILE``: run a sweep's cells on several workers, and gather their tables into a figure.

Cells that are finished are skipped, so an interrupted sweep goes on where it was. A cell that fails is reported with
its notebook, and does not stop the others.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from lib.base import build_graph, cluster
from lib.base.files import locked, relative, run_dir, typed_path, write_table
from lib.results import figures
from lib.runs import profiles
from lib.runs.storage import Storage
from lib.runs.sweep_cells import Cell, CellRunner, Sweep, Wanted, failed_notebook, finished, plan, read
from lib.stats.metrics import t_interval

INTERVAL = ("value", "low", "high")
SWEEPS = build_graph.NOTEBOOKS / "sweeps"


def gather(wanted: list[Wanted], cells: dict[str, Cell]) -> pd.DataFrame:
    """The tables of all finished wanted cells; ``cell`` names the cell, ``cell.<parameter>`` has what was swept.

    Lists of one value each are these values there, other lists JSON.
    """
    points = [point for point, _ in wanted]
    single = {key for key in points[0] if all(isinstance(at[key], list) and len(at[key]) == 1 for at in points)}

    def text(key: str, value: Any) -> Any:
        if key in single:
            return value[0]
        return json.dumps(value) if isinstance(value, list) else value

    parts = []
    for point, name in wanted:
        if finished(cells[name]):
            table = pd.read_parquet(cells[name].record.with_suffix(".parquet"))
            swept = {f"cell.{key}": text(key, value) for key, value in point.items()}
            parts.append(table.assign(cell=name, notebook=cells[name].notebook, **swept))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def seconds(cells: list[Cell]) -> dict[str, float]:
    """Mean wall time of the finished cells, by notebook."""
    times: dict[str, list[float]] = {}
    for cell in cells:
        if finished(cell):
            record = json.loads(cell.record.read_text(encoding="utf-8"))
            times.setdefault(cell.notebook, []).append(record["wall_time_s"])
    return {name: sum(values) / len(values) for name, values in times.items()}


def outcome(sweep: Sweep) -> Path:
    """Where a sweep's table and figure are: this path with ``.parquet`` and ``.png``."""
    return run_dir(sweep.profile) / "sweeps" / sweep.name


def drawn(table: pd.DataFrame, about: dict[str, Any]) -> pd.DataFrame:
    """What the figure shows: rows of ``about["where"]`` (column: value, or values), one for each x, hue, col and row.

    A row that stands alone keeps its interval. Of several cells (other parameters differ, such as a seed) it is the
    mean with a 95 % t interval. Rows that agree in the columns ``about["distinct"]``, or in all but the cell, are one
    measurement, which stands in several cells.

    Raises:
        ValueError: a column that the table does not have, no row that fits, or several rows of one cell at one place.
    """
    keys = [about[name] for name in ("x", "hue", "col", "row") if name in about]
    where, distinct = about.get("where", {}), about.get("distinct", [])
    missing = [name for name in ["value", *keys, *where, *distinct] if name not in table]
    if missing or "x" not in about:
        columns = sorted(table.columns)
        raise ValueError(f"the figure needs x and columns of the table; {missing} are not among {columns}")
    for name, allowed in where.items():
        table = table[table[name].isin(allowed if isinstance(allowed, list) else [allowed])]
    if table.empty:
        raise ValueError(f"no row of the table fits the figure's where: {where}")
    empty = [name for name in keys if table[name].isna().all()]
    if empty:
        raise ValueError(f"no row of the table fits the figure's where: {where}, with a value of {empty}")
    if distinct:
        table = table.drop_duplicates(distinct)
    measured = [name for name in table if name != "cell" and not name.startswith("cell.")]
    rows = []
    for values, part in table.groupby(keys, sort=False):
        place = dict(zip(keys, values, strict=True))
        part = part.drop_duplicates(measured)
        if part["cell"].duplicated().any():
            raise ValueError(_ambiguity(part, measured, place))
        estimate = t_interval(part["value"].to_numpy(dtype=float)) if len(part) > 1 else part.iloc[0]
        interval = {name: getattr(estimate, name, None) for name in INTERVAL}
        rows.append(place | interval | {"n": len(part)})
    return pd.DataFrame(rows)


def _ambiguity(part: pd.DataFrame, measured: list[str], place: dict[str, Any]) -> str:
    """The sentence for a place of the figure at which a cell has several rows: by what they differ."""
    rows = part[part["cell"] == part["cell"].mode()[0]]
    differ = [name for name in measured if name not in INTERVAL and rows[name].nunique(dropna=False) > 1]
    return f"the figure has {len(rows)} rows of one cell at {place}; where must also choose by {differ}"


def finish(sweep: Sweep, wanted: list[Wanted], cells: dict[str, Cell]) -> list[Path]:
    """Write the table of all finished cells and its figure; their paths."""
    table, place = gather(wanted, cells), outcome(sweep)
    if not len(table):
        return []
    paths = [write_table(place.with_suffix(".parquet"), table)]
    if sweep.figure:
        shown = drawn(table, sweep.figure)
        least, most = shown["n"].min(), shown["n"].max()
        n = most if least == most else f"{least} to {most}"
        over = f"mean and 95 % t interval over {n} cells" if most > 1 else "95 % interval of each cell"
        caption = f"Sweep {sweep.name}, profile {sweep.profile}, {table['cell'].nunique()} cells; {over}."
        figures.save(figures.facets(shown, sweep.figure), place.parent, sweep.name, caption)
        paths.append(place.with_suffix(".png"))
    return paths


def estimates(sweep: Sweep, wanted: list[Wanted], cells: dict[str, Cell]) -> pd.DataFrame:
    """A row per notebook: cells, finished ones, tokens, disk_gib, memory_gib (of one worker) and hours of the others.

    Hours are measured on finished cells of the notebook where there are any, else estimated (see ``lib.runs.sizing``).
    """
    by_cell = _sizes(sweep, wanted, cells)
    measured = seconds(list(cells.values()))
    rows = []
    for notebook in sorted({cell.notebook for cell in cells.values()}):
        names = [name for name, cell in cells.items() if cell.notebook == notebook]
        todo = [name for name in names if not finished(cells[name])]
        sizes = by_cell[by_cell.index.isin(names)]
        is_measured = notebook in measured
        row = {
            "notebook": notebook,
            "cells": len(names),
            "finished": len(names) - len(todo),
            "tokens": sizes["tokens"].sum(),
            "disk_gib": sizes["disk_gib"].sum(),
            "memory_gib": sizes["memory_gib"].max(),
            "hours": measured[notebook] * len(todo) / 3600 if is_measured else sizes["hours"].sum(skipna=False),
            "from": "measured" if is_measured else "estimate",
        }
        rows.append(row)
    return pd.DataFrame(rows).fillna({"memory_gib": 0})


def _sizes(sweep: Sweep, wanted: list[Wanted], cells: dict[str, Cell]) -> pd.DataFrame:
    """Estimated tokens, disk_gib, memory_gib and hours of each cell that is not finished, by its name.

    What several cells make alike, such as a harvest of the same texts, is counted with the first one, and not at all if
    a finished one has made it (see ``lib.runs.sizing.once``).
    """
    columns = ["tokens", "disk_gib", "memory_gib", "hours"]
    if all(finished(cell) for cell in cells.values()):
        return pd.DataFrame(columns=columns)
    parts, seen, flops = [pd.DataFrame(columns=["cell", "is_made", "key", *columns])], set(), None
    for point, name in wanted:
        for need in (need for need in _with_needs(name, cells) if need not in seen):
            seen.add(need)
            values = profiles.complete(sweep.shared | point | cells[need].values)
            reads_own = any(cells[other].notebook == cells[need].notebook for other in cells[need].needs)
            if "model" not in values or reads_own:  # what a cell over all tasks needs has measured them
                continue
            from lib.runs import sizing  # late, as it imports all of the model's libraries

            flops = flops or _flops(values)
            table = sizing.steps(values, flops)
            is_of_cell = table["notebook"] == cells[need].notebook[:2]
            parts.append(table[is_of_cell].assign(cell=need, is_made=finished(cells[need])))
    every = pd.concat(parts[1:] or parts).sort_values("is_made", ascending=False, kind="stable", ignore_index=True)
    if len(every):
        every = sizing.once(every)
    sums = {"tokens": "sum", "disk_gib": "sum", "memory_gib": "max", "hours": lambda hours: hours.sum(skipna=False)}
    return every[~every["is_made"].astype(bool)].groupby("cell").agg(sums)


def _flops(values: dict[str, Any]) -> float:
    """What this machine's device can do; unknown if only the cluster has such a device."""
    from lib.runs import sizing

    try:
        return sizing.peak_flops(values["device"], values["dtype"])
    except ValueError:
        if cluster.is_local():
            raise
        return float("nan")


def _with_needs(name: str, cells: dict[str, Cell]) -> Iterator[str]:
    for need in cells[name].needs:
        yield from _with_needs(need, cells)
    yield name


def run(cells: dict[str, Cell], workers: int, limit: float, retries: int, store: str) -> dict[str, str]:
    """Run all cells that are not finished, what they read first; what was wrong, by name of the cell."""
    storage = Storage(store) if store else None
    done = {name for name, cell in cells.items() if finished(cell, storage)}
    waiting = [name for name in cells if name not in done]
    failed: dict[str, str] = {}
    tries = dict.fromkeys(cells, 0)

    def take() -> tuple[Cell, list[Cell]] | None:
        for name in waiting:
            lost = [need for need in cells[name].needs if need in failed]
            if lost:
                failed[name] = f"not run, as {lost[0]} failed"
            elif all(need in done for need in cells[name].needs):
                waiting.remove(name)
                return cells[name], [cells[need] for need in cells[name].needs]
        waiting[:] = [name for name in waiting if name not in failed]
        return None

    on_gpu = any(str(cell.values.get("device", "")).startswith("cuda") for cell in cells.values())
    bar = tqdm(total=len(waiting), desc="cells", unit="cell", disable=not waiting)
    gpus = cluster.gpus() if on_gpu else 0
    pool = cluster.Pool(partial(CellRunner, limit, store), workers, gpus=gpus) if waiting else None
    try:
        for (cell, _), why in pool.each(take) if pool else ():
            tries[cell.name] += 1
            if why and tries[cell.name] <= retries:
                waiting.append(cell.name)
                continue
            if why:
                failed[cell.name] = str(why)
            elif finished(cell, storage):  # a worker elsewhere made it: fetched
                done.add(cell.name)
            else:
                failed[cell.name] = (
                    "its worker made it, but it is not here; workers on other machines need a shared folder, or STORE="
                )
            bar.update()
            bar.set_postfix_str(f"{len(failed)} failed" if failed else "")
    finally:
        bar.close()
        if pool:
            pool.close()
    return failed


def place_of(store: str) -> str:
    """The ``STORE`` of a command line, as workers find it, which stand in other folders."""
    return str(typed_path(store).resolve()) if store and "://" not in store else store


def tell(failed: dict[str, str], cells: dict[str, Cell]) -> None:
    """Say which cells failed, why, and where their notebooks are."""
    for name, why in failed.items():
        values = json.dumps(cells[name].values, ensure_ascii=False)
        print(f"failed: {name} {values}: {why} {failed_notebook(cells[name])}", file=sys.stderr)


def _pages(sweep: Sweep, wanted: list[Wanted], cells: dict[str, Cell]) -> list[Path]:
    """Of a sweep by task, the pages over all tasks of the finished cells."""
    folders = [cells[name].folder for _, name in wanted if finished(cells[name])] if sweep.by_task else []
    return [folder / "figures" / "tasks.html" for folder in folders]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lib.runs.sweeps", description=__doc__.splitlines()[0])
    parser.add_argument("sweep", help="name of a sweep in notebooks/sweeps, or path of a YAML file")
    parser.add_argument("--dry-run", action="store_true", help="print cells, sizes and estimates only")
    parser.add_argument("--limit", type=float, default=0.0, help="seconds that a cell may take (0: no limit)")
    parser.add_argument("--retries", type=int, default=0, help="how often a failed cell is tried again")
    store_help = "folder or URL (s3://bucket/prefix) that results are copied to, and found in"
    parser.add_argument("--store", default="", help=store_help)
    return parser.parse_args()


def _work(arguments: argparse.Namespace) -> int:
    is_file = arguments.sweep.endswith((".yaml", ".yml"))
    path = typed_path(arguments.sweep) if is_file else SWEEPS / f"{arguments.sweep}.yaml"
    if not path.exists():
        shipped = sorted(file.stem for file in SWEEPS.glob("*.yaml"))
        raise ValueError(
            f"there is no sweep {arguments.sweep!r}; there are {shipped}, or give the path of a YAML file"
        )
    sweep = read(path)
    cells, wanted = plan(sweep)
    workers = cluster.workers(os.cpu_count() or 1)
    table = estimates(sweep, wanted, cells)
    if arguments.dry_run:
        print(pd.DataFrame([{"cell": name} | point for point, name in wanted]).to_string(index=False))
    notebooks = ", ".join(sweep.notebooks)
    print(f"{sweep.name}: {len(wanted)} cells of {notebooks}, {len(cells)} runs with those they read")
    print(table.round(2).to_string(index=False))
    hours, memory = table["hours"].sum(skipna=False) / workers, table["memory_gib"].max() * workers
    print(
        f"about {hours:.1f} hours with {workers} workers, {memory:.1f} GiB of memory beside what Python takes"
    )
    if arguments.dry_run:
        return 0
    if cluster.is_local() and table["disk_gib"].sum() > 0:
        from lib.runs import sizing

        sizing.check(table.assign(step="the cells"))
    store = place_of(arguments.store)
    with locked(outcome(sweep), wait=False):
        failed = run(cells, workers, arguments.limit, arguments.retries, store)
        tell(failed, cells)
        paths = finish(sweep, wanted, cells)
        if store:
            Storage(store).put(paths)
            Storage(store).get([page for page in _pages(sweep, wanted, cells) if Storage(store).has(page)])
    n_finished = sum(finished(cells[name]) for _, name in wanted)
    print(f"{n_finished} of {len(wanted)} cells finished; {', '.join(map(relative, paths))}")
    for page in filter(Path.exists, _pages(sweep, wanted, cells)):
        print(f"over all tasks: {relative(page)}")
    return 1 if failed else 0


def main() -> None:
    """Command line: a wrong argument ends with one sentence, Ctrl-C with how to go on."""
    try:
        sys.exit(_work(_arguments()))
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; finished cells are kept, and the same command goes on with the others")


if __name__ == "__main__":
    main()
