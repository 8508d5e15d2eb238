"""Chat SAEs: one recipe, many ways to begin it, and what finetuning changes."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from sae_lens import SAE

from lib.base.files import relative
from lib.sae import folders
from lib.sae.recipes import Recipe
from lib.sae.token_blocks import Source, load_tokens
from lib.sae.training import train
from lib.stats.metrics import Estimate, t_interval

DECODER = "decoder rows"  # stands for a text where a metric needs none
MOVED = 0.9  # a latent has moved if the cosine of its decoder row before and after is below this


class Variant(NamedTuple):
    """How a chat SAE comes about: from which SAE (None: from scratch), with which changes of the recipe, and how many
    copies of the probe's training prompts are mixed into the chat tokens."""

    start: Path | str | None
    changes: dict
    repeats: int = 0


def variants(
    starts: dict[str, Path | str], scratch: dict, resample_shares: list[float], prompt_repeats: list[int]
) -> dict[str, Variant]:
    """The paper's ways to a chat SAE: finetuned from each of ``starts`` (the first is the base SAE, which the other
    changes begin from), with latents resampled, with probe prompts in the mixture, and from scratch."""
    base = next(iter(starts.values()))
    found = {f"finetuned from {name}": Variant(path, {}) for name, path in starts.items()}
    found |= {f"resampled {share:.0%}": Variant(base, {"resample": share}) for share in resample_shares}
    found |= {f"prompts ×{n}": Variant(base, {}, n) for n in prompt_repeats}
    return found | {"from scratch": Variant(None, scratch)}


def train_variants(
    found: dict[str, Variant], recipe: Recipe, seeds: list[int], chat: Source, prompts: Source | None, held_out: Path, parent: Path, **options: Any
) -> pd.DataFrame:
    """Train (or find) every variant with every seed, with ``options`` of ``train``: columns variant, seed, start (folder or None), folder.

    ``prompts`` are the probe's training prompts, None where no variant repeats them.
    """
    rows = []
    for name, variant in found.items():
        stores = [chat] + [prompts] * variant.repeats
        for seed in seeds:
            changed = dataclasses.replace(recipe, **variant.changes, seed=seed)
            folder = train(changed, stores, held_out, parent, variant.start, **options)
            rows.append({"variant": name, "seed": seed, "start": variant.start and relative(variant.start), "folder": relative(folder)})
    return pd.DataFrame(rows)


@torch.no_grad()
def drift(before: SAE, after: SAE) -> dict[str, float]:
    """Mean cosine of the decoder rows of equal index, and the share of latents that moved (cosine below ``MOVED``).

    Raises:
        ValueError: SAEs of different sizes.
    """
    if before.W_dec.shape != after.W_dec.shape:
        raise ValueError(f"decoders of shapes {tuple(before.W_dec.shape)} and {tuple(after.W_dec.shape)} cannot be compared")
    cosine = torch.nn.functional.cosine_similarity(before.W_dec.float(), after.W_dec.float(), dim=1)
    return {"cosine": cosine.mean().item(), "moved": (cosine < MOVED).float().mean().item()}


def measure(table: pd.DataFrame, held_out: dict[str, Path], device: str = "cpu") -> pd.DataFrame:
    """Held-out metrics of every SAE of ``table`` on each text (columns variant, seed, text, metric, value), and its drift."""
    rows = []
    for row in table.itertuples():
        sae = folders.load(row.folder, device)
        for text, store in held_out.items():
            found = folders.evaluate(sae, load_tokens(store).float())
            rows += [{"text": text, "metric": name, "value": found[name]} | _key(row) for name in ("fvu", "l0", "dead", "high_frequency")]
        if isinstance(row.start, str):
            rows += [{"text": DECODER, "metric": name, "value": value} | _key(row) for name, value in drift(folders.load(row.start, device), sae).items()]
    return pd.DataFrame(rows)


def _key(row) -> dict:
    return {"variant": row.variant, "seed": row.seed}


def over_seeds(measured: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of each variant, text and metric, with a 95 % t interval (null with one seed)."""
    rows = []
    for (variant, text, metric), part in measured.groupby(["variant", "text", "metric"], sort=False):
        found: Estimate = t_interval(part["value"].to_numpy(dtype=np.float64))
        rows.append({"variant": variant, "text": text, "metric": metric} | found._asdict())
    return pd.DataFrame(rows)
