import numpy as np
import pandas as pd
import pytest
import torch

from lib.runs import sizing
from lib.sae import architectures, comparison, folders
from lib.sae.jumprelu import Parameters
from lib.sae.recipes import Recipe


def curve(variant, seed, shift=0.0, l0=(8, 16, 32, 64)):
    fvu = [0.5 - 0.1 * np.log2(v / 8) + shift for v in l0]
    return pd.DataFrame({"variant": variant, "seed": seed, "l0": l0, "fvu": fvu})


def test_matched_difference_by_hand():
    curves = []
    for seed in range(3):
        curves += [curve("a", seed), curve("b", seed, 0.01 * (seed + 1), (10, 20, 40))]
    table = pd.concat(curves)
    estimate, differences = comparison.matched_difference(table, "b", "a", [8, 16, 32, 64])
    assert sorted(set(differences["l0"])) == [16, 32], "8 and 64 lie outside b's range: nothing is extrapolated"
    assert estimate.value == pytest.approx(0.02) and (estimate.n, estimate.n_groups) == (6, 3)
    assert estimate.high - estimate.value == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-3)
    nothing, _ = comparison.matched_difference(table, "c", "a", [16])
    assert nothing.value is None and nothing.n == 0


def test_recipes_of_a_grid():
    variants = {"j": {}, "g": {"architecture": "gated"}}
    sparsities = {"target_l0": [8, 16], "coefficient": [0.5]}
    grid = comparison.recipes(Recipe(tokens=10_000), variants, sparsities, [0, 1])
    assert len(grid) == 6 and grid["j", 16, 1].target_l0 == 16 and grid["g", 0.5, 1].coefficient == 0.5
    assert grid["j", 8, 1].seed == 1
    turned = comparison.recipes(Recipe(tokens=10_000), variants, sparsities, [1, 0])
    assert list(turned.items()) == list(grid.items())
    assert comparison.recipes(Recipe(), {"g": variants["g"]}, {"coefficient": []}, [0]) == {}


def test_variants_take_their_learning_rates_by_what_steers_them():
    lrs = {"target_l0": 8e-3, "coefficient": 4e-3}
    variants = comparison.variants([0.1], ["topk", "gated"], lrs)
    assert variants == {
        "JumpReLU, L0": {},
        "JumpReLU, QF f₀=0.1": {"penalty": "quadratic_frequency", "f0": 0.1},
        "topk": {"architecture": "topk", "lr": 8e-3},
        "gated": {"architecture": "gated", "lr": 4e-3},
    }
    with pytest.raises(ValueError, match="unknown architecture 'relu'; allowed are jumprelu, gated, topk"):
        comparison.variants([], ["relu"], lrs)
    with pytest.raises(ValueError, match="unknown architecture 'relu'"):
        comparison.recipes(Recipe(), {"r": {"architecture": "relu"}}, {"target_l0": [8]}, [0])


def test_sizing_counts_what_the_grid_trains(monkeypatch):
    own = architectures.Architecture(architectures.comparators.topk, sparsities=(4, 8, 12, 16))
    monkeypatch.setitem(architectures.ARCHITECTURES, "own", own)
    values = {"f0s": [0.1], "target_l0s": [8, 16], "gated_coefficients": [3.0, 5.0, 8.0], "seeds": [0, 1]}
    values["comparators"] = ["topk", "gated", "own"]
    variants = comparison.variants(values["f0s"], values["comparators"], {"target_l0": 8e-3, "coefficient": 4e-3})
    sparsities = {"target_l0": values["target_l0s"], "coefficient": values["gated_coefficients"]}
    grid = comparison.recipes(Recipe(), variants, sparsities, values["seeds"])
    assert sizing._architectures(values) == len(grid) == 2 * (2 + 2 + 2 + 3 + 4)
    with pytest.raises(ValueError, match="unknown architecture 'relu'; allowed are jumprelu, gated"):
        sizing._architectures(values | {"comparators": ["relu"]})


