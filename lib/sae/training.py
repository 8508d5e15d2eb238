"""The training loop: batches from token stores, schedules, held-out evaluation, and what an SAE's folder is named by.

An SAE's folder is named by a hash of all that decides its weights: recipe, data and code. What is trained once is
found again, a change of the code trains anew, and an interrupted run goes on at its last checkpoint, to the same
weights as an uninterrupted one.
"""

import dataclasses
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lib.base import build_graph
from lib.base.files import locked, value_hash
from lib.sae import architectures, checkpoints, folders
from lib.sae.architectures import make_trainer
from lib.sae.checkpoints import Progress
from lib.sae.recipes import Recipe, Trainer
from lib.sae.token_blocks import (
    BUFFER_TOKENS,
    Blocks,
    Source,
    deciding_buffer,
    load_tokens,
    parameters,
    sink_limit,
    without_sinks,
)

CALIBRATION_TOKENS = 16_384
FINISH_TOKENS = 4096  # of the calibration, from which the trainer sets what it holds at the end
CHECKPOINT_SECONDS = 60.0
WORST_FVU = 1.0
MOST_DEAD = 0.5
LEAST_STEPS = 100


def lr_factor(recipe: Recipe, step: int) -> float:
    """Linear warm-up over ``warmup_steps``, 1, and linear decay to 0 over the last ``decay_share`` of the steps.

    The warm-up takes at most a twentieth of the steps.
    """
    warm = (step + 1) / max(1, min(recipe.warmup_steps, recipe.steps // 20))
    decay = (recipe.steps - step) / max(1.0, recipe.decay_share * recipe.steps)
    return min(1.0, warm, decay)


def code_paths(architecture: str) -> list[Path]:
    """Files whose code decides an SAE: this one, its architecture's trainer, and what they use of ``lib.sae``.

    The registry is left out, so that a new entry trains no other architecture anew; ``sae_path`` has what the entry
    says of the trainer. So are names of models and places, which decide what is refused, and no weight. The modules
    below ``lib.sae`` are left out because they make the tokens, and a store's parameters tell its tokens from others.

    Raises:
        ValueError: an unknown architecture.
    """
    trainer = architectures.architecture(architecture).trainer
    todo = {Path(__file__).resolve(), Path(sys.modules[trainer.__module__].__file__).resolve()}
    paths: set[Path] = set()
    while todo:
        path = todo.pop()
        paths.add(path)
        names = build_graph.imported(path) - {"sae/architectures", "sae/names"}
        todo |= {build_graph.LIB / f"{name}.py" for name in names if name.startswith("sae/")} - paths
    return sorted(paths)


def sae_path(
    parent: Path,
    recipe: Recipe,
    stores: list[Source],
    held_out: Path,
    start: Path | str | None = None,
    *,
    buffer_tokens: int = BUFFER_TOKENS,
) -> Path:
    """``parent/<architecture>-<hash of recipe, data and their order, SAE to start from and code>``.

    Raises:
        ValueError: an unknown architecture, or a store that is not finished.
    """
    trainer = architectures.architecture(recipe.architecture).trainer
    decides = {
        "recipe": dataclasses.asdict(recipe),
        "data": [parameters(store) for store in [*stores, held_out]],
        "buffer_tokens": deciding_buffer(stores, buffer_tokens),
        "start": folders.identity(start) if start else None,
        "trainer": f"{trainer.__module__}.{trainer.__qualname__}",
        "code": build_graph.code_hash(code_paths(recipe.architecture)),
    }
    return parent / f"{recipe.architecture}-{value_hash(decides)}"


def train(
    recipe: Recipe,
    store: Source | list[Source],
    held_out: Path,
    parent: Path,
    start: Path | str | None = None,
    *,
    progress: bool = True,
    device: str = "cpu",
    buffer_tokens: int = BUFFER_TOKENS,
) -> Path:
    """Train an SAE on tokens, or finetune ``start`` (see :func:`lib.sae.folders.load`); measure it, return its folder.

    Several stores are one mixture; a store that stands n times is repeated n times. Of more than ``buffer_tokens``
    tokens, blocks of so many are shuffled (see ``lib.sae.token_blocks``). Weights are float32 on ``device``. The folder
    is one of SAELens with a ``training.json``; it is found again where the same training was done before.

    Raises:
        ValueError: an impossible recipe, too few tokens, stores of different layers, a foreign checkpoint, an SAE to
            start from that does not fit, too little memory; or a training that ends with an FVU above 1 or without half
            of its latents, or meets one that is no number.
    """
    stores = store if isinstance(store, list) else [store]
    architectures.check(recipe)
    folder = sae_path(parent, recipe, stores, held_out, start, buffer_tokens=buffer_tokens)
    with locked(folder):
        if not (folder / "training.json").exists():
            blocks = Blocks(stores, buffer_tokens)
            _train(recipe, blocks, held_out, folder, start, progress=progress, device=device)
    return folder


def _train(
    recipe: Recipe,
    blocks: Blocks,
    held_out: Path,
    folder: Path,
    start: Path | str | None,
    *,
    progress: bool,
    device: str,
) -> None:
    metadata = _metadata([*blocks.sources, held_out])
    if len(blocks) < recipe.batch_tokens or recipe.d_sae < 1:
        raise ValueError(
            f"{blocks.sources} have {len(blocks)} tokens, fewer than one batch of {recipe.batch_tokens}"
        )
    calibration = blocks.sample(CALIBRATION_TOKENS, recipe.seed).to(device).float()
    limit = sink_limit(calibration)
    calibration = without_sinks(calibration, limit)
    first = folders.load(start) if start else None
    if first is not None:
        folders.check_fits(first, calibration.shape[1], metadata["hook_name"], metadata["model_name"])
    checkpoint = folder.with_suffix(".checkpoint")
    try:
        trainer = make_trainer(recipe, calibration, first)
        progressed = _run(trainer, recipe, blocks, checkpoint, limit=limit, progress=progress, device=device)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"the memory of {device} does not suffice for d_sae {recipe.d_sae} with batches of {recipe.batch_tokens} "
            "tokens; lower batch_tokens"
        ) from error
    trainer.finish(calibration[:FINISH_TOKENS])
    sae = trainer.export(metadata)
    record = {
        "recipe": dataclasses.asdict(recipe),
        "data": [parameters(store) for store in blocks.sources],
        "start": Path(start).name if start else None,
        "tokens_per_s": recipe.last_step * recipe.batch_tokens / progressed.seconds,
        "seconds": progressed.seconds,
        "sinks": progressed.sinks,
        "curve": progressed.curve,
    }
    measured = folders.held_out_record(sae.to(device), load_tokens(held_out))
    try:
        check_trained(recipe, measured["held_out"])
    except ValueError:
        checkpoint.unlink(missing_ok=True)  # What goes on from it would end in the same way.
        raise
    folders.save(sae.cpu(), folder, record | measured)
    checkpoint.unlink(missing_ok=True)


def check_trained(recipe: Recipe, held_out: dict[str, float]) -> None:
    """Raise ``ValueError`` if an SAE came out worse than none, or lost most of its latents.

    The mean of all tokens has a held-out FVU of 1. A training of fewer than ``LEAST_STEPS`` steps, which may not have
    got there yet, warns instead.
    """
    fvu, dead = held_out["fvu"], held_out["dead"]
    if fvu <= WORST_FVU and dead <= MOST_DEAD:
        return
    what = f"the {recipe.architecture} SAE with d_sae {recipe.d_sae}, lr {recipe.lr} and {recipe.tokens} tokens"
    sentence = f"{what} ended with a held-out FVU of {fvu:.3g}, and may have {WORST_FVU} at most; lower lr"
    if fvu <= WORST_FVU:
        sentence = f"{what} lost {dead:.0%} of its latents, and may lose {MOST_DEAD:.0%} at most; lower lr or d_sae"
    if recipe.last_step >= LEAST_STEPS:
        raise ValueError(f"{sentence}, or give it more tokens")
    warnings.warn(f"{sentence}, or give it more tokens", stacklevel=2)


def _metadata(stores: list[Source]) -> dict[str, Any]:
    """What the export says of its origin.

    Raises:
        ValueError: the stores are not of one model and layer.
    """
    first, *others = map(parameters, stores)
    for other in others:
        for key in ("model", "revision", "hook_name"):
            if first.get(key) != other.get(key):
                raise ValueError(
                    f"the training store has {key} {first.get(key)!r}, "
                    f"another or the held-out store {other.get(key)!r}"
                )
    return {"model_name": first.get("model"), "hook_name": first.get("hook_name"), "revision": first.get("revision")}


def _run(
    trainer: Trainer,
    recipe: Recipe,
    blocks: Blocks,
    checkpoint: Path,
    *,
    limit: float,
    progress: bool,
    device: str,
) -> Progress:
    """Do all steps that a checkpoint has not done yet, on the tokens of a norm of at most ``limit``.

    Raises:
        ValueError: a batch's FVU is no number any more.
    """
    start, curve, seconds, sinks = checkpoints.resume(trainer, recipe, checkpoint)
    every = max(1, recipe.steps // 50)
    saved = time.perf_counter()
    last = recipe.last_step
    bar = tqdm(range(start, last), initial=start, total=last, desc=checkpoint.stem, unit="step", disable=not progress)
    for step in bar:
        began = time.perf_counter()
        x = without_sinks(blocks.batch(step, recipe.batch_tokens, recipe.seed).to(device).float(), limit)
        sinks += recipe.batch_tokens - len(x)
        metrics = trainer.step(x, lr_factor(recipe, step))
        if not math.isfinite(metrics["fvu"]):
            checkpoint.unlink(missing_ok=True)
            raise ValueError(
                f"the {recipe.architecture} SAE diverged in step {step + 1} of {recipe.steps}; lower lr {recipe.lr}"
            )
        seconds += time.perf_counter() - began
        if step % every == 0 or step == last - 1:
            curve.append({"tokens": (step + 1) * recipe.batch_tokens} | metrics)
            bar.set_postfix_str("fvu {fvu:.3f} l0 {l0:.1f} dead {dead} >10% {high_frequency}".format(**metrics))
        if time.perf_counter() - saved > CHECKPOINT_SECONDS:
            checkpoints.save(trainer, recipe, checkpoint, Progress(step + 1, curve, seconds, sinks))
            saved = time.perf_counter()
    return Progress(last, curve, seconds, sinks)
