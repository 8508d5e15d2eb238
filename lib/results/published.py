"""The published results of SAE-Probes (Kantamneni et al. 2025, arXiv 2502.16681; MIT) on Gemma 2 9B at layer 20, the
model and layer of the paper: read from the authors' files, and averaged with intervals over tasks.

Their files: ``OOD_setting/all_metrics.csv`` of Gemma 2 9B is in distribution by mistake, so it is not read; the file of
eight tasks out of distribution disagrees with it, and is. For one task a loader picks the latent by hand. The share of
wrong labels 0.5, at which labels say nothing, and 0, at which none is wrong, and shares of positives above one half are
left out here.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from lib.results import task_tables
from lib.results.task_tables import DENSE, IMBALANCE, NOISE, NORMAL, OOD, SCARCITY

SOURCE = "published"
FILES = {
    "dense": "sae_probes_dense", "latent": "sae_probes_best_latent", OOD: "sae_probes_ood",
    f"dense, {SCARCITY}": "sae_probes_dense_scarcity", f"latents, {SCARCITY}": "sae_probes_latents_scarcity",
    f"dense, {IMBALANCE}": "sae_probes_dense_imbalance", f"latents, {IMBALANCE}": "sae_probes_latents_imbalance",
    f"dense, {NOISE}": "sae_probes_dense_noise", f"latents, {NOISE}": "sae_probes_latents_noise",
}  # fmt: skip
# Of each setting its level's columns in the two files, dense and latents.
LEVELS = {SCARCITY: ("num_train", "num_train"), IMBALANCE: ("ratio", "frac"), NOISE: ("ratio", "corrupt_frac")}
METHODS = {"logreg": DENSE, "pca": "PCA", "knn": "kNN", "xgboost": "XGBoost", "mlp": "MLP"}
SAE = "layer_20/width_131k/average_l0_276"  # of the three in their files that nearest to the width of the paper


class Read(NamedTuple):
    """Test AUROC by task, setting, level and probe; and what the files hold that is not as it should be."""

    table: pd.DataFrame
    said: list[str]


def read(paths: dict[str, Path]) -> Read:
    """The files (by the keys of ``FILES``) as one tidy table: task, setting, level, probe, value.

    Raises:
        ValueError: a file lacks a column.
    """
    frames = {name: pd.read_csv(path) for name, path in paths.items()}
    parts, said = [], []
    dense = _columns(frames["dense"], "dense", ["dataset", "method", "test_auc"])
    parts.append(_tidy(dense, NORMAL, None, dense["method"].map(METHODS), "test_auc"))
    latent = _columns(frames["latent"], "latent", ["dataset", "test_auc"])
    parts.append(_tidy(latent, NORMAL, None, "best latent", "test_auc"))
    ood = _columns(frames[OOD], OOD, ["dataset", "test_auc_baseline", "test_auc_sae"])
    parts.append(_tidy(ood, OOD, None, DENSE, "test_auc_baseline"))
    parts.append(_tidy(ood, OOD, None, "SAE", "test_auc_sae"))
    for setting, (of_dense, of_latents) in LEVELS.items():
        baseline = _columns(frames[f"dense, {setting}"], setting, ["dataset", "method", of_dense, "test_auc"])
        parts.append(_tidy(baseline, setting, of_dense, baseline["method"].map(METHODS), "test_auc"))
        columns = ["dataset", "sae_id", "k", of_latents, "test_auc"]
        sparse = _columns(frames[f"latents, {setting}"], setting, columns)
        sparse = sparse[sparse["sae_id"] == SAE]
        parts.append(_tidy(sparse, setting, of_latents, "k = " + sparse["k"].astype(str), "test_auc"))
    table = pd.concat(parts, ignore_index=True)
    is_share = table["level"].notna() & table["setting"].isin([IMBALANCE, NOISE])
    table = table[~is_share | table["level"].between(0, 0.5, "neither")]
    key = ["task", "setting", "level", "probe"]
    if repeated := int(table.duplicated(key).sum()):
        said.append(f"{repeated} rows stand twice, of which the first are read")
    return Read(table.drop_duplicates(key).reset_index(drop=True), said)


def _columns(frame: pd.DataFrame, name: str, needed: list[str]) -> pd.DataFrame:
    missing = sorted(set(needed) - set(frame))
    if missing:
        raise ValueError(f"the published file of {name} has no column {missing}; it has {list(frame)}")
    return frame


def _tidy(
    frame: pd.DataFrame, setting: str, level: str | None, probe: str | pd.Series, value: str
) -> pd.DataFrame:
    levels = frame[level].astype(float).round(4) if level else np.nan
    return pd.DataFrame(
        {"task": frame["dataset"], "setting": setting, "level": levels, "probe": probe, "value": frame[value]}
    )


def averages(table: pd.DataFrame, replicates: int, seed: int) -> pd.DataFrame:
    """Mean AUROC over tasks by setting and probe (a mean over levels within each task first), with the interval over
    tasks; metric ``auroc``."""
    return task_tables.means(_over_levels(table), ["setting", "probe"], replicates, seed).assign(
        metric="auroc", source=SOURCE
    )


def behind_dense(table: pd.DataFrame, replicates: int, seed: int) -> pd.DataFrame:
    """What each probe on latents is behind logistic regression, over the tasks and levels that both have; metric
    ``auroc_behind_dense``.

    The probes of a setting other than the normal one are a family with those of the others at the same k.
    """
    dense = table[table["probe"] == DENSE].set_index(["task", "setting", "level"])["value"]
    latents = table[table["probe"].isin(["best latent", "SAE"]) | table["probe"].str.startswith("k = ")]
    place = pd.MultiIndex.from_frame(latents[["task", "setting", "level"]])
    behind = latents.assign(value=dense.reindex(place).to_numpy() - latents["value"].to_numpy()).dropna(subset="value")
    tables = [
        task_tables.family(_over_levels(part), ["setting", "probe"], replicates, seed)
        for _, part in behind.groupby("probe", sort=False)
    ]
    return pd.concat(tables, ignore_index=True).assign(metric="auroc_behind_dense", source=SOURCE)


def beside(table: pd.DataFrame, of_tasks: pd.DataFrame) -> pd.DataFrame:
    """What the best latent of each task is behind the dense probe: published (``x``), and here (``y``)."""
    there = table[table["setting"] == NORMAL].pivot_table("value", "task", "probe", sort=False)
    behind = there[DENSE] - there["best latent"]
    here = task_tables.beside_dense(of_tasks, k=1).assign(y=lambda t: t["x"] - t["y"])
    return here.assign(x=behind.reindex(here["task"]).to_numpy()).dropna(subset="x")


def _over_levels(table: pd.DataFrame) -> pd.DataFrame:
    return task_tables.averaged(table, ["setting", "probe"], ["value"])
