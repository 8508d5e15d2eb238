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

from lib.base import build_graph
from lib.base.files import DATA, ROOT, file_hash, run_dir, write_json, write_table

PACKAGES = ("torch", "transformers", "transformer-lens", "sae-lens", "scikit-learn", "numpy", "pandas")


class Run(NamedTuple):
    """A notebook at work: its name, profile, parameters, folders and the clock at its start.

    ``folder`` holds what is named by a hash of its parameters (activations, SAEs), and is shared by a profile and the cells of
    its sweeps; ``results`` and ``figures`` are this run's own.
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
    """
    names = build_graph.parameters(build_graph.NOTEBOOKS / f"{notebook}.py")
    profile = scope["profile"]
    parameters = {name: scope[name] for name in names}
    base, _, cell = profile.partition("/")
    figures = run_dir(profile) / "figures" if cell else ROOT / "figures" / profile
    return Run(notebook, profile, parameters, run_dir(base), run_dir(profile) / "results", figures, time.perf_counter())


def write(run: Run, table: pd.DataFrame, headline: pd.DataFrame, inputs: list[Path], outputs: dict[str, Path], folders: Iterable[str] = ()) -> Path:
    """Write ``results/<notebook>.parquet`` (all of ``table``) and ``.json`` (``headline`` and how it came about).

    ``inputs`` and ``outputs`` are files, or stores, which stand with the hash of their manifest's shards. ``folders``
    are SAEs that an output lists. The small file ``.outputs`` changes only if an output changes: make takes it as the notebook's
    product.
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
        raise ValueError(f"{notebook} has not been run for profile {run.profile!r}: make reproduce PROFILE={run.profile}")
    return json.loads(path.read_text(encoding="utf-8"))


def output(run: Run, notebook: str, name: str) -> Path:
    """Path of a named output of an upstream notebook."""
    return ROOT / read(run, notebook)["outputs"][name]["path"]


def claims(path: Path = DATA / "claims.yaml") -> dict[str, Any]:
    """The paper's claims and numbers."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def environment() -> dict[str, Any]:
    """Versions, hardware and git commit of this run; a commit ends in ``+`` if files differ from it."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "hardware": {"machine": platform.machine(), "threads": torch.get_num_threads(), "device": device},
    }


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _content_hash(path: Path) -> str:
    if path.is_dir():  # a store: the hashes of its shards, without the times that its manifest notes
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        return build_graph.text_hash(json.dumps([manifest["parameters"], manifest["shards"]], sort_keys=True))
    return file_hash(path)


def _relative(path: Path) -> str:
    resolved = path.resolve()
    return str(resolved.relative_to(ROOT)) if resolved.is_relative_to(ROOT) else path.name
