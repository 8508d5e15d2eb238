"""Tables of probes for notebooks 05 and 08: by split, by wrapper, beside the dense probe, and beside each other.

Draws (``lib.stats.draws``) of SAE probes and of dense probes are of the same prompts and replicates, and have the
dimensions of ``lib.probing.tasks.Probe``.
"""

import functools
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from lib.stats import metrics
from lib.stats.draws import Draws
from lib.stats.metrics import Scores, SplitWeights


def by_split(
    prompts: pd.DataFrame, scores: dict[str, Scores], weights: SplitWeights, **dimensions: Any
) -> pd.DataFrame:
    """AUROC and recall at 1 % false positives of every probe on every split; ``probe`` is the name in ``scores``."""
    return pd.DataFrame([
        row
        for name, of_probe in scores.items()
        for row in metrics.by_split(prompts, of_probe, weights, probe=name, **dimensions)
    ])


def within_length(
    prompts: pd.DataFrame, scores: dict[str, Scores], weights: SplitWeights, n_strata: int = 5
) -> pd.DataFrame:
    """AUROC within strata of length, of every probe on every split (:func:`lib.stats.metrics.within_strata`).

    Metric ``auroc_within_length``; the strata are quantiles of the base prompts' characters, see ``length_strata``.
    """
    strata = length_strata(prompts, n_strata)
    rows = []
    for split, replicates in weights.items():
        part = (prompts["split"] == split).to_numpy()
        y, ids = prompts["label"].to_numpy()[part], prompts["base_id"].to_numpy()[part]
        metric = functools.partial(metrics.within_strata, strata=strata[part])
        for name, of_probe in scores.items():
            area = metrics.estimate(y, of_probe[part], ids, metric, replicates)
            rows.append(metrics.row("auroc_within_length", area, probe=name, split=split))
    return pd.DataFrame(rows)


def length_strata(prompts: pd.DataFrame, n_strata: int) -> Int[np.ndarray, " prompts"]:
    """Stratum of each prompt: the quantile of its base prompt's characters among the base prompts of its split.

    A wrapped prompt is in the stratum of its base prompt, as the wrapper's own length says nothing of the content.
    """
    plain = prompts[prompts["transform"] == "plain"].drop_duplicates("base_id").set_index("base_id")
    length = plain["text"].str.len()
    inner = np.linspace(0, 1, n_strata + 1)[1:-1]
    stratum = length.groupby(plain["split"]).transform(
        lambda of_split: np.searchsorted(of_split.quantile(inner), of_split)
    )
    return prompts["base_id"].map(stratum).to_numpy()


def best_cell(areas: pd.DataFrame) -> pd.Series:
    """The row of largest validation AUROC."""
    validation = areas[areas["split"] == "val"]
    return validation.loc[validation["value"].idxmax()]


def by_wrapper(
    prompts: pd.DataFrame, kinds: pd.Series, scores: dict[str, Scores], weights: SplitWeights
) -> pd.DataFrame:
    """AUROC of every probe in every wrapper (:func:`lib.stats.metrics.by_transform`), named by kind and transform."""
    table = pd.DataFrame([
        row
        for name, of_probe in scores.items()
        for row in metrics.by_transform(prompts, kinds, of_probe, weights, probe=name)
    ])
    wrapper = table["kind"].str.cat(table["transform"], ": ").replace("plain: plain", "plain")
    return table.assign(wrapper=wrapper)


def in_wrapper_order(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of one split, plain prompts first, then jailbreaks, then innocuous transformations."""
    rows = table[table["split"] == split]
    return rows.sort_values("kind", ascending=False, kind="stable")


def gaps_closed(k_sparse: Draws, dense: Draws, before: str, seed: int) -> pd.DataFrame:
    """Share of the gap between the dense probe and the SAE ``before`` that every other SAE's k-sparse probes close.

    Both are of one split, ``dense`` is one row. A row per variant, pooling, selection and k, with the interval over
    base prompts and seeds.
    """
    means = k_sparse.over_seeds(seed)
    first = means.where(variant=before)
    return means.without(variant=before).gap_closed(first, dense, ["pooling", "selection", "k"]).estimates()


def auroc_lost(linear: Draws, dense: Draws, seed: int) -> pd.DataFrame:
    """AUROC of the dense probe minus that of each linear probe on an SAE, same pooling and replicates."""
    return linear.over_seeds(seed).behind(dense, ["pooling", "split"]).estimates()


def behind_dense(k_sparse: Draws, dense: Draws, seed: int) -> pd.DataFrame:
    """AUROC of the dense probe (one pooling) minus that of each k-sparse probe."""
    return k_sparse.over_seeds(seed).behind(dense, ["split"]).estimates()


def differences(k_sparse: Draws, references: dict[str, str], seed: int) -> pd.DataFrame:
    """Paired differences of k-sparse probes of one k and split to the SAE, the selection and the pooling of
    ``references``.

    ``references`` has ``variant``, ``selection`` and ``pooling``. SAEs are compared after the mean over their seeds,
    selections and poolings within one SAE. The column ``level`` names what differs, ``against`` the reference.
    """
    parts = []
    for level, reference in references.items():
        if level == "variant":
            apart = k_sparse.over_seeds(seed).against(level, reference)
        else:
            apart = k_sparse.against(level, reference).over_seeds(seed, (-1.0, 1.0))
        parts.append(apart.estimates().assign(level=level, against=reference))
    return pd.concat(parts, ignore_index=True)
