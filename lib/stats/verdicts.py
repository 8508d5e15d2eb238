"""Verdicts: what an interval of a difference shows of a claim, given the smallest difference that matters.

A difference d has an interval [low, high] and a margin m, its unit's smallest difference that matters. An interval
shows one of

    above          low > 0 and high > m            (above zero, and not shown to be too small to matter)
    below          high < 0 and low < −m
    no difference  −m ≤ low and high ≤ m           (equivalence by interval: two one-sided tests)

or nothing. Where there is no difference, a 95 % interval shows *above* or *below* in at most 5 of 100 draws, however
the margin is chosen; where d = m, it shows *no difference* in at most 2.5 of 100.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float

from lib.base.registry import lookup
from lib.stats.metrics import Estimate, t_interval

REPRODUCED, OPPOSITE, NO_DIFFERENCE, INCONCLUSIVE, NOT_APPLICABLE = VERDICTS = (
    "reproduced",
    "opposite",
    "no difference",
    "inconclusive",
    "not applicable",
)
ALPHA = 0.05


class Interval(NamedTuple):
    """The ends of an interval of a difference."""

    low: float
    high: float


def _is_within(interval: Interval, margin: float) -> bool:
    return bool(-margin <= interval.low and interval.high <= margin)


def _above(interval: Interval, margin: float) -> str:
    if _is_within(interval, margin):
        return NO_DIFFERENCE
    if interval.low > 0 and interval.high > margin:
        return REPRODUCED
    if interval.high < 0 and interval.low < -margin:
        return OPPOSITE
    return INCONCLUSIVE


def _same(interval: Interval, margin: float) -> str:
    if _is_within(interval, margin):
        return REPRODUCED
    if interval.low > margin or interval.high < -margin:
        return OPPOSITE
    return INCONCLUSIVE


# What a claim says of the difference: that it is above zero, below zero, or too small to matter.
SAYS: dict[str, Callable[[Interval, float], str]] = {
    "above": _above,
    "below": lambda interval, margin: _above(Interval(-interval.high, -interval.low), margin),
    "same": _same,
}


def decide(says: str, interval: Interval, margin: float) -> str:
    """The verdict on a claim that ``says`` one of ``SAYS`` of a difference.

    Raises:
        ValueError: an unknown ``says``, a margin that is not above zero, or ends that are no numbers or in no order.
    """
    rule = lookup(SAYS, "says", says)
    if not (margin > 0 and math.isfinite(margin)):
        raise ValueError(f"the margin {margin} must be a number above zero")
    if not interval.low <= interval.high:
        raise ValueError(f"an interval from {interval.low} to {interval.high} is none")
    return rule(interval, margin)


def of_family(members: Sequence[str]) -> str:
    """The verdict on a claim of several differences at once, from theirs: every one must hold.

    *Opposite* if any is; else *reproduced*, or *no difference*, if all are; else *inconclusive*.

    Raises:
        ValueError: a family without members.
    """
    if not members:
        raise ValueError("a family of comparisons without one has no verdict")
    if OPPOSITE in members:
        return OPPOSITE
    return members[0] if len(set(members)) == 1 else INCONCLUSIVE


def p_values(replicates: Float[np.ndarray, "comparisons replicates"]) -> Float[np.ndarray, " comparisons"]:
    """Two-sided bootstrap p-values of each difference being zero, 2 min(P(d* ≤ 0), P(d* ≥ 0)), at most 1.

    A p-value is at least 2 / (replicates + 1), as what no replicate shows may still happen.
    """
    n = replicates.shape[1]
    below, above = ((replicates <= 0).sum(1), (replicates >= 0).sum(1))
    return np.minimum(1.0, 2 * (np.minimum(below, above) + 1) / (n + 1))


def holm_levels(p: Float[np.ndarray, " comparisons"], alpha: float = ALPHA) -> Float[np.ndarray, " comparisons"]:
    """The level at which each of several comparisons is tested by Holm's step-down procedure (Holm 1979).

    In the order of their p-values the comparisons are tested at alpha / K, alpha / (K − 1), …; once one fails, its
    level is that of all after it. At these levels at most ``alpha`` of draws without any difference show one anywhere.
    """
    levels = np.empty(len(p))
    level, has_failed = alpha, False
    for rank, i in enumerate(np.argsort(p, kind="stable")):
        if not has_failed:
            level = alpha / (len(p) - rank)
        levels[i] = level
        has_failed = has_failed or p[i] > level
    return levels


def t_p_values(samples: list[Float[np.ndarray, " _"]]) -> Float[np.ndarray, " comparisons"]:
    """Two-sided p-value of the t-test that the mean of each sample is zero; 1 for a single value, which tests
    nothing."""
    p = np.ones(len(samples))
    for i, values in enumerate(samples):
        if len(values) > 1 and values.mean() != 0:
            with np.errstate(divide="ignore"):
                t = np.abs(values.mean()) / (values.std(ddof=1) / len(values) ** 0.5)
            p[i] = 2 * scipy.stats.t.sf(t, len(values) - 1)
    return p


def holm_t_intervals(
    samples: list[Float[np.ndarray, " _"]], alpha: float = ALPHA
) -> tuple[Float[np.ndarray, " comparisons"], list[Estimate]]:
    """The level of each of several comparisons (:func:`holm_levels`), and the t interval of its mean at 1 − that."""
    levels = holm_levels(t_p_values(samples), alpha)
    return levels, [t_interval(values, level) for values, level in zip(samples, levels, strict=True)]
