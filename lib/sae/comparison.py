"""Comparing SAE architectures: grids of trainings, whether they converged, and what becomes of a latent."""

import dataclasses
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sae_lens import SAE

from lib.base.registry import lookup
from lib.sae import architectures, folders, learning_rates
from lib.sae.harvest import Stores
from lib.sae.jumprelu import PENALTIES
from lib.sae.recipes import Recipe
from lib.sae.training import train
from lib.stats.metrics import Estimate, t_interval

BASELINE = "JumpReLU, L0"
CONVERGED = 0.01  # relative change of FVU over the last fifth of a training, less than which it has converged
FIFTHS = ((0.8, 1.0), (0.6, 0.8))  # of a training, the last and the one before
NEAR_L0 = 1.25  # ratio of the L0s of SAEs that a figure shows side by side, at most if there are such


class Cell(NamedTuple):
    """The place of an SAE in a grid of trainings; ``sparsity`` is the L0 that it aims at."""

    variant: str
    sparsity: int | float
    seed: int


def quadratic_frequency(f0: float) -> str:
    """The variant's name of JumpReLU with the quadratic-frequency penalty."""
    return f"JumpReLU, QF f₀={f0}"


def variants(
    f0s: list[float], penalties: list[str], comparators: list[str], lrs: dict[str, float]
) -> dict[str, dict[str, Any]]:
    """What the variants of a comparison change in a recipe, by name: ``BASELINE`` first, then QF at each of ``f0s``,
    JumpReLU with other ``penalties``, and comparators.

    ``lrs`` holds the comparators' learning rates by name, for those whose entry in ``ARCHITECTURES`` has none of its
    own.

    Raises:
        ValueError: an unknown architecture, or a penalty that is none of the others.
    """
    changes: dict[str, dict[str, Any]] = {BASELINE: {}}
    for f0 in f0s:
        changes[quadratic_frequency(f0)] = {"penalty": "quadratic_frequency", "f0": f0}
    others = {name: entry for name, entry in PENALTIES.items() if name not in ("l0", "quadratic_frequency")}
    for name in penalties:
        lookup(others, "other penalty", name)
        changes[f"JumpReLU, {name.replace('_', ' ')}"] = {"penalty": name}
    for name in comparators:
        entry = architectures.architecture(name)
        lr = lookup(lrs, "comparator with a learning rate", name) if entry.lr is None else entry.lr
        changes[name] = {"architecture": name, "lr": lr}
    return changes


def recipes(
    base: Recipe, variants: dict[str, dict[str, Any]], target_l0s: list[int | float], seeds: list[int]
) -> dict[Cell, Recipe]:
    """Recipes of a grid, by cell. ``variants`` holds what differs from ``base``.

    Raises:
        ValueError: an unknown architecture, or an impossible recipe.
    """
    grid = {}
    for variant, change in variants.items():
        changed = dataclasses.replace(base, **change)
        for target_l0 in architectures.target_l0s(changed.architecture, target_l0s):
            for seed in sorted(seeds):
                recipe = dataclasses.replace(changed, target_l0=target_l0, seed=seed)
                grid[Cell(variant, target_l0, seed)] = architectures.check(recipe)
    return grid


def train_grid(grid: dict[Cell, Recipe], stores: Stores, parent: Path, **options: Any) -> pd.DataFrame:
    """Train (or find) every SAE of a grid, with ``options`` of ``train``.

    A learning rate that is to be chosen (``lib.sae.learning_rates``) is chosen for the middle sparsity and the first
    seed of each variant, and holds for all of it. A row each: variant, sparsity, seed, lr, tokens_per_s, folder, and
    what :func:`measured` reads.
    """
    rows = []
    lrs = {}
    for variant in dict.fromkeys(cell.variant for cell in grid):
        of_variant = [cell for cell in grid if cell.variant == variant]
        sparsity = statistics.median_low(cell.sparsity for cell in of_variant)
        middle = next(cell for cell in of_variant if cell.sparsity == sparsity)
        lrs[variant] = learning_rates.settled(grid[middle], stores, parent, **options).lr
    for cell, recipe in grid.items():
        settled = dataclasses.replace(recipe, lr=lrs[cell.variant])
        folder = train(settled, stores.training, stores.held_out, parent, **options)
        record = folders.training_record(folder)
        row = cell._asdict() | {"lr": settled.lr, "tokens_per_s": record["tokens_per_s"], "folder": folder}
        rows.append(row | measured(record))
    return pd.DataFrame(rows)


def measured(record: dict[str, Any]) -> dict[str, float]:
    """What a comparison reads of a ``training.json``: the held-out metrics of :func:`lib.sae.folders.evaluate`, and

    weighted_frequency = Σφ² / Σφ, the mean frequency of the latents that are active on a token; mass_above_10x_mean,
    the share of all firings of the latents above ten times the mean frequency φ̄ = L0 / d_sae, a line that moves with
    L0 and width; fvu_change (:func:`change_at_the_end`); converged, 1 where that is less than ``CONVERGED``, else 0.
    """
    frequency = np.array(record["frequency"])
    firings = max(frequency.sum(), 1e-12)
    change = change_at_the_end(record["curve"])
    return record["held_out"] | {
        "weighted_frequency": float((frequency**2).sum() / firings),
        "mass_above_10x_mean": float(frequency[frequency > 10 * frequency.mean()].sum() / firings),
        "fvu_change": change,
        "converged": int(abs(change) < CONVERGED),
    }


