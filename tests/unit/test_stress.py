import numpy as np
import pandas as pd
import pytest

from lib.probing import stress
from lib.probing.on_saes import task

ROWS, Y, GROUPS = np.arange(100, 160), np.arange(60) % 2, np.repeat(np.arange(20), 3)


def test_fewer_prompts_are_whole_base_prompts():
    rows, y = stress.fewer(10)(np.random.default_rng(0), ROWS, Y, GROUPS)
    kept = GROUPS[rows - 100]
    assert len(rows) == 12 and (np.bincount(kept)[np.unique(kept)] == 3).all() and (y == Y[rows - 100]).all()
    assert len(stress.fewer(0)(np.random.default_rng(0), ROWS, Y, GROUPS)[0]) == 60
    assert len(stress.fewer(1000)(np.random.default_rng(0), ROWS, Y, GROUPS)[0]) == 60


@pytest.mark.parametrize("share", [0.0, 0.25, 0.4])
def test_the_given_share_of_labels_is_flipped(share):
    rows, y = stress.mislabelled(share)(np.random.default_rng(0), ROWS, Y, GROUPS)
    assert (rows == ROWS).all() and (y != Y).sum() == 60 * share


def test_more_prompts_and_clean_labels_help_and_a_missing_class_is_counted():
    rng = np.random.default_rng(0)
    n = 900
    prompts = pd.DataFrame({"split": np.repeat(["train", "val", "ood"], 300), "label": rng.integers(0, 2, n), "base_id": np.arange(n)})
    x = rng.standard_normal((n, 20)).astype(np.float32)
    x[:, 3] += 2 * prompts["label"].to_numpy()
    probes = {"dense": (x, 0, 0.01), "k = 1": (x, 1, 0.0)}
    found = stress.sweep(prompts, task(prompts), probes, {1: stress.fewer(1), 20: stress.fewer(20), 300: stress.fewer(0)}, 4, 0)
    value = found.set_index(["probe", "setting", "split"])["value"]
    assert value["dense", 300, "ood"] > value["dense", 20, "ood"] + 0.05
    assert value["k = 1", 300, "ood"] > 0.88 and 1 not in set(found["setting"])
    flipped = stress.sweep(prompts, task(prompts), probes, {0.0: stress.mislabelled(0.0), 0.5: stress.mislabelled(0.5)}, 4, 0)
    value = flipped.set_index(["probe", "setting", "split"])["value"]
    assert value["dense", 0.0, "ood"] > 0.85 and abs(value["dense", 0.5, "ood"] - 0.5) < 0.2
