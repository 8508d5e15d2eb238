"""Chat SAEs and their placebo: one recipe, many ways to begin it, several base SAEs, and what finetuning changes."""

import dataclasses
from collections.abc import Iterable
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


BASE, IT_FORMATTED, EARLIER = "pretraining SAE", "IT-formatted SAE", "earlier checkpoint"
PLACEBO = "finetuned on pretraining text"

Place = Path | str
Starts = dict[str, dict[int, Place]]  # kind -> seed of the base SAE -> where the SAE lies


class Variant(NamedTuple):
    """How an SAE comes about: from which SAE for each seed (None: from scratch), with which changes of the recipe, how
    many copies of the probe's training prompts are mixed into the chat tokens, and whether pretraining text takes the
    place of chat."""

    starts: dict[int, Place | None]
    changes: dict
    repeats: int = 0
    is_placebo: bool = False


class Tokens(NamedTuple):
    """What SAEs are trained and measured on. ``prompts`` are the probe's training prompts, None where no variant
    repeats them."""

    chat: Stores
    pretraining: Stores
    prompts: Source | None


def shipped(base_saes: list[str], prompts_sae: str) -> Starts:
    """The SAEs to begin with that are given: the seed of a base SAE is its place in the list, that of the IT-formatted
    one 0. A kind that is not given is not there."""
    starts: Starts = {}
    if base_saes:
        starts[BASE] = {seed: folders.locate(place) for seed, place in enumerate(base_saes)}
    if prompts_sae:
        starts[IT_FORMATTED] = {0: folders.locate(prompts_sae)}
    return starts


def first_bases(seeds: Iterable[int], n: int) -> list[int]:
    """The seeds of the first ``n`` base SAEs, in order of seed; all of them if ``n`` is 0, or more than there are.

    Raises:
        ValueError: a negative ``n``.
    """
    if n < 0:
        raise ValueError(f"other_bases is {n}; it must be a number of base SAEs, or 0 for all of them")
    return sorted(seeds)[: n or None]


def train_bases(
    recipe: Recipe, seeds: list[int], stores: Stores, parent: Path, other_bases: int = 0, **options: Any
) -> Starts:
    """A base SAE for each seed; of the :func:`first_bases` also the same training stopped at ``recipe.stop_tokens``, as
    the earlier checkpoint."""
    whole = dataclasses.replace(recipe, stop_tokens=0)
    begun = {BASE: (whole, sorted(seeds)), EARLIER: (recipe, first_bases(seeds, other_bases))}
    return {
        kind: {
            seed: train(dataclasses.replace(of_kind, seed=seed), stores.training, stores.held_out, parent, **options)
            for seed in of_seeds
        }
        for kind, (of_kind, of_seeds) in begun.items()
    }


def variants(
    starts: Starts, scratch: dict, resample_shares: list[float], prompt_repeats: list[int], other_bases: int = 0
) -> dict[str, Variant]:
    """The paper's ways to a chat SAE: finetuned from each kind of ``starts``; from the base SAEs also with latents
    resampled, or with probe prompts in the mixture; and from scratch, with the seeds of the base SAEs.

    The placebo is the first of them with as much pretraining text in the place of chat: what it changes as well is no
    effect of chat. These two begin at every base SAE, as their differences are what finetuning on chat is judged by;
    the other ways from base SAEs, and from scratch, at the :func:`first_bases` only (``other_bases`` of them, 0: all).
    """
    bases = starts[BASE]
    first = {seed: bases[seed] for seed in first_bases(bases, other_bases)}
    ways = {f"finetuned from {BASE}": Variant(bases, {}), PLACEBO: Variant(bases, {}, is_placebo=True)}
    ways |= {f"finetuned from {kind}": Variant(by_seed, {}) for kind, by_seed in starts.items() if kind != BASE}
    ways |= {f"resampled {share:.0%}": Variant(first, {"resample": share}) for share in resample_shares}
    ways |= {f"prompts ×{n}": Variant(first, {}, n) for n in prompt_repeats}
    return ways | {"from scratch": Variant(dict.fromkeys(first), scratch)}


def untrained(starts: Starts) -> pd.DataFrame:
    """The rows of :func:`train_variants` for the SAEs to begin with, base SAEs first; they began at none."""
    rows = [
        {"variant": kind, "seed": seed, "start": None, "folder": relative(place)}
        for kind in (BASE, IT_FORMATTED, EARLIER)
        for seed, place in starts.get(kind, {}).items()
    ]
    return pd.DataFrame(rows)


def train_variants(
    ways: dict[str, Variant], recipe: Recipe, tokens: Tokens, parent: Path, **options: Any
) -> pd.DataFrame:
    """Train (or find) every variant from each of its starts, with ``options`` of ``train``.

    The seed of a base SAE is also that of its finetunings, so that these see their tokens in one order. A learning rate
    that is to be chosen (``lib.sae.learning_rates``) is chosen once for finetuning and once for training from scratch,
    with the first variant of the kind and its first seed, on chat; the placebo takes that of finetuning. Columns
    variant, seed, start (folder or None), lr, folder.
    """
    rows = []
    lrs: dict[bool, float] = {}  # by whether a training begins from scratch
    for name, variant in ways.items():
        text = tokens.pretraining if variant.is_placebo else tokens.chat
        stores = [text.training] + [tokens.prompts] * variant.repeats
        for seed, start in sorted(variant.starts.items()):
            changed = dataclasses.replace(recipe, **variant.changes, seed=seed)
            is_scratch = start is None
            if is_scratch not in lrs:
                settled = learning_rates.settled(changed, tokens.chat, parent, start=start, **options)
                lrs[is_scratch] = settled.lr
            changed = dataclasses.replace(changed, lr=lrs[is_scratch])
            folder = train(changed, stores, text.held_out, parent, start, **options)
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
