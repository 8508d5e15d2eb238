import numpy as np
import pandas as pd
import pytest
import torch

from lib.sae import comparison, folders
from lib.sae.jumprelu import Parameters
from lib.sae.recipes import Recipe


def curve(variant, seed, shift=0.0, l0=(8, 16, 32, 64)):
    return pd.DataFrame({"variant": variant, "seed": seed, "l0": l0, "fvu": [0.5 - 0.1 * np.log2(v / 8) + shift for v in l0]})


def test_matched_difference_by_hand():
    table = pd.concat([
        curve("a", 0), curve("a", 1), curve("a", 2),
        curve("b", 0, 0.01, (10, 20, 40)), curve("b", 1, 0.02, (10, 20, 40)), curve("b", 2, 0.03, (10, 20, 40)),
    ])  # fmt: skip
    found, single = comparison.matched_difference(table, "b", "a", [8, 16, 32, 64])
    assert sorted(set(single["l0"])) == [16, 32], "8 and 64 lie outside b's range: nothing is extrapolated"
    assert found.value == pytest.approx(0.02) and (found.n, found.n_groups) == (6, 3)
    assert found.high - found.value == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-3)
    nothing, _ = comparison.matched_difference(table, "c", "a", [16])
    assert nothing.value is None and nothing.n == 0


def test_recipes_of_a_grid():
    grid = comparison.recipes(
        Recipe(tokens=10_000), {"j": {}, "g": {"architecture": "gated"}}, {"target_l0": [8, 16], "coefficient": [0.5]}, [0, 1]
    )
    assert len(grid) == 6 and grid["j", 16, 1].target_l0 == 16 and grid["g", 0.5, 1].coefficient == 0.5
    assert grid["j", 8, 1].seed == 1


def test_a_split_latent_has_two_descendants():
    eye = torch.eye(4)

    def sae(dec):
        p = Parameters(dec, dec, torch.zeros(len(dec)), torch.zeros(4), torch.zeros(len(dec)))
        return folders.from_parameters(p, torch.zeros(4), 1.0, {})

    halves = torch.nn.functional.normalize(torch.stack([eye[0] + 0.5 * eye[2], eye[0] - 0.5 * eye[2], eye[1]]), dim=1)
    found = comparison.descendants(sae(eye[:3]), sae(halves), np.array([0.5, 0.01, 0.2]))
    assert found["latent"].tolist() == [0, 2] and found["near"].tolist() == [2, 0]
    assert found["best"][0] == pytest.approx(1 / 1.25**0.5) and found["best"][1] == pytest.approx(0.5 / 1.25**0.5)
    assert comparison.descendants(sae(eye[:3]), sae(halves), np.zeros(3)).empty
