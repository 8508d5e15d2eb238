"""Comparing SAE architectures: grids of trainings, reconstruction cost at matched L0, and what becomes of a latent."""

import dataclasses
import itertools
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from sae_lens import SAE

from lib.base.registry import lookup
from lib.sae import architectures, folders, learning_rates
from lib.sae.harvest import Stores
from lib.sae.recipes import Recipe
from lib.sae.training import train
from lib.stats.metrics import Estimate, t_interval

BASELINE = "JumpReLU, L0"
OF_ESTIMATES = ["metric", "variant", *Estimate._fields, "unit"]


class Cell(NamedTuple):
    """The place of an SAE in a grid of trainings."""

    variant: str
    sparsity: int | float
    seed: int


def quadratic_frequency(f0: float) -> str:
    """The variant's name of JumpReLU with the quadratic-frequency penalty."""
    return f"JumpReLU, QF f₀={f0}"


def variants(f0s: list[float], comparators: list[str], lrs: dict[str, float]) -> dict[str, dict[str, Any]]:
    """What the variants of a comparison change in a recipe, by name: ``BASELINE`` first, QF penalties, comparators.

    ``lrs`` holds the comparators' learning rates by the field that steers them, for those whose entry in
    ``ARCHITECTURES`` has none of its own.

    Raises:
        ValueError: an unknown architecture.
    """
    changes: dict[str, dict[str, Any]] = {BASELINE: {}}
    for f0 in f0s:
        changes[quadratic_frequency(f0)] = {"penalty": "quadratic_frequency", "f0": f0}
    for name in comparators:
        entry = architectures.architecture(name)
        lr = lookup(lrs, "field with a learning rate", entry.steered_by) if entry.lr is None else entry.lr
        changes[name] = {"architecture": name, "lr": lr}
    return changes


def recipes(
    base: Recipe, variants: dict[str, dict[str, Any]], sparsities: dict[str, list[int | float]], seeds: list[int]
) -> dict[Cell, Recipe]:
    """Recipes of a grid, by cell. ``variants`` holds what differs from ``base``, ``sparsities`` the values of each
    field that steers an architecture: ``target_l0`` and ``coefficient``.

    Raises:
        ValueError: an unknown architecture, or an impossible recipe.
    """
    grid = {}
    for variant, change in variants.items():
        changed = dataclasses.replace(base, **change)
        field = architectures.architecture(changed.architecture).steered_by
        for sparsity in architectures.sparsities(changed.architecture, sparsities):
            for seed in sorted(seeds):
                recipe = dataclasses.replace(changed, **{field: sparsity}, seed=seed)
                grid[Cell(variant, sparsity, seed)] = architectures.check(recipe)
    return grid


