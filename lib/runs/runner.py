"""Headless notebooks: papermill plus what it lacks (checked parameters, outputs that appear only on success).

``python -m lib.runs.runner 05_probing --profile notebooks/profiles/public.yaml -p layer 3`` runs one notebook;
``python -m lib.runs.runner --debug my.csv [ood.csv]`` runs 01 and 07 on a user's own data;
``python -m lib.runs.runner --publish`` keeps a profile's records, and puts the executed embedded notebooks beside their ``.py``.
"""

import argparse
import base64
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from lib.base import build_graph
from lib.base.files import DATA, ROOT, relative, replacing, run_dir, write_json, write_text, writing
from lib.runs.profiles import flat_yaml, profile_path, read_profile, select
from lib.texts import sources


def execute(notebook: Path, values: dict[str, Any], **options: Any) -> Path:
    """Run a notebook; the executed one appears as ``data/runs/<profile>/notebooks/<name>.ipynb`` on success only.

    ``options`` are papermill's, such as another engine. A failed run leaves ``<name>.failed.ipynb`` with the traceback, and nothing under the final name.
    """
    import jupytext
    import papermill

    chosen = select(notebook, values)
    folder = run_dir(values["profile"]) / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    final, failed = folder / f"{notebook.stem}.ipynb", folder / f"{notebook.stem}.failed.ipynb"
    final.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{notebook.stem}-") as scratch:
        source, target = Path(scratch) / notebook.with_suffix(".ipynb").name, Path(scratch) / "executed.ipynb"
        jupytext.write(jupytext.read(notebook), source)
        try:
            options = {"progress_bar": {"desc": notebook.stem}} | options
            papermill.execute_notebook(source, target, chosen, cwd=build_graph.NOTEBOOKS, kernel_name="python3", **options)
        except BaseException:
            if target.exists():
                _tidy(target, failed)
            raise
        _tidy(target, final)
    return final


def _tidy(source: Path, target: Path) -> None:
    """Rename into place with progress bars reduced to their last state and without the machine's paths."""
    import nbformat
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    notebook = nbformat.read(source, as_version=4)
    notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
    write_text(target, nbformat.writes(notebook).replace(f"{ROOT}{os.sep}", "").replace(str(ROOT), ".") + "\n")


def fetch(values: dict[str, Any]) -> None:
    """Say what a profile will take, and fetch the public files that it reads, with their checksums (from the environment's
    MIRROR, if set).

    Raises:
        ValueError: an unknown parameter, a model that cannot be had, too little disk, or a file that cannot be fetched.
    """
    for path in build_graph.notebooks():
        select(path, values)
    _estimate(values)
    if values.get("dataset") == "public" and not values.get("train_csv"):
        for name in sources.public_files():
            print(f"{name}: {sources.fetch(name).relative_to(ROOT)}, checksum right")


def _estimate(values: dict[str, Any]) -> None:
    """Print the sizes of a run, unless one with these values has begun; too little disk ends it before anything is fetched."""
    folder = run_dir(values["profile"])
    known = folder / "sizes.json"
    if known.exists() and json.loads(known.read_text(encoding="utf-8")).get("values") == values:
        return
    from lib.runs import sizing

    if "model" not in sizing.values_of(values):
        return
    table = sizing.estimate(values)
    sums = f"{table['disk_gib'].sum():.1f} GiB of disk, {table['memory_gib'].max():.1f} GiB of memory at most beside what Python takes, about {table['hours'].sum():.1f} hours"
    print(f"{values['profile']}, estimated:\n{table.round(2).to_string(index=False)}\ntogether {sums}")
    sizing.check(table)
    write_json(known, {"values": values, "steps": json.loads(table.to_json(orient="records"))})


def debug(train_csv: str, ood_csv: str = "") -> None:
    """Notebooks 01 and 07 on a user's own data with the shipped SAE, as the profile ``debug-<name of the file>``.

    Raises:
        ValueError: no such file.
    """
    paths = [Path(name) for name in (train_csv, ood_csv) if name]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"there is no file {str(path)!r}; give a CSV with the columns text,label")
    profile = "debug-" + re.sub(r"[^\w-]+", "-", paths[0].stem)
    values = {"profile": profile} | dict(zip(("train_csv", "ood_csv"), (str(path.resolve()) for path in paths), strict=False))
    for name in ("01_datasets", "07_dataset_debugging"):
        _run(build_graph.NOTEBOOKS / f"{name}.py", values)
    print(f"notebooks in {relative(run_dir(profile) / 'notebooks')}, latents with their examples in figures/{profile}/debugging.html")


