"""Cells of a sweep: a grid over the parameters of notebooks, each cell a papermill run of its own, with what cells share made once.

A sweep is a YAML file: ``notebooks`` (whose results are wanted), ``profile``, ``fixed`` parameters, ``grid`` (every combination),
``zip`` (lists in step; a mapping, or a list of several) and ``figure`` (see ``lib.runs.sweeps.drawn``). A cell is named by a hash of its
notebook, parameters, sources and the cells that it reads, so that notebooks 01 to 04 run once for all cells that agree on their
parameters, and a finished cell is found again, by every sweep.
"""

import functools
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lib.base import build_graph
from lib.base.files import ROOT, cause, file_hash, locked, relative, run_dir, value_hash
from lib.runs import profiles, runner
from lib.runs.storage import Storage, products
from lib.runs.warm_kernel import ENGINE, WarmKernel

KEYS = {"notebooks", "profile", "fixed", "grid", "zip", "figure"}
FIGURE = {"x", "hue", "col", "row", "where", "distinct", "xlabel", "ylabel", "logx", "share_y"}


class Sweep(NamedTuple):
    """A sweep's file, read: the cells' own parameters are ``points``, what all share is ``shared``."""

    name: str
    profile: str
    notebooks: list[str]
    shared: dict[str, Any]
    points: list[dict[str, Any]]
    figure: dict[str, Any]


class Cell(NamedTuple):
    """One run of a notebook: its name (notebook and hash), parameters, the names of the cells that it reads, and a hash of its sources."""

    name: str
    notebook: str
    profile: str
    values: dict[str, Any]
    needs: tuple[str, ...]
    code: str

    @property
    def folder(self) -> Path:
        """Where its notebook, results and figures are."""
        return run_dir(f"{self.profile}/cells/{self.name}")

    @property
    def executed(self) -> Path:
        """The executed notebook, which is there once the cell is finished."""
        return self.folder / "notebooks" / f"{self.notebook}.ipynb"

    @property
    def record(self) -> Path:
        """The record of its results."""
        return self.folder / "results" / f"{self.notebook}.json"


def read(path: Path) -> Sweep:
    """A sweep's file.

    Raises:
        ValueError: no such file, no YAML mapping, an unknown key, notebook or parameter, or lists of unequal length in ``zip``.
    """
    found = _yaml(path)
    if not isinstance(found, dict) or not set(found) <= KEYS or not isinstance(found.get("profile", ""), str):
        raise ValueError(f"the sweep {path} must be a mapping with keys of {sorted(KEYS)}; it has {sorted(map(repr, found)) if isinstance(found, dict) else type(found).__name__}")
    for key in ("fixed", "grid", "figure"):
        if not isinstance(found.get(key, {}), dict) or not all(isinstance(name, str) for name in found.get(key, {})):
            raise ValueError(f"the sweep {path}: {key} must be a mapping of names, it is {found[key]!r}")
    figure = found.get("figure", {})
    if figure and not ("x" in figure and set(figure) <= FIGURE and isinstance(figure.get("where", {}), dict) and isinstance(figure.get("distinct", []), list)):
        raise ValueError(f"the sweep {path}: figure {figure!r} must have x, and may have {sorted(FIGURE)}; where is a mapping, distinct a list")
    known = [notebook.stem for notebook in build_graph.notebooks()]
    wanted = found.get("notebooks")
    if not isinstance(wanted, list) or not wanted or not all(name in known for name in wanted):
        raise ValueError(f"the sweep {path}: notebooks is {wanted!r}; give a list of some of {known}")
    profile = profiles.profile_path(found.get("profile", "embedded"))
    shared = profiles.read_profile(profile) | found.get("fixed", {})
    sweep = Sweep(path.stem, profile.stem, wanted, shared, list(_points(path, found)), figure)
    for point, notebook in itertools.product(sweep.points, build_graph.notebooks()):
        profiles.select(notebook, shared | point)
    return sweep


