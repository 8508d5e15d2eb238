"""Learning rates that the product chooses: on calibration tokens, by whole trainings, once for all that are alike."""

import dataclasses

import pytest
from test_training import RECIPE, store

from lib.sae import comparison, finetuning, folders, learning_rates, training
from lib.sae.harvest import Stores
from lib.sae.learning_rates import CHOSEN, RATES


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rates")
    sizes = {"training": 12_000, "held_out": 2_000, "calibration": 2_000}
    return Stores(*(store(folder / name, n, i) for i, (name, n) in enumerate(sizes.items())))


@pytest.mark.parametrize("best", [0, 2, 3, len(RATES) - 1])
def test_the_search_ends_at_the_lowest_point(monkeypatch, best, tmp_path):
    tried = []

    def train(recipe, *_, **options):
        tried.append(RATES.index(recipe.lr))
        return tried[-1]

    monkeypatch.setattr(learning_rates, "train", train)
    monkeypatch.setattr(folders, "training_record", lambda place: {"held_out": {"fvu": 0.1 * abs(place - best)}})
    assert learning_rates.choose(RECIPE, tmp_path, tmp_path, tmp_path) == RATES[best]
    assert len(tried) == len(set(tried)), "no rate is tried twice"


def test_a_rate_that_fails_is_worse_than_any_other(monkeypatch, tmp_path):
    def train(recipe, *_, **options):
        if recipe.lr > RATES[1]:
            raise ValueError(f"diverged at {recipe.lr}")
        return RATES.index(recipe.lr)

    monkeypatch.setattr(learning_rates, "train", train)
    monkeypatch.setattr(folders, "training_record", lambda place: {"held_out": {"fvu": 0.5}})
    with pytest.raises(ValueError, match="diverged at 0.002"):
        learning_rates.choose(RECIPE, tmp_path, tmp_path, tmp_path)
    monkeypatch.setattr(learning_rates, "FIRST", 2)
    assert learning_rates.choose(RECIPE, tmp_path, tmp_path, tmp_path) == RATES[1]


def test_a_grid_takes_one_rate_for_each_variant_and_never_the_held_out_tokens(stores, tmp_path):
    base = dataclasses.replace(RECIPE, tokens=8_000, lr=CHOSEN)
    grid = comparison.recipes(base, {"JumpReLU": {}, "given": {"lr": 5e-3}}, [4, 8], [0, 1])
    table = comparison.train_grid(grid, stores, tmp_path, progress=False)
    lrs = table.groupby("variant")["lr"].unique()
    assert lrs["given"].tolist() == [5e-3] and len(lrs["JumpReLU"]) == 1
    chosen = lrs["JumpReLU"][0]
    trials = {
        rate: training.train(dataclasses.replace(base, lr=rate, target_l0=4), stores.training, stores.calibration,
                             tmp_path, progress=False)
        for rate in RATES
    }  # fmt: skip
    fvu = {rate: folders.training_record(place)["held_out"]["fvu"] for rate, place in trials.items()}
    place = RATES.index(chosen)
    assert all(fvu[chosen] <= fvu[rate] for rate in RATES[max(place - 1, 0) : place + 2])


def test_finetuning_chooses_once_and_scratch_for_itself(stores, tmp_path):
    start = training.train(RECIPE, stores.training, stores.held_out, tmp_path, progress=False)
    recipe = dataclasses.replace(RECIPE, tokens=8_000, lr=CHOSEN)
    ways = finetuning.variants({finetuning.BASE: {0: start}}, {"tokens": 8_000, "lr": 5e-3}, [0.5], [])
    table = finetuning.train_variants(ways, recipe, finetuning.Tokens(stores, stores, None), tmp_path, progress=False)
    lrs = table.set_index("variant")["lr"]
    assert lrs["from scratch"] == 5e-3 and lrs["resampled 50%"] == lrs["finetuned from pretraining SAE"] in RATES


def test_what_cannot_be_chosen_is_said(stores, tmp_path):
    of_coefficient = dataclasses.replace(RECIPE, target_l0=0, coefficient=1.0, lr=CHOSEN)
    with pytest.raises(ValueError, match="target_l0 is 0, so no lr can be chosen at equal L0; give an lr or a target"):
        learning_rates.settled(of_coefficient, stores, tmp_path)
    with pytest.raises(ValueError, match="to be chosen on calibration tokens, and there are none"):
        learning_rates.settled(dataclasses.replace(RECIPE, lr=CHOSEN), stores._replace(calibration=None), tmp_path)
