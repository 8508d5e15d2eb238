"""What a notebook run found: one JSON record and one tidy parquet table per notebook and profile."""

import json
import platform
import resource
import subprocess
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from lib.base import build_graph, keys
from lib.base.files import DATA, ROOT, file_hash, run_dir, write_json, write_table
from lib.base.registry import lookup

# Tracked files that runs, benchmarks and `make publish` write themselves; no result depends on them. A tree that
# differs from its commit in these alone counts as committed, else no run could be published after another one.
WRITTEN = ("figures", "data/records", "data/bench", "notebooks/*.ipynb", "README.md", "docs/scorecard.md")
CODE = ("lib", "notebooks")  # here a file that git does not know yet may have decided a result
PACKAGES = ("torch", "transformers", "transformer-lens", "sae-lens", "scikit-learn", "numpy", "pandas")


class Run(NamedTuple):
    """A notebook at work: its name, profile, parameters, folders and the clock at its start.

    ``folder`` holds what is named by a hash of its parameters (activations, SAEs), and is shared by a profile and the
    cells of its sweeps; ``results`` and ``figures`` are this run's own.
    """

    notebook: str
    profile: str
    parameters: dict[str, Any]
    folder: Path
    results: Path
    figures: Path
    started: float


def start(notebook: str, scope: dict[str, Any]) -> Run:
    """Begin a record. ``scope`` is the notebook's ``globals()``: the parameters are read from there by name.

    A cell of a sweep has ``<profile>/cells/<notebook>-<hash>`` as its profile.

    Raises:
        ValueError: a key in the place of its variable's name (see :mod:`lib.base.keys`), which no record may hold.
    """
    names = build_graph.parameters(build_graph.NOTEBOOKS / f"{notebook}.py")
    profile = scope["profile"]
    parameters = {name: scope[name] for name in names}
    keys.check_parameters(parameters)
    base, _, cell = profile.partition("/")
    figures = run_dir(profile) / "figures" if cell else ROOT / "figures" / profile
    return Run(notebook, profile, parameters, run_dir(base), run_dir(profile) / "results", figures, time.perf_counter())


def write(
    run: Run,
    table: pd.DataFrame,
    headline: pd.DataFrame,
    inputs: list[Path],
    outputs: dict[str, Path],
    folders: Iterable[str] = (),
) -> Path:
    """Write ``results/<notebook>.parquet`` (all of ``table``) and ``.json`` (``headline`` and how it came about).

    ``inputs`` and ``outputs`` are files, or stores, which stand with the hash of their manifest's shards. ``folders``
    are SAEs that an output lists. The small file ``.outputs`` changes only if an output changes: make takes it as the
    notebook's product.
    """
    hashes = {name: _content_hash(path) for name, path in outputs.items()}
    record = {
        "notebook": run.notebook,
        "profile": run.profile,
        "parameters": run.parameters,
        "metrics": json.loads(headline.to_json(orient="records", double_precision=12)),
        "inputs": {_relative(path): _content_hash(path) for path in inputs},
        "outputs": {name: {"path": _relative(path), "sha256": hashes[name]} for name, path in outputs.items()},
        "folders": sorted({name for name in folders if (ROOT / name).is_dir()}),
        **environment(),
        "wall_time_s": round(time.perf_counter() - run.started, 1),
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    write_table(run.results / f"{run.notebook}.parquet", table)
    write_json(run.results / f"{run.notebook}.json", record)
    write_json(run.results / f"{run.notebook}.outputs", hashes, only_if_changed=True)
    return run.results / f"{run.notebook}.json"


def read(run: Run, notebook: str) -> dict[str, Any]:
    """The record of an upstream notebook of the same profile.

    Raises:
        ValueError: that notebook has not been run.
    """
    path = run.results / f"{notebook}.json"
    if not path.exists():
        profile = run.profile
        raise ValueError(f"{notebook} has not been run for profile {profile!r}: make reproduce PROFILE={profile}")
    return json.loads(path.read_text(encoding="utf-8"))


def output(run: Run, notebook: str, name: str) -> Path:
    """Path of a named output of an upstream notebook.

    Raises:
        ValueError: that notebook has not been run, or an earlier version of it that has no such output.
    """
    return ROOT / lookup(read(run, notebook)["outputs"], f"output of {notebook}", name)["path"]


def claims(path: Path = DATA / "claims.yaml") -> dict[str, Any]:
    """The paper's claims and numbers."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def environment() -> dict[str, Any]:
    """Versions, hardware and git commit of this run; the commit as :func:`commit` gives it."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "commit": commit(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "hardware": {"machine": platform.machine(), "threads": torch.get_num_threads(), "device": device},
    }


def commit() -> str | None:
    """The commit of the working tree, with ``+`` if there are :func:`changes`; None outside a git repository."""
    try:
        return _git("rev-parse", "--short=12", "HEAD").strip() + ("+" if changes() else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def changes() -> list[str]:
    """Files that differ from the commit: tracked ones, beside those of ``WRITTEN``, and unknown ones in ``CODE``.

    Raises:
        OSError: there is no git.
        subprocess.CalledProcessError: this is no git repository.
    """
    kept = [f":(exclude){pattern}" for pattern in WRITTEN]
    tracked = _git("diff", "--name-only", "HEAD", "--", ".", *kept)
    unknown = _git("ls-files", "--others", "--exclude-standard", "--", *CODE, *kept)
    return sorted({*tracked.splitlines(), *unknown.splitlines()})


def check_committed() -> None:
    """Raise ``ValueError`` if a file that may decide a result is not committed, or if there is no commit."""
    try:
        changed = changes()
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{ROOT} is no git repository with a commit, so no record can say what made it") from error
    if changed:
        more = f" and {len(changed) - 1} more differ" if len(changed) > 1 else " differs"
        raise ValueError(f"{changed[0]}{more} from the last commit; commit first, as records say what made them")


def check_made_by_commit(record: Path) -> None:
    """Raise ``ValueError`` unless a record tells of a commit since which nothing that its notebook reads has changed.

    So records of one profile may come from several commits: ``make`` runs again only what a change reaches.
    """
    content = json.loads(record.read_text(encoding="utf-8"))
    notebook, made_by = content["notebook"], content["commit"]
    again = f"touch notebooks/{notebook}.py, and make publish runs it again"
    if made_by is None:
        raise ValueError(f"{record.name} has no commit; {again}")
    if made_by.endswith("+"):
        raise ValueError(f"{record.name} was made by {made_by}, a commit with uncommitted changes; {again}")
    paths = build_graph.sources(build_graph.NOTEBOOKS / f"{notebook}.py")
    kept = [f":(exclude){pattern}" for pattern in WRITTEN]
    try:
        changed = _git("diff", "--name-only", made_by, "HEAD", "--", *paths, *kept).splitlines()
    except subprocess.CalledProcessError as error:
        raise ValueError(f"{record.name} was made by {made_by}, which is not in this repository; {again}") from error
    if changed:
        raise ValueError(f"{record.name} was made by {made_by}, and {changed[0]} has changed since; {again}")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _content_hash(path: Path) -> str:
    if path.is_dir():  # a store: the hashes of its shards, without the times that its manifest notes
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        return build_graph.text_hash(json.dumps([manifest["parameters"], manifest["shards"]], sort_keys=True))
    return file_hash(path)


def _relative(path: Path) -> str:
    resolved = path.resolve()
    return str(resolved.relative_to(ROOT)) if resolved.is_relative_to(ROOT) else path.name
