"""What a run of all notebooks will take, and how far it is: from the wall times of the committed records."""

import json
import time
from pathlib import Path

from lib.base import build_graph
from lib.base.files import DATA, run_dir

BEGAN = "REPRODUCE_BEGAN"  # environment variable: when make reproduce began, in seconds since 1970


def wall_times(profile: str) -> dict[str, float]:
    """Seconds of each notebook in the committed records of a profile; empty if there are none."""
    records = {path.stem: DATA / "records" / profile / f"{path.stem}.json" for path in build_graph.notebooks()}
    return {
        name: json.loads(path.read_text(encoding="utf-8"))["wall_time_s"]
        for name, path in records.items()
        if path.exists()
    }


def expected(profile: str) -> str:
    """One line on what all notebooks of a profile will take, before they run."""
    seconds, names = wall_times(profile), [path.stem for path in build_graph.notebooks()]
    if len(seconds) < len(names):
        return f"{profile}: {len(names)} notebooks; no committed record tells how long they take"
    return f"{profile}: {len(names)} notebooks, about {_minutes(sum(seconds.values()))} on the machine of the records"


def line(profile: str, notebook: str, began: float) -> str:
    """One line on the notebook that begins now: which of how many, the time since ``began``, and about what is left.

    What is left is the recorded time of this notebook and those behind it, times the pace of those that ran since.
    """
    names, seconds = [path.stem for path in build_graph.notebooks()], wall_times(profile)
    place, elapsed = names.index(notebook), time.time() - began
    text = f"{notebook}: notebook {place + 1} of {len(names)}, {_minutes(elapsed)} elapsed"
    if not set(names[place:]) <= set(seconds):
        return text
    ran = [name for name in names[:place] if name in seconds and _since(profile, name, began)]
    pace = elapsed / sum(seconds[name] for name in ran) if ran else 1.0
    return f"{text}, about {_minutes(pace * sum(seconds[name] for name in names[place:]))} left"


def _since(profile: str, name: str, began: float) -> bool:
    path: Path = run_dir(profile) / "notebooks" / f"{name}.ipynb"
    return path.exists() and path.stat().st_mtime >= began


def _minutes(seconds: float) -> str:
    return "less than a minute" if seconds < 60 else f"{seconds / 60:.0f} min"
