"""Tables of probes for notebooks 05 and 08: by split, by wrapper, beside the dense probe, and beside each other.

Draws (``lib.stats.draws``) of SAE probes and of dense probes are of the same prompts and replicates, and have the
dimensions of ``lib.probing.tasks.Probe``.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int

from lib.results import tables
from lib.stats import families, metrics
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


def units(saes: pd.DataFrame, before: str, shown: Sequence[str] | None = None) -> str:
    """What the intervals of means over SAEs are over, in words, with the variants (of ``shown``, if given) that have
    fewer SAEs than ``before`` (columns variant and seed)."""
    counts = saes.groupby("variant", sort=False).size()
    if counts[before] == 1:
        return "base prompts only (one base SAE)"
    fewer = counts[counts < counts[before]]
    fewer = fewer if shown is None else fewer[fewer.index.isin(shown)]
    names = [", ".join(part.index) + f": {n}" for n, part in fewer.groupby(fewer, sort=True)]
    return f"base prompts and {counts[before]} base SAEs" + (f" ({'; '.join(names)})" if names else "")


def by_split(
    prompts: pd.DataFrame, scores: dict[str, Scores], weights: SplitWeights, **dimensions: Any
) -> pd.DataFrame:
    """AUROC and recall at 1 % false positives of every probe on every split; ``probe`` is the name in ``scores``."""
    return pd.DataFrame([
        row
        for name, of_probe in scores.items()
        for row in metrics.by_split(prompts, of_probe, weights, probe=name, **dimensions)
    ])


def within_wrappers(
    prompts: pd.DataFrame, kinds: pd.Series, split: str, scores: dict, weights: SplitWeights, seed: int
) -> pd.DataFrame:
    """:func:`draws_within` as rows of ``auroc_within_wrapper``, with the interval of :func:`over_wrappers`."""
    drawn, n_wrappers = draws_within(prompts, kinds, split, scores, weights, seed)
    return over_wrappers(drawn, n_wrappers).assign(metric="auroc_within_wrapper")


def draws_within(
    prompts: pd.DataFrame, kinds: pd.Series, split: str, scores: dict, weights: SplitWeights, seed: int
) -> tuple[Draws, int]:
    """Draws of the mean AUROC within the wrappers of a split (:func:`lib.stats.metrics.within`), and the number of
    these wrappers."""
    here = (prompts["split"] == split).to_numpy()
    rows, y = metrics.wrapper_rows(prompts[here], kinds[here]), prompts["label"].to_numpy()[here]
    parts = {name: [part] for name, part in rows.items() if len(np.unique(y[part])) == 2}
    return Draws.of(prompts, scores, {split: weights[split]}, metrics.within(parts, seed)), len(parts)


def over_wrappers(drawn: Draws, n_wrappers: int) -> pd.DataFrame:
    """Estimates of draws over base prompts and few wrappers, with the width that Student's distribution has for as many
    (``lib.stats.families.at_levels``); without an interval for a single wrapper."""
    if n_wrappers < 2:
        return drawn.table().assign(low=np.nan, high=np.nan)
    return families.at_levels(drawn, n_units=n_wrappers).drop(columns="alpha")


def ahead_of(by_method: Draws, baseline: str) -> pd.DataFrame:
    """AUROC of every method minus that of the baseline: rows of ``auroc_difference`` with the column ``against``."""
    ahead = by_method.against("probe", baseline).estimates()
    return ahead.assign(metric="auroc_difference", level="method", against=baseline)


def named(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column ``name``: the probe, the SAE that it reads if there is one, and the pooling where a name
    alone has several."""
    variant = table["variant"].where(table["variant"].notna(), "")
    name = table["probe"].where(variant == "", table["probe"] + ", " + variant)
    several = table["pooling"].groupby(name).transform("nunique") > 1
    return table.assign(name=name.where(~several, name + ", " + table["pooling"].astype(str)))


def lost_more(lost: Draws, split: str) -> pd.DataFrame:
    """What each probe lost on a split beyond what it lost in validation: rows of ``auroc_lost_more_ood``."""
    others = [name for name in lost.dimensions if name != "split"]
    more = lost.where(split=split).minus(lost.where(split="val"), others)
    return more.estimates().assign(metric="auroc_lost_more_ood")


