"""What make hands on: every variable as it was typed, whatever is in it, and from any folder."""

import os
import re
import shutil
import subprocess

import pytest

from lib.base import build_graph
from lib.base.files import ROOT
from lib.runs import reproduce

HOSTILE = "my $HOME $(x) ${y} it's \"50%\" `für` #1 \\ * "
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TYPED = set(re.findall(r"[A-Z0-9]+", " ".join(re.findall(r"^TYPED \+?:?=(.*)", MAKEFILE, flags=re.MULTILINE))))
SWITCHES = {"SLOW", "DRY"}  # which make itself reads, as set or not
# Stands for Python: writes down what it was called with, and what it would find in the environment.
STAND_IN = """#!/bin/sh
for word in "$@"; do printf '%s\\0' "$word" >> called; done
for name in {names}; do eval "printf '%s\\0' \\"$name=\\$$name\\"" >> environment; done
"""
PROFILE = f"--profile={HOSTILE}"
RUNNER = ["-m", "lib.runs.runner"]
CALLED = {
    "data": ("PROFILE", [*RUNNER, "--fetch", PROFILE]),
    "probe": ("PROFILE", [*RUNNER, "--probe", PROFILE]),
    "score": ("PROFILE", [*RUNNER, "--score", PROFILE]),
    "tasks": ("PROFILE", ["-m", "lib.runs.task_runs", "--tasks", PROFILE]),
    "report": ("PROFILE", ["-m", "lib.results.report", PROFILE]),
    "sweep": ("SWEEP", ["-m", "lib.runs.sweeps", "--store=", "--limit=0", "--retries=0", "--", HOSTILE]),
    "bench": ("BENCH", ["-m", "bench", HOSTILE]),
}


@pytest.fixture
def project(tmp_path):
    """A folder with the Makefile, and a stand-in for Python."""
    folder = tmp_path / HOSTILE
    (folder / ".venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    stand_in = folder / ".venv/bin/python"
    stand_in.write_text(STAND_IN.replace("{names}", " ".join(sorted(TYPED))))
    stand_in.chmod(0o755)
    for name in ("requirements", "requirements-sweep", "requirements-models", "requirements-tasks"):
        (folder / f"{name}.lock").touch()
    (folder / "pyproject.toml").touch()
    for name in ("installed", "sweep", "tasks"):
        (folder / ".venv" / name).touch()
    return folder


def make(project, *words, **variables):
    """What the stand-in was called with last, and the environment that it had."""
    given = [f"{name}={value}" for name, value in variables.items()]
    clean = {name: value for name, value in os.environ.items() if name not in TYPED}
    subprocess.run(["make", *words, *given], cwd=project, check=True, capture_output=True, env=clean)
    called = (project / "called").read_text().split("\0")[:-1]
    entries = (project / "environment").read_text().split("\0")[:-1][-len(TYPED) :]
    last = max(i for i, word in enumerate(called) if word == "-m")
    return called[last:], dict(entry.split("=", 1) for entry in entries)


def test_every_variable_is_taken_as_it_was_typed():
    variables = set(re.findall(r"^([A-Z0-9]+) \?=", MAKEFILE, flags=re.MULTILINE))
    assert variables - SWITCHES <= TYPED
    asked = MAKEFILE.replace("$(findstring -tasks-,$(PROFILE))", "")
    recipes = [line for line in asked.splitlines() if line.startswith("\t")]
    expanded = {name for line in recipes for name in re.findall(r"\$\(([A-Z0-9]+)\)", line)}
    assert expanded & TYPED <= SWITCHES, "a recipe reads it from the environment"


@pytest.mark.parametrize("target", CALLED)
def test_what_a_command_calls(target, project):
    variable, expected = CALLED[target]
    called, environment = make(project, target, **{variable: HOSTILE})
    assert called == expected and environment[variable] == HOSTILE


def test_all_variables_reach_the_environment(project):
    _, environment = make(project, "score", **dict.fromkeys(TYPED - {"WORKERS"}, HOSTILE))
    assert environment == dict.fromkeys(TYPED, HOSTILE) | {"WORKERS": ""}


def test_a_sweeps_place_and_limits(project):
    called, _ = make(project, "sweep", SWEEP="layer_by_k", STORE=HOSTILE, LIMIT="60", RETRIES="2", DRY="1")
    assert called[2:] == ["--dry-run", f"--store={HOSTILE}", "--limit=60", "--retries=2", "--", "layer_by_k"]


def test_reproduce_hands_the_profile_and_its_own_make_on(project):
    called, _ = make(project, "reproduce", PROFILE=HOSTILE)
    assert called[:4] == [*RUNNER, PROFILE, "--alone"]
    assert called[5:] == ["--no-print-directory", "PYTHON=.venv/bin/python"]


def test_a_make_within_make_gets_it_too(project):
    make(project, "publish", PROFILE=HOSTILE)
    called = (project / "called").read_text().split("\0")
    profiles = [word for word in called if word.startswith("--profile=")]
    assert len(profiles) == 3 and set(profiles) == {PROFILE}, "to fetch, to reproduce and to publish"


@pytest.mark.parametrize("suffix", ["", ".yaml", ".yml"])
def test_clean_deletes_the_run_and_no_other(suffix, project):
    for name in (HOSTILE, "my", "other"):
        (project / "data/runs" / name).mkdir(parents=True)
    command = ["make", "clean", f"PROFILE=some folder/{HOSTILE}{suffix}"]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    assert sorted(path.name for path in (project / "data/runs").iterdir()) == ["my", "other"]
    for profile in ("", "..", "a/..", "."):
        done = subprocess.run(["make", "clean", f"PROFILE={profile}"], cwd=project, capture_output=True, text=True)
        assert done.returncode != 0 and f"error: PROFILE={profile} is no profile" in done.stdout
    assert len(list((project / "data/runs").iterdir())) == 2


def test_make_finds_what_a_target_needs_whatever_its_name(tmp_path):
    file = tmp_path / HOSTILE / f"{HOSTILE}.yaml"
    file.parent.mkdir()
    file.write_text("")
    graph = tmp_path / "graph.mk"
    graph.write_text(f"all: {build_graph.make_word(str(file))}\n\t@echo '$(words $^) found'\n")
    done = subprocess.run(["make", "-f", graph], capture_output=True, text=True, check=True)
    assert " found" in done.stdout
    file.unlink()
    assert subprocess.run(["make", "-f", graph], capture_output=True).returncode != 0


def test_a_target_lies_in_the_run_or_in_a_link_to_it(tmp_path):
    assert reproduce.target_folder(tmp_path / "gemma-2-9b_ü.1") == "gemma-2-9b_ü.1"
    (tmp_path / HOSTILE).mkdir()
    for _ in range(2):
        link = tmp_path / reproduce.target_folder(tmp_path / HOSTILE)
        assert reproduce.PLAIN.fullmatch(link.name[1:]) and link.samefile(tmp_path / HOSTILE)
