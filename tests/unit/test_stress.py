import numpy as np
import pandas as pd
import pytest

from lib.probing import stress

ROWS, Y, GROUPS = np.arange(100, 160), np.arange(60) % 2, np.repeat(np.arange(20), 3)


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_positives_are_thinned_to_a_share_by_whole_base_prompts(share):
    groups = np.repeat(np.arange(300), 2)
    y = (groups % 3 == 0).astype(int)  # a third
    rows = np.arange(len(y)) + 1000
    kept, labels = stress.imbalanced(share)(np.random.default_rng(0), rows, y, groups)
    assert np.array_equal(labels, y[kept - 1000]) and np.all(np.diff(kept) > 0)
    assert labels.mean() == pytest.approx(share, abs=0.005)
    of_group = np.bincount(groups[kept - 1000], minlength=300)
    assert set(of_group) == {0, 2}, "both prompts of a base prompt, or none"
    whole = 0 if share < 1 / 3 else 1
    assert (labels == whole).sum() == (y == whole).sum(), "the other class is kept whole"


@pytest.mark.parametrize("share", [0, 1, 1.5])
def test_a_share_that_leaves_one_class_is_refused(share):
    with pytest.raises(ValueError, match=f"a share {share} of positives leaves one class"):
        stress.imbalanced(share)


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
    splits, labels = np.repeat(["train", "val", "ood"], 300), rng.integers(0, 2, n)
    prompts = pd.DataFrame({"split": splits, "label": labels, "base_id": np.arange(n)})
    x = rng.standard_normal((n, 20)).astype(np.float32)
    x[:, 3] += 2 * prompts["label"].to_numpy()
    contenders = {"dense": stress.Contender(x, c=0.01), "k = 1": stress.Contender(x, k=1)}
    changes = {1: stress.fewer(1), 20: stress.fewer(20), 300: stress.fewer(0)}
    table = stress.sweep(prompts, contenders, {"n": changes}, 4, 0)
    value = table.set_index(["probe", "setting", "split"])["value"]
    assert value["dense", 300, "ood"] > value["dense", 20, "ood"] + 0.05
    assert value["k = 1", 300, "ood"] > 0.88 and 1 not in set(table["setting"])
    changes = {0.0: stress.mislabelled(0.0), 0.5: stress.mislabelled(0.5)}
    flipped = stress.sweep(prompts, contenders, {"n": changes}, 4, 0)
    value = flipped.set_index(["probe", "setting", "split"])["value"]
    assert value["dense", 0.0, "ood"] > 0.85 and abs(value["dense", 0.5, "ood"] - 0.5) < 0.2
    assert flipped.set_index("setting")["low"].notna().tolist() == [False] * 4 + [True] * 4
    nothing = stress.sweep(prompts, contenders, {}, 4, 0)
    assert nothing.empty and list(nothing) == list(table)


def test_equal_draws_are_fitted_once():
    splits, labels = np.repeat(["train", "ood"], 30), np.tile([0, 1], 30)
    prompts = pd.DataFrame({"split": splits, "label": labels, "base_id": range(60)})
    drawn = []

    class Counting:
        def fit_scores(self, rows, y):
            drawn.append((len(rows), int(y.sum())))
            return np.zeros(60)

    changes = {"prompts": {0: stress.fewer(0), 10: stress.fewer(10)}, "labels": {0.0: stress.mislabelled(0.0)}}
    table = stress.sweep(prompts, {"one": Counting()}, changes, 3, 0)
    assert drawn.count((30, 15)) == 1 and len(drawn) == 4 and table["n"].tolist() == [3, 3, 3]
    assert table["change"].tolist() == ["prompts", "prompts", "labels"]
