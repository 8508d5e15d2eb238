"""Chat SAEs: one recipe, many ways to begin it, and what finetuning changes."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from sae_lens import SAE

from lib.base.files import relative
from lib.sae import folders, learning_rates
from lib.sae.harvest import Stores
from lib.sae.recipes import Recipe
from lib.sae.token_blocks import Source, load_tokens
from lib.sae.training import train
from lib.stats.metrics import t_interval

DECODER = "decoder rows"  # stands for a text where a metric needs none
MOVED = 0.9  # a latent has moved if the cosine of its decoder row before and after is below this
METRICS = ("fvu", "l0", "dead", "high_frequency")  # of :func:`lib.sae.folders.evaluate`


class Variant(NamedTuple):
    """How a chat SAE comes about: from which SAE (None: from scratch), with which changes of the recipe, and how many
    copies of the probe's training prompts are mixed into the chat tokens."""

    start: Path | str | None
    changes: dict
    repeats: int = 0


class Tokens(NamedTuple):
    """What chat SAEs are trained and measured on. ``prompts`` are the probe's training prompts, None where no variant
    repeats them."""

    chat: Stores
    prompts: Source | None


def variants(
    starts: dict[str, Path | str], scratch: dict, resample_shares: list[float], prompt_repeats: list[int]
) -> dict[str, Variant]:
    """The paper's ways to a chat SAE: finetuned from each of ``starts`` (the first is the base SAE, which the other
    changes begin from), with latents resampled, with probe prompts in the mixture, and from scratch."""
    base = next(iter(starts.values()))
    ways = {f"finetuned from {name}": Variant(path, {}) for name, path in starts.items()}
    ways |= {f"resampled {share:.0%}": Variant(base, {"resample": share}) for share in resample_shares}
    ways |= {f"prompts ×{n}": Variant(base, {}, n) for n in prompt_repeats}
    return ways | {"from scratch": Variant(None, scratch)}


def untrained(starts: dict[str, Path | str]) -> pd.DataFrame:
    """The rows of :func:`train_variants` for the SAEs to begin with: they have no seed and no start."""
    rows = [
        {"variant": name, "seed": None, "start": None, "folder": relative(place)} for name, place in starts.items()
    ]
    return pd.DataFrame(rows)


def train_variants(
    ways: dict[str, Variant], recipe: Recipe, seeds: list[int], tokens: Tokens, parent: Path, **options: Any
) -> pd.DataFrame:
    """Train (or find) every variant with every seed, with ``options`` of ``train``.

    A learning rate that is to be chosen (``lib.sae.learning_rates``) is chosen once for finetuning and once for
    training from scratch, with the first variant of the kind and the first seed. Columns variant, seed, start (folder
    or None), lr, folder.
    """
    rows = []
    lrs: dict[bool, float] = {}  # by whether a training begins from scratch
    for name, variant in ways.items():
        stores, start = [tokens.chat.training] + [tokens.prompts] * variant.repeats, variant.start
        for seed in sorted(seeds):
            changed = dataclasses.replace(recipe, **variant.changes, seed=seed)
            is_scratch = start is None
            if is_scratch not in lrs:
                settled = learning_rates.settled(changed, tokens.chat, parent, start=start, **options)
                lrs[is_scratch] = settled.lr
            changed = dataclasses.replace(changed, lr=lrs[is_scratch])
            folder = train(changed, stores, tokens.chat.held_out, parent, start, **options)
            row = {"variant": name, "seed": seed, "start": start and relative(start), "lr": changed.lr}
            rows.append(row | {"folder": relative(folder)})
    return pd.DataFrame(rows)


@torch.no_grad()
def drift(before: SAE, after: SAE) -> dict[str, float]:
    """Mean cosine of the decoder rows of equal index, and the share of latents that moved (cosine below ``MOVED``).

    Raises:
        ValueError: SAEs of different sizes.
    """
    if before.W_dec.shape != after.W_dec.shape:
        shapes = f"{tuple(before.W_dec.shape)} and {tuple(after.W_dec.shape)}"
        raise ValueError(f"decoders of shapes {shapes} cannot be compared")
    cosine = torch.nn.functional.cosine_similarity(before.W_dec.float(), after.W_dec.float(), dim=1)
    return {"cosine": cosine.mean().item(), "moved": (cosine < MOVED).float().mean().item()}


def measure(saes: pd.DataFrame, held_out: dict[str, Path], device: str = "cpu") -> pd.DataFrame:
    """Held-out metrics of every SAE of a table on each text, and its drift from where it began.

    Columns text, metric, value, variant, seed.
    """
    rows = []

    def add(text: str, values: dict[str, float], row: Any) -> None:
        for metric, value in values.items():
            rows.append({"text": text, "metric": metric, "value": value, "variant": row.variant, "seed": row.seed})

    for row in saes.itertuples():
        sae = folders.load(row.folder, device)
        for text, store in held_out.items():
            metrics = folders.evaluate(sae, load_tokens(store).float())
            add(text, {name: metrics[name] for name in METRICS}, row)
        if isinstance(row.start, str):
            add(DECODER, drift(folders.load(row.start, device), sae), row)
    return pd.DataFrame(rows)


def over_seeds(measured: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of each variant, text and metric, with a 95 % t interval (null with one seed)."""
    rows = []
    for (variant, text, metric), part in measured.groupby(["variant", "text", "metric"], sort=False):
        estimate = t_interval(part["value"].to_numpy(dtype=np.float64))
        rows.append({"variant": variant, "text": text, "metric": metric} | estimate._asdict())
    return pd.DataFrame(rows)


def with_text(estimates: pd.DataFrame) -> pd.DataFrame:
    """The table with a column ``measure``, ``metric (text)``, to be shown as columns of texts."""
    return estimates.assign(measure=estimates["metric"] + " (" + estimates["text"] + ")")
