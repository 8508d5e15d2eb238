"""Headless notebooks: papermill plus what it lacks (checked parameters, outputs that appear only on success).

``python -m lib.runs.runner 05_probing --profile notebooks/profiles/public.yaml -p show_k 5`` runs one notebook;
``python -m lib.runs.runner --debug`` runs 01 and 07 on a user's own data (CSV and OOD of the environment);
``python -m lib.runs.runner --probe`` writes a profile's best dense probe as a folder; ``--score`` scores texts with it;
``python -m lib.runs.runner --publish`` keeps a profile's records, and puts the executed embedded notebooks beside their
``.py``.
"""

import argparse
import base64
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib.base import build_graph
from lib.base.files import DATA, ROOT, relative, replacing, run_dir, typed_path, write_json, write_text
from lib.model import weights
from lib.results import records
from lib.runs import progress, reproduce, task_cells
from lib.runs.profiles import as_meant, complete, flat_yaml, other_parameter, profile_path, read_profile, select
from lib.texts import labels, own_texts, sources, table_files

MANY_TASKS = "09_many_tasks"
TASKS = "-tasks-"  # in the name of a profile, between that whose model and SAEs are used and the tasks
SHOWN = {MANY_TASKS: f"embedded{TASKS}all"}  # whose executed notebook stands beside the ``.py``, if not embedded's
Variables = dict[str, tuple[str, Callable[[str], Any]]]  # of make -> a parameter, and its value from what was typed
TEXT_VARIABLES: Variables = {
    "TEXT": ("text_column", str),
    "LABEL": ("label_column", str),
    "GROUP": ("group_column", str),
    "POSITIVE": ("positive_label", labels.names),
    "ENCODING": ("encoding", str),
}
TASK_VARIABLES: Variables = TEXT_VARIABLES | {"ROWS": ("task_rows", lambda text: _whole("ROWS", text))}
DEBUG_VARIABLES: Variables = TEXT_VARIABLES | {
    "CSV": ("train_csv", lambda text: str(typed_path(text).resolve())),
    "OOD": ("ood_csv", lambda text: str(typed_path(text).resolve())),
    "ROWS": ("csv_rows", lambda text: _whole("ROWS", text)),
}


def _whole(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name}={text!r} must be a whole number of at least 1")
    return int(text)


def execute(notebook: Path, values: dict[str, Any], **options: Any) -> Path:
    """Run a notebook; the executed one appears as ``data/runs/<profile>/notebooks/<name>.ipynb`` on success only.

    ``options`` are papermill's, such as another engine. A failed run leaves ``<name>.failed.ipynb`` with the traceback,
    and nothing under the final name.

    Raises:
        ValueError: see :func:`lib.runs.profiles.select`, or Jupyter's kernel is of another environment.
    """
    import jupytext
    import papermill

    from lib.runs import warm_kernel  # which imports papermill

    chosen = select(notebook, values)
    warm_kernel.check_interpreter()
    folder = run_dir(values["profile"]) / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    final, failed = folder / f"{notebook.stem}.ipynb", folder / f"{notebook.stem}.failed.ipynb"
    final.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{notebook.stem}-") as scratch:
        source, target = Path(scratch) / f"{notebook.stem}.ipynb", Path(scratch) / "executed.ipynb"
        jupytext.write(jupytext.read(notebook), source)
        try:
            options = {"progress_bar": {"desc": notebook.stem}, "stderr_file": progress.Bars()} | options
            options |= {"cwd": build_graph.NOTEBOOKS, "kernel_name": warm_kernel.KERNEL}
            papermill.execute_notebook(_literally(source), _literally(target), chosen, **options)
        except BaseException:
            if target.exists():
                _tidy(target, failed)
            raise
        _tidy(target, final)
    return final


def warned(executed: Path) -> list[str]:
    """What an executed notebook warns of SAEs (``lib.sae.checks``), each sentence once."""
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", []) if output.get("name") == "stderr"]
    on_stderr = "\n".join("".join(output["text"]) for output in outputs)
    return list(dict.fromkeys(re.findall(r"\bSAEWarning: (.+)", on_stderr)))


def _tell(notebook: Path, executed: Path) -> None:
    for sentence in warned(executed):
        print(f"warning in {notebook.stem}: {sentence}", file=sys.stderr)