def train_grid(grid: dict[Cell, Recipe], stores: Stores, parent: Path, **options: Any) -> pd.DataFrame:
    """Train (or find) every SAE of a grid, with ``options`` of ``train``.

    A learning rate that is to be chosen (``lib.sae.learning_rates``) is chosen for the middle sparsity and the first
    seed of each variant, and holds for all of it. A row each: variant, sparsity, seed, lr, tokens_per_s, folder, and
    the held-out metrics.
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
        rows.append(row | record["held_out"])
    return pd.DataFrame(rows)


def pareto(table: pd.DataFrame, panel: str) -> pd.DataFrame:
    """Mean L0 and FVU over the seeds of each variant and sparsity, and the range of FVU, for ``figures.curves``."""
    by_setting = table.groupby(["variant", "sparsity"], sort=False)
    points = by_setting.agg(l0=("l0", "mean"), value=("fvu", "mean"), low=("fvu", "min"), high=("fvu", "max"))
    return points.reset_index().assign(panel=panel)


def matched_difference(
    table: pd.DataFrame, variant: str, baseline: str, l0: list[int | float]
) -> tuple[Estimate, pd.DataFrame]:
    """FVU of ``variant`` minus ``baseline`` at equal L0, with a 95 % t interval, and the single differences.

    FVU is interpolated linearly in log L0 within each seed; an L0 that one of the two curves does not span is left
    out, never extrapolated. Differences of one seed at several L0 are not independent: the interval is over the seeds'
    means, n counts differences and n_groups seeds.
    """
    rows = []
    for seed in sorted(set(table["seed"])):
        of_seed = table[table["seed"] == seed]
        ours, theirs = (of_seed[of_seed["variant"] == name].sort_values("l0") for name in (variant, baseline))
        if ours.empty or theirs.empty:
            continue
        low = max(ours["l0"].min(), theirs["l0"].min())
        high = min(ours["l0"].max(), theirs["l0"].max())
        for value in l0:
            if low <= value <= high:
                difference = _fvu_at(ours, value) - _fvu_at(theirs, value)
                rows.append({"seed": seed, "l0": value, "difference": difference})
    differences = pd.DataFrame(rows, columns=["seed", "l0", "difference"])
    differences["difference"] = differences["difference"].astype(float)
    by_seed = differences.groupby("seed")["difference"].mean()
    estimate = t_interval(by_seed.to_numpy())._replace(n=len(differences), n_groups=len(by_seed))
    return estimate, differences


def _fvu_at(curve: pd.DataFrame, l0: int | float) -> float:
    return np.interp(np.log(l0), np.log(curve["l0"]), curve["fvu"])


def with_middles(l0s: list[int | float]) -> list[int | float]:
    """Targets in order, with the geometric mean of each two neighbours: a target ends what an SAE's L0s span, and may
    just be missed."""
    ordered = sorted(l0s)
    return sorted([*ordered, *(math.sqrt(a * b) for a, b in itertools.pairwise(ordered))])


def fvu_costs(table: pd.DataFrame, l0: list[int | float]) -> pd.DataFrame:
    """:func:`matched_difference` of every variant from ``BASELINE``: rows of ``fvu_cost_at_matched_l0``."""
    rows = []
    for variant in table["variant"].unique():
        if variant != BASELINE:
            cost, _ = matched_difference(table, variant, BASELINE, l0)
            about = {"metric": "fvu_cost_at_matched_l0", "variant": variant, "unit": "fraction of variance"}
            rows.append(about | cost._asdict())
    return pd.DataFrame(rows, columns=OF_ESTIMATES)


def frequent_latents(table: pd.DataFrame, least_l0: int | float) -> pd.DataFrame:
    """High-frequency latents of each variant, a mean over its SAEs above ``least_l0`` with a t interval over seeds."""
    dense_enough = table[table["l0"] > least_l0]
    by_seed = dense_enough.groupby(["variant", "seed"], sort=False)["high_frequency"].mean()
    rows = []
    for variant in dense_enough["variant"].unique():
        estimate = t_interval(by_seed[variant].to_numpy())
        rows.append({"metric": "high_frequency", "variant": variant, "unit": "latents"} | estimate._asdict())
    return pd.DataFrame(rows, columns=OF_ESTIMATES)


def of_middle_l0(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The rows of one seed that a figure shows: of each variant the SAE of middle L0, of an even number the denser."""
    of_seed = table[table["seed"] == seed]
    l0 = of_seed.groupby("variant")["l0"]
    return of_seed[l0.rank(method="first") == l0.transform("size") // 2 + 1]


def descendants_under_qf(table: pd.DataFrame, seed: int, f0: float) -> pd.DataFrame:
    """:func:`descendants` of the ``BASELINE`` SAE of middle L0 in the QF SAE of the same target and seed."""
    before = of_middle_l0(table, seed).set_index("variant").loc[BASELINE]
    folder = table.set_index(list(Cell._fields))["folder"]
    after = folder[quadratic_frequency(f0), before["sparsity"], seed]
    frequency = np.array(folders.training_record(before["folder"])["frequency"])
    return descendants(folders.load(before["folder"]), folders.load(after), frequency)


@torch.no_grad()
def descendants(
    before: SAE, after: SAE, frequency: Float[np.ndarray, " d_sae"], cosine: float = 0.5
) -> pd.DataFrame:
    """For each high-frequency latent of ``before``: its nearest decoder row in ``after`` and how many are near.

    Columns: latent, frequency, best (largest cosine), near (number of rows with a cosine above ``cosine``). A
    latent that was split has several near rows.
    """
    latents = np.flatnonzero(frequency > folders.HIGH_FREQUENCY)
    rows_before, rows_after = (torch.nn.functional.normalize(sae.W_dec.float(), dim=1) for sae in (before, after))
    similarity = rows_before[latents] @ rows_after.T
    best = similarity.amax(1).numpy() if len(latents) else np.zeros(0)
    near = (similarity > cosine).sum(1).numpy()
    return pd.DataFrame({"latent": latents, "frequency": frequency[latents], "best": best, "near": near})