def change_at_the_end(curve: list[dict]) -> float:
    """What a training's FVU changed by over the last fifth of the tokens, as a fraction: negative where it fell.

    The mean over the last fifth against that over the fifth before, as the FVU of a single batch is noisy; of a curve
    that flattens this tells more than what the last fifth alone does. NaN where a fifth has no point of the curve.
    """
    tokens, fvu = (np.array([point[name] for point in curve]) for name in ("tokens", "fvu"))
    last, before = (fvu[(tokens > low * tokens[-1]) & (tokens <= high * tokens[-1])] for low, high in FIFTHS)
    return float(last.mean() / before.mean() - 1) if len(last) and len(before) else math.nan


def convergence(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of each variant: ``fvu_change``, a mean with a t interval over seeds, and ``converged``, a share of SAEs."""
    rows = []
    for variant, part in table.groupby("variant", sort=False):
        by_seed = part.groupby("seed")[["fvu_change", "converged"]].mean()
        change = t_interval(by_seed["fvu_change"].dropna().to_numpy())._replace(n=len(part))
        share = Estimate(float(part["converged"].mean()), None, None, len(part), len(by_seed))
        rows.append({"metric": "fvu_change", "variant": variant, "unit": "fraction"} | change._asdict())
        rows.append({"metric": "converged", "variant": variant, "unit": "share of SAEs"} | share._asdict())
    return pd.DataFrame(rows)


def not_converged(table: pd.DataFrame) -> str:
    """A sentence for captions: the variants with SAEs that have not converged, and the mean change of their FVU."""
    changes = table[table["converged"] == 0].groupby("variant", sort=False)["fvu_change"].mean()
    over = "over the last fifth of training"
    if changes.empty:
        return f"All SAEs converged (FVU changed by less than {CONVERGED:.0%} {over})."
    if len(changes) == table["variant"].nunique() and len(changes) > 1:
        return f"Not converged: all variants (FVU {changes.min():+.0%} to {changes.max():+.0%} {over})."
    listed = "; ".join(f"{variant} {change:+.0%}" for variant, change in changes.items())
    return f"Not converged (change of FVU {over}): {listed}."


def curves(table: pd.DataFrame, column: str, panel: str) -> pd.DataFrame:
    """Mean L0 and mean of a column over the seeds of each variant and sparsity, and the column's range, for
    ``figures.curves``."""
    by_setting = table.groupby(["variant", "sparsity"], sort=False)
    points = by_setting.agg(l0=("l0", "mean"), value=(column, "mean"), low=(column, "min"), high=(column, "max"))
    return points.reset_index().assign(panel=panel)


def nearest(table: pd.DataFrame, l0: int | float) -> pd.DataFrame:
    """Of each variant and seed the row of the SAE whose L0 is nearest, as a ratio."""
    distance = _log_ratio(table, l0)
    return table.loc[distance.groupby([table["variant"], table["seed"]], sort=False).idxmin()]


def _log_ratio(table: pd.DataFrame, l0: int | float) -> pd.Series:
    return np.log(table["l0"] / l0).abs()


def common_l0(table: pd.DataFrame, l0s: list[int | float]) -> int | float:
    """The densest of some L0s that every variant and seed has an SAE near (a ratio of at most ``NEAR_L0``).

    Where there is no such L0, the one whose farthest SAE is nearest.
    """
    farthest = {l0: _log_ratio(nearest(table, l0), l0).max() for l0 in l0s}
    near = [l0 for l0, distance in farthest.items() if distance <= math.log(NEAR_L0)]
    return max(near) if near else min(farthest, key=farthest.get)


def frequency_of(folder: Path) -> Float[np.ndarray, " d_sae"]:
    """Firing frequency of each latent on the held-out tokens."""
    return np.array(folders.training_record(folder)["frequency"])


def frequencies(shown: pd.DataFrame) -> dict[str, list[Float[np.ndarray, " d_sae"]]]:
    """:func:`frequency_of` of the SAEs of each variant, for ``sae_figures.frequency_histograms``."""
    by_variant = shown.groupby("variant", sort=False)["folder"]
    return {variant: [frequency_of(folder) for folder in of_variant] for variant, of_variant in by_variant}


def descendants_under_qf(shown: pd.DataFrame, f0: float) -> pd.DataFrame:
    """:func:`descendants` of the ``BASELINE`` SAE in the QF SAE, of the rows of one seed that :func:`nearest` gives."""
    folder = shown.set_index("variant")["folder"]
    before, after = folder[BASELINE], folder[quadratic_frequency(f0)]
    return descendants(folders.load(before), folders.load(after), frequency_of(before))


@torch.no_grad()
def descendants(
    before: SAE, after: SAE, frequency: Float[np.ndarray, " d_sae"], cosine: float = 0.5
) -> pd.DataFrame:
    """For each high-frequency latent of ``before``: its nearest decoder row in ``after`` and how many are near.

    Columns: latent, frequency, best (largest cosine), near (number of rows with a cosine above ``cosine``). A
    latent that was split has several near rows.
    """
    latents = np.flatnonzero(frequency > folders.HIGH_FREQUENCY)
    best, near = near_rows(before.W_dec[latents], after.W_dec, cosine)
    return pd.DataFrame({"latent": latents, "frequency": frequency[latents], "best": best, "near": near})


@torch.no_grad()
def near_rows(
    rows: Float[torch.Tensor, "rows d_model"], decoder: Float[torch.Tensor, "d_sae d_model"], cosine: float
) -> tuple[Float[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
    """Each row's largest cosine to the rows of a decoder, and how many of these have one above ``cosine``."""
    rows, decoder = (torch.nn.functional.normalize(part.float(), dim=1) for part in (rows, decoder))
    similarity = rows @ decoder.T
    best = similarity.amax(1) if len(rows) else similarity.new_zeros(0)
    return best.cpu().numpy(), (similarity > cosine).sum(1).cpu().numpy()
