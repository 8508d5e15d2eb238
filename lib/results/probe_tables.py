"""Tables of probes for notebooks 05 and 08: by split, by wrapper, beside the dense probe, and beside each other.

Draws (``lib.stats.draws``) of SAE probes and of dense probes are of the same prompts and replicates, and have the
dimensions of ``lib.probing.tasks.Probe``.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lib.results import tables
from lib.stats import metrics
from lib.stats.draws import Draws
from lib.stats.metrics import Scores, SplitWeights

# Begins at random weights, so that its seeds differ by more than those of SAEs that begin at one of well trained ones:
# their seed variances are not pooled.
APART = ("from scratch",)
MEAN = "mean"  # in the place of a k: the mean over all of them


class Finetuning(NamedTuple):
    """Variants by name: an SAE before finetuning, finetuned on chat, and finetuned on as much pretraining text.

    ``others`` were finetuned from the same SAEs, and tell of the seed variance of such differences.
    """

    before: str
    chat: str
    placebo: str
    others: tuple[str, ...] = ()

    def after(self) -> list[str]:
        """All that began at ``before``."""
        return [self.chat, self.placebo, *self.others]

    @classmethod
    def of(cls, saes: pd.DataFrame, before: str, chat: str, placebo: str) -> "Finetuning":
        """With the others of a table of SAEs (columns variant, start, folder) that began where ``chat`` did."""
        starts = saes.loc[saes["variant"] == before, "folder"]
        began = dict.fromkeys(saes.loc[saes["start"].isin(starts), "variant"])
        return cls(before, chat, placebo, tuple(name for name in began if name not in (chat, placebo)))


def by_split(
    prompts: pd.DataFrame, scores: dict[str, Scores], weights: SplitWeights, **dimensions: Any
) -> pd.DataFrame:
    """AUROC and recall at 1 % false positives of every probe on every split; ``probe`` is the name in ``scores``."""
    return pd.DataFrame(
        [
            row
            for name, of_probe in scores.items()
            for row in metrics.by_split(prompts, of_probe, weights, probe=name, **dimensions)
        ]
    )


def best_cell(areas: pd.DataFrame) -> pd.Series:
    """The row of largest validation AUROC."""
    validation = areas[areas["split"] == "val"]
    return validation.loc[validation["value"].idxmax()]


def by_wrapper(
    prompts: pd.DataFrame, kinds: pd.Series, scores: dict[str, Scores], weights: SplitWeights
) -> pd.DataFrame:
    """AUROC of every probe in every wrapper (:func:`lib.stats.metrics.by_transform`), named by kind and transform."""
    table = pd.DataFrame(
        [
            row
            for name, of_probe in scores.items()
            for row in metrics.by_transform(prompts, kinds, of_probe, weights, probe=name)
        ]
    )
    wrapper = table["kind"].str.cat(table["transform"], ": ").replace("plain: plain", "plain")
    return table.assign(wrapper=wrapper)


def in_wrapper_order(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of one split, plain prompts first, then jailbreaks, then innocuous transformations."""
    rows = table[table["split"] == split]
    return rows.sort_values("kind", ascending=False, kind="stable")


def over_seeds(draws: Draws, seed: int) -> Draws:
    """Means over the seeds of SAEs, with the seed variance of the variants of a kind pooled (``Draws.over_seeds``)."""
    return draws.over_seeds(seed, apart=APART)


def replaced(rough: pd.DataFrame, exact: pd.DataFrame) -> pd.DataFrame:
    """Estimates ``rough``, with those of ``exact`` in the place of rows that have the same dimensions."""
    names = [name for name in exact if name not in ("value", "low", "high")]
    is_exact = rough[names].merge(exact[names], how="left", on=names, indicator=True)["_merge"] == "both"
    return pd.concat([exact, rough[~is_exact.to_numpy()]], ignore_index=True)


def _differences(draws: Draws, dimension: str, reference: Any, seed: int) -> Draws:
    """Means over seeds of each row minus the row that differs in ``dimension`` only, the seed being the same."""
    return draws.against(dimension, reference).defined().over_seeds(seed, (-1.0, 1.0), APART)