def _yaml(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("aliases (*name) are not allowed")  # aliases of aliases multiply
        found = yaml.safe_load(text)
        json.dumps(found, ensure_ascii=False).encode()
        return found
    except Exception as error:  # PyYAML lets out KeyError, AttributeError, OverflowError and more
        raise ValueError(f"the sweep {path} cannot be read: {cause(error)}") from error


def _points(path: Path, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination of the grid's values and of the positions of each zip."""
    zips = found.get("zip", [])
    groups = [{name: values} for name, values in found.get("grid", {}).items()] + (zips if isinstance(zips, list) else [zips])
    for group in groups:
        lists = list(group.values()) if isinstance(group, dict) and all(isinstance(name, str) for name in group) else []
        if not lists or not all(isinstance(values, list) and values for values in lists) or len(set(map(len, lists))) > 1:
            raise ValueError(f"the sweep {path}: {group!r} must give lists of equal length, one value or more, by parameter")
    names = [name for group in groups for name in group]
    if len(set(names)) < len(names):
        raise ValueError(f"the sweep {path}: a parameter stands twice in {names}")
    columns = [[dict(zip(group, row, strict=True)) for row in zip(*group.values(), strict=True)] for group in groups]
    for parts in itertools.product(*columns):
        yield {name: value for part in parts for name, value in part.items()}


def plan(sweep: Sweep) -> tuple[dict[str, Cell], list[tuple[dict[str, Any], str]]]:
    """All cells by name, those that others read before them, and (point, name) of the wanted ones."""
    cells: dict[str, Cell] = {}
    code = {path.stem: _code(path) for path in build_graph.notebooks()}
    hashed = functools.cache(_content)

    def add(notebook: str, values: dict[str, Any]) -> str:
        path = build_graph.NOTEBOOKS / f"{notebook}.py"
        needs = tuple(add(name, values) for name in build_graph.upstream(path))
        own = profiles.select(path, values)
        own.pop("profile", None)
        given = [hashed(ROOT / value) for value in own.values() if isinstance(value, str) and value and (ROOT / value).exists()]  # a user's CSV or SAE
        name = f"{notebook}-{value_hash([own, given, code[notebook], needs])}"
        cells.setdefault(name, Cell(name, notebook, sweep.profile, own, needs, code[notebook]))
        return name

    return cells, [(point, add(name, sweep.shared | point)) for point in sweep.points for name in sweep.notebooks]


def _code(notebook: Path) -> str:
    return value_hash([file_hash(ROOT / name) for name in build_graph.sources(notebook)])


def _content(path: Path) -> str:
    """Hash of a file, or of the files of a folder."""
    if path.is_file():
        return file_hash(path)
    return value_hash([[file.relative_to(path).as_posix(), file_hash(file)] for file in sorted(path.rglob("*")) if file.is_file()])


class CellRunner:
    """Runs cells one after the other in one warm kernel; ``limit`` in seconds each (0: none), results also to ``store``."""

    def __init__(self, limit: float = 0.0, store: str = ""):
        self.kernel, self.limit = WarmKernel(), limit
        self.storage = Storage(store) if store else None

    def __call__(self, job: tuple[Cell, list[Cell]]) -> str:
        """Run a cell unless it is finished; what was wrong in one line, or nothing.

        The cells that it reads are given with it.
        """
        cell, needs = job
        with locked(cell.folder):
            try:
                if not finished(cell):
                    self._run(cell, needs)
                if self.storage and not self.storage.has(cell.record):
                    others = [path for path in cell.record.parent.iterdir() if path != cell.record]
                    self.storage.put([cell.folder / "figures", cell.executed, *products(cell.record), *others, cell.record])
            except Exception as error:  # whatever is wrong with one cell, the others go on
                return _reason(error)
        return ""

    def _run(self, cell: Cell, needs: list[Cell]) -> None:
        if _code(build_graph.NOTEBOOKS / f"{cell.notebook}.py") != cell.code:
            raise ValueError(f"{cell.notebook}, or a module that it uses, is not what it was when the sweep began; begin it again")
        for need in needs:
            if self.storage:
                self.storage.get([need.record])
                self.storage.get(products(need.record))
            cell.record.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(need.record, cell.record.parent)
        with self.kernel.hold(self.limit) as manager:
            values = cell.values | {"profile": f"{cell.profile}/cells/{cell.name}"}
            runner.execute(build_graph.NOTEBOOKS / f"{cell.notebook}.py", values, engine_name=ENGINE, km=manager, progress_bar=False)


def _reason(error: Exception) -> str:
    from papermill.exceptions import PapermillExecutionError

    if isinstance(error, PapermillExecutionError):
        return f"cell {error.exec_count}: {error.ename}: {error.evalue}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def finished(cell: Cell, storage: Storage | None = None) -> bool:
    """Whether a cell's executed notebook and record are here; of a sweep with ``storage`` whether they are there, from where they are then fetched."""
    if storage and not storage.has(cell.record):
        return False
    if storage:
        storage.get([cell.record, cell.record.with_suffix(".parquet"), cell.executed])
    return cell.executed.exists() and cell.record.exists()


def failed_notebook(cell: Cell) -> str:
    """Path of the notebook with the traceback, if the run came that far."""
    path = cell.executed.with_suffix(".failed.ipynb")
    return relative(path) if path.exists() else ""
