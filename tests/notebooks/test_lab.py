"""A notebook as somebody reads and tweaks it: in JupyterLab, from its .ipynb and from its .py."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import jupytext
import pytest

from lib.base import build_graph
from lib.runs import profiles

pytestmark = pytest.mark.slow
NOTEBOOK = build_graph.NOTEBOOKS / "02_activations.py"  # which is among the fastest
OPEN = """
const [path, factory, source] = arguments;
window.outcome = null;
(async () => {
  const app = window.jupyterapp;
  await app.restored;
  const widget = await app.commands.execute('docmanager:open', {path, factory});
  await widget.context.ready;
  await widget.sessionContext.ready;
  const cells = [...Array(widget.content.model.cells.length).keys()].map(i => widget.content.model.cells.get(i));
  const cell = cells.find(cell => (cell.getMetadata('tags') || []).includes('parameters'));
  cell.sharedModel.setSource(source);
  app.shell.activateById(widget.id);
  await app.commands.execute('notebook:run-all-cells');
  const outputs = cells.filter(cell => cell.type === 'code').map(cell => cell.outputs.toJSON());
  const counts = cells.filter(cell => cell.type === 'code').map(cell => cell.executionCount);
  // The document is named, where the commands would take the widget that has the focus: at times, none has.
  await widget.context.save();
  await widget.context.sessionContext.shutdown();
  widget.dispose();
  return {errors: outputs.flat().filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue), counts};
})().then(result => { window.outcome = result; }, error => { window.outcome = {errors: [String(error)], counts: []}; });
"""


@pytest.fixture
def lab(tmp_path):
    """JupyterLab on a copy of the notebooks, with settings of its own; its address and folder."""
    shutil.copytree(build_graph.NOTEBOOKS, tmp_path / "notebooks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR", "JUPYTERLAB_SETTINGS_DIR")
    own = {name: str(tmp_path / name) for name in settings}
    options = [f"--port={port}", f"--ServerApp.root_dir={tmp_path}"]
    options += ["--IdentityProvider.token=test", "--LabApp.expose_app_in_browser=True"]
    with open(tmp_path / "lab.log", "w") as log:
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", *options]
        server = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        _until(lambda: _answers(f"{address}/api?token=test"), 600)
        yield address, tmp_path / "notebooks"
    finally:
        server.terminate()
        server.wait(30)


def _answers(url):
    try:
        return urllib.request.urlopen(url).status == 200
    except urllib.error.URLError:
        return False


def _until(holds, seconds):
    end = time.monotonic() + seconds
    while not (result := holds()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.3)
    return result


def parameters(values, note):
    """The notebook's parameters cell with the values of a small run, and a comment to find again."""
    defaults = build_graph.parameters(NOTEBOOK)
    chosen = defaults | profiles.select(NOTEBOOK, values)
    return "\n".join([*(f"{name} = {value!r}" for name, value in chosen.items()), f"# {note}"])


def test_both_forms_open_run_and_stay_in_step(browser, lab, beside):
    address, folder = lab
    browser.get(f"{address}/lab?token=test")
    _until(lambda: browser.execute_script("return !!window.jupyterapp"), 600)
    values = beside("own-data-test/cells/lab")
    n_code = sum(cell.cell_type == "code" for cell in jupytext.read(NOTEBOOK).cells)
    for suffix, factory in ((".ipynb", "Notebook"), (".py", "Jupytext Notebook")):
        note = f"edited in the {suffix}"
        path = f"notebooks/{NOTEBOOK.stem}{suffix}"
        # The browser is asked again and again: its driver gives one script two minutes, and a slow machine needs more.
        browser.execute_script(OPEN, path, factory, parameters(values, note))
        executed = _until(lambda: browser.execute_script("return window.outcome"), 1200)
        assert executed["errors"] == []
        assert len(executed["counts"]) == n_code and all(executed["counts"])
        pair = [jupytext.read(folder / f"{NOTEBOOK.stem}{end}") for end in (".py", ".ipynb")]
        assert note in (folder / NOTEBOOK.name).read_text(encoding="utf-8")
        assert [(c.cell_type, c.source) for c in pair[0].cells] == [(c.cell_type, c.source) for c in pair[1].cells]
        assert any(cell.get("outputs") for cell in pair[1].cells)
