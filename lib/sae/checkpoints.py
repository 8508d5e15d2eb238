"""Checkpoints of a training: what its trainer holds and how far it has come, from which it goes on exactly."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib.base.files import replacing
from lib.sae.recipes import Recipe, Trainer


class Progress(NamedTuple):
    """What a training has done so far: steps, the training curve, seconds of all steps, and the attention sinks that
    were left out."""

    step: int = 0
    curve: list[dict] = []
    seconds: float = 0.0
    sinks: int = 0


def save(trainer: Trainer, recipe: Recipe, path: Path, progress: Progress) -> None:
    """Write one safetensors file: the tensors of the state, and everything else as JSON in its header."""
    tensors: dict[str, Tensor] = {}

    def flatten(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value.contiguous().clone()
            return {"tensor": name}
        if isinstance(value, dict):
            return {"dict": [[key, flatten(item, f"{name}.{key}")] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return [flatten(item, f"{name}.{i}") for i, item in enumerate(value)]
        return value

    state = flatten(trainer.state(), "state")
    header = {"recipe": dataclasses.asdict(recipe), "progress": progress._asdict(), "state": state}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"checkpoint": json.dumps(header)})


def resume(trainer: Trainer, recipe: Recipe, path: Path) -> Progress:
    """Load a checkpoint into the trainer; no progress if there is none.

    Raises:
        ValueError: a damaged checkpoint, or one of another recipe.
    """
    if not path.exists():
        return Progress(curve=[])
    try:
        with safe_open(path, "pt") as handle:
            header = json.loads(handle.metadata()["checkpoint"])
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is a damaged checkpoint ({error}); delete it to train from the start") from error
    if header["recipe"] != dataclasses.asdict(recipe):
        raise ValueError(
            f"{path} is the checkpoint of another recipe, {header['recipe']}; delete it or change the folder"
        )

    def restore(value: Any) -> Any:
        if isinstance(value, list):
            return [restore(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: restore(item) for key, item in value["dict"]}

    trainer.load_state(restore(header["state"]))
    return Progress(**header["progress"])
