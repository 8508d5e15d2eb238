"""The training loop: batches from token stores, schedules, held-out evaluation, checkpoints and exact resume.

An SAE's folder is named by a hash of its recipe, its data and the training code: what is trained once is found again, and an interrupted
run goes on at its last checkpoint, to the same weights as an uninterrupted one.
"""

import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from lib import jumprelu, trainers
from lib import sae as saes
from lib.files import file_hash, replacing, value_hash
from lib.stores import read_all, read_manifest
from lib.trainers import Recipe, Trainer, make_trainer

CALIBRATION_TOKENS = 16_384
CHECKPOINT_SECONDS = 60.0


def load_tokens(store: Path) -> Float[Tensor, "tokens d_model"]:
    """The activations of a token store, in its stored (half) precision.

    Raises:
        ValueError: unfinished, damaged or empty store, or values that are not finite.
    """
    x = torch.cat([shard["activations"] for shard in read_all(store)])
    if not len(x) or not torch.isfinite(x).all():
        raise ValueError(f"{store}: {len(x)} tokens, or values that are not finite; it cannot be trained on")
    return x


def lr_factor(recipe: Recipe, step: int) -> float:
    """Linear warm-up over ``warmup_steps``, 1, and linear decay to 0 over the last ``decay_share`` of the steps."""
    warm = (step + 1) / max(1, recipe.warmup_steps)
    decay = (recipe.steps - step) / max(1.0, recipe.decay_share * recipe.steps)
    return min(1.0, warm, decay)


def batch_rows(n_tokens: int, recipe: Recipe, step: int) -> Tensor:
    """Rows of a step: a fresh permutation of all tokens per epoch, which depends on the seed and the epoch only."""
    per_epoch = n_tokens // recipe.batch_tokens
    epoch, index = divmod(step, per_epoch)
    return _epoch_order(n_tokens, recipe.seed, epoch)[index * recipe.batch_tokens :][: recipe.batch_tokens]


@functools.lru_cache(maxsize=1)
def _epoch_order(n_tokens: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n_tokens, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))


def sae_path(parent: Path, recipe: Recipe, store: Path) -> Path:
    """``parent/<architecture>-<hash of recipe, data and training code>``."""
    code = [file_hash(Path(module.__file__)) for module in (jumprelu, trainers)]
    data = read_manifest(store)["parameters"]
    return parent / f"{recipe.architecture}-{value_hash([dataclasses.asdict(recipe), data, code])}"


def train(recipe: Recipe, store: Path, held_out: Path, parent: Path, progress: bool = True) -> Path:
    """Train an SAE on a token store, measure it on another, and return its SAELens folder.

    Raises:
        ValueError: an impossible recipe, too few tokens, stores of different layers, or a foreign checkpoint.
    """
    folder = sae_path(parent, recipe.check(), store)
    if (folder / "training.json").exists():
        return folder
    x, metadata = load_tokens(store), _metadata(store, held_out)
    if len(x) < recipe.batch_tokens or recipe.d_sae < 1:
        raise ValueError(f"{store} has {len(x)} tokens, fewer than one batch of {recipe.batch_tokens}")
    sample = torch.randperm(len(x), generator=torch.Generator().manual_seed(recipe.seed))[:CALIBRATION_TOKENS]
    calibration = x[sample].float()
    trainer = make_trainer(recipe, calibration)
    curve, seconds = _run(trainer, recipe, x, folder.with_suffix(".checkpoint"), progress)
    trainer.finish(calibration[:4096])
    sae = trainer.export(metadata)
    found = saes.evaluate(sae, load_tokens(held_out))
    frequency = found.pop("frequency")
    record = {"recipe": dataclasses.asdict(recipe), "data": read_manifest(store)["parameters"], "held_out": found,
              "tokens_per_s": recipe.steps * recipe.batch_tokens / seconds, "seconds": seconds, "curve": curve,
              "frequency": frequency.round(7).tolist()}  # fmt: skip
    saes.save(sae, folder, record)
    folder.with_suffix(".checkpoint").unlink(missing_ok=True)
    return folder


def _metadata(store: Path, held_out: Path) -> dict[str, Any]:
    """What the export says of its origin.

    Raises:
        ValueError: the two stores are not of one model and layer.
    """
    ours, theirs = (read_manifest(path)["parameters"] for path in (store, held_out))
    for key in ("model", "revision", "hook_name"):
        if ours.get(key) != theirs.get(key):
            raise ValueError(f"the training store has {key} {ours.get(key)!r}, the held-out store {theirs.get(key)!r}")
    return {"model_name": ours.get("model"), "hook_name": ours.get("hook_name"), "revision": ours.get("revision")}


def _run(trainer: Trainer, recipe: Recipe, x: Tensor, checkpoint: Path, progress: bool) -> tuple[list[dict], float]:
    """All steps that a checkpoint has not done yet; returns the training curve and the seconds of all steps."""
    start, curve, seconds = _resume(trainer, recipe, checkpoint)
    every = max(1, recipe.steps // 50)
    saved = time.perf_counter()
    bar = tqdm(range(start, recipe.steps), initial=start, total=recipe.steps, desc=checkpoint.stem, unit="step", disable=not progress)
    for step in bar:
        began = time.perf_counter()
        found = trainer.step(x[batch_rows(len(x), recipe, step)].float(), lr_factor(recipe, step))
        seconds += time.perf_counter() - began
        if step % every == 0 or step == recipe.steps - 1:
            curve.append({"tokens": (step + 1) * recipe.batch_tokens} | found)
            bar.set_postfix_str("fvu {fvu:.3f} l0 {l0:.1f} dead {dead} >10% {high_frequency}".format(**found))
        if time.perf_counter() - saved > CHECKPOINT_SECONDS:
            _save_checkpoint(trainer, recipe, checkpoint, step + 1, curve, seconds)
            saved = time.perf_counter()
    return curve, seconds


def _save_checkpoint(trainer: Trainer, recipe: Recipe, path: Path, step: int, curve: list, seconds: float) -> None:
    """One safetensors file: the tensors of the state, and everything else as JSON in its header."""
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
    header = {"recipe": dataclasses.asdict(recipe), "step": step, "curve": curve, "seconds": seconds, "state": state}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"checkpoint": json.dumps(header)})


def _resume(trainer: Trainer, recipe: Recipe, path: Path) -> tuple[int, list, float]:
    """Load a checkpoint into the trainer; (0, [], 0) if there is none.

    Raises:
        ValueError: a damaged checkpoint, or one of another recipe.
    """
    if not path.exists():
        return 0, [], 0.0
    try:
        with safe_open(path, "pt") as handle:
            header = json.loads(handle.metadata()["checkpoint"])
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is a damaged checkpoint ({error}); delete it to train from the start") from error
    if header["recipe"] != dataclasses.asdict(recipe):
        raise ValueError(f"{path} is the checkpoint of another recipe, {header['recipe']}; delete it or change the folder")

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            return tensors[value["tensor"]] if "tensor" in value else {key: restore(item) for key, item in value["dict"]}
        return [restore(item) for item in value] if isinstance(value, list) else value

    trainer.load_state(restore(header["state"]))
    return header["step"], header["curve"], header["seconds"]
