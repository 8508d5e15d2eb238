"""Verdicts on planted worlds: SAEs that hold the label as one latent are called ahead of controls, others are not."""

import numpy as np
import pandas as pd
import pytest

from lib.probing import on_saes
from lib.probing.controls import CONTROL
from lib.probing.tasks import Probe, Task
from lib.results.probe_tables import ahead_of_controls
from lib.stats import metrics
from lib.stats.draws import Draws
from lib.stats.verdicts import REPRODUCED, Interval, decide

N, D_MODEL, D_SAE, K, SAES, DRAWS = 300, 12, 30, 2, 5, 10
SPLITS = np.repeat(["train", "val", "ood"], N // 3)
REPLICATES, MARGIN = 300, 0.02


def verdict(label_is_a_latent, seed):
    """What is said of "ahead of the control" where the label is one latent of every SAE, or a direction that the SAEs
    hold no better than random ones."""
    rng = np.random.default_rng(seed)
    activations = rng.standard_normal((N, D_MODEL))
    direction = rng.standard_normal(D_MODEL)
    y = (activations @ direction + 2 * rng.standard_normal(N) > 0).astype(int)
    task = Task(y, SPLITS == "train", np.arange(N), SPLITS == "val")
    prompts = pd.DataFrame({"split": SPLITS, "label": y, "base_id": np.arange(N)})

    def columns():
        return np.maximum(activations @ rng.standard_normal((D_MODEL, D_SAE)), 0)

    def scores(kind, variant, number, x):
        [fit] = on_saes.k_sparse(x, task, [K], "mean difference")
        return {Probe(kind, on_saes.BEST, variant, number, on_saes.BEST, K): fit.scores}

    scored = {}
    for number in range(SAES):
        x = columns()
        if label_is_a_latent:
            x[:, 7] = np.maximum(2 * y - 1 + 0.5 * rng.standard_normal(N), 0)
        scored |= scores(on_saes.K_SPARSE, "SAE", number, x)
    for number in range(DRAWS):
        scored |= scores(CONTROL, "random directions", number, columns())
    weights = metrics.split_weights(prompts, REPLICATES, seed)
    drawn = Draws.of(prompts, scored, {"ood": weights["ood"]})
    [row] = ahead_of_controls(drawn, "SAE", "ood", seed).itertuples()
    return decide("above", Interval(row.low, row.high), MARGIN)


@pytest.mark.slow
def test_saes_that_help_are_called_so_and_others_are_not():
    helps = [verdict(True, seed) for seed in range(100)]
    does_not = [verdict(False, seed) for seed in range(100)]
    assert helps.count(REPRODUCED) >= 95
    assert does_not.count(REPRODUCED) <= 5
