"""What a run will take and how far it is, from made-up records, and the bars of the notebook that runs."""

import io
import json
import os
import sys

import pytest

from lib.base import build_graph
from lib.runs import progress

NAMES = [path.stem for path in build_graph.notebooks()]


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Every notebook took 100 seconds, the second one 200."""
    monkeypatch.setattr(progress, "DATA", tmp_path)
    monkeypatch.setattr(progress, "run_dir", lambda profile: tmp_path / "runs" / profile)
    monkeypatch.setattr(progress.time, "time", lambda: 10_000.0)
    folder = tmp_path / "records" / "mine"
    folder.mkdir(parents=True)
    for i, name in enumerate(NAMES):
        (folder / f"{name}.json").write_text(json.dumps({"wall_time_s": 200.0 if i == 1 else 100.0}))
    return tmp_path


def ran(folder, name, at):
    path = folder / "runs" / "mine" / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    os.utime(path, (at, at))


def test_what_is_left_follows_the_pace_of_this_run(recorded):
    n = len(NAMES)
    total = round((n + 1) * 100 / 60)
    assert progress.expected("mine") == f"mine: {n} notebooks, about {total} min on the machine of the records"
    first = progress.line("mine", NAMES[0], 9_990.0)
    assert first == f"{NAMES[0]}: notebook 1 of {n}, less than a minute elapsed, about {total} min left"
    ran(recorded, NAMES[0], 9_000.0)  # It ran before this run began, and tells nothing of its pace.
    assert f"about {round(n * 100 / 60)} min left" in progress.line("mine", NAMES[1], 9_700.0)
    ran(recorded, NAMES[0], 9_900.0)
    third = progress.line("mine", NAMES[1], 9_700.0)  # 300 s for what took 100
    assert third == f"{NAMES[1]}: notebook 2 of {n}, 5 min elapsed, about {round(3 * n * 100 / 60)} min left"


def test_without_records_nothing_is_promised(recorded):
    (recorded / "records" / "mine" / f"{NAMES[-1]}.json").unlink()
    assert "no committed record" in progress.expected("mine") and "no committed record" in progress.expected("other")
    assert progress.line("mine", NAMES[0], 9_990.0).endswith("less than a minute elapsed")


@pytest.mark.parametrize("on_terminal", [False, True])
def test_a_notebooks_bars_are_shown_and_nothing_else_of_its_standard_error(on_terminal, monkeypatch):
    """In a log at most once a minute; on a terminal at once, and where all are at their end the line is empty again."""
    clock, err = [1000.0], io.StringIO()
    err.isatty = lambda: on_terminal
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress.shutil, "get_terminal_size", lambda: os.terminal_size((200, 40)))
    monkeypatch.setattr(sys, "stderr", err)
    bars, outer, inner = progress.Bars(), "texts:  50% 56/113 [20:00<20:00]", "t-05a0:  50% 1/2 [01:00<01:00]"
    as_tqdm = "\r\rtexts:  50%|##   | 56/113 [20:00<20:00]"

    def shown(text, seconds):
        clock[0] += seconds
        bars.write(text)
        return err.getvalue().split(progress.ERASE if on_terminal else "\n")[-1 if on_terminal else -2 :][0]

    assert shown("UserWarning: x\n", 100) == "" == err.getvalue()
    clock[0] = bars.shown
    assert shown("\rtexts:   0%|     | 0/113 [00:20<?]" + as_tqdm, 59) == (outer if on_terminal else "")
    assert shown("\rt-05a0:   0%|   | 0/2 [0:0<?]\rt-05a0:  50%|##  | 1/2 [01:00<01:00]", 2) == f"{outer} · {inner}"
    assert shown("x\n", 100) == f"{outer} · {inner}"
    assert shown("\rt-05a0:  50%|##   | 1/2 [01:00<01:00]\rt-05a0: 100%|#####| 2/2 [02:00<00:00]", 100) == outer
    shown("\rt-05a1:  50%|##   | 1/2 [01:00<01:00]", 100)
    assert shown(as_tqdm, 100) == outer, "what began within it is of its step before"
    lines = len(err.getvalue())
    at_end = shown("\rtexts: 100%|#####| 113/113 [40:00<00:00]", 0.01)
    assert at_end == "" if on_terminal else len(err.getvalue()) == lines