def _literally(path: Path) -> str:
    """A path for papermill, which takes braces in it for parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _tidy(source: Path, target: Path) -> None:
    """Rename into place without the machine's paths, and without progress bars, of which a failed notebook keeps the
    last state."""
    import nbformat
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    notebook = nbformat.read(source, as_version=4)
    notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
    notebook.metadata.pop("papermill", None)
    if not target.name.endswith(".failed.ipynb"):
        drop_progress_bars(notebook)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
    text = nbformat.writes(notebook)
    for shown in (str(ROOT), repr(str(ROOT))[1:-1]):  # which differ where there are quotes in it
        root = json.dumps(shown, ensure_ascii=False)[1:-1]
        text = text.replace(f"{root}{os.sep}", "").replace(root, ".")
    write_text(target, text + "\n")


def drop_progress_bars(notebook: Any) -> None:
    """Take tqdm's bars out of a notebook's outputs, and outputs that were nothing else."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                output.text = progress.BAR.sub("", output.text).strip("\n")
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.output_type != "stream" or output.text]


def fetch(values: dict[str, Any]) -> None:
    """Say what a profile will take, and fetch the public files that it reads, with their checksums.

    They come from the environment's MIRROR, if it is set.

    Raises:
        ValueError: an unknown parameter, a model that cannot be had, too little disk, or a file that cannot be fetched.
    """
    for path in build_graph.notebooks():
        select(path, values)
    model = complete(values).get("model")
    if model and weights.unchecked(model):
        from lib.model import self_check  # which takes ten seconds to import: all of the model's libraries

        self_check.check(model)
    _estimate(values)
    if values.get("dataset") == "public" and not values.get("train_csv"):
        for name in sources.public_files():
            print(f"{name}: {sources.fetch(name).relative_to(ROOT)}, checksum right")


def _estimate(values: dict[str, Any]) -> None:
    """Print the sizes of a run and check its model, unless one with these values has begun.

    Too little disk ends it before anything is fetched, and a model that is computed wrongly before anything is run.
    """
    folder = run_dir(values["profile"])
    known = folder / "sizes.json"
    if known.exists() and json.loads(known.read_text(encoding="utf-8")).get("values") == values:
        return
    if "model" not in complete(values):
        return
    from lib.model import self_check
    from lib.runs import sizing  # which takes ten seconds to import: all of the model's libraries

    table = sizing.estimate(values)
    disk, memory, hours = table["disk_gib"].sum(), table["memory_gib"].max(), table["hours"].sum()
    print(f"{values['profile']}, estimated:\n{table.round(2).to_string(index=False)}")
    print(
        f"together {disk:.1f} GiB of disk, {memory:.1f} GiB of memory at most beside what Python takes, "
        f"about {hours:.1f} hours"
    )
    sizing.check(table)
    self_check.check(*(complete(values)[name] for name in ("model", "device", "dtype")))
    write_json(known, {"values": values, "steps": json.loads(table.to_json(orient="records"))})


def debug(parameters: dict[str, Any]) -> None:
    """Notebooks 01 and 07 on a user's own data with the shipped SAE, as the profile ``debug-<name of the file>``.

    ``parameters`` are those of notebook 01. The files are read before anything is run.

    Raises:
        ValueError: no file, or see :func:`lib.texts.own_texts.read`.
    """
    if "train_csv" not in parameters:
        raise ValueError("give CSV=file of labelled texts, and OOD=file for texts out of distribution if there are any")
    columns = task_cells.columns_of(parameters)
    files = {pool: parameters.get(name, "") for pool, name in own_texts.POOLS.items()}
    print("\n".join(own_texts.read(files, columns, most=parameters.get("csv_rows", 0)).said), flush=True)
    path = Path(parameters["train_csv"])
    profile = "debug-" + re.sub(r"[^\w-]+", "-", table_files.stem(path) or path.stem)
    values = {"n_jailbroken": 0} | parameters | {"profile": profile}  # nobody asked for answers to these texts
    for name in ("01_datasets", "07_dataset_debugging"):
        _run(build_graph.NOTEBOOKS / f"{name}.py", values)
    folder = relative(run_dir(profile) / "notebooks")
    print(f"notebooks in {folder}, latents with their examples in figures/{profile}/debugging.html")


Prepare = Callable[[dict[str, Any]], bool]  # of the parameters of a run; whether it is to be done


def at_once(values: dict[str, Any]) -> bool:
    """A run that nothing is prepared for."""
    return True


