"""A store is a folder of safetensors shards with a manifest: checksummed, and resumed after an interruption.

``manifest.json``: ``parameters`` (they alone decide the folder's name), ``shards`` (SHA-256 by file name),
``seconds`` (wall time by file name), ``n_shards`` and ``finished``. A shard is written under a temporary name and
renamed; the manifest follows it. So a shard that the manifest does not list is made again.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save_file
from tqdm import tqdm

from lib.base import cluster
from lib.base.files import WriteError, file_hash, locked, replacing, value_hash, write_json
from lib.model.models import send_by_name

Shard = dict[str, torch.Tensor]


class Job(NamedTuple):
    """A shard to be made: its number, and the stores that lack it."""

    i: int
    folders: list[Path]


def store_path(parent: Path, kind: str, parameters: dict[str, Any]) -> Path:
    """``parent/kind-<hash of the parameters>``: a changed parameter gives another folder."""
    return parent / f"{kind}-{value_hash(parameters)}"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store.

    Raises:
        ValueError: none there, or not a manifest.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest["shards"], manifest["parameters"], manifest["finished"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a readable manifest ({error}); delete the folder to harvest again") from error
    return manifest


def build(folder: Path, parameters: dict[str, Any], n_shards: int, make: Callable[[int], Shard], unit: str) -> Path:
    """Make the shards that ``folder`` does not hold yet; returns the folder.

    ``make(i)`` must depend on ``i`` and ``parameters`` only, so that a resumed store equals an uninterrupted one, and
    one that several workers (``lib.base.cluster``) made.

    Raises:
        ValueError: the folder holds other parameters, a tensor is not finite, or the disk is full.
    """
    build_together({folder: parameters}, n_shards, lambda i, _: [make(i)], unit)
    return folder


def build_together(
    stores: dict[Path, dict[str, Any]], n_shards: int, make: Callable[[int, list[Path]], list[Shard]], unit: str
) -> None:
    """:func:`build` of several stores (parameters by folder) in one pass.

    ``make(i, folders)`` gives the shard ``i`` of each of ``folders``, those of ``stores`` that lack it.
    """
    with ExitStack() as stack:
        for folder in stores:
            stack.enter_context(locked(folder))
        manifests = {folder: _begin(folder, parameters, n_shards) for folder, parameters in stores.items()}
        todo: list[Job] = []
        for i in range(n_shards):
            lacking = [folder for folder, manifest in manifests.items() if not _has(folder, manifest, i)]
            if lacking:
                todo.append(Job(i, lacking))
        name = " and ".join(folder.name for folder in stores)
        results = tqdm(_results(make, todo), total=len(todo), desc=name, unit=unit, disable=not todo)
        for job, (shards, seconds) in results:
            for folder, shard in zip(job.folders, shards, strict=True):
                _add(folder, manifests[folder], job.i, shard, seconds)


def _add(folder: Path, manifest: dict[str, Any], i: int, shard: Shard, seconds: float) -> None:
    n_shards = manifest["n_shards"]
    try:
        manifest["shards"][_name(i)] = _write_shard(folder / _name(i), shard)
        manifest["seconds"][_name(i)] = round(seconds, 3)
        manifest["finished"] = len(manifest["shards"]) == n_shards
        in_order = {key: dict(sorted(manifest[key].items())) for key in ("shards", "seconds")}
        write_json(folder / "manifest.json", manifest | in_order)
    except WriteError as error:
        done = sum(_has(folder, manifest, j) for j in range(n_shards))
        raise ValueError(f"{error}: {done} of {n_shards} shards are complete and stay usable") from error


def _begin(folder: Path, parameters: dict[str, Any], n_shards: int) -> dict[str, Any]:
    if not (folder / "manifest.json").exists():
        return {"parameters": parameters, "n_shards": n_shards, "shards": {}, "seconds": {}, "finished": False}
    manifest = read_manifest(folder)
    if manifest["parameters"] != parameters:
        raise ValueError(f"{folder} holds another store ({manifest['parameters']}); delete it or choose another")
    return manifest


def _results(
    make: Callable[[int, list[Path]], list[Shard]], todo: list[Job]
) -> Iterator[tuple[Job, tuple[list[Shard], float]]]:
    """Shards as they are made, here or by workers, with the seconds they took."""

    def timed(job: Job) -> tuple[list[Shard], float]:
        started = time.perf_counter()
        return make(*job), time.perf_counter() - started

    if cluster.workers() == 1 or len(todo) < 2:
        return ((job, timed(job)) for job in todo)
    send_by_name()
    return cluster.each(timed, todo)


def _name(i: int) -> str:
    return f"shard-{i:05d}.safetensors"


def _has(folder: Path, manifest: dict, i: int) -> bool:
    return _name(i) in manifest["shards"] and (folder / _name(i)).exists()


def _write_shard(path: Path, tensors: Shard) -> str:
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {key} has values that are not finite; nothing was saved")
    with replacing(path) as temporary:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary)
        return file_hash(temporary)


def read_shard(folder: Path, i: int, manifest: dict[str, Any] | None = None) -> Shard:
    """The tensors of shard ``i``, after its checksum was compared with the manifest's.

    Raises:
        ValueError: missing or damaged shard, named in the message.
    """
    manifest = manifest or read_manifest(folder)
    path = folder / _name(i)
    if not path.exists():
        raise ValueError(f"{path} is missing; run the harvest again, it makes missing shards only")
    if file_hash(path) != manifest["shards"].get(_name(i)):
        raise ValueError(f"{path} is damaged (its SHA-256 is not the manifest's); delete it and run the harvest again")
    return load(path.read_bytes())


def read_all(folder: Path) -> list[Shard]:
    """All shards of a finished store, in order.

    Raises:
        ValueError: the store is not finished, or a shard is missing or damaged.
    """
    manifest = read_manifest(folder)
    if not manifest["finished"]:
        done = len(manifest["shards"])
        raise ValueError(f"{folder} has {done} of {manifest['n_shards']} shards; run the harvest again to finish it")
    return [read_shard(folder, i, manifest) for i in range(manifest["n_shards"])]
