"""Texts of estimates, and which commit a record may say that it comes from."""

import json
import subprocess

import pytest

from lib.base import build_graph
from lib.base.files import DATA
from lib.results import records, tables
from lib.runs import runner
from lib.stats.metrics import Estimate

COMMITTED = sorted(DATA.glob("records/*/*.json"))


@pytest.mark.parametrize(
    "estimate, text",
    [
        (Estimate(0.5, 0.25, 0.75, 4, 2), "0.50 [0.25, 0.75]"),
        (Estimate(0.5, None, None, 1, 1), "0.50 (no interval)"),
        (Estimate(None, None, None, 0, 0), "n/a"),
        (Estimate(float("nan"), float("nan"), float("nan"), 0, 0), "n/a"),
    ],
)
def test_text_of_an_estimate(estimate, text):
    assert tables.text(estimate, 2) == text


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_committed_record_comes_from_a_clean_commit(path):
    commit = json.loads(path.read_text(encoding="utf-8"))["commit"]
    assert commit is not None and not commit.endswith("+"), f"{path.name}: {commit}; commit, then make publish"


@pytest.fixture
def git(tmp_path, monkeypatch):
    """An empty project in a git repository, with a notebook, a module and files that runs write; it runs git there."""
    monkeypatch.setattr(records, "ROOT", tmp_path)
    for name, folder in (("ROOT", tmp_path), ("LIB", tmp_path / "lib"), ("NOTEBOOKS", tmp_path / "notebooks")):
        monkeypatch.setattr(build_graph, name, folder)
    files = {
        "lib/base/files.py": "",
        "notebooks/01_first.py": "from lib.base import files\n\n# %% tags=[\"parameters\"]\nseed = 0\n",
        "notebooks/01_first.ipynb": "{}",
        "figures/embedded/01.png": "",
        "data/records/embedded/01_first.json": "{}",
        "data/bench/scaling.json": "[]",
        "README.md": "table",
        "docs/scorecard.md": "table",
        "docs/usage.md": "prose",
        "Makefile": "all:\n",
        ".gitignore": "data/runs/\n",
    }
    for name, text in files.items():
        write(tmp_path / name, text)

    def run(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    run("init", "-q")
    run("add", ".")
    run("commit", "-qm", "first")
    return run


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_what_runs_write_themselves_does_not_make_a_tree_dirty(git, tmp_path):
    head = git("rev-parse", "--short=12", "HEAD")
    for name in ("figures/embedded/01.png", "figures/embedded/new.png", "notebooks/01_first.ipynb", "README.md"):
        write(tmp_path / name, "made by a run")
    for name in ("data/records/embedded/01_first.json", "data/records/mine/01_first.json", "data/bench/scaling.json"):
        write(tmp_path / name, "made by a run")
    for name in ("docs/scorecard.md", "data/runs/embedded/x", "mine.csv"):
        write(tmp_path / name, "made by a run, or a user's")
    assert records.changes() == [] and records.commit() == head
    records.check_committed()


DECIDING = ["lib/base/files.py", "lib/base/new.py", "notebooks/01_first.py", "notebooks/02_new.py", "Makefile"]


@pytest.mark.parametrize("name", DECIDING)
def test_other_changes_make_it_dirty(git, tmp_path, name):
    write(tmp_path / name, "# changed\n")
    assert records.changes() == [name] and records.commit() == git("rev-parse", "--short=12", "HEAD") + "+"
    with pytest.raises(ValueError, match=f"^{name} differs from the last commit; commit first, as records say what"):
        records.check_committed()
    git("add", ".")
    assert records.changes() == [name], "what is only staged is not committed"
    write(tmp_path / "lib/other.py", "")
    with pytest.raises(ValueError, match="and 1 more differ from the last commit; commit first"):
        records.check_committed()


def test_without_a_repository_no_record_can_be_published(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert records.commit() is None
    with pytest.raises(ValueError, match="is no git repository with a commit"):
        records.check_committed()


def test_a_record_of_other_code_is_refused(git, tmp_path):
    record = tmp_path / "01_first.json"
    first = git("rev-parse", "--short=12", "HEAD")

    def refused(commit, message):
        write(record, json.dumps({"notebook": "01_first", "commit": commit}))
        sentence = rf"^01_first.json {message}; touch notebooks/01_first.py, and make publish runs it again$"
        with pytest.raises(ValueError, match=sentence):
            records.check_made_by_commit(record)

    refused(None, "has no commit")
    refused(first + "+", rf"was made by {first}\+, a commit with uncommitted changes")
    refused("0123456789ab", "was made by 0123456789ab, which is not in this repository")
    write(record, json.dumps({"notebook": "01_first", "commit": first}))
    records.check_made_by_commit(record)
    for name in ("docs/usage.md", "figures/embedded/01.png", "lib/base/not_used.py"):
        write(tmp_path / name, "changed")
    git("add", ".")
    git("commit", "-qm", "what the notebook does not read")
    records.check_made_by_commit(record)
    write(tmp_path / "lib/base/files.py", "# changed\n")
    git("commit", "-qam", "a module that it uses")
    refused(first, f"was made by {first}, and lib/base/files.py has changed since")


@pytest.mark.parametrize("key", ["sk-secret-0123", "", "0KEY", "A KEY"])
def test_no_record_holds_a_key(git, tmp_path, key):
    parameters = f"profile = 'embedded'\nllm_key_variable = {key!r}\n"
    write(tmp_path / "notebooks/01_first.py", f'\n# %% tags=["parameters"]\n{parameters}\n# %%\n')
    with pytest.raises(ValueError, match="llm_key_variable must be the name of an environment variable") as raised:
        records.start("01_first", {"profile": "embedded", "llm_key_variable": key})
    assert not key or key not in str(raised.value)
    records.start("01_first", {"profile": "embedded", "llm_key_variable": "_MY_KEY_2"})


def test_publishing_is_all_or_nothing(git, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "run_dir", lambda profile: tmp_path / "data" / "runs" / profile)
    monkeypatch.setattr(runner, "DATA", tmp_path / "data")
    record = tmp_path / "data/runs/mine/results/01_first.json"
    write(record, json.dumps({"notebook": "01_first", "commit": git("rev-parse", "--short=12", "HEAD") + "+"}))
    with pytest.raises(ValueError, match="a commit with uncommitted changes"):
        runner.publish("mine")
    assert not (tmp_path / "data/records/mine").exists()
    write(record, json.dumps({"notebook": "01_first", "commit": git("rev-parse", "--short=12", "HEAD")}))
    runner.publish("mine")
    assert (tmp_path / "data/records/mine/01_first.json").read_text() == record.read_text()
    head = git("rev-parse", "--short=12", "HEAD")
    write(record, json.dumps({"notebook": "01_first", "commit": head, "parameters": {"seed": 1, "ks": [1, 2]}}))
    sentence = "it was made with seed 1, and the profile has 0; make reproduce PROFILE=mine runs it again"
    with pytest.raises(ValueError, match=f"^01_first.json: {sentence}$"):
        runner.publish("mine", {"ks": [1, 2], "layer": 3})
    runner.publish("mine", {"ks": [1, 2], "seed": 1, "layer": 3})
    assert (tmp_path / "data/records/mine/01_first.json").read_text() == record.read_text()
    write(tmp_path / "lib/base/files.py", "# changed\n")
    with pytest.raises(ValueError, match="lib/base/files.py differs from the last commit"):
        runner.publish("mine")
