"""A cascade of two monitors: a cheap probe reads every prompt, and an expensive one those of which it is unsure.

After McKenzie et al. (arXiv 2506.10805) and Kramár et al. (arXiv 2601.11516), where the expensive one is a language
model. A prompt costs what the cheap probe takes, plus the share passed on times what the expensive one takes.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
from jaxtyping import Bool, Float

from lib.stats.metrics import (
    Estimate,
    Labels,
    Metric,
    Scores,
    Weights,
    auroc,
    difference,
    estimate,
    recall_at_fpr,
    row,
)

METRICS: dict[str, Metric] = {"auroc": auroc, "recall_at_1pct_fpr": recall_at_fpr}
GAINED = "auroc_gained_by_cascade"


class Cascade(NamedTuple):
    """Scores of the same prompts by the cheap probe and by the expensive one.

    ``threshold`` is of the cheap scores, and set on validation (``metrics.threshold_at_fpr`` of its harmless prompts).
    """

    cheap: Scores
    expensive: Scores
    threshold: float

    def unsure(self, share: float) -> Bool[np.ndarray, " rows"]:
        """Which prompts are passed on: the ``share`` whose cheap score is nearest to the threshold.

        Their number is rounded, halves up; of equally near ones, those that come first are passed on.

        Raises:
            ValueError: ``share`` is not between 0 and 1, the threshold is not a number, or the two probes' scores
                differ in number.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share {share} of the prompts must be between 0 and 1")
        if np.isnan(self.threshold):
            raise ValueError(f"threshold {self.threshold} must be a number, which harmless validation prompts give")
        if len(self.cheap) != len(self.expensive):
            counts = f"{len(self.cheap)} cheap and {len(self.expensive)} expensive scores"
            raise ValueError(f"{counts} must be equally many, of the same prompts")
        nearest = np.argsort(np.abs(self.cheap - self.threshold), kind="stable")
        passed_on = np.zeros(len(nearest), dtype=bool)
        passed_on[nearest[: int(np.floor(share * len(nearest) + 0.5))]] = True
        return passed_on

    def scores(self, share: float) -> Float[np.ndarray, " rows"]:
        """The cascade's scores, which are ranks, since those of two probes have no common unit.

        The prompts passed on are ranked by the expensive score. They come after those that the cheap probe is sure
        are not above the threshold, and before those that it is sure are, which it ranks. So at share 0 the order is
        the cheap probe's, and at share 1 the expensive one's.

        Raises:
            ValueError: as in :meth:`unsure`.
        """
        unsure, is_above = self.unsure(share), self.cheap > self.threshold
        ranks, n_below = np.empty(len(unsure)), 0
        for of_probe, part in (
            (self.cheap, ~unsure & ~is_above),
            (self.expensive, unsure),
            (self.cheap, ~unsure & is_above),
        ):
            ranks[part] = n_below + scipy.stats.rankdata(of_probe[part])
            n_below += part.sum()
        return ranks


def unmeasured(shares: Iterable[float], why: str, **dimensions: Any) -> pd.DataFrame:
    """The rows of :func:`by_share` where there is no expensive probe, and ``why``."""
    nothing = Estimate(None, None, None, 0, 0)
    return pd.DataFrame([row(GAINED, nothing, share_passed_on=share, why=why, **dimensions) for share in shares])


def by_share(
    labels: Labels, cascade: Cascade, shares: Iterable[float], groups: np.ndarray, weights: Weights, **dimensions: Any
) -> pd.DataFrame:
    """AUROC and recall at 1 % false positives of a cascade, for each share of prompts passed on, and what its AUROC is
    ahead of the cheap probe's (``auroc_gained_by_cascade``).

    ``groups`` (base prompts) and ``weights`` (``metrics.bootstrap_weights``) are for the intervals, as in
    ``metrics.by_split``.

    Raises:
        ValueError: as in :meth:`Cascade.unsure`.
    """
    rows = []
    for share in shares:
        scores = cascade.scores(share)
        of_share = {name: estimate(labels, scores, groups, metric, weights) for name, metric in METRICS.items()}
        of_share[GAINED] = difference(labels, (scores, cascade.cheap), groups, auroc, weights)
        rows += [row(name, of_metric, share_passed_on=share, **dimensions) for name, of_metric in of_share.items()]
    return pd.DataFrame(rows)
