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

from lib import activations, comparators, corpora, jumprelu, models, recipes, trainers
from lib import sae as saes
from lib.files import file_hash, replacing, value_hash
from lib.recipes import Recipe, Trainer
from lib.stores import read_all, read_manifest
from lib.trainers import make_trainer

CALIBRATION_TOKENS = 16_384
CONTEXT = 128  # tokens of a window
CHECKPOINT_SECONDS = 60.0


def token_stores(
    model: str, texts: list[str], layer: int, parent: Path, max_tokens: int, held_out_tokens: int, seed: int, device: str = "cpu"
) -> tuple[Path, Path]:
    """Training and held-out token stores of a corpus at one layer; passages are on one side only.

    ``max_tokens`` and ``held_out_tokens`` bound the tokens of the two (0: all there are).

    Raises:
        ValueError: fewer than two passages, or a layer out of range.
    """
    parts = zip(corpora.hold_out(texts, 0.05, seed), (max_tokens, held_out_tokens), strict=True)
    training, held_out = (token_store(model, part, layer, parent, limit, seed, device) for part, limit in parts)
    return training, held_out


def token_store(model: str, texts: list[str], layer: int, parent: Path, max_tokens: int, seed: int, device: str = "cpu") -> Path:
    """The shuffled token store of texts at one layer, ``max_tokens`` of them (0: all), special tokens left out."""
    bridge, identity = models.load_model(model, device), models.identity(model)
    token_ids = corpora.first_tokens(models.split_tokens(bridge, texts, CONTEXT), max_tokens, seed)
    content = activations.texts_hash([str(ids) for ids in token_ids])
    return activations.harvest_tokens(bridge, identity, content, token_ids, layer, parent, special=False, shuffle_seed=seed)


def load_tokens(*stores: Path) -> Float[Tensor, "tokens d_model"]:
    """The activations of one or more token stores, in their stored (half) precision; a store given twice counts twice.

    Raises:
        ValueError: unfinished, damaged or empty store, or values that are not finite.
    """
    parts = [_read_tokens(store, (store / "manifest.json").stat().st_mtime_ns) for store in stores]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


@functools.lru_cache(maxsize=2)  # a grid of trainings reads the same two stores again and again
def _read_tokens(store: Path, modified: int) -> Tensor:
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


def sae_path(parent: Path, recipe: Recipe, stores: list[Path], held_out: Path, start: Path | str | None = None) -> Path:
    """``parent/<architecture>-<hash of recipe, data, SAE to start from and training code>``."""
    code = [file_hash(Path(module.__file__)) for module in (jumprelu, saes, recipes, comparators, trainers)]
    data = [read_manifest(store)["parameters"] for store in [*stores, held_out]]
    first = saes.identity(start) if start else None
    return parent / f"{recipe.architecture}-{value_hash([dataclasses.asdict(recipe), data, first, code])}"


def train(
    recipe: Recipe, store: Path | list[Path], held_out: Path, parent: Path, start: Path | str | None = None, progress: bool = True
) -> Path:
    """Train an SAE on a token store, or finetune ``start`` (see :func:`lib.sae.load`); measure it, return its SAELens folder.

    Several stores are one mixture; a store that stands n times is repeated n times.

    Raises:
        ValueError: an impossible recipe, too few tokens, stores of different layers, a foreign checkpoint, or an SAE to
            start from that does not fit.
    """
    stores = store if isinstance(store, list) else [store]
    folder = sae_path(parent, recipe.check(), stores, held_out, start)
    if (folder / "training.json").exists():
        return folder
    x, metadata = load_tokens(*stores), _metadata([*stores, held_out])
    if len(x) < recipe.batch_tokens or recipe.d_sae < 1:
        raise ValueError(f"{stores} have {len(x)} tokens, fewer than one batch of {recipe.batch_tokens}")
    sample = torch.randperm(len(x), generator=torch.Generator().manual_seed(recipe.seed))[:CALIBRATION_TOKENS]
    calibration = x[sample].float()
    first = saes.load(start) if start else None
    if first is not None:
        saes.check_fits(first, x.shape[1], metadata["hook_name"], metadata["model_name"])
    trainer = make_trainer(recipe, calibration, first)
    curve, seconds = _run(trainer, recipe, x, folder.with_suffix(".checkpoint"), progress)
    trainer.finish(calibration[:4096])
    sae = trainer.export(metadata)
    record = {"recipe": dataclasses.asdict(recipe), "data": [read_manifest(store)["parameters"] for store in stores],
              "start": Path(start).name if start else None, "tokens_per_s": recipe.last_step * recipe.batch_tokens / seconds,
              "seconds": seconds, "curve": curve}  # fmt: skip
    saes.save(sae, folder, record | saes.held_out_record(sae, load_tokens(held_out)))
    folder.with_suffix(".checkpoint").unlink(missing_ok=True)
    return folder


def _metadata(stores: list[Path]) -> dict[str, Any]:
    """What the export says of its origin.

    Raises:
        ValueError: the stores are not of one model and layer.
    """
    first, *others = (read_manifest(path)["parameters"] for path in stores)
    for other in others:
        for key in ("model", "revision", "hook_name"):
            if first.get(key) != other.get(key):
                raise ValueError(f"the training store has {key} {first.get(key)!r}, another or the held-out store {other.get(key)!r}")
    return {"model_name": first.get("model"), "hook_name": first.get("hook_name"), "revision": first.get("revision")}


def _run(trainer: Trainer, recipe: Recipe, x: Tensor, checkpoint: Path, progress: bool) -> tuple[list[dict], float]:
    """All steps that a checkpoint has not done yet; returns the training curve and the seconds of all steps."""
    start, curve, seconds = _resume(trainer, recipe, checkpoint)
    every = max(1, recipe.steps // 50)
    saved = time.perf_counter()
    last = recipe.last_step
    bar = tqdm(range(start, last), initial=start, total=last, desc=checkpoint.stem, unit="step", disable=not progress)
    for step in bar:
        began = time.perf_counter()
        found = trainer.step(x[batch_rows(len(x), recipe, step)].float(), lr_factor(recipe, step))
        seconds += time.perf_counter() - began
        if step % every == 0 or step == last - 1:
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