def tasks(base: str, chosen: list[str], folder: str, overrides: dict[str, Any], prepare: Prepare = at_once) -> None:
    """Notebook 09 on tasks of ``sae-probes`` or on a ``folder`` of labelled files, with the model and the SAEs of the
    profile ``base``, as the profile ``<base>-tasks-<what>``, once ``prepare`` has agreed to it.

    Raises:
        ValueError: neither tasks nor a folder, no such folder, or a parameter that notebook 09 does not have.
    """
    if not chosen and not folder:
        raise ValueError("give TASKS=core, TASKS=all or names of sae-probes, or DIR=folder of labelled files")
    place = typed_path(folder).resolve()
    if folder and not place.is_dir():
        raise ValueError(f"there is no folder {folder!r}; give one with labelled files, such as spam.csv")
    own = read_profile(profile_path(base))
    what = "-".join([*chosen, *([place.name] if folder else [])])
    name = own["profile"] + TASKS + re.sub(r"[^\w-]+", "-", what)[:60]
    values = own | overrides | {"profile": name, "tasks": chosen}
    values |= {"tasks_folder": str(place)} if folder else {}
    notebook = build_graph.NOTEBOOKS / f"{MANY_TASKS}.py"
    select(notebook, values)
    if not prepare(values):
        return
    _run(notebook, values)
    print(f"notebook in {relative(run_dir(name) / 'notebooks')}, the page: figures/{name}/tasks.html")


def _typed(variables: Variables) -> dict[str, Any]:
    """Parameters from the variables of make that are set in the environment."""
    typed = {variable: os.environ.get(variable, "") for variable in variables}
    return {variables[variable][0]: variables[variable][1](text) for variable, text in typed.items() if text}


def publish(profile: str = "embedded", values: dict[str, Any] | None = None) -> None:
    """Copy the records of a profile, whose YAML holds ``values`` if they are given, to ``data/records``.

    Of ``embedded`` it also copies the executed notebooks beside their ``.py``, but for those of ``SHOWN``. A run over
    many tasks has the record of notebook 09 alone, with parameters that no profile has. Nothing is copied unless all
    can be.

    Raises:
        ValueError: a notebook has not been run, the code is not committed, a record was not made by committed code
            that is still the same (see :mod:`lib.results.records`), or it was made with other parameters.
    """
    records.check_committed()
    folder = run_dir(profile)
    run = [path for path in build_graph.notebooks() if TASKS not in profile or path.stem == MANY_TASKS]
    shown = [path for path in run if SHOWN.get(path.stem, "embedded") == profile]
    needed = [folder / "results" / f"{path.stem}.json" for path in run]
    needed += [folder / "notebooks" / f"{path.stem}.ipynb" for path in shown]
    for path in needed:
        if not path.exists():
            raise ValueError(f"{relative(path)} is missing; run make reproduce PROFILE={profile} first")
    kept = [path for path in needed if path.suffix == ".json"]
    for record in kept:
        records.check_made_by_commit(record)
        if values is not None and (difference := other_parameter(record, values)):
            raise ValueError(f"{record.name}: {difference}; make reproduce PROFILE={profile} runs it again")
    for record in kept:
        write_text(DATA / "records" / profile / record.name, record.read_text(encoding="utf-8"), only_if_changed=True)
    _publish_notebooks(folder / "notebooks", shown)


def _publish_notebooks(executed: Path, shown: list[Path]) -> None:
    import nbformat

    for path in shown:
        notebook = nbformat.read(executed / f"{path.stem}.ipynb", as_version=4)
        # Papermill's cell of other parameters would become one of the .py beside it.
        is_injected = ["injected-parameters" in cell.metadata.get("tags", []) for cell in notebook.cells]
        notebook.cells = [cell for cell, is_in in zip(notebook.cells, is_injected, strict=True) if not is_in]
        drop_progress_bars(notebook)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                images = output.get("data", {})
                if "image/png" in images:
                    images["image/png"] = _with_palette(images["image/png"])
        with replacing(path.with_suffix(".ipynb")) as temporary:
            nbformat.write(notebook, temporary)


