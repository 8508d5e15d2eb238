"""``python -m lib.runs.sweeps FILE``: run a sweep's cells on several workers, and gather them into one table and one figure.

Cells that are finished are skipped, so an interrupted sweep goes on where it was. A cell that fails is reported with its notebook,
and does not stop the others.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from lib.base import build_graph, cluster
from lib.base.files import locked, relative, run_dir, write_table
from lib.results import figures
from lib.runs import sizing
from lib.runs.storage import Storage
from lib.runs.sweep_cells import Cell, CellRunner, Sweep, failed_notebook, finished, plan, read
from lib.stats.metrics import t_interval

SWEEPS = build_graph.NOTEBOOKS / "sweeps"


def gather(wanted: list[tuple[dict[str, Any], str]], cells: dict[str, Cell]) -> pd.DataFrame:
    """The tables of all finished wanted cells; ``cell`` names the cell, ``cell.<parameter>`` has what was swept.

    Lists of one value each are these values there, other lists JSON.
    """
    parts = []
    single = {key for key in wanted[0][0] if all(isinstance(point[key], list) and len(point[key]) == 1 for point, _ in wanted)}
    for point, name in wanted:
        if finished(cells[name]):
            table = pd.read_parquet(cells[name].record.with_suffix(".parquet"))
            swept = {f"cell.{key}": value[0] if key in single else json.dumps(value) if isinstance(value, list) else value for key, value in point.items()}
            parts.append(table.assign(cell=name, notebook=cells[name].notebook, **swept))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def seconds(cells: list[Cell]) -> dict[str, float]:
    """Mean wall time of the finished cells, by notebook."""
    found: dict[str, list[float]] = {}
    for cell in cells:
        if finished(cell):
            found.setdefault(cell.notebook, []).append(json.loads(cell.record.read_text(encoding="utf-8"))["wall_time_s"])
    return {name: sum(values) / len(values) for name, values in found.items()}


def outcome(sweep: Sweep) -> Path:
    """Where a sweep's table and figure are: this path with ``.parquet`` and ``.png``."""
    return run_dir(sweep.profile) / "sweeps" / sweep.name


def drawn(table: pd.DataFrame, about: dict[str, Any]) -> pd.DataFrame:
    """What the figure shows: rows of ``about["where"]`` (column: value, or list of values), one for each x, hue, col and row.

    A row that stands alone keeps its interval; of several cells (other parameters differ, such as a seed) the mean with a 95 % t interval.
    Rows that agree in the columns ``about["distinct"]``, or in all but the cell, are one measurement, which stands in several cells.

    Raises:
        ValueError: a column that the table does not have, no row that fits, or several rows of one cell at one place.
    """
    keys = [about[name] for name in ("x", "hue", "col", "row") if name in about]
    where, distinct = about.get("where", {}), about.get("distinct", [])
    missing = [name for name in ["value", *keys, *where, *distinct] if name not in table]
    if missing or "x" not in about:
        raise ValueError(f"the figure needs x and columns of the table; {missing} are not among {sorted(table.columns)}")
    for name, wanted in where.items():
        table = table[table[name].isin(wanted if isinstance(wanted, list) else [wanted])]
    if not len(table) or (empty := [name for name in keys if table[name].isna().all()]):
        raise ValueError(f"no row of the table fits the figure's where: {where}" + (f", with a value of {empty}" if len(table) else ""))
    table = table.drop_duplicates(distinct) if distinct else table
    rows, measured = [], [name for name in table if name != "cell" and not name.startswith("cell.")]
    for values, part in table.groupby(keys, sort=False):
        part = part.drop_duplicates(measured)
        if part["cell"].duplicated().any():
            one = part[part["cell"] == part["cell"].mode()[0]]
            differ = [name for name in measured if name not in ("value", "low", "high") and one[name].nunique(dropna=False) > 1]
            raise ValueError(f"the figure has {len(one)} rows of one cell at {dict(zip(keys, values, strict=True))}; where must also choose by {differ}")
        found = t_interval(part["value"].to_numpy(dtype=float)) if len(part) > 1 else part.iloc[0]
        rows.append(dict(zip(keys, values, strict=True)) | {name: getattr(found, name, None) for name in ("value", "low", "high")} | {"n": len(part)})
    return pd.DataFrame(rows)


def finish(sweep: Sweep, wanted: list[tuple[dict[str, Any], str]], cells: dict[str, Cell]) -> list[Path]:
    """Write the table of all finished cells and its figure; their paths."""
    table, place = gather(wanted, cells), outcome(sweep)
    if not len(table):
        return []
    made = [write_table(place.with_suffix(".parquet"), table)]
    if sweep.figure:
        shown = drawn(table, sweep.figure)
        least, most = shown["n"].min(), shown["n"].max()
        over = f"mean and 95 % t interval over {most if least == most else f'{least} to {most}'} cells" if most > 1 else "95 % interval of each cell"
        caption = f"Sweep {sweep.name}, profile {sweep.profile}, {table['cell'].nunique()} cells; {over}."
        figures.save(figures.facets(shown, sweep.figure), place.parent, sweep.name, caption)
        made.append(place.with_suffix(".png"))
    return made


