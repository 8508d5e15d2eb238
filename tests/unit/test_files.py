"""Paths as people type them, and hashes of what they name."""

from pathlib import Path

import pytest

from lib.base import build_graph, files
from lib.model import weights
from lib.runs import profiles, reproduce, runner, sweeps
from lib.texts import own_texts, task_files
from lib.texts.labelled import Columns

ROWS = "text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(80))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder beside an empty project, seen from another folder."""
    monkeypatch.setattr(files, "ROOT", tmp_path / "project")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("project", "home", "elsewhere"):
        (tmp_path / name / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "home"


def test_a_typed_path_begins_at_the_home_folder_or_at_the_project(home):
    assert files.typed_path("~/a b") == home / "a b"
    assert files.typed_path("a/~") == files.ROOT / "a/~"
    assert files.typed_path("/a") == Path("/a") and files.typed_path(home) == home


@pytest.mark.parametrize("typed", ["~/folder", "folder"])
def test_what_is_typed_is_found_from_every_folder(home, typed):
    folder = files.typed_path(typed)
    (folder / "spam.csv").write_text(ROWS)
    assert len(own_texts.read({"id": f"{typed}/spam.csv", "ood": ""}, Columns()).base) == 80
    assert [task.name for task in task_files.of_folder(Path(typed), Columns(), 100)] == ["spam"]
    assert weights.model_path(typed) == sweeps.place_of(typed) == str(folder)
    assert runner.DEBUG_VARIABLES["CSV"][1](f"{typed}/spam.csv") == str(folder / "spam.csv")
    chosen = []
    runner.tasks("embedded", [], typed, {}, lambda values: chosen.append(values["tasks_folder"]))
    assert chosen == [str(folder)]


def test_the_home_folder_of_a_profile_is_that_of_every_notebook(home):
    path = home / "mine.yaml"
    path.write_text("base_saes: [~/sae, gemma:layer_1]\nprompts_sae: ~/chat\nllm_model: ~/not-a-file\n")
    values = profiles.read_profile(path)
    assert values["base_saes"] == [str(home / "sae"), "gemma:layer_1"] and values["prompts_sae"] == str(home / "chat")
    assert values["llm_model"] == "~/not-a-file"


def test_a_changed_file_changes_the_time_of_what_make_looks_at(home):
    (home / "texts.csv").write_text(ROWS)
    (home / "folder" / "weights").write_text("a")
    values = {"train_csv": "~/texts.csv", "base_saes": ["~/folder", "gemma:layer_1"], "tasks_folder": "", "seed": 1}

    def changed():
        before = {path.name: path.stat().st_mtime_ns for path in (home / "run/contents").glob("*")}
        reproduce.note_contents(home / "run", values)
        after = {path.name: path.stat().st_mtime_ns for path in (home / "run/contents").iterdir()}
        return sorted(name for name, time in after.items() if time != before.get(name))

    assert changed() == sorted(build_graph.FILE_PARAMETERS) and changed() == []
    (home / "texts.csv").write_text(ROWS.replace("0", "1", 1))
    assert changed() == ["train_csv"]
    (home / "folder" / "weights").write_text("b")
    assert changed() == ["base_saes"]
    (home / "folder" / "weights").rename(home / "folder" / "other name")
    assert changed() == ["base_saes"]
    values["tasks_folder"] = "~/folder"
    assert changed() == ["tasks_folder"]


def test_a_file_that_cannot_be_read_is_one_sentence(home, monkeypatch):
    (home / "texts.csv").write_text(ROWS)
    monkeypatch.setattr(files, "file_hash", lambda path: path.with_name("not there").open())
    with pytest.raises(ValueError, match="texts.csv cannot be read: FileNotFoundError"):
        files.content_hash(home / "texts.csv")


def test_a_lock_removes_what_was_half_written_of_its_own_file_only(tmp_path):
    killed, kept = tmp_path / ".a.json-ab_12cd9", [".a.txt.lock", ".a.json-b.txt-ab_12cd9", ".a-of-mine.csv"]
    killed.mkdir()
    for name in kept:
        (tmp_path / name).write_text("")
    with files.replacing(tmp_path / "a.txt") as temporary, files.locked(tmp_path / "a.json"):
        assert not killed.exists()
        temporary.write_text("another process is writing")
    assert (tmp_path / "a.txt").read_text() and {path.name for path in tmp_path.glob(".*")} == {*kept, ".a.json.lock"}


def test_a_lock_of_a_folder_removes_what_was_half_written_in_it(tmp_path):
    for name in ("run", "run/results"):
        (tmp_path / name / ".x.json-ab_12cd9").mkdir(parents=True)
        (tmp_path / name / ".x-1.json.lock").write_text("")
    with files.locked(tmp_path / "run"):
        assert sorted(path.name for path in tmp_path.rglob(".x*")) == [".x-1.json.lock"] * 2
