"""Recall and false-positive rate of probes at the threshold that validation sets."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lib.stats import metrics
from lib.stats.draws import Draws
from lib.stats.metrics import Scores, SplitWeights

RECALL, FALSE_POSITIVES = "recall_at_validation_threshold", "fpr_at_validation_threshold"


class Named(NamedTuple):
    """The key of a probe that has a name and nothing else (``lib.stats.draws.Key``)."""

    name: str

    def columns(self) -> dict[str, Any]:
        """Its name, in the column ``probe``."""
        return {"probe": self.name}


def table(
    prompts: pd.DataFrame, scores: dict[str, Scores], weights: SplitWeights, fpr: float = 0.01
) -> pd.DataFrame:
    """:func:`draws` as rows, with the prompts (``n``) and base prompts (``n_groups``) of each."""
    drawn = draws(prompts, {Named(name): of_probe for name, of_probe in scores.items()}, weights, fpr)
    tables = []
    for metric, of_metric in drawn.items():
        of_label = prompts[prompts["label"] == int(metric == RECALL)].groupby("split")["base_id"]
        rows = of_metric.estimates().assign(metric=metric, unit="fraction")
        counts = {"n": rows["split"].map(of_label.size()), "n_groups": rows["split"].map(of_label.nunique())}
        tables.append(rows.assign(**counts))
    return pd.concat(tables, ignore_index=True)


def draws(
    prompts: pd.DataFrame, scores: Mapping[Any, Scores], weights: SplitWeights, fpr: float = 0.01
) -> dict[str, Draws]:
    """Recall and false-positive rate of every probe outside training, at the threshold that lets at most ``fpr`` of the
    validation negatives through: what a monitor does whose threshold was set before it met new prompts.

    Each replicate draws the validation prompts too, so that the interval covers the threshold's own noise.
    """
    is_positive, split_of = prompts["label"].to_numpy() == 1, prompts["split"].to_numpy()
    with_value = {split: np.vstack([np.ones_like(drawn[:1]), drawn]) for split, drawn in weights.items()}
    quiet = ~is_positive[split_of == "val"]
    outside = [split for split in weights if split != "train"]
    dimensions, shares = [], {RECALL: [], FALSE_POSITIVES: []}
    for key, of_probe in scores.items():
        threshold = metrics.threshold_at_fpr(of_probe[split_of == "val"][quiet], with_value["val"][:, quiet], fpr)
        for split in outside:
            here = split_of == split
            dimensions.append(key.columns() | {"split": split})
            for metric, wanted in ((RECALL, True), (FALSE_POSITIVES, False)):
                part = is_positive[here] == wanted
                shares[metric].append(metrics.share_above(of_probe[here][part], with_value[split][:, part], threshold))
    rows = pd.DataFrame(dimensions, dtype=object)
    return {metric: Draws(rows, np.array(of_metric)) for metric, of_metric in shares.items()}