def gained(k_sparse: Draws, names: Finetuning, seed: int) -> pd.DataFrame:
    """AUROC that finetuning adds, each base SAE against what was made of it: chat and placebo minus before, and chat
    minus placebo.

    Metrics ``auroc_gained_by_finetuning``, ``auroc_gained_by_placebo`` and ``auroc_gained_over_placebo``; a row for
    each k, and one whose k is ``MEAN``. The seed noise of the intervals is that of the differences.
    """
    pairs = {
        "auroc_gained_by_finetuning": (names.chat, names.before),
        "auroc_gained_by_placebo": (names.placebo, names.before),
        "auroc_gained_over_placebo": (names.chat, names.placebo),
    }
    parts = []
    for metric, (variant, reference) in pairs.items():
        compared = _with_mean(k_sparse.where(variant=[*names.after(), reference]))
        apart = _differences(compared, "variant", reference, seed).where(variant=variant)
        parts.append(apart.estimates().assign(metric=metric, against=reference))
    return pd.concat(parts, ignore_index=True)


def gained_by_seed(k_sparse: Draws, names: Finetuning) -> pd.DataFrame:
    """The differences of :func:`gained` to ``before`` for each base SAE by itself, with the column ``seed``."""
    compared = k_sparse.where(variant=[names.before, names.chat, names.placebo])
    return compared.against("variant", names.before).defined().estimates()


def curves_of_gains(table: pd.DataFrame, before: str) -> pd.DataFrame:
    """The rows of :func:`gained` against ``before``, of single k."""
    return table[(table["against"] == before) & (table["k"] != MEAN)].astype({"k": "Int64"})


def zero_lines(table: pd.DataFrame) -> pd.DataFrame:
    """Rows at zero for each split of a table of differences, as the reference of a figure."""
    return pd.DataFrame({"split": table["split"].unique(), "value": 0.0, "low": 0.0, "high": 0.0})


def _with_mean(k_sparse: Draws) -> Draws:
    return k_sparse.joined(k_sparse.averaged("k", MEAN)) if len(k_sparse.dimensions) else k_sparse


def gaps_closed(k_sparse: Draws, dense: Draws, before: str, seed: int) -> pd.DataFrame:
    """Share of the gap between the dense probe and the SAE ``before`` that every other SAE's k-sparse probes close,

        (AUROC_after − AUROC_before) / (AUROC_dense − AUROC_before),

    the numerator paired by seed. Both are of one split, ``dense`` is one row. A row per variant, pooling, selection and
    k, with the interval over base prompts and seeds; null where the interval of the gap itself does not lie above zero,
    and ``why`` says so.

    Raises:
        ValueError: ``dense`` has not exactly one row.
    """
    if len(dense.values) != 1:
        raise ValueError(f"the dense probe of a gap is one row; there are {len(dense.values)}")
    match = ["pooling", "selection", "k"]
    gap = over_seeds(k_sparse.where(variant=before), seed).behind(dense, ["split"])
    shares = _differences(k_sparse, "variant", before, seed).share_of(gap, match).estimates()
    gaps = shares[match].merge(gap.estimates(), on=match, how="left")
    is_gap = (gaps["low"] > 0).to_numpy()
    texts = "the gap is " + tables.texts(gaps) + ": no gap above zero of which a share could be closed"
    shares.loc[~is_gap, ["value", "low", "high"]] = np.nan
    return shares.assign(why=texts.where(~is_gap, None))


def auroc_lost(linear: Draws, dense: Draws, seed: int) -> pd.DataFrame:
    """AUROC of the dense probe minus that of each linear probe on an SAE, same pooling and replicates."""
    return over_seeds(linear, seed).behind(dense, ["pooling", "split"]).estimates()


def behind_dense(k_sparse: Draws, dense: Draws, seed: int) -> pd.DataFrame:
    """AUROC of the dense probe (one pooling) minus that of each k-sparse probe."""
    return over_seeds(k_sparse, seed).behind(dense, ["split"]).estimates()


def differences(k_sparse: Draws, references: dict[str, str], seed: int) -> pd.DataFrame:
    """Paired differences of k-sparse probes of one k and split to the SAE, the selection and the pooling of
    ``references``, whose keys are ``variant``, ``selection`` and ``pooling``.

    Each SAE is compared with the one of the same seed. The column ``level`` names what differs, ``against`` the
    reference.
    """
    parts = []
    for level, reference in references.items():
        apart = _differences(k_sparse, level, reference, seed).estimates()
        parts.append(apart.assign(level=level, against=reference))
    return pd.concat(parts, ignore_index=True)


def with_numeric_k(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose column ``k`` has numbers only, as parquet wants it; ``over`` says where a row is a mean over k."""
    is_mean = table["k"].eq(MEAN).fillna(False).astype(bool)
    k = pd.to_numeric(table["k"].mask(is_mean)).astype("Int64")
    return table.assign(k=k, over=is_mean.map({True: "k", False: None}))