def alone(profile: str, command: list[str]) -> None:
    """Become ``command`` (make), holding the lock of a profile's runs until it and all that it starts have ended.

    Raises:
        ValueError: another one is at work on the profile.
    """
    import fcntl

    folder = run_dir(profile)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".reproduce.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(f"another make reproduce is at work on profile {profile!r}; wait for it, or stop it, and run again") from error
    os.set_inheritable(handle, True)
    os.execvp(command[0], command)


def publish(profile: str = "embedded") -> None:
    """Copy the records of a profile to ``data/records``, and of ``embedded`` also the executed notebooks beside their ``.py``.

    Raises:
        ValueError: a notebook has not been run.
    """
    for path in build_graph.notebooks():
        record = run_dir(profile) / "results" / f"{path.stem}.json"
        if not record.exists():
            raise ValueError(f"{relative(record)} is missing; run make reproduce PROFILE={profile} first")
        write_text(DATA / "records" / profile / record.name, record.read_text(encoding="utf-8"), only_if_changed=True)
    if profile == "embedded":
        _publish_notebooks()


def _publish_notebooks() -> None:
    import nbformat

    for path in build_graph.notebooks():
        executed = run_dir("embedded") / "notebooks" / f"{path.stem}.ipynb"
        if not executed.exists():
            raise ValueError(f"{executed} is missing; run make reproduce first")
        notebook = nbformat.read(executed, as_version=4)
        for data in (output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])):
            if "image/png" in data:
                data["image/png"] = _with_palette(data["image/png"])
        with replacing(path.with_suffix(".ipynb")) as temporary:
            nbformat.write(notebook, temporary)


def _with_palette(image: str) -> str:
    """A base64 PNG with at most 256 colours: as legible, and less than half as large."""
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB").quantize(256).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lib.runs.runner", description=__doc__.splitlines()[0])
    parser.add_argument("notebook", nargs="?", help="name without suffix, such as 05_probing")
    parser.add_argument("--profile", default="embedded", help="name of a profile, or path of a YAML file")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--debug", nargs="+", metavar="CSV", help="debug your own data: training CSV, and one out of distribution")
    parser.add_argument("--publish", action="store_true", help="copy a profile's records to data/records, and executed embedded notebooks beside their .py")
    parser.add_argument("--alone", nargs=argparse.REMAINDER, metavar="COMMAND", help="run a command unless another one holds the profile")
    parser.add_argument("--fetch", action="store_true", help="check the profile and fetch its public files")
    return parser.parse_args()


def main() -> None:
    """Command line: a wrong argument ends with one sentence, not with a traceback."""
    arguments = _arguments()
    try:
        if arguments.alone:
            return alone(profile_path(arguments.profile).stem, arguments.alone)
        if arguments.publish:
            return publish(profile_path(arguments.profile).stem)
        if arguments.debug:
            return debug(*arguments.debug[:2])
        values = read_profile(profile_path(arguments.profile))
        values |= {name: flat_yaml(value, f"parameter {name}") for name, value in arguments.parameter}
        if arguments.fetch:
            return fetch(values)
        names = [path.stem for path in build_graph.notebooks()]
        if arguments.notebook not in names:
            raise ValueError(f"unknown notebook {arguments.notebook!r}; there are {names}")
        notebook = build_graph.NOTEBOOKS / f"{arguments.notebook}.py"
        select(notebook, values)
    except ValueError as error:
        sys.exit(f"error: {error}")
    return _run(notebook, values)


def _run(notebook: Path, values: dict[str, Any]) -> None:
    from papermill.exceptions import PapermillExecutionError

    try:
        execute(notebook, values)
    except PapermillExecutionError as error:
        failed = run_dir(values["profile"]) / "notebooks" / f"{notebook.stem}.failed.ipynb"
        sys.exit(f"error in {notebook.stem}, cell {error.exec_count}: {error.ename}: {error.evalue}\n"
                 f"the notebook with its traceback: {failed.relative_to(ROOT)}")  # fmt: skip


if __name__ == "__main__":
    main()
