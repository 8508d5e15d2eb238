"""Tables of what would help: monitors behind the dense probe, and SAEs ahead of cheaper and narrower ones."""

import pandas as pd

from lib.results import probe_tables, thresholds
from lib.stats import families, metrics
from lib.stats.draws import Draws
from lib.stats.metrics import SplitWeights


def measured(
    prompts: pd.DataFrame, kinds: pd.Series, split: str, scores: dict, weights: SplitWeights, seed: int
) -> pd.DataFrame:
    """Each monitor on a split, as a mean over its seeds, the spread of which is in the interval: AUROC and recall at
    1 % false positives, AUROC within wrappers, recall and false-positive rate at validation's threshold."""
    here = {split: weights[split]}
    drawn = {
        "auroc": Draws.of(prompts, scores, here),
        "recall_at_1pct_fpr": Draws.of(prompts, scores, here, metrics.recall_at_fpr),
        **thresholds.draws(prompts, scores, {"val": weights["val"]} | here),
    }
    tables = {name: of_metric.where(split=split).over_seeds(seed).estimates() for name, of_metric in drawn.items()}
    within, n_wrappers = probe_tables.draws_within(prompts, kinds, split, scores, weights, seed)
    tables["auroc_within_wrapper"] = probe_tables.over_wrappers(within.over_seeds(seed), n_wrappers)
    return pd.concat([rows.assign(metric=name) for name, rows in tables.items()], ignore_index=True)


def behind(
    prompts: pd.DataFrame, kinds: pd.Series, split: str, scores: dict, weights: SplitWeights, seed: int
) -> pd.DataFrame:
    """AUROC of the probe ``dense`` minus that of every other one of a split, means over seeds, pooled and within
    wrappers: rows of ``auroc_behind_dense`` and ``auroc_behind_dense_within_wrapper``, the latter with the interval of
    :func:`lib.results.probe_tables.over_wrappers`."""
    pooled = Draws.of(prompts, scores, {split: weights[split]}).over_seeds(seed)
    within, n_wrappers = probe_tables.draws_within(prompts, kinds, split, scores, weights, seed)
    ahead = {
        "auroc_behind_dense": _behind(pooled).estimates(),
        "auroc_behind_dense_within_wrapper": probe_tables.over_wrappers(_behind(within.over_seeds(seed)), n_wrappers),
    }
    return pd.concat([rows.assign(metric=metric) for metric, rows in ahead.items()], ignore_index=True)


def _behind(draws: Draws) -> Draws:
    return draws.without(probe="dense").behind(draws.where(probe="dense"), ["split"])


def ahead_of_others(drawn: Draws, variant: str, others: list[str], metric: str, seed: int) -> pd.DataFrame:
    """AUROC of a variant's k-sparse probes minus that of each of ``others``, one k and split, as one family.

    All are means over seeds, with the seed variance of SAEs pooled over the variants of ``drawn``, since one SAE tells
    nothing of another. Rows of ``metric`` with the column ``against``.
    """
    means = drawn.where(probe="k-sparse").over_seeds(seed)
    ahead = means.where(variant=others).behind(means.where(variant=variant), ["k", "split"])
    family = families.estimates(ahead).assign(metric=metric, against=lambda table: table["variant"])
    return family.assign(variant=variant)
