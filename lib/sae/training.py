"""The training loop: batches from token stores, schedules, held-out evaluation, checkpoints and exact resume.

An SAE's folder is named by a hash of its recipe, its data and the training code: what is trained once is found again, and an interrupted
run goes on at its last checkpoint, to the same weights as an uninterrupted one.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from lib.base.files import file_hash, locked, replacing, value_hash
from lib.model import activations, models
from lib.sae import comparators, folders, jumprelu, recipes, trainers
from lib.sae.recipes import Recipe, Trainer
from lib.sae.token_blocks import BUFFER_TOKENS, Blocks, Source, load_tokens, parameters
from lib.sae.trainers import make_trainer
from lib.texts import corpora

CALIBRATION_TOKENS = 16_384
CHECKPOINT_SECONDS = 60.0


def token_stores(reader: models.Reader, texts: list[str], layer: int, parent: Path, max_tokens: int, held_out_tokens: int, seed: int) -> tuple[Source, Path]:
    """Training and held-out tokens of a corpus at one layer; passages are on one side only. The held-out ones are on disk.

    ``max_tokens`` and ``held_out_tokens`` bound the tokens of the two (0: all there are).

    Raises:
        ValueError: fewer than two passages, or a layer out of range.
    """
    training, held_out = corpora.hold_out(texts, 0.05, seed)
    return token_store(reader, training, layer, parent, max_tokens, seed), held_out_store(reader, held_out, layer, parent, held_out_tokens, seed)


def held_out_store(reader: models.Reader, texts: list[str], layer: int, parent: Path, max_tokens: int, seed: int) -> Path:
    """:func:`token_store` on disk."""
    return token_store(reader._replace(keeping="disk"), texts, layer, parent, max_tokens, seed)


def token_store(reader: models.Reader, texts: list[str], layer: int, parent: Path, max_tokens: int, seed: int) -> Source:
    """The shuffled tokens of texts at one layer, ``max_tokens`` of them (0: all), special tokens left out.

    Raises:
        ValueError: unknown ``store``, or a layer out of range.
    """
    bridge = reader.bridge()
    token_ids = corpora.first_tokens(models.split_tokens(bridge, texts, reader.context), max_tokens, seed)
    content = activations.texts_hash([str(ids) for ids in token_ids])
    given = (bridge, models.identity(reader.model), content, token_ids, layer)
    if not reader.keeps():
        return activations.token_shards(*given, special=False, shuffle_seed=seed)
    return activations.harvest_tokens(*given, parent, special=False, shuffle_seed=seed)


def lr_factor(recipe: Recipe, step: int) -> float:
    """Linear warm-up over ``warmup_steps``, 1, and linear decay to 0 over the last ``decay_share`` of the steps."""
    warm = (step + 1) / max(1, recipe.warmup_steps)
    decay = (recipe.steps - step) / max(1.0, recipe.decay_share * recipe.steps)
    return min(1.0, warm, decay)


def sae_path(parent: Path, recipe: Recipe, stores: list[Source], held_out: Path, start: Path | str | None = None) -> Path:
    """``parent/<architecture>-<hash of recipe, data, SAE to start from and training code>``."""
    code = [file_hash(Path(module.__file__)) for module in (jumprelu, folders, recipes, comparators, trainers)]
    data = [parameters(store) for store in [*stores, held_out]]
    first = folders.identity(start) if start else None
    return parent / f"{recipe.architecture}-{value_hash([dataclasses.asdict(recipe), data, first, code])}"


def train(
    recipe: Recipe, store: Source | list[Source], held_out: Path, parent: Path, start: Path | str | None = None, progress: bool = True,
    device: str = "cpu", buffer_tokens: int = BUFFER_TOKENS,
) -> Path:  # fmt: skip
    """Train an SAE on tokens, or finetune ``start`` (see :func:`lib.sae.folders.load`); measure it, return its SAELens folder.

    Several stores are one mixture; a store that stands n times is repeated n times. Of more than ``buffer_tokens`` tokens,
    blocks of so many are shuffled (see ``lib.sae.token_blocks``). Weights are float32 on ``device``.

    Raises:
        ValueError: an impossible recipe, too few tokens, stores of different layers, a foreign checkpoint, an SAE to start
            from that does not fit, or too little memory.
    """
    stores = store if isinstance(store, list) else [store]
    folder = sae_path(parent, recipe.check(), stores, held_out, start)
    with locked(folder):
        return _train(recipe, stores, held_out, folder, start, progress, device, buffer_tokens)


def _train(recipe: Recipe, stores: list[Source], held_out: Path, folder: Path, start: Path | str | None, progress: bool, device: str, buffer_tokens: int) -> Path:
    if (folder / "training.json").exists():
        return folder
    x, metadata = Blocks(stores, buffer_tokens), _metadata([*stores, held_out])
    if len(x) < recipe.batch_tokens or recipe.d_sae < 1:
        raise ValueError(f"{stores} have {len(x)} tokens, fewer than one batch of {recipe.batch_tokens}")
    calibration = x.sample(CALIBRATION_TOKENS, recipe.seed).to(device).float()
    first = folders.load(start) if start else None
    if first is not None:
        folders.check_fits(first, calibration.shape[1], metadata["hook_name"], metadata["model_name"])
    try:
        trainer = make_trainer(recipe, calibration, first)
        curve, seconds = _run(trainer, recipe, x, folder.with_suffix(".checkpoint"), progress, device)
    except torch.OutOfMemoryError as error:
        raise ValueError(f"the memory of {device} does not suffice for d_sae {recipe.d_sae} with batches of {recipe.batch_tokens} tokens; lower batch_tokens") from error
    trainer.finish(calibration[:4096])
    sae = trainer.export(metadata)
    record = {"recipe": dataclasses.asdict(recipe), "data": [parameters(store) for store in stores],
              "start": Path(start).name if start else None, "tokens_per_s": recipe.last_step * recipe.batch_tokens / seconds,
              "seconds": seconds, "curve": curve}  # fmt: skip
    measured = folders.held_out_record(sae.to(device), load_tokens(held_out))
    folders.save(sae.cpu(), folder, record | measured)
    folder.with_suffix(".checkpoint").unlink(missing_ok=True)
    return folder


def _metadata(stores: list[Source]) -> dict[str, Any]:
    """What the export says of its origin.

    Raises:
        ValueError: the stores are not of one model and layer.
    """
    first, *others = map(parameters, stores)
    for other in others:
        for key in ("model", "revision", "hook_name"):
            if first.get(key) != other.get(key):
                raise ValueError(f"the training store has {key} {first.get(key)!r}, another or the held-out store {other.get(key)!r}")
    return {"model_name": first.get("model"), "hook_name": first.get("hook_name"), "revision": first.get("revision")}


def _run(trainer: Trainer, recipe: Recipe, x: Blocks, checkpoint: Path, progress: bool, device: str) -> tuple[list[dict], float]:
    """All steps that a checkpoint has not done yet; returns the training curve and the seconds of all steps."""
    start, curve, seconds = _resume(trainer, recipe, checkpoint)
    every = max(1, recipe.steps // 50)
    saved = time.perf_counter()
    last = recipe.last_step
    bar = tqdm(range(start, last), initial=start, total=last, desc=checkpoint.stem, unit="step", disable=not progress)
    for step in bar:
        began = time.perf_counter()
        found = trainer.step(x.batch(step, recipe.batch_tokens, recipe.seed).to(device).float(), lr_factor(recipe, step))
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
