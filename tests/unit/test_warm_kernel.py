"""A kernel that stays: what a notebook leaves is gone before the next one begins."""

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from papermill.exceptions import PapermillExecutionError

from lib.runs import warm_kernel

LEAVES = """
class Node: ...
node = Node()
node.itself = node  # a circle, which only a collection frees
builtins.kept = weakref.ref(node)
"""
FINDS = """
assert gc.get_freeze_count() > 0, "what the imports left is set aside"
assert "node" not in globals() and builtins.kept() is None
"""


@pytest.fixture(scope="module")
def kernel():
    warm = warm_kernel.WarmKernel()
    yield warm
    warm.kill()


@pytest.fixture
def run(kernel, tmp_path):
    """Run cells as a notebook in the warm kernel; the executed notebook."""

    def execute(*sources):
        source, target = tmp_path / "source.ipynb", tmp_path / "executed.ipynb"
        cells = [new_code_cell(source) for source in sources]
        kernelspec = {"name": "python3", "display_name": "", "language": "python"}
        nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernelspec}), source)
        with kernel.hold() as manager:
            papermill.execute_notebook(source, target, engine_name=warm_kernel.ENGINE, km=manager, progress_bar=False)
        return nbformat.read(target, as_version=4)

    return execute


def test_a_name_and_a_circle_of_objects_are_gone_and_nothing_else_is_in_the_notebook(run):
    imports = "import builtins, gc, weakref"
    for source in (LEAVES, FINDS):
        executed = run(imports, source)
        assert [cell.source for cell in executed.cells] == [imports, source]
        assert [cell.execution_count for cell in executed.cells] == [1, 2]


def test_imports_that_fail_are_the_notebooks_own_error(run):
    with pytest.raises(PapermillExecutionError, match="No module named 'nowhere_at_all'"):
        run("import nowhere_at_all", "1")
    assert run("import gc", "1 + 1").cells[1].outputs[0].data["text/plain"] == "2", "a kernel of its own comes next"
