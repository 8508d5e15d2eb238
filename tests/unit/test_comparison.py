import numpy as np
import pandas as pd
import pytest
import torch

from lib.runs import sizing
from lib.sae import architectures, comparison, folders
from lib.sae.jumprelu import Parameters
from lib.sae.recipes import Recipe


def grid(variant, seed, l0):
    """The rows of one variant and seed, whose sparsities are what was aimed at."""
    return pd.DataFrame({"variant": variant, "seed": seed, "l0": l0, "sparsity": range(len(l0))})


def test_recipes_of_a_grid():
    variants = {"j": {}, "g": {"architecture": "gated"}}
    grid = comparison.recipes(Recipe(tokens=10_000), variants, [8, 16], [0, 1])
    assert len(grid) == 8 and grid["j", 16, 1].target_l0 == 16 and grid["g", 16, 1].architecture == "gated"
    assert grid["j", 8, 1].seed == 1
    turned = comparison.recipes(Recipe(tokens=10_000), variants, [8, 16], [1, 0])
    assert list(turned.items()) == list(grid.items())
    assert comparison.recipes(Recipe(), {"g": variants["g"]}, [], [0]) == {}


def test_variants_take_their_learning_rates_by_name():
    lrs = {"topk": 8e-3, "gated": 4e-3}
    variants = comparison.variants([0.1], ["squared_frequency"], ["topk", "gated"], lrs)
    assert variants == {
        "JumpReLU, L0": {},
        "JumpReLU, QF f₀=0.1": {"penalty": "quadratic_frequency", "f0": 0.1},
        "JumpReLU, squared frequency": {"penalty": "squared_frequency"},
        "topk": {"architecture": "topk", "lr": 8e-3},
        "gated": {"architecture": "gated", "lr": 4e-3},
    }
    with pytest.raises(ValueError, match="unknown architecture 'relu'; allowed are jumprelu, gated, topk"):
        comparison.variants([], [], ["relu"], lrs)
    with pytest.raises(ValueError, match="unknown other penalty 'l0'; allowed are squared_frequency"):
        comparison.variants([], ["l0"], [], lrs)
    with pytest.raises(ValueError, match="unknown architecture 'relu'"):
        comparison.recipes(Recipe(), {"r": {"architecture": "relu"}}, [8], [0])


def test_sizing_counts_what_the_grid_trains(monkeypatch):
    own = architectures.Architecture(architectures.comparators.topk, lr=1e-2, target_l0s=(4, 8, 12, 16))
    monkeypatch.setitem(architectures.ARCHITECTURES, "own", own)
    values = {"f0s": [0.1], "target_l0s": [8, 16], "seeds": [0, 1]}
    values |= {"comparators": ["topk", "gated", "own"], "penalties": ["squared_frequency"]}
    lrs = {"topk": 8e-3, "gated": 4e-3}
    variants = comparison.variants(values["f0s"], values["penalties"], values["comparators"], lrs)
    grid = comparison.recipes(Recipe(), variants, values["target_l0s"], values["seeds"])
    assert sizing._architectures(values) == len(grid) == 2 * (2 + 2 + 2 + 2 + 2 + 4)
    with pytest.raises(ValueError, match="unknown architecture 'relu'; allowed are jumprelu, gated"):
        sizing._architectures(values | {"comparators": ["relu"]})


def test_what_is_read_of_a_training_by_hand():
    curve = [{"tokens": tokens, "fvu": fvu} for tokens, fvu in zip(range(10, 110, 10), [9] * 6 + [0.5, 0.3, 0.2, 0.16])]
    held_out = {"fvu": 0.3, "l0": 0.8}
    record = {"frequency": [0.5, 0.1, 0.1, 0.1] + [0.0] * 16, "held_out": held_out, "curve": curve}
    read = comparison.measured(record)
    assert read["fvu"] == 0.3 and read["l0"] == 0.8
    assert read["weighted_frequency"] == pytest.approx((0.25 + 0.03) / 0.8)
    assert read["mass_above_10x_mean"] == pytest.approx(0.5 / 0.8), "the mean is 0.04, so the line is at 0.4"
    assert read["fvu_change"] == pytest.approx(0.18 / 0.4 - 1) and read["converged"] == 0
    flat = [point | {"fvu": 0.3 + 0.002 * (point["tokens"] > 80)} for point in curve]
    assert comparison.measured(record | {"curve": flat})["converged"] == 1
    rising = [point | {"fvu": 0.3 + 0.01 * (point["tokens"] > 80)} for point in curve]
    assert comparison.measured(record | {"curve": rising})["converged"] == 0, "one that gets worse has not converged"
    assert np.isnan(comparison.change_at_the_end(curve[-1:])), "a curve of one point shows no change"
    assert comparison.measured(record | {"curve": curve[-1:]})["converged"] == 0


