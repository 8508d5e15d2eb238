"""DeLong et al. 1988: the variance of a paired AUROC difference, against the bootstrap on independent rows."""

import numpy as np
import scipy.stats
from sklearn.metrics import roc_auc_score

from lib.stats import metrics


def placements(y, score):
    """Structural components: the share of negatives below each positive, and of positives above each negative."""
    positive, negative = score[y == 1], score[y == 0]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    return wins.mean(1), wins.mean(0)


def test_the_paired_bootstrap_has_delongs_variance():
    rng = np.random.default_rng(0)
    n = 700
    y = rng.integers(0, 2, n)
    shared = rng.standard_normal(n)
    scores = [y * gain + shared + 0.7 * rng.standard_normal(n) for gain in (1.0, 1.4)]
    v10, v01 = (np.array([placements(y, s)[side] for s in scores]) for side in (0, 1))
    covariance = np.cov(v10) / v10.shape[1] + np.cov(v01) / v01.shape[1]
    sd = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    ids = np.arange(n).astype(str)
    weights = metrics.bootstrap_weights(ids, 2000, 0)
    difference = metrics.difference(y, (scores[1], scores[0]), ids, metrics.auroc, weights)
    assert abs(difference.value - (roc_auc_score(y, scores[1]) - roc_auc_score(y, scores[0]))) < 1e-12
    assert abs((difference.high - difference.low) / (2 * scipy.stats.norm.ppf(0.975)) / sd - 1) < 0.08