def _with_palette(image: str) -> str:
    """A base64 PNG with at most 256 colours: as legible, and less than half as large."""
    from PIL import Image

    smaller = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB").quantize(256).save(smaller, "PNG", optimize=True)
    return base64.b64encode(smaller.getvalue()).decode()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lib.runs.runner", description=__doc__.splitlines()[0])
    parser.add_argument("notebook", nargs="?", help="name without suffix, such as 05_probing")
    parser.add_argument("--profile", default="embedded", help="name of a profile, or path of a YAML file")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    debug_help = "debug your own data: CSV, and OOD for texts out of distribution, of the environment"
    parser.add_argument("--debug", action="store_true", help=debug_help)
    tasks_help = "notebook 09 on TASKS and DIR of the environment, with the model and SAEs of --profile"
    parser.add_argument("--tasks", action="store_true", help=tasks_help)
    probe_help = "write the profile's best dense probe as a folder (TO of the environment)"
    parser.add_argument("--probe", action="store_true", help=probe_help)
    score_help = "score the texts of CSV (or of the standard input) with the probe in PROBE, into TO"
    parser.add_argument("--score", action="store_true", help=score_help)
    alone_help = "run a command (make) on the profile's graph, unless another one holds the profile"
    parser.add_argument("--alone", nargs=argparse.REMAINDER, metavar="COMMAND", help=alone_help)
    publish_help = "copy a profile's records to data/records, and executed embedded notebooks beside their .py"
    parser.add_argument("--publish", action="store_true", help=publish_help)
    parser.add_argument("--committed", action="store_true", help="check that the code is committed")
    parser.add_argument("--fetch", action="store_true", help="check the profile and fetch its public files")
    return parser.parse_args()


def main(prepare: Prepare = at_once) -> None:
    """Command line: a wrong argument ends with one sentence, not with a traceback; ``prepare``: see :func:`tasks`."""
    arguments = _arguments()
    try:
        if arguments.alone:
            return reproduce.alone(arguments.profile, arguments.alone)
        if arguments.committed:
            return records.check_committed()
        if arguments.publish:
            if TASKS in arguments.profile:
                return publish(arguments.profile)
            path = profile_path(arguments.profile)
            return publish(path.stem, read_profile(path))
        if arguments.debug:
            return debug(_typed(DEBUG_VARIABLES))
        if arguments.tasks:
            chosen = os.environ.get("TASKS", "").replace(",", " ").split()
            overrides = {"published_results": True} if os.environ.get("MIRROR") else {}
            overrides |= _typed(TASK_VARIABLES)
            return tasks(arguments.profile, chosen, os.environ.get("DIR", ""), overrides, prepare)
        if arguments.probe or arguments.score:
            from lib.runs import take_away  # late, as it imports all of the model's libraries

            command = take_away.write if arguments.probe else take_away.score
            return command(profile_path(arguments.profile).stem, os.environ)
        values = read_profile(profile_path(arguments.profile))
        values |= as_meant({name: flat_yaml(value, f"parameter {name}") for name, value in arguments.parameter})
        if arguments.fetch:
            return fetch(values)
        names = [path.stem for path in build_graph.notebooks()]
        if arguments.notebook not in names:
            raise ValueError(f"unknown notebook {arguments.notebook!r}; there are {names}")
        notebook = build_graph.NOTEBOOKS / f"{arguments.notebook}.py"
        select(notebook, values)
        if lacking := [name for name, _ in arguments.parameter if name not in build_graph.parameters(notebook)]:
            raise ValueError(f"{notebook.stem} has no parameter {lacking[0]!r}; {_holders(lacking[0])}")
    except ValueError as error:
        sys.exit(f"error: {error}")
    if progress.BEGAN in os.environ:
        print(progress.line(values["profile"], notebook.stem, float(os.environ[progress.BEGAN])), flush=True)
    try:
        return _run(notebook, values)
    except ValueError as error:
        sys.exit(f"error: {error}")


def _holders(name: str) -> str:
    """Which notebooks have a parameter, in words."""
    holders = [path.stem[:2] for path in build_graph.notebooks() if name in build_graph.parameters(path)]
    return f"{', '.join(holders)} have it, and what comes after them takes their results"


def _run(notebook: Path, values: dict[str, Any]) -> None:
    from papermill.exceptions import PapermillExecutionError

    try:
        _tell(notebook, execute(notebook, values))
    except PapermillExecutionError as error:
        failed = run_dir(values["profile"]) / "notebooks" / f"{notebook.stem}.failed.ipynb"
        _tell(notebook, failed)
        what = f"error in {notebook.stem}, cell {error.exec_count}: {error.ename}: {error.evalue}"
        sys.exit(f"{what}\nthe notebook with its traceback: {failed.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