def selection_differences(of_selections: Draws, reference: str, seed: int) -> pd.DataFrame:
    """Paired differences of selections to the reference, of one k and split, mean over seeds, as one family."""
    apart = _differences(of_selections, "selection", reference, seed)
    return families.estimates(apart).assign(metric="auroc_difference", level="selection", against=reference)


def way_differences(
    k_sparse: Draws, reference: str, ways: list[str], seed: int, lending: Sequence[str] = ()
) -> pd.DataFrame:
    """Differences of SAEs to the reference of the same seed, of one k and split, mean over seeds, as one family.

    The variants ``lending``, which began where the reference did and are not of the family, tell of the seed variance
    of such differences: a way that was made of one base SAE has none of its own.
    """
    compared = k_sparse.where(variant=[reference, *ways, *lending])
    apart = _differences(compared, "variant", reference, seed).where(variant=ways)
    return families.estimates(apart).assign(metric="auroc_difference", level="variant", against=reference)


def ahead_of_controls(
    drawn: Draws, variant: str, split: str, seed: int, n_wrappers: int | None = None
) -> pd.DataFrame:
    """AUROC of a variant's k-sparse probes minus that of each control, one k and split, means over seeds and draws.

    Rows of ``auroc_ahead_of_control`` with the columns ``variant`` and ``control``, as one family. Of draws over few
    wrappers their number widens the intervals (:func:`over_wrappers`).
    """
    of_split = drawn.where(split=split)
    names = of_split.where(probe="control").dimensions["variant"].unique()
    means = of_split.over_seeds(seed, apart=(*APART, *names))  # the draws of each control vary as they do
    ahead = means.where(probe="control").behind(means.where(probe="k-sparse", variant=variant), ["k", "split"])
    family = families.estimates(ahead, n_wrappers).assign(control=lambda table: table["variant"])
    return family.assign(variant=variant, metric="auroc_ahead_of_control")


