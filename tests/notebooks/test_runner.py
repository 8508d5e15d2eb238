"""The runner and the make graph on stub notebooks in an empty project."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib.base import build_graph
from lib.runs import profiles, runner
from tests import stubs
from tests.stubs import HEAD, write


def make(project, *arguments, check=True):
    environment = os.environ | {"PYTHONPATH": str(project)}
    command = ["make", "-o", ".venv/installed", *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, env=environment)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    ran = [line for line in done.stdout.splitlines() if "lib.runs.runner 0" in line]
    return [line.split("lib.runs.runner ")[1].split()[0] for line in ran], done


def touch(path: Path):
    later = time.time() + 1
    os.utime(path, (later, later))


def settle(project):
    """Set the clock of everything that exists to the past, in the order it had."""
    for path in sorted(project.rglob("*"), key=lambda p: p.stat().st_mtime_ns):
        if path.is_file() and ".venv" not in path.parts:
            stat = path.stat()
            os.utime(path, ns=(stat.st_atime_ns - 10**11, stat.st_mtime_ns - 10**11))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The stub project after its first make reproduce."""
    folder = stubs.project(tmp_path_factory.mktemp("finished"))
    assert make(folder, "reproduce")[0] == ["01_first", "02_second"]
    settle(folder)
    return folder


@pytest.fixture
def reproduced(finished, tmp_path):
    """A copy of the finished project for one test, with its time stamps."""
    return shutil.copytree(finished, tmp_path / "project", symlinks=True)


@pytest.mark.slow
def test_the_make_graph(reproduced):
    record = json.loads((reproduced / "data/runs/embedded/results/01_first.json").read_text())
    assert record["parameters"] == {"profile": "embedded", "layer": 3, "share": 0.5}
    assert record["outputs"]["product"]["path"] == "data/runs/embedded/results/01_first.txt"
    assert make(reproduced, "reproduce")[0] == [], "a second run has nothing to do"

    touch(reproduced / "lib" / "results" / "figures.py")
    assert make(reproduced, "reproduce")[0] == ["02_second"], "only the notebook that draws"

    settle(reproduced)
    touch(reproduced / "notebooks" / "01_first.py")
    assert make(reproduced, "reproduce")[0] == ["01_first"], "its product is the same, so 02 need not run"

    settle(reproduced)
    write(reproduced, "01_first", "changed")
    assert make(reproduced, "reproduce", "-j2")[0] == ["01_first", "02_second"]

    settle(reproduced)
    touch(reproduced / "notebooks" / "profiles" / "embedded.yaml")
    assert make(reproduced, "reproduce")[0] == ["01_first", "02_second"]


def test_a_notebook_runs_again_if_a_file_that_a_parameter_names_has_changed(project):
    (project / "notebooks/02_second.py").unlink()
    notebook, csv = project / "notebooks/01_first.py", project / "my data (1) $x: =.csv"
    notebook.write_text(notebook.read_text().replace("share = 0.5\n", 'share = 0.5\ntrain_csv = ""\n'))
    (project / "notebooks/profiles/mine.yaml").write_text(f"train_csv: '{csv.name}'\n")
    for text in ("text,label\na,0\n", "text,label\na,1\n"):
        csv.write_text(text)
        assert make(project, "reproduce", "PROFILE=mine")[0] == ["01_first"]
        touch(csv)
        assert make(project, "reproduce", "PROFILE=mine")[0] == [], "a second run has nothing to do"


def test_a_run_of_one_notebook_with_other_parameters_is_not_taken_for_the_profiles(reproduced):
    command = [sys.executable, "-m", "lib.runs.runner", "01_first", "-p", "layer", "1"]
    environment = os.environ | {"PYTHONPATH": str(reproduced)}
    subprocess.run(command, cwd=reproduced, check=True, capture_output=True, env=environment)
    ran, done = make(reproduced, "reproduce")
    assert ran == ["01_first"]
    assert "01_first runs again: it was made with layer 1, and the profile has 3" in done.stdout
    record = json.loads((reproduced / "data/runs/embedded/results/01_first.json").read_text())
    assert record["parameters"]["layer"] == 3 and make(reproduced, "reproduce")[0] == []