def test_captions_name_the_variants_that_have_not_converged():
    table = pd.DataFrame({"variant": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1]})
    table = table.assign(fvu_change=[-0.004, 0.002, -0.14, -0.006], converged=[1, 1, 0, 1])
    sentence = comparison.not_converged(table)
    assert sentence.startswith("Not converged") and sentence.endswith(": b -14%."), "the mean of those that have not"
    assert comparison.not_converged(table[table["variant"] == "a"]).startswith("All SAEs converged")
    none = comparison.not_converged(table.assign(converged=0, fvu_change=[-0.1, -0.1, -0.2, -0.3]))
    assert none.startswith("Not converged: all variants (FVU -25% to -10%")
    rows = comparison.convergence(table).set_index(["metric", "variant"])
    assert rows.loc[("converged", "b"), "value"] == 0.5 and rows.loc[("converged", "b"), "n"] == 2
    assert rows.loc[("fvu_change", "b"), "value"] == pytest.approx(-0.073)


def test_points_of_a_curve_are_means_and_ranges_over_seeds():
    table = pd.concat([grid("a", 0, [8.0, 16.0]), grid("a", 1, [9.0, 17.0])]).assign(fvu=[0.5, 0.4, 0.7, 0.3])
    points = comparison.curves(table, "fvu", "layer 1")
    assert points["l0"].tolist() == [8.5, 16.5] and points["value"].tolist() == pytest.approx([0.6, 0.35])
    assert points["low"].tolist() == [0.5, 0.3] and points["high"].tolist() == [0.7, 0.4]


def test_a_figure_shows_the_saes_nearest_one_l0():
    parts = [grid(name, seed, [8.0, 16.5, 31.0]) for name in ("a", "b") for seed in (0, 1)]
    parts += [grid("g", seed, [50.0, 20.0, 9.0]) for seed in (0, 1)]
    table = pd.concat(parts, ignore_index=True)
    shown = comparison.nearest(table, 32)
    assert shown[["variant", "seed"]].drop_duplicates().shape[0] == len(shown) == 6
    assert shown.groupby("variant")["l0"].first().to_dict() == {"a": 31.0, "b": 31.0, "g": 50.0}
    assert comparison.common_l0(table, [8, 16, 32]) == 16, "at 32 the gated SAEs are too far, at 8 it is sparser"
    assert comparison.common_l0(table, [32, 100]) == 32, "where none is near, the least far"
    assert comparison.common_l0(table[table["variant"] != "g"], [32, 8, 16]) == 32


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


def test_descendants_are_of_the_saes_that_are_shown(tmp_path):
    eye = torch.eye(4)
    rows = []
    for name, dec in ((comparison.BASELINE, eye[:3]), (comparison.quadratic_frequency(0.1), eye[[0, 0, 3]])):
        p = Parameters(dec, dec, torch.zeros(3), torch.zeros(4), torch.zeros(3))
        sae = folders.from_parameters(p, torch.zeros(4), 1.0, {})
        folder = folders.save(sae, tmp_path / str(len(rows)), {"frequency": [0.5, 0.2, 0.01]})
        rows.append({"variant": name, "folder": folder})
    split = comparison.descendants_under_qf(pd.DataFrame(rows), 0.1)
    assert split["latent"].tolist() == [0, 1] and split["near"].tolist() == [2, 0]
    with pytest.raises(KeyError):
        comparison.descendants_under_qf(pd.DataFrame(rows), 0.01)