def forms(chosen: dict[tuple[str, Any], tuple[str, str]]) -> pd.DataFrame:
    """Pooling and selection that validation chose, a row for each SAE or control (variant, seed)."""
    return pd.DataFrame([
        {"variant": variant, "seed": seed, "pooling": pooling, "selection": selection}
        for (variant, seed), (pooling, selection) in chosen.items()
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


def over_seeds(draws: Draws, seed: int) -> Draws:
    """Means over the seeds of SAEs, with the seed variance of the variants of a kind pooled (``Draws.over_seeds``)."""
    return draws.over_seeds(seed, apart=APART)


def _differences(draws: Draws, dimension: str, reference: Any, seed: int) -> Draws:
    """Means over seeds of each row minus the row that differs in ``dimension`` only, the seed being the same."""
    return draws.against(dimension, reference).defined().over_seeds(seed, (-1.0, 1.0), APART)


def gained(k_sparse: Draws, names: Finetuning, seed: int) -> pd.DataFrame:
    """AUROC that finetuning adds, each base SAE against what was made of it: chat and placebo minus before, and chat
    minus placebo.

    Metrics ``auroc_gained_by_finetuning``, ``auroc_gained_by_placebo`` and ``auroc_gained_over_placebo``; a row for
    each k, and one whose k is ``MEAN``. The seed noise of the intervals is that of the differences.
    """
    parts = [
        apart.estimates().assign(metric=metric, against=reference)
        for metric, reference, apart in gains(k_sparse, names, seed, _with_mean)
    ]
    return pd.concat(parts, ignore_index=True)


def gains(
    k_sparse: Draws, names: Finetuning, seed: int, extended: Callable[[Draws], Draws] = lambda draws: draws
) -> Iterator[tuple[str, str, Draws]]:
    """Metric, reference and draws of what :func:`gained` estimates; ``extended`` adds rows to those compared."""
    pairs = {
        "auroc_gained_by_finetuning": (names.chat, names.before),
        "auroc_gained_by_placebo": (names.placebo, names.before),
        "auroc_gained_over_placebo": (names.chat, names.placebo),
    }
    for metric, (variant, reference) in pairs.items():
        compared = extended(k_sparse.where(variant=[*names.after(), reference]))
        yield metric, reference, _differences(compared, "variant", reference, seed).where(variant=variant)


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

    the numerator paired by seed, the gap that of the same seeds. Both are of one split, ``dense`` is one row. A row per
    variant, pooling, selection and k, with the interval over base prompts and seeds; null where the interval of the gap
    itself does not lie above zero, and ``why`` says so.

    Raises:
        ValueError: ``dense`` has not exactly one row.
    """
    if len(dense.values) != 1:
        raise ValueError(f"the dense probe of a gap is one row; there are {len(dense.values)}")
    closed = _differences(k_sparse, "variant", before, seed)
    by_seeds = _by_seeds(k_sparse, before)
    gaps = over_seeds(_of_seeds(k_sparse.where(variant=before), by_seeds), seed).behind(dense, ["split"])
    parts = [
        _shares(closed.where(variant=variants), gaps.where(variant=_label(seeds)))
        for seeds, variants in by_seeds.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _by_seeds(k_sparse: Draws, before: str) -> dict[tuple, list[str]]:
    """The variants beside ``before``, by the seeds that both have."""
    seeds_of = k_sparse.dimensions.groupby("variant", sort=False)["seed"].agg(set)
    by_seeds: dict[tuple, list[str]] = {}
    for variant, seeds in seeds_of.drop(before).items():
        by_seeds.setdefault(tuple(sorted(seeds & seeds_of[before])), []).append(variant)
    by_seeds.pop((), None)  # nothing to compare with
    return by_seeds


def _label(seeds: tuple) -> str:
    return ", ".join(map(str, seeds))


def _of_seeds(draws: Draws, sets: Iterable[tuple]) -> Draws:
    """The rows of one variant at each of several sets of seeds, as variants of their own (:func:`_label`), so that a
    mean over one seed takes the seed variance of those over several."""
    parts = {_label(seeds): draws.where(seed=seeds) for seeds in sets}
    named = [Draws(part.dimensions.assign(variant=label), part.values) for label, part in parts.items()]
    return functools.reduce(Draws.joined, named)


def _shares(closed: Draws, gap: Draws) -> pd.DataFrame:
    """Estimates of ``closed`` as a share of the gap of the same pooling, selection and k, with the column ``why``."""
    match = ["pooling", "selection", "k"]
    shares = closed.share_of(gap, match).estimates()
    gaps = shares[match].merge(gap.estimates(), on=match, how="left")
    is_gap = (gaps["low"] > 0).to_numpy()
    texts = "the gap is " + tables.texts(gaps) + ": no gap above zero of which a share could be closed"
    shares.loc[~is_gap, ["value", "low", "high"]] = np.nan
    return shares.assign(why=texts.where(~is_gap, None))


def auroc_lost(linear: Draws, dense: Draws, seed: int) -> Draws:
    """AUROC of the dense probe minus that of each linear probe on an SAE, same pooling and replicates."""
    return over_seeds(linear, seed).behind(dense, ["pooling", "split"])


def behind_dense(k_sparse: Draws, dense: Draws, seed: int) -> pd.DataFrame:
    """AUROC of the dense probe (one pooling) minus that of each k-sparse probe."""
    return over_seeds(k_sparse, seed).behind(dense, ["split"]).estimates()


def behind_in_poolings(k_sparse: Draws, dense: Draws, of_poolings: list[str], seed: int) -> pd.DataFrame:
    """:func:`behind_dense` of the dense probe of each pooling (``against``), which are a family in every split: rows of
    ``auroc_behind_dense_in_pooling``."""
    means = over_seeds(k_sparse, seed)
    parts = {pooling: means.behind(dense.where(pooling=pooling), ["split"]) for pooling in of_poolings}
    named = [Draws(part.dimensions.assign(against=pooling), part.values) for pooling, part in parts.items()]
    every = functools.reduce(Draws.joined, named)
    rows = [families.estimates(every.where(split=split)) for split in every.dimensions["split"].unique()]
    return pd.concat(rows, ignore_index=True).assign(metric="auroc_behind_dense_in_pooling")


def with_numeric_k(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose column ``k`` has numbers only, as parquet wants it; ``over`` says where a row is a mean over k."""
    is_mean = table["k"].eq(MEAN).fillna(False).astype(bool)
    k = pd.to_numeric(table["k"].mask(is_mean)).astype("Int64")
    return table.assign(k=k, over=is_mean.map({True: "k", False: None}))