def test_a_default_that_is_changed_in_one_notebook_is_run_once(reproduced):
    notebook = reproduced / "notebooks" / "01_first.py"
    notebook.write_text(notebook.read_text().replace("layer = 3\n", "layer = 2\n"))
    assert make(reproduced, "reproduce")[0] == ["01_first"] and make(reproduced, "reproduce")[0] == []


def test_a_failed_notebook_leaves_nothing_under_its_final_name(reproduced):
    drawing = "from lib.results import figures"
    write(reproduced, "02_second", "b", extra_import=drawing, body='records.read(run, "01_first"); 1 / 0')
    ran, done = make(reproduced, "reproduce", check=False)
    assert ran == ["02_second"] and done.returncode != 0
    assert "error in 02_second, cell 3: ZeroDivisionError: division by zero" in done.stderr
    folder = reproduced / "data/runs/embedded/notebooks"
    assert sorted(path.name for path in folder.iterdir()) == ["01_first.ipynb", "02_second.failed.ipynb"]
    failed = (folder / "02_second.failed.ipynb").read_text()
    assert "ZeroDivisionError" in failed and str(reproduced) not in failed
    write(reproduced, "02_second", "b", extra_import=drawing, body='records.read(run, "01_first")')
    assert make(reproduced, "reproduce")[0] == ["02_second"]
    assert not (folder / "02_second.failed.ipynb").exists()


def test_unknown_profile_and_parameter_are_one_sentence(project):
    _, done = make(project, "reproduce", "PROFILE=nope", check=False)
    assert "error: unknown profile 'nope'; there are ['embedded']" in done.stderr and "Traceback" not in done.stderr
    (project / "notebooks/profiles/mine.yaml").write_text("layre: 2\n")
    _, done = make(project, "reproduce", "PROFILE=mine", check=False)
    assert "error: unknown parameter ['layre']; the notebooks declare layer, profile, share" in done.stderr
    assert not (project / "data/runs/mine").exists()


def test_a_profile_reaches_the_notebooks_from_any_folder(tmp_path):
    """Make, the shell and papermill each take some characters of a path for more than a name."""
    name = "my $HOME it's \"50%\" für #1 {a}: = "
    project = stubs.project(tmp_path / name.replace(":", ""))  # which a list of folders, as PYTHONPATH, cannot hold
    (project / "notebooks/02_second.py").unlink()
    path = project / "profiles of mine $ü" / f"{name}.yaml"
    path.parent.mkdir()
    path.write_text("layer: 5\n")
    chosen = f"PROFILE={path.relative_to(project)}"
    ran, done = make(project, "reproduce", chosen)
    assert ran == ["01_first"] and f"{name} is up to date: notebooks and results in data/runs/{name}," in done.stdout
    run = project / "data/runs" / name
    record = json.loads((run / "results/01_first.json").read_text())
    assert record["parameters"]["layer"] == 5 and record["profile"] == name
    assert str(tmp_path) not in (run / "notebooks/01_first.ipynb").read_text()
    assert make(project, "reproduce", chosen)[0] == [], "a second run has nothing to do"
    touch(path)
    assert make(project, "reproduce", chosen)[0] == ["01_first"], "the profile has changed"


def test_plain_papermill_runs_a_notebook(project):
    import jupytext

    source = project / "notebooks" / "01_first.ipynb"
    jupytext.write(jupytext.read(source.with_suffix(".py")), source)
    command = [sys.executable, "-m", "papermill", str(source), str(project / "out.ipynb"), "-k", "python3"]
    command += ["-f", str(project / "notebooks/profiles/embedded.yaml"), "-p", "layer", "1"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(project)})
    record = json.loads((project / "data/runs/embedded/results/01_first.json").read_text())
    assert record["parameters"]["layer"] == 1


@pytest.mark.parametrize(
    "values, message",
    [
        ({"layers": 3, "seed": 0, "nope": 1}, r"unknown parameter \['nope'\]; the notebooks declare aggregations, "),
        ({"seed": "zero"}, "parameter seed: 'zero' is str, the default is 0"),
        ({"val_share": "a"}, "val_share: 'a' is str"),
    ],
)
def test_select_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        profiles.select(build_graph.NOTEBOOKS / "01_datasets.py", values)


