"""Cells of a sweep: a grid over the parameters of notebooks; each cell is a papermill run of its own.

A sweep is a YAML file: ``notebooks`` (whose results are wanted), ``profile``, ``fixed`` parameters, ``grid`` (every
combination), ``zip`` (lists in step; a mapping, or a list of several), ``by_task`` (true: notebook 09 has a cell for
each task, and one over all of them that finds what these measured) and ``figure`` (see ``lib.runs.sweeps.drawn``). A
cell is named by a hash of its notebook, parameters, sources and the cells that it reads. So what cells share is made
once: an early notebook runs once for all cells that agree on its parameters. A finished cell is found by every sweep.
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
from lib.base.files import ROOT, cause, content_hash, file_hash, locked, named_files, relative, run_dir, value_hash
from lib.runs import profiles, runner, task_cells
from lib.runs.storage import Storage, products
from lib.runs.warm_kernel import ENGINE, WarmKernel

KEYS = {"notebooks", "profile", "fixed", "grid", "zip", "by_task", "figure"}
FIGURE = {"x", "hue", "col", "row", "where", "distinct", "xlabel", "ylabel", "logx", "share_y"}


class Sweep(NamedTuple):
    """A sweep's file, read: the cells' own parameters are ``points``, what all share is ``shared``; ``by_task``: tasks
    have cells of their own."""

    name: str
    profile: str
    notebooks: list[str]
    shared: dict[str, Any]
    points: list[dict[str, Any]]
    figure: dict[str, Any]
    by_task: bool = False


class Cell(NamedTuple):
    """One run of a notebook.

    ``name`` is the notebook and a hash, ``values`` are its parameters, ``needs`` the names of the cells that it reads,
    and ``code`` is a hash of its sources.
    """

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


class Wanted(NamedTuple):
    """A result that a sweep asks for: the cell's own parameters, and its name."""

    point: dict[str, Any]
    name: str


def read(path: Path) -> Sweep:
    """A sweep's file.

    Raises:
        ValueError: no such file, no YAML mapping, an unknown key, notebook or parameter, or lists of unequal length in
            ``zip``.
    """
    content = _yaml(path)
    if not isinstance(content, dict) or not set(content) <= KEYS or not isinstance(content.get("profile", ""), str):
        keys = sorted(map(repr, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"the sweep {path} must be a mapping with keys of {sorted(KEYS)}; it has {keys}")
    for key in ("fixed", "grid", "figure"):
        mapping = content.get(key, {})
        if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping):
            raise ValueError(f"the sweep {path}: {key} must be a mapping of names, it is {mapping!r}")
    figure = content.get("figure", {})
    if figure and not _is_figure(figure):
        raise ValueError(
            f"the sweep {path}: figure {figure!r} must have x, and may have {sorted(FIGURE)}; "
            "where is a mapping, distinct a list"
        )
    known = [notebook.stem for notebook in build_graph.notebooks()]
    notebooks = content.get("notebooks")
    if not isinstance(notebooks, list) or not notebooks or not all(name in known for name in notebooks):
        raise ValueError(f"the sweep {path}: notebooks is {notebooks!r}; give a list of some of {known}")
    by_task = content.get("by_task", False)
    if not isinstance(by_task, bool):
        raise ValueError(f"the sweep {path}: by_task is {by_task!r}; it must be true or false")
    profile = profiles.profile_path(content.get("profile", "embedded"))
    shared = profiles.read_profile(profile) | profiles.as_meant(content.get("fixed", {}))
    points = [profiles.as_meant(point) for point in _points(path, content)]
    sweep = Sweep(path.stem, profile.stem, notebooks, shared, points, figure, by_task)
    for point, notebook in itertools.product(sweep.points, build_graph.notebooks()):
        profiles.select(notebook, shared | point)
    return sweep


def _is_figure(figure: dict[str, Any]) -> bool:
    is_known = "x" in figure and set(figure) <= FIGURE
    return is_known and isinstance(figure.get("where", {}), dict) and isinstance(figure.get("distinct", []), list)


