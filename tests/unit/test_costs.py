"""FLOPs by hand; tokens that an SAE saw, with those of the SAE that it began with; gaps beside costs."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from test_controls import clusters, inputs
from test_latents import example

from lib.probing import controls, costs
from lib.probing.costs import Cost, Size
from lib.sae import folders, pretrained
from lib.sae.recipes import Recipe

RECIPE = Recipe(d_sae=30, tokens=1050, batch_tokens=100)


def saved(folder, record, sae=None):
    return folders.save(sae or example()[0], folder, record)


def recipe(**changes):
    return {"recipe": dataclasses.asdict(dataclasses.replace(RECIPE, **changes)), "start": None}


@pytest.mark.parametrize(
    "kind, making, reading, chosen",
    [
        ("SAE", 12 * 2 * 3 * 10, 2 * 2 * 3, 2 * 2 * 1),
        ("TopK SAE", 12 * 2 * 3 * 10, 2 * 2 * 3, 2 * 2 * 3),
        ("k-means centres", 2 * 10 * 2 * 3 * controls.CENTRE_ITERATIONS, 2 * 2 * 3, 2 * 2 * 1),
        ("principal components", 2 * 10 * 4 + 9 * 8, 2 * 2 * 3, 2 * 2 * 1),
        ("coordinates", 0, 0, 0),
        ("random directions", 0, 2 * 2 * 3, 2 * 2 * 1),
        ("untrained SAE", 0, 2 * 2 * 3, 2 * 2 * 1),
        ("training tokens", 0, 2 * 2 * 3, 2 * 2 * 1),
    ],
)
def test_flops_by_hand(kind, making, reading, chosen):
    assert costs.cost(kind, Size(d_model=2, d_sae=3, vectors=10), k=1) == Cost(making, reading, chosen)


def test_every_control_has_a_cost_and_what_is_not_known_is_null():
    assert {*controls.BASES, *controls.DICTIONARIES} <= set(costs.KINDS)
    for kind in ("SAE", "k-means centres", "principal components"):
        assert costs.cost(kind, Size(2, 3, None), 1).making is None
    assert costs.forward_pass(n_weights=7, tokens=10) == 140


def test_impossible_questions_are_one_sentence():
    with pytest.raises(ValueError, match="unknown kind of dictionary 'NMF'; allowed are SAE, TopK SAE, k-means"):
        costs.cost("NMF", Size(2, 3), 1)
    with pytest.raises(ValueError, match="k 4 must lie between 1 and the 3 rows of SAE"):
        costs.cost("SAE", Size(2, 3), 4)


def test_tokens_seen_are_whole_batches_and_those_of_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "shipped")
    whole = saved(tmp_path / "whole", recipe())
    assert costs.tokens_seen(whole) == 1000
    assert costs.tokens_seen(saved(tmp_path / "stopped", recipe(stop_tokens=350))) == 300
    assert costs.tokens_seen(saved(tmp_path / "finetuned", recipe(tokens=200) | {"start": "whole"})) == 1200
    saved(tmp_path / "shipped" / "base", recipe(tokens=500))
    assert costs.tokens_seen(saved(tmp_path / "of_shipped", recipe() | {"start": "base"})) == 1500
    assert costs.tokens_seen(saved(tmp_path / "of_lost", recipe() | {"start": "canonical"})) is None
    assert costs.tokens_seen(saved(tmp_path / "control", {})) is None
    (whole / "training.json").unlink()
    assert costs.tokens_seen(whole) is None, "an SAE of others"
    assert costs.tokens_seen("gemma-scope-2b-pt-res-canonical:layer_12/width_16k/canonical") is None


def test_the_shipped_saes_tell_what_they_saw():
    places = sorted(pretrained.FOLDER.glob("*-layer-*"))
    assert places and all(costs.tokens_seen(place) > 1_000_000 for place in places)


def test_costs_of_tables_are_means_over_seeds_and_null_where_one_is_unknown(tmp_path):
    places = [saved(tmp_path / str(n), recipe(tokens=n)) for n in (1000, 2000)] + [saved(tmp_path / "foreign", {})]
    table = pd.DataFrame({"variant": ["ours", "ours", "mixed", "mixed"], "folder": [*places[:2], *places[1:]]})
    table = costs.of_saes(table, k=4).set_index("variant")
    assert table.loc["ours"].to_list() == ["SAE", 30, 1500, 12 * 12 * 30 * 1500, 2 * 12 * 30, 2 * 12 * 4]
    assert np.isnan(table.loc["mixed", "making"]) and table.loc["mixed", "reading"] == 2 * 12 * 30


def test_costs_of_controls_are_of_training_prompts():
    x, _ = clusters(300)
    given = inputs(x)
    tokens = given.tokens._replace(starts=torch.tensor([0, 100, 300]))
    task = given.task._replace(y=np.array([1, 0]), train=np.array([True, False]), groups=np.arange(2))
    table = costs.of_controls(given._replace(tokens=tokens, task=task), k=1).set_index("variant")
    assert table.loc["k-means centres", "making"] == 2 * 100 * 16 * 40 * controls.CENTRE_ITERATIONS
    assert table.loc["principal components", "making"] == 2 * 1 * 16**2 + 9 * 16**3
    assert table.loc[["coordinates", "random directions", "untrained SAE", "training tokens"], "making"].eq(0).all()
    assert table.loc["coordinates", "d_sae"] == 16 and list(table.index) == [*controls.BASES, *controls.DICTIONARIES]


def test_gaps_stand_beside_costs_in_their_own_order():
    gaps = pd.DataFrame({"variant": ["b", "a"], "value": [0.2, 0.1], "low": [0.1, 0.0], "high": [0.3, 0.2], "k": 20})
    made = [["a", "SAE", 3, None, None, 12.0, 4.0], ["b", "SAE", 3, 10.0, 720.0, 12.0, 4.0]]
    made = pd.DataFrame(made, columns=costs.COLUMNS)
    joined = costs.beside_gaps(gaps, made)
    assert joined["variant"].to_list() == ["b", "a"] and joined["making"].isna().to_list() == [False, True]
    assert set(joined) == {*gaps, *made}
    with pytest.raises(ValueError, match="'a' has 0 costs; each of b has one"):
        costs.beside_gaps(gaps, made[1:])
    with pytest.raises(ValueError, match="'b' has 2 costs"):
        costs.beside_gaps(gaps, pd.concat([made, made[1:]]))
    with pytest.raises(ValueError, match=r"the table of gaps has no columns \['low'\]; needed are variant, value, low"):
        costs.beside_gaps(gaps.drop(columns="low"), made)
