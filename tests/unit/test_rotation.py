"""Wrappers held out in turn: no probe has seen what it is tested on, and a wrapper's share of the loss is found."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from lib.probing import rotation, stress
from lib.probing.tasks import Probe
from lib.results.probe_tables import over_wrappers
from lib.stats import metrics
from lib.stats.draws import Draws

JAILBREAKS, OOD_JAILBREAKS = ("aim", "dan"), ("evil",)
KINDS = {"plain": "plain", "count": "innocuous"} | dict.fromkeys((*JAILBREAKS, *OOD_JAILBREAKS), "jailbreak")


def prompt_table(n_base=60):
    """Base prompts of both classes in the wrappers of their split; harmful text in an innocuous one has label 0."""
    rows = []
    for i in range(n_base):
        split, label = ("train", "val", "ood")[i % 3], i // 3 % 2
        wrappers = ["plain", *(OOD_JAILBREAKS if split == "ood" else JAILBREAKS)]
        rows += [(f"b{i}", split, name, label) for name in wrappers]
        rows += [(f"b{i}", split, "count", 0)] if label and split != "ood" else []
    prompts = pd.DataFrame(rows, columns=["base_id", "split", "transform", "label"])
    return prompts.assign(source=prompts["label"].astype(str)), prompts["transform"].map(KINDS)


def test_no_fold_trains_on_its_wrapper_or_on_a_base_prompt_that_it_tests():
    prompts, kinds = prompt_table()
    folds = rotation.folds(prompts, kinds, seed=0)
    assert [fold.held_out for fold in folds] == ["aim"] * 2 + ["dan"] * 2 + ["evil"] + ["count"] * 2
    for fold in folds:
        train, test = prompts[fold.train], prompts[fold.test]
        assert fold.held_out not in set(train["transform"]) and "ood" not in set(train["split"])
        assert not set(train["base_id"]) & set(test["base_id"])
        assert set(train["label"]) == set(test["label"]) == {0, 1}
    for wrapper in (*JAILBREAKS, "count"):
        tested = np.sum([fold.test for fold in folds if fold.held_out == wrapper], axis=0)
        assert set(tested) == {0, 1}, "every prompt of a wrapper is tested once"
        seen = prompts["split"] != "ood"
        assert tested.sum() == metrics.wrapper_rows(prompts[seen], kinds[seen])[wrapper].sum()


def test_the_mean_within_wrappers_has_a_planted_loss_and_its_interval_covers_wrappers():
    prompts, kinds = prompt_table(150)
    rng = np.random.default_rng(0)
    label = prompts["label"].to_numpy()
    truth, shortcut = label + 0.5 * rng.standard_normal(len(label)), (prompts["transform"] == "aim") * 50.0
    is_lost = prompts["transform"].isin(["dan", "evil"])  # the second column tells nothing there
    fails = np.where(is_lost, 0.0, label) + 0.5 * rng.standard_normal(len(label))
    contenders = {
        Probe("holds"): stress.Contender(np.c_[truth, shortcut].astype(np.float32), c=1.0),
        Probe("fails"): stress.Contender(np.c_[fails, shortcut].astype(np.float32), c=1.0),
    }
    rotated = rotation.rotate(prompts, rotation.folds(prompts, kinds, 0), contenders)
    by_wrapper = rotated.apart(50, 0).estimates().set_index(["probe", "held_out"])["value"]
    assert (by_wrapper["holds"] > 0.85).all(), "a shift of all scores of a wrapper does not count within it"
    assert by_wrapper["fails", "dan"] < 0.6 and by_wrapper["fails", "aim"] > 0.85
    estimates = rotated.draws(400, 0, rotated.parts()).estimates().set_index("probe")
    assert estimates.loc["fails", "value"] == pytest.approx(by_wrapper["fails"].mean())
    of_two = rotated.draws(50, 0, ["aim", "dan"], rotation.JAILBREAK_SPLIT).estimates().set_index("probe")
    assert of_two.loc["fails", "value"] == pytest.approx(by_wrapper["fails"][["aim", "dan"]].mean())
    assert set(of_two["split"]) == {rotation.JAILBREAK_SPLIT}
    width = estimates["high"] - estimates["low"]
    assert width["fails"] > 3 * width["holds"], "wrappers that differ make the mean over them uncertain"


def test_a_fold_without_both_classes_is_left_out():
    prompts, kinds = prompt_table()
    kept = ~((prompts["transform"] == "evil") & (prompts["label"] == 0))
    folds = rotation.folds(prompts[kept].reset_index(drop=True), kinds[kept].reset_index(drop=True), seed=0)
    assert {fold.held_out for fold in folds} == {"aim", "dan", "count"}


def test_without_wrappers_there_is_no_rotation():
    prompts, _ = prompt_table()
    plain = prompts[prompts["transform"] == "plain"].reset_index(drop=True)
    assert rotation.folds(plain, plain["transform"], 0) == []
    with pytest.raises(ValueError, match="there is no fold: no prompt stands in a wrapper"):
        rotation.rotate(plain, [], {})


def test_the_interval_over_wrappers_covers_where_wrappers_differ():
    """Ten wrappers, each with its own AUROC: percentiles of a bootstrap alone would cover too rarely."""
    rng, covered, plain, n_wrappers, n = np.random.default_rng(0), 0, 0, 10, 40
    labels = np.tile(np.repeat([0, 1], n // 2), n_wrappers)
    parts = {str(j): [np.arange(len(labels)) // n == j] for j in range(n_wrappers)}
    prompts = pd.DataFrame({"split": "ood", "label": labels, "base_id": np.arange(len(labels))})
    truth = norm.cdf(rng.normal(1, 1, 200_000) / 2**0.5).mean()  # of a shift of d it is Φ(d / √2)
    for repeat in range(200):
        score = np.repeat(rng.normal(1, 1, n_wrappers), n) * labels + rng.standard_normal(len(labels))
        weights = metrics.split_weights(prompts, 300, repeat)
        drawn = Draws.of(prompts, {Probe("dense"): score}, weights, metrics.within(parts, repeat))
        for_few, usual = over_wrappers(drawn, n_wrappers).iloc[0], drawn.estimates().iloc[0]
        covered += for_few["low"] <= truth <= for_few["high"]
        plain += usual["low"] <= truth <= usual["high"]
    assert covered >= 186 and covered > plain


def test_a_source_is_tested_by_a_probe_of_the_other_side_without_wrappers():
    prompts, kinds = prompt_table()
    is_ood = prompts["split"] == "ood"
    prompts["source"] = np.where(prompts["label"] == 0, "chat", np.where(is_ood, "theirs", "ours"))
    # What tells the classes apart in our source tells nothing in theirs, and the other way round.
    ours, theirs = rotation.source_folds(prompts, kinds)
    assert (ours.held_out, theirs.held_out) == ("ours", "theirs")
    for fold, other in ((ours, is_ood), (theirs, ~is_ood)):
        assert (fold.train == other).all(), "the whole other side, in its wrappers"
        tested = prompts[fold.test]
        assert set(tested["transform"]) == {"plain"} and set(tested["label"]) == {0, 1}
        assert not (fold.train & fold.test).any()
    label = prompts["label"].to_numpy()
    noise = np.random.default_rng(0).standard_normal((2, len(label)))
    signal = np.stack([np.where(is_ood, 0, label), np.where(is_ood, label, 0)]) * 3 + noise
    columns = np.concatenate([signal, label[None] * 3 + noise[:1]]).T.astype(np.float32)
    contenders = {
        Probe("both"): stress.Contender(columns[:, 2:], c=1.0), Probe("one"): stress.Contender(columns[:, :1], c=1.0)
    }  # fmt: skip
    rotated = rotation.rotate(prompts, [ours, theirs], contenders, rotation.SOURCE_SPLIT)
    table = rotated.apart(50, 0).estimates().set_index(["probe", "held_out"])["value"]
    assert (table["both"] > 0.9).all() and table["one", "theirs"] < 0.8


def test_a_source_on_both_sides_is_left_out():
    prompts, kinds = prompt_table()
    assert set(prompts["source"]) == {"0", "1"}
    assert rotation.source_folds(prompts, kinds) == []
