"""What ``make reproduce`` becomes: a make that runs a profile's notebooks, as far as something changed, and alone."""

import os
import re
import time
from pathlib import Path
from typing import Any

from lib.base import build_graph
from lib.base.files import content_hash, named_files, relative, run_dir, value_hash, write_text, writing
from lib.runs import progress
from lib.runs.profiles import complete, other_parameter, profile_path, read_profile

PLAIN = re.compile(r"\w[\w.-]*")  # a name that make takes as a target's
GRAPH = "graph.mk"


def alone(profile: str, command: list[str]) -> None:
    """Become ``command`` (make) on the dependency graph of a profile, which is given by name or by path of its file.

    It holds the lock of the profile's runs until it and all that it starts have ended.

    Raises:
        ValueError: no such profile, or another one is at work on it.
    """
    import fcntl

    path = profile_path(profile)
    name, folder, values = path.stem, run_dir(path.stem), read_profile(path)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".reproduce.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"another make reproduce is at work on profile {name!r}; wait for it, or stop it, and run again"
        ) from error
    os.set_inheritable(handle, True)
    run = f"data/runs/{target_folder(folder)}"
    note_contents(folder, complete(values))
    run_again(folder, values)
    write_text(folder / GRAPH, build_graph.makefile(name, relative(path), run))
    os.environ |= {progress.BEGAN: str(time.time()), "PROFILE": str(path)}
    # Variables of the command line stand in the environment as they were typed; from here make would expand them again.
    os.environ["MAKEFLAGS"] = re.split(r"(?:^|\s)-- ", os.environ.get("MAKEFLAGS", ""))[0]
    print(progress.expected(name), flush=True)
    os.execvp(command[0], [*command, "-f", f"{run}/{GRAPH}", "all"])


def note_contents(folder: Path, values: dict[str, Any]) -> None:
    """Write what make needs to see that a file which a parameter names has changed: a file with the hash of its
    content, whose time stamp changes with it.

    Raises:
        ValueError: a file that cannot be read.
    """
    for name in build_graph.FILE_PARAMETERS:
        hashes = [content_hash(path) for path in named_files(values.get(name))]
        write_text(folder / build_graph.CONTENTS / name, f"{value_hash(hashes)}\n", only_if_changed=True)


def run_again(folder: Path, values: dict[str, Any]) -> None:
    """Delete the executed notebooks whose records are of other parameters than the profile's (``values``): make runs
    them again.

    Such a record is left by a run of one notebook with ``-p``, which writes into the folder of the profile.
    """
    for path in build_graph.notebooks():
        record, executed = folder / "results" / f"{path.stem}.json", folder / "notebooks" / f"{path.stem}.ipynb"
        if record.exists() and executed.exists() and (difference := other_parameter(record, values)):
            print(f"{path.stem} runs again: {difference}", flush=True)
            executed.unlink()


def target_folder(folder: Path) -> str:
    """The name of a folder as make can take it for a target's: its own, or where that has spaces and the like the name
    of a link beside it."""
    if PLAIN.fullmatch(folder.name):
        return folder.name
    link = folder.with_name(f".{value_hash(folder.name)}")
    with writing(link):
        if not link.is_symlink():
            link.symlink_to(folder.name)
    return link.name