def _yaml(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("aliases (*name) are not allowed")  # aliases of aliases multiply
        content = yaml.load(text, profiles.Loader)
        json.dumps(content, ensure_ascii=False).encode()
        return content
    except Exception as error:  # PyYAML lets out KeyError, AttributeError, OverflowError and more
        raise ValueError(f"the sweep {path} cannot be read: {cause(error)}") from error


def _points(path: Path, content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination of the grid's values and of the positions of each zip."""
    groups = [{name: values} for name, values in content.get("grid", {}).items()]
    zips = content.get("zip", [])
    groups += zips if isinstance(zips, list) else [zips]
    for group in groups:
        if not _is_group(group):
            raise ValueError(
                f"the sweep {path}: {group!r} must give lists of equal length, one value or more, by parameter"
            )
    names = [name for group in groups for name in group]
    if len(set(names)) < len(names):
        raise ValueError(f"the sweep {path}: a parameter stands twice in {names}")
    columns = [[dict(zip(group, row, strict=True)) for row in zip(*group.values(), strict=True)] for group in groups]
    for parts in itertools.product(*columns):
        yield {name: value for part in parts for name, value in part.items()}


def _is_group(group: Any) -> bool:
    """Whether a part of the grid maps names to lists of one length, at least one value long."""
    if not isinstance(group, dict) or not group or not all(isinstance(name, str) for name in group):
        return False
    if not all(isinstance(values, list) and values for values in group.values()):
        return False
    return len({len(values) for values in group.values()}) == 1


def plan(sweep: Sweep) -> tuple[dict[str, Cell], list[Wanted]]:
    """All cells by name, those that others read before them, and the wanted ones."""
    cells: dict[str, Cell] = {}
    code = {path.stem: _code(path) for path in build_graph.notebooks()}
    hashed = functools.cache(content_hash)

    def add(notebook: str, values: dict[str, Any], all_tasks: bool = sweep.by_task) -> str:
        path = build_graph.NOTEBOOKS / f"{notebook}.py"
        needs = tuple(add(name, values) for name in build_graph.upstream(path))
        if notebook == runner.MANY_TASKS and all_tasks:
            parts = task_cells.apart(profiles.complete(values))
            needs += tuple(add(notebook, values | part, all_tasks=False) for part in parts)
        own = profiles.select(path, values)
        own.pop("profile", None)
        # A text that names a file or folder (a user's CSV, an SAE) stands for its content.
        named = [value for name, value in own.items() if name in build_graph.FILE_PARAMETERS]
        contents = [hashed(path) for value in named for path in named_files(value)]
        name = f"{notebook}-{value_hash([own, contents, code[notebook], needs])}"
        cells.setdefault(name, Cell(name, notebook, sweep.profile, own, needs, code[notebook]))
        return name

    wanted = [Wanted(point, add(name, sweep.shared | point)) for point in sweep.points for name in sweep.notebooks]
    return cells, wanted


def _code(notebook: Path) -> str:
    return value_hash([file_hash(ROOT / name) for name in build_graph.sources(notebook)])


class CellRunner:
    """Runs cells one after the other in one warm kernel, each for at most ``limit`` seconds (0: no limit).

    Results go to the URL or folder ``store``, too, if there is one.
    """

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
                    results = [cell.folder / "figures", cell.executed, *products(cell.record), *others]
                    self.storage.put([*results, cell.record])  # a record that is there says that all is there
            except Exception as error:  # whatever is wrong with one cell, the others go on
                return _reason(error)
        return ""

    def _run(self, cell: Cell, needs: list[Cell]) -> None:
        if _code(build_graph.NOTEBOOKS / f"{cell.notebook}.py") != cell.code:
            raise ValueError(
                f"{cell.notebook}, or a module that it uses, is not what it was when the sweep began; begin it again"
            )
        for need in needs:
            if self.storage:
                self.storage.get([need.record])
                self.storage.get(products(need.record))
            if need.notebook != cell.notebook:
                cell.record.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(need.record, cell.record.parent)
        with self.kernel.hold(self.limit) as manager:
            values = cell.values | {"profile": f"{cell.profile}/cells/{cell.name}"}
            notebook = build_graph.NOTEBOOKS / f"{cell.notebook}.py"
            runner.execute(notebook, values, engine_name=ENGINE, km=manager, progress_bar=False)


def _reason(error: Exception) -> str:
    from papermill.exceptions import PapermillExecutionError

    if isinstance(error, PapermillExecutionError):
        return f"cell {error.exec_count}: {error.ename}: {error.evalue}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def finished(cell: Cell, storage: Storage | None = None) -> bool:
    """Whether a cell's executed notebook and record are here.

    Of a sweep with ``storage``: whether they are there, from where they are then fetched.
    """
    if storage and not storage.has(cell.record):
        return False
    if storage:
        storage.get([cell.record, cell.record.with_suffix(".parquet"), cell.executed])
    return cell.executed.exists() and cell.record.exists()


def failed_notebook(cell: Cell) -> str:
    """Path of the notebook with the traceback, if the run came that far."""
    path = cell.executed.with_suffix(".failed.ipynb")
    return relative(path) if path.exists() else ""
