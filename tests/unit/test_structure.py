"""The house style that a machine can hold: one-way imports, small modules, parameters as literals, short cells."""

import ast
import graphlib
import re
import subprocess
import sys

import jupytext
import nbformat
import papermill
import pytest

from lib.base import build_graph
from lib.base.files import ROOT
from lib.runs import progress, runner

# Of the house:
FLOORS = {"base": 0, "stats": 1, "texts": 2, "results": 2, "model": 3, "sae": 4, "probing": 5, "runs": 6, "interp": 6}
MODULES = sorted(build_graph.LIB.rglob("[!_]*.py"))
NAMES = {path.relative_to(build_graph.LIB).with_suffix("").as_posix(): path for path in MODULES}
NOTEBOOKS = build_graph.notebooks()


def test_every_module_lies_in_a_package_whose_page_is_one_sentence():
    assert {name.rpartition("/")[0] for name in NAMES} == set(FLOORS)
    for package in FLOORS:
        (statement,) = ast.parse((build_graph.LIB / package / "__init__.py").read_text()).body
        assert re.fullmatch(r"[^\n]+\.", ast.literal_eval(statement.value))


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_one_way_between_packages(name):
    """A package imports from packages on lower floors only."""
    package = name.partition("/")[0]
    others = {other for other in build_graph.imported(NAMES[name]) if other.partition("/")[0] != package}
    upward = {other for other in others if FLOORS[other.partition("/")[0]] >= FLOORS[package]}
    assert not upward, f"{name} imports {upward}, on the same floor or above it"