def test_costs_and_frequent_latents_are_rows_of_a_record():
    table = pd.concat([
        curve(comparison.BASELINE, 0),
        curve(comparison.BASELINE, 1),
        curve("b", 0, 0.01),
        curve("b", 1, 0.03),
    ])
    table = table.assign(sparsity=table["l0"], high_frequency=[4, 3, 2, 1] * 2 + [0] * 8)
    (cost,) = comparison.fvu_costs(table, [16, 32]).itertuples()
    assert (cost.metric, cost.variant, cost.unit) == ("fvu_cost_at_matched_l0", "b", "fraction of variance")
    assert cost.value == pytest.approx(0.02) and (cost.n, cost.n_groups) == (4, 2)
    frequent = comparison.frequent_latents(table, 8).set_index("variant")
    assert frequent["value"].to_dict() == {comparison.BASELINE: 2.0, "b": 0.0}
    points = comparison.pareto(table, "layer 1")
    assert points["value"].tolist()[4:] == pytest.approx([0.52, 0.42, 0.32, 0.22])
    assert points["high"].tolist()[4:] == pytest.approx([0.53, 0.43, 0.33, 0.23])
    assert comparison.fvu_costs(table[table["variant"] != "b"], [16]).empty, "without variants there is no cost"


@pytest.mark.parametrize("targets, middle", [([8, 16, 32, 64], 32), ([64, 8, 32, 16], 32), ([16, 8], 16), ([8], 8)])
def test_a_figure_shows_the_sae_of_middle_l0_of_each_variant(targets, middle):
    table = pd.concat([curve(name, seed, l0=targets) for name in ("a", "b") for seed in (0, 1)], ignore_index=True)
    coefficients = pd.DataFrame({"variant": "g", "seed": 1, "l0": [50, 20, 9, 4], "sparsity": [3.0, 5.0, 8.0, 14.0]})
    shown = comparison.of_middle_l0(pd.concat([table, coefficients], ignore_index=True), 1)
    assert shown["variant"].tolist() == ["a", "b", "g"] and set(shown["seed"]) == {1}
    assert shown["l0"].tolist() == [middle, middle, 20], "of an even number the denser, also where a coefficient steers"


def test_a_single_target_has_no_cost_at_matched_l0():
    table = pd.concat([curve(comparison.BASELINE, 0, l0=[8]), curve("b", 0, l0=[9])])
    (cost,) = comparison.fvu_costs(table, [8]).itertuples()
    assert cost.value is None and cost.low is None and cost.n == 0


def test_a_split_latent_has_two_descendants():
    eye = torch.eye(4)

    def sae(dec):
        p = Parameters(dec, dec, torch.zeros(len(dec)), torch.zeros(4), torch.zeros(len(dec)))
        return folders.from_parameters(p, torch.zeros(4), 1.0, {})

    halves = torch.nn.functional.normalize(torch.stack([eye[0] + 0.5 * eye[2], eye[0] - 0.5 * eye[2], eye[1]]), dim=1)
    split = comparison.descendants(sae(eye[:3]), sae(halves), np.array([0.5, 0.01, 0.2]))
    assert split["latent"].tolist() == [0, 2] and split["near"].tolist() == [2, 0]
    assert split["best"][0] == pytest.approx(1 / 1.25**0.5) and split["best"][1] == pytest.approx(0.5 / 1.25**0.5)
    assert comparison.descendants(sae(eye[:3]), sae(halves), np.zeros(3)).empty


def test_a_cost_is_also_measured_between_targets():
    assert comparison.with_middles([32, 8]) == [8, 16, 32] and comparison.with_middles([5]) == [5]
    ours = pd.DataFrame({"variant": "new", "l0": [8.0, 32.0], "fvu": [0.4, 0.2], "seed": 0})
    theirs = pd.DataFrame({"variant": comparison.BASELINE, "l0": [8.5, 31.5], "fvu": [0.3, 0.1], "seed": 0})
    table = pd.concat([ours, theirs])
    missed = comparison.fvu_costs(table, [8, 32])
    assert missed["n"].tolist() == [0], "the ends are just missed"
    between = comparison.fvu_costs(table, comparison.with_middles([8, 32]))
    assert between["n"].tolist() == [1] and between["value"][0] == pytest.approx(0.1, abs=5e-3)
