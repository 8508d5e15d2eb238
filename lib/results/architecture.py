"""The page docs/architecture.md, from docstrings and imports: packages, their floors, modules, and who uses them.

What no program can know (the data flow as a picture, and the errands) stands in ``templates/architecture.md``.
``python -m lib.results.architecture`` writes the page, and a test compares the two.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import jinja2

from lib.base import build_graph
from lib.base.files import ROOT, write_text

PAGE = ROOT / "docs" / "architecture.md"


class Module(NamedTuple):
    """A module of a package: what its docstring says first, and the notebooks that need it, by number.

    ``notebooks`` import it themselves; ``through_others`` import a module that does.
    """

    name: str
    says: str
    notebooks: list[str]
    through_others: list[str]


class Package(NamedTuple):
    """A package of ``lib``: its floor (0: it imports no other), the packages that it imports, its modules."""

    name: str
    says: str
    floor: int
    imports: list[str]
    modules: list[Module]


def packages() -> list[Package]:
    """The packages of ``lib``, from the lowest floor up."""
    paths = sorted(build_graph.LIB.rglob("[!_]*.py"))
    imports = {_name(path): build_graph.imported(path) for path in paths}
    below: dict[str, set[str]] = {}
    for module, imported in imports.items():
        package = _package(module)
        others = {_package(other) for other in imported} - {package}
        below[package] = below.get(package, set()) | others
    direct = {path.stem[:2]: build_graph.imported(path) for path in build_graph.notebooks()}
    reached = {number: _reached(modules, imports) for number, modules in direct.items()}

    def module(name: str) -> Module:
        notebooks = [number for number, modules in direct.items() if name in modules]
        through_others = [number for number, modules in reached.items() if name in modules - direct[number]]
        says = first_sentence(build_graph.LIB / f"{name}.py")
        return Module(name.partition("/")[2], says, notebooks, through_others)

    rooms = [
        Package(
            name=package,
            says=first_sentence(build_graph.LIB / package / "__init__.py"),
            floor=_floor(package, below),
            imports=sorted(below[package]),
            modules=[module(name) for name in imports if _package(name) == package],
        )
        for package in below
    ]
    return sorted(rooms, key=lambda room: (room.floor, room.name))


def first_sentence(source: Path) -> str:
    """The first sentence of a module's docstring, on one line and without the dot.

    Raises:
        ValueError: the module has no docstring.
    """
    docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(f"{source.name} has no docstring")
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence = re.split(r"(?<=\.)\s+(?=[A-Z`])", paragraph)[0]
    return sentence.removesuffix(".").replace("``", "`").replace("|", "\\|")


def page() -> str:
    """The text of docs/architecture.md."""
    rooms = packages()
    floors: dict[int, list[str]] = {}
    for room in rooms:
        floors.setdefault(room.floor, []).append(room.name)
    loader = jinja2.FileSystemLoader(ROOT / "lib" / "results" / "templates")
    settings = {"undefined": jinja2.StrictUndefined, "keep_trailing_newline": True, "trim_blocks": True}
    environment = jinja2.Environment(loader=loader, autoescape=False, **settings)  # the page is Markdown, not HTML
    template = environment.get_template("architecture.md")
    return template.render(packages=rooms, floors=sorted(floors.items(), reverse=True))


def _name(path: Path) -> str:
    return path.relative_to(build_graph.LIB).with_suffix("").as_posix()


def _package(module: str) -> str:
    return module.partition("/")[0]


def _reached(modules: set[str], imports: dict[str, set[str]]) -> set[str]:
    """The modules and all that they import, directly or through others."""
    reached, todo = set(), set(modules)
    while todo:
        name = todo.pop()
        reached.add(name)
        todo |= imports[name] - reached
    return reached


def _floor(package: str, below: dict[str, set[str]]) -> int:
    return 1 + max((_floor(other, below) for other in below[package]), default=-1)


if __name__ == "__main__":
    write_text(PAGE, page(), only_if_changed=True)