def test_select_passes_only_what_differs():
    values = {"profile": "embedded", "seed": 1, "val_share": 1, "layer": 5}
    assert profiles.select(build_graph.NOTEBOOKS / "01_datasets.py", values) == {"seed": 1, "val_share": 1}


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: {b: 1}\n", "a: [1\n", "profile: other\n"])
def test_a_profile_must_be_flat_yaml(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=str(path)):
        profiles.read_profile(path)


def test_parameters_must_be_literals(tmp_path):
    path = tmp_path / "01_x.py"
    path.write_text(HEAD + '\n# %% tags=["parameters"]\na = 1\nb = [x for x in a]\n\n# %%\n')
    with pytest.raises(ValueError, match="is not a literal"):
        build_graph.parameters(path)
    path.write_text(HEAD)
    with pytest.raises(ValueError, match="no cell tagged parameters"):
        build_graph.parameters(path)


def test_debug_runs_two_notebooks_on_a_users_files(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(runner, "_run", lambda notebook, values: ran.append((notebook.stem, values)))
    mine, other = tmp_path / "my data (1).csv.gz", tmp_path / "other.csv"
    mine.write_bytes(gzip.compress(b"v1,v2\nham,hello there\nspam,win now\n"))
    other.write_text("v1,v2\nham,good bye\nspam,win now\nspam,win more\n")
    for variable, text in {"CSV": str(mine), "OOD": str(other), "TEXT": "v2", "LABEL": "v1", "ROWS": "9"}.items():
        monkeypatch.setenv(variable, text)
    monkeypatch.setattr("sys.argv", ["runner", "--debug"])
    runner.main()
    assert [name for name, _ in ran] == ["01_datasets", "07_dataset_debugging"]
    assert ran[0][1] == {
        "profile": "debug-my-data-1-", "train_csv": str(mine), "ood_csv": str(other), "n_jailbroken": 0,
        "text_column": "v2", "label_column": "v1", "csv_rows": 9,
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "figures/debug-my-data-1-/debugging.html" in said and "label 1 stands for 'spam' (1)" in said
    assert "other.csv: 1 rows left out: a text of training" in said
    for values, sentence in (
        ({"OOD": str(tmp_path / "nowhere.csv")}, "nowhere.csv: it cannot be read as .csv"),
        ({"POSITIVE": "eggs"}, r"POSITIVE=eggs is none of its labels, which are 'ham' \(1\)"),
        ({"LABEL": "v3"}, "no column LABEL=v3; its columns are 'v1', 'v2'; name them, for example TEXT=v1 LABEL=v2"),
        ({"CSV": ""}, "^error: give CSV=file of labelled texts"),
    ):
        with monkeypatch.context() as patch, pytest.raises(SystemExit, match=sentence):
            for variable, text in values.items():
                patch.setenv(variable, text)
            runner.main()
    assert len(ran) == 2


@pytest.mark.parametrize("name", ["it's a $b.csv", 'say "hi" $(x).csv', "caf\u00e9 `y` \\ #1.csv", "$HOME.csv"])
def test_make_hands_over_names_as_they_were_typed(name, tmp_path):
    """What somebody types in the shell's single quotes reaches the command, dollars and quotation marks included."""
    printed = "import os; print(*(os.environ[name] for name in ('CSV', 'OOD', 'LABEL')), sep='|')"
    makefile = (build_graph.ROOT / "Makefile").read_text().replace("-m lib.runs.runner --debug", f'-c "{printed}"')
    (tmp_path / "Makefile").write_text(makefile)
    typed = [f"CSV={name}", f"OOD=ood {name}", f"LABEL={name}"]
    command = ["make", "--no-print-directory", "-o", "env", "-o", ".venv/installed", "debug", *typed]
    (tmp_path / "python").symlink_to(sys.executable)  # The project's own folder may have a space, and this has none.
    done = subprocess.run([*command, "PYTHON=./python"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == f"{name}|ood {name}|{name}", done.stderr