def test_ruff_finds_nothing():
    """Unused names, wrong order of imports, long lines: what ``make lint`` says, which this runs."""
    makefile = (ROOT / "Makefile").read_text()
    (checked,) = re.findall(r"-m ruff check (.+)", makefile)
    command = [sys.executable, "-m", "ruff", "check", *checked.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_function_takes_more_than_six_positional_parameters(path):
    tree = ast.parse(path.read_text())
    methods = {id(method) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for method in node.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
            if id(node) in methods and names[:1] in (["self"], ["cls"]):
                names = names[1:]
            assert len(names) <= 6, f"{node.name} takes {names}; make a type of what travels together"


def test_imports_point_one_way_between_modules():
    imports = {name: build_graph.imported(path) for name, path in NAMES.items()}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError


def test_an_import_of_a_package_only_is_refused(tmp_path):
    source = tmp_path / "wrong.py"
    source.write_text("from lib import stats\n")
    with pytest.raises(ValueError, match="no modules of a package"):
        build_graph.imported(source)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_modules_are_small_documented_and_do_nothing_at_import(path):
    source = path.read_text()
    assert source.count("\n") <= 400
    tree = ast.parse(source)
    assert ast.get_docstring(tree)
    public = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    nested = {id(inner) for function in functions for inner in ast.walk(function) if inner is not function}
    undocumented = [n.name for n in public if id(n) not in nested and not ast.get_docstring(n)]
    assert not undocumented
    calls = [ast.unparse(n) for n in tree.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
    assert not calls


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_short_cells_without_functions(path):
    notebook = jupytext.read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            stripped = [line.strip() for line in cell.source.splitlines()]
            lines = [line for line in stripped if line and not line.startswith("#")]
            is_list = "parameters" in cell.metadata.get("tags", []) or lines[0].startswith(("import ", "from "))
            assert len(lines) <= 20 or is_list, f"a cell of {len(lines)} lines, from {lines[0]!r}"
            assert not re.search(r"^\s*(def|class) ", cell.source, flags=re.M)
    assert notebook.cells[0].source.startswith(f"# {path.stem[:2]} · ")
    assert "records.write(run" in notebook.cells[-1].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_are_literals_and_a_name_means_the_same_everywhere(path):
    defaults = {name: value for other in NOTEBOOKS for name, value in build_graph.parameters(other).items()}
    for name, value in build_graph.parameters(path).items():
        assert defaults[name] == value, f"{name} has two defaults"


def test_chat_is_harvested_once_for_the_saes_of_03_and_04():
    """The default's chat store has one name in both, as what goes into the name is equal."""
    of_03, of_04 = (build_graph.parameters(path) for path in NOTEBOOKS if path.stem[:2] in ("03", "04"))
    same = {"corpus": "chat_corpus", "max_tokens": "chat_tokens"}
    same |= {name: name for name in ("layer", "context", "store", "held_out_tokens", "split_seed")}
    assert [of_03[name] for name in same] == [of_04[name] for name in same.values()]
    assert of_04["pretraining_tokens"] == of_04["chat_tokens"], "or the placebo would see other text"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_papermill_reads_the_same_parameters(path, tmp_path, caplog):
    """Its parser goes by the line, and a mark such as ``=`` in a comment leads it astray."""
    jupytext.write(jupytext.read(path), tmp_path / "notebook.ipynb")
    with caplog.at_level("WARNING", logger="papermill"):
        listed = papermill.inspect_notebook(str(tmp_path / "notebook.ipynb"))
    assert not caplog.messages
    assert {name: ast.literal_eval(entry["default"]) for name, entry in listed.items()} == build_graph.parameters(path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_committed_notebook_is_executed_and_in_step(path):
    executed = path.with_suffix(".ipynb")
    source, published = jupytext.read(path), nbformat.read(executed, as_version=4)
    written = [(cell.cell_type, cell.source) for cell in source.cells]
    assert written == [(cell.cell_type, cell.source) for cell in published.cells], "make publish"
    outputs = [output for cell in published.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs and all(output.output_type != "error" for output in outputs)
    assert executed.stat().st_size <= 1_000_000


OF_A_MACHINE = r"(?<![\w.:/])/(?:home|root|tmp|Users|var|mnt|opt|usr|work)/[^\s\"']*"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_committed_notebook_holds_no_progress_and_no_path_of_a_machine(path):
    published = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    for cell in published.cells:
        for output in cell.get("outputs", []):
            texts = {name: str(text) for name, text in output.get("data", {}).items() if name != "image/png"}
            shown = "\n".join([output.get("text", ""), *texts.values()])
            assert not progress.BAR.search(shown) and "\r" not in shown and "it/s]" not in shown
            assert not re.findall(OF_A_MACHINE, shown)
    assert not re.findall(OF_A_MACHINE, str(published.metadata))


def test_progress_bars_leave_a_notebook_and_other_messages_stay():
    bar = "SAEs probed: 100%|██████████| 14/14 [00:41<00:00,  2.97s/SAE, l0 30 >10% 2]"
    cut = "SAEs probed:  21%|██▏       | 3/14 [00:10<00:41,  3.79s/SAE]a warning [with brackets]\nof two lines\n"
    texts = [f"{bar}\n{bar}\n", f"{cut}{bar}\n", "a | 10% b\n"]
    streams = [nbformat.v4.new_output("stream", name="stderr", text=text) for text in texts]
    streams.append(nbformat.v4.new_output("stream", name="stdout", text="100%|█| 1/1 [in a print]\n"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=streams)])
    runner.drop_progress_bars(notebook)
    left = [output.text for output in notebook.cells[0].outputs]
    assert left == ["a warning [with brackets]\nof two lines", "a | 10% b", "100%|█| 1/1 [in a print]\n"]


def test_no_number_of_the_paper_is_typed_into_a_notebook():
    for path in NOTEBOOKS:
        assert not re.search(r"\b(4,?046|1,?014|3,?850|0\.999|0\.048|0\.00087)\b", path.read_text())


def test_no_text_of_downloaded_data_is_committed():
    """Pages of public profiles show texts of the data sets; only figures are kept."""
    command = ["git", "ls-files", "figures"]
    kept = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    pages = {name for name in kept if not name.endswith(".png")}
    assert kept and pages <= {"figures/embedded/latents.html", "figures/embedded/debugging.html"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_depends_on_the_templates_and_texts_that_its_modules_read(path):
    sources, used = build_graph.sources(path), build_graph.modules(path)
    code = "".join(NAMES[name].read_text(encoding="utf-8") for name in used)
    read = [template for template in (ROOT / "lib/results/templates").iterdir() if f'"{template.name}"' in code]
    read += (ROOT / "data/rollouts").glob("*.parquet") if "texts/corpora" in used else []
    assert not [file for file in read if file.relative_to(ROOT).as_posix() not in sources]
