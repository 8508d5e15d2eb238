"""How far a run of all notebooks is, and what it will take, from the wall times of the committed records; and the bars
of the notebook that runs now."""

import json
import re
import shutil
import sys
import time
from pathlib import Path

from lib.base import build_graph
from lib.base.files import DATA, run_dir

BAR = re.compile(r"[^\n]*?\d+%\|[^\n|]*\|[^\n\]]*\]")  # of tqdm, from its description to its bracket
ERASE = "\r\x1b[2K"  # the line of a terminal
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


class Bars:
    """Takes what a notebook writes to its standard error, and shows its progress bars, such as tasks done and left.

    Papermill's own bar counts cells, of which one may take an hour. On a terminal the bars that are not at their end
    move in one line; elsewhere, as in a log, they are a line for each minute.
    """

    def __init__(self) -> None:
        self.shown, self.bars = time.monotonic(), {}

    def write(self, text: str) -> None:
        """Show the bars of ``text`` and of what came before, if it is time."""
        written, on_terminal = BAR.findall(text), sys.stderr.isatty()
        for bar in written:
            self._take(bar.strip("\r\x1b[A "))
        line = " · ".join(self.bars.values())
        is_due = time.monotonic() - self.shown > (0.1 if on_terminal else 60)
        is_over = on_terminal and not line
        if not written or not (is_due or is_over):
            return
        self.shown = time.monotonic()
        if on_terminal:
            print(f"{ERASE}{line[: shutil.get_terminal_size().columns - 1]}", end="", file=sys.stderr, flush=True)
        elif line:
            print(f"\n{line}", file=sys.stderr, flush=True)

    def _take(self, bar: str) -> None:
        description, names = bar.split("%|")[0].rstrip("0123456789 "), list(self.bars)
        # Bars that began within this one are of its step before.
        for name in names[names.index(description) :] if description in names else []:
            del self.bars[name]
        if "100%|" not in bar:
            self.bars[description] = re.sub(r"\|[^|]*\|", "", bar)

    def flush(self) -> None:
        """Nothing waits."""


def _since(profile: str, name: str, began: float) -> bool:
    path: Path = run_dir(profile) / "notebooks" / f"{name}.ipynb"
    return path.exists() and path.stat().st_mtime >= began


def _minutes(seconds: float) -> str:
    return "less than a minute" if seconds < 60 else f"{seconds / 60:.0f} min"
