"""Which file makes which: the dependency graph of the notebooks, read from their sources, as a makefile.

A notebook depends on its own ``.py``, the profile, the files that its parameters name, the modules of ``lib`` that it
imports (and those that they import), the shipped data that these read, and the products of the notebooks whose records
it reads. Standard library only.
"""

import ast
import functools
import hashlib
import io
import re
import shlex
import tokenize
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
LIB = ROOT / "lib"
SHIPPED = {  # module -> shipped files that it reads
    "texts/sources": ["data/sources.yaml", "data/prompts/*.csv"],
    "texts/datasets": ["data/prompts/templates.yaml"],
    "texts/corpora": ["data/rollouts/*.parquet"],
    "sae/finetuning": ["data/pretrained/*/sae_weights.safetensors"],
    "interp/cards": ["lib/results/templates/cards.html"],
    "results/task_page": ["lib/results/templates/tasks.html"],
    "results/claims": ["data/claims.yaml"],
    "results/scorecard": ["data/records/*/*.json"],
}
FILE_PARAMETERS = ("model", "train_csv", "ood_csv", "base_saes", "prompts_sae", "tasks_folder")  # may name files
CONTENTS = "contents"  # folder of a run with a file for each of these, which changes when what is named does


def text_hash(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def code_hash(paths: Iterable[Path]) -> str:
    """SHA-256 of what Python files do, in the order given: docstrings, comments and the layout of lines do not count.

    Raises:
        SyntaxError: a file that is no Python.
    """
    return text_hash("\n\n".join(_bare_code(path.read_text(encoding="utf-8")) for path in paths))


@functools.lru_cache(maxsize=64)  # a grid of trainings asks for the same files again and again
def _bare_code(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        may_have_one = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if may_have_one and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def notebooks() -> list[Path]:
    """The numbered notebooks' ``.py`` files, in order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.py"))


def parameters(notebook: Path) -> dict[str, Any]:
    """Names and defaults of a notebook's ``parameters`` cell.

    Raises:
        ValueError: no such cell, or a default that is not a literal.
    """
    defaults = {}
    for statement in ast.parse(_parameters_cell(notebook)).body:
        if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
            raise ValueError(f"{notebook.name}: {ast.unparse(statement)!r} in the parameters cell is no assignment")
        try:
            defaults[statement.targets[0].id] = ast.literal_eval(statement.value)
        except ValueError as error:
            raise ValueError(f"{notebook.name}: parameter {ast.unparse(statement)!r} is not a literal") from error
    return defaults


def comments(notebook: Path) -> dict[str, str]:
    """The comment beside each of a notebook's parameters; the text is empty where there is none."""
    cell = _parameters_cell(notebook)
    tokens = tokenize.generate_tokens(io.StringIO(cell).readline)
    of_line = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    return {ast.unparse(line.targets[0]): of_line.get(line.end_lineno, "") for line in ast.parse(cell).body}


def _parameters_cell(notebook: Path) -> str:
    cells = notebook.read_text(encoding="utf-8").split("\n# %%")
    cell = next((cell for cell in cells if cell.split("\n", 1)[0].strip() == 'tags=["parameters"]'), None)
    if cell is None:
        raise ValueError(f"{notebook.name} has no cell tagged parameters")
    return cell.split("\n", 1)[1]


def imported(source: Path) -> set[str]:
    """Modules of ``lib`` that a file imports itself, as ``package/module``.

    Raises:
        ValueError: an import that names a package only, from which no module can be read off.
    """
    modules = {"/".join(name.split(".")[1:3]) for name in _imports(source.read_text(encoding="utf-8"))}
    unknown = sorted(name for name in modules if not (LIB / f"{name}.py").exists())
    if unknown:
        raise ValueError(f"{source.name} imports {unknown}, which are no modules of a package of lib")
    return modules


@functools.lru_cache(maxsize=1024)  # a sweep asks for each of its cells
def _imports(text: str) -> frozenset[str]:
    """Dotted names of ``lib`` that a source imports."""
    dotted: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "lib":
            dotted.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            dotted.update(alias.name for alias in node.names if alias.name.startswith("lib."))
    return frozenset(dotted)


def modules(source: Path) -> list[str]:
    """Modules of ``lib`` that a file imports, directly or through others."""
    used: set[str] = set()
    todo = imported(source)
    while todo:
        name = todo.pop()
        used.add(name)
        todo |= imported(LIB / f"{name}.py") - used
    return sorted(used)


def upstream(notebook: Path) -> list[str]:
    """Notebooks whose record this one reads: ``records.read(run, "NN_name")`` or ``records.output(run, …)``."""
    return sorted(_records_read(notebook.read_text(encoding="utf-8")))


@functools.lru_cache(maxsize=64)
def _records_read(text: str) -> frozenset[str]:
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    reading = [call for call in calls if ast.unparse(call.func) in ("records.read", "records.output")]
    return frozenset(ast.literal_eval(call.args[1]) for call in reading)


def sources(notebook: Path) -> list[str]:
    """Files that decide what a notebook does, beside its parameters: itself, its modules, shipped data they read."""
    used = modules(notebook)
    paths = [f"notebooks/{notebook.name}", *(f"lib/{name}.py" for name in used)]
    for name in used:
        for pattern in SHIPPED.get(name, []):
            paths += [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob(pattern))]
    return paths


def make_word(path: str) -> str:
    """A file that is there as make can take it among what a target needs.

    To make a space ends a name, and ``$``, ``%``, ``#``, ``:`` and ``=`` mean something, each escaped in its own way or
    in none. A pattern (``my*.yaml``) finds the file, and perhaps others, whose change then counts too.
    """
    return re.sub(r"[^\w./~+@-]+", "*", path)


def makefile(profile: str, profile_file: str = "", run: str = "") -> str:
    """The rules of one profile; needs the make variable PYTHON, and the profile as PROFILE of the environment.

    ``run`` is the run's folder under a name that make can take as a target's.
    """
    run, profile_file = run or f"data/runs/{profile}", profile_file or f"notebooks/profiles/{profile}.yaml"
    targets = [f"{run}/notebooks/{notebook.stem}.ipynb" for notebook in notebooks()]
    up_to_date = f"{profile} is up to date: notebooks and results in data/runs/{profile}, figures in figures/{profile}"
    again = f"is missing: make clean PROFILE={shlex.quote(profile)}, then make reproduce"
    lines = [".DELETE_ON_ERROR:", f"all: {' '.join(targets)}", f"\t@echo {_in_recipe(up_to_date)}"]
    for notebook, target in zip(notebooks(), targets, strict=True):
        own_records = f"data/records/{profile}/"  # this run makes them
        needs = [path for path in sources(notebook) if not path.startswith(own_records)]
        needs = [*map(make_word, needs), make_word(profile_file)]
        needs += [f"{run}/{CONTENTS}/{name}" for name in FILE_PARAMETERS if name in parameters(notebook)]
        needs += [f"{run}/results/{name}.outputs" for name in upstream(notebook)]
        product = f"{run}/results/{notebook.stem}.outputs"
        lines += [
            f"{target}: {' '.join(needs)}",
            f'\t$(PYTHON) -m lib.runs.runner {notebook.stem} --profile="$$PROFILE"',
            # the product keeps its time stamp if nothing in it changed: then what reads it need not run
            f"{product}: {target}",
            f"\t@test -e $@ || {{ echo $@ {_in_recipe(again)}; exit 1; }}",
        ]
    return "\n".join(lines) + "\n"


def _in_recipe(text: str) -> str:
    """A text as one word of a recipe: quoted for the shell, and its ``$`` for make."""
    return shlex.quote(text).replace("$", "$$")