def estimates(sweep: Sweep, wanted: list[tuple[dict[str, Any], str]], cells: dict[str, Cell]) -> pd.DataFrame:
    """A row per notebook: cells, finished ones, tokens, disk_gib, memory_gib (of one worker) and hours of the others.

    Hours are measured on finished cells of the notebook where there are any, else estimated (see ``lib.runs.sizing``).
    """
    flops, rows, seen = None, [], set()
    for point, name in wanted:
        values = sizing.values_of(sweep.shared | point)
        todo = [one for one in _with_needs(name, cells) if one not in seen and not finished(cells[one])]
        seen.update(todo)
        if todo and "model" in values:
            flops = flops or _flops(values)
            table = sizing.estimate(values, flops)
            rows += [part.assign(cell=one) for one in todo if len(part := table[table["notebook"] == cells[one].notebook[:2]])]
    found = pd.concat(rows) if rows else pd.DataFrame(columns=["cell", "tokens", "disk_gib", "memory_gib", "hours"])
    found = found.groupby("cell").agg({"tokens": "sum", "disk_gib": "sum", "memory_gib": "max", "hours": lambda hours: hours.sum(skipna=False)})
    measured, lines = seconds(list(cells.values())), []
    for notebook in sorted({cell.notebook for cell in cells.values()}):
        names = [name for name, cell in cells.items() if cell.notebook == notebook]
        part, todo = found[found.index.isin(names)], [name for name in names if not finished(cells[name])]
        hours = measured[notebook] * len(todo) / 3600 if notebook in measured else part["hours"].sum(skipna=False)
        lines.append({"notebook": notebook, "cells": len(names), "finished": len(names) - len(todo), "tokens": part["tokens"].sum(),
                      "disk_gib": part["disk_gib"].sum(), "memory_gib": part["memory_gib"].max(), "hours": hours, "from": "measured" if notebook in measured else "estimate"})  # fmt: skip
    return pd.DataFrame(lines).fillna({"memory_gib": 0})


def _flops(values: dict[str, Any]) -> float:
    """What this machine's device can do; unknown if only the cluster has such a device."""
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
    waiting, failed, tries = [name for name in cells if name not in done], {}, dict.fromkeys(cells, 0)

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
    pool = cluster.Pool(partial(CellRunner, limit, store), workers, gpus=cluster.gpus() if on_gpu else 0) if waiting else None
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
                failed[cell.name] = "its worker made it, but it is not here; workers on other machines need a shared folder, or STORE="
            bar.update()
            bar.set_postfix_str(f"{len(failed)} failed" if failed else "")
    finally:
        bar.close()
        if pool:
            pool.close()
    return failed


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lib.runs.sweeps", description=__doc__.splitlines()[0])
    parser.add_argument("sweep", help="name of a sweep in notebooks/sweeps, or path of a YAML file")
    parser.add_argument("--dry-run", action="store_true", help="print cells, sizes and estimates only")
    parser.add_argument("--limit", type=float, default=0.0, help="seconds that a cell may take (0: no limit)")
    parser.add_argument("--retries", type=int, default=0, help="how often a failed cell is tried again")
    parser.add_argument("--store", default="", help="folder or URL (s3://bucket/prefix) that results are copied to, and found in")
    return parser.parse_args()


def _work(arguments: argparse.Namespace) -> int:
    path = Path(arguments.sweep) if arguments.sweep.endswith((".yaml", ".yml")) else SWEEPS / f"{arguments.sweep}.yaml"
    if not path.exists():
        raise ValueError(f"there is no sweep {arguments.sweep!r}; there are {sorted(file.stem for file in SWEEPS.glob('*.yaml'))}, or give the path of a YAML file")
    sweep = read(path)
    cells, wanted = plan(sweep)
    workers = cluster.workers(os.cpu_count() or 1)
    table = estimates(sweep, wanted, cells)
    if arguments.dry_run:
        print(pd.DataFrame([{"cell": name} | point for point, name in wanted]).to_string(index=False))
    print(f"{sweep.name}: {len(wanted)} cells of {', '.join(sweep.notebooks)}, {len(cells)} runs with those they read\n{table.round(2).to_string(index=False)}")
    print(f"about {table['hours'].sum(skipna=False) / workers:.1f} hours with {workers} workers, {table['memory_gib'].max() * workers:.1f} GiB of memory beside what Python takes")
    if arguments.dry_run:
        return 0
    if cluster.is_local():
        sizing.check(table.assign(step="the cells"))
    store = arguments.store if "://" in arguments.store or not arguments.store else str(Path(arguments.store).resolve())
    with locked(outcome(sweep), wait=False):
        failed = run(cells, workers, arguments.limit, arguments.retries, store)
        for name, why in failed.items():
            print(f"failed: {name} {json.dumps(cells[name].values, ensure_ascii=False)}: {why} {failed_notebook(cells[name])}", file=sys.stderr)
        made = finish(sweep, wanted, cells)
        if store:
            Storage(store).put(made)
    print(f"{sum(finished(cells[name]) for _, name in wanted)} of {len(wanted)} cells finished; {', '.join(map(relative, made))}")
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
