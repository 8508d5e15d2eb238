"""Trainings of a share of the tokens and of several widths; feature splitting on planted decoders."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import D_SAE, RECIPE, store

from lib.probing import costs
from lib.sae import comparison, folders, learning_rates, shares, widths
from lib.sae.harvest import Stores
from lib.sae.jumprelu import Parameters
from lib.sae.learning_rates import CHOSEN

BASE = dataclasses.replace(RECIPE, tokens=20_000)
pytestmark = pytest.mark.filterwarnings("ignore:the jumprelu SAE with d_sae")  # of so short trainings


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("widths")
    sizes = {"training": 12_000, "held_out": 2_000, "calibration": 2_000}
    return Stores(*(store(folder / name, n, i) for i, (name, n) in enumerate(sizes.items())))


def test_shares_train_on_as_many_tokens_and_differ_in_nothing_else(stores, tmp_path):
    table = shares.train_shares(BASE, [1, 0.1, 0.06], stores, tmp_path, [1, 0], progress=False)
    assert table["variant"].to_list() == [name for name in ("all tokens", "1/10 of the tokens", "3/50 of the tokens")
                                          for _ in range(2)]  # fmt: skip
    assert table["seed"].to_list() == [0, 1] * 3 and list(table) == shares.COLUMNS
    assert table["tokens"].to_list() == [20_000] * 2 + [2000] * 2 + [1200] * 2
    for row in table.itertuples():
        record = folders.training_record(Path(row.folder))
        tokens, batch_tokens = round(row.share * BASE.tokens), round(row.share * BASE.batch_tokens)
        lr = BASE.lr * row.share**0.25
        expected = dataclasses.replace(BASE, tokens=tokens, batch_tokens=batch_tokens, lr=lr, seed=row.seed)
        assert record["recipe"] == dataclasses.asdict(expected) and expected.steps == BASE.steps
        assert record["curve"][-1]["tokens"] == row.tokens == costs.tokens_seen(row.folder)
        assert record["held_out"]["fvu"] == row.fvu
    mean = table.groupby("variant")["fvu"].mean()
    assert mean["all tokens"] < mean["1/10 of the tokens"] < mean["3/50 of the tokens"]
    again = shares.train_shares(BASE, [0.1], stores, tmp_path, [0], progress=False)
    assert again["folder"].to_list() == table["folder"][2:3].to_list(), "found again"


def test_each_share_and_width_settles_its_own_learning_rate(stores, tmp_path, monkeypatch):
    asked = []

    def choose(recipe, store, calibration, parent, **options):
        asked.append((recipe.tokens, recipe.d_sae, recipe.seed, store, calibration))
        return 2e-3 if recipe.tokens == BASE.tokens else 4e-3

    monkeypatch.setattr(learning_rates, "choose", choose)
    begun = dataclasses.replace(BASE, lr=CHOSEN)
    table = shares.train_shares(begun, [1, 0.1], stores, tmp_path, [0, 1], progress=False)
    assert table["lr"].to_list() == [2e-3] * 2 + [4e-3] * 2
    widths.train_widths(begun, [24], stores, tmp_path, [0, 1], progress=False)
    sizes = [(20_000, D_SAE, 0), (2000, D_SAE, 0), (20_000, 24, 0)]
    assert asked == [(*size, stores.training, stores.calibration) for size in sizes]


def test_a_stopped_recipe_gives_whole_schedules():
    grid = shares.recipes(dataclasses.replace(BASE, stop_tokens=15_000), [0.1], [0])
    [recipe] = grid.values()
    assert recipe.tokens == 2000 and recipe.last_step == 40


@pytest.mark.parametrize("share", [0, -0.1, 1.5, 0.001])
def test_an_impossible_share_is_one_sentence(share):
    sentence = f"share {share} must lie above 0, up to 1, and leave a token of each batch of 500"
    with pytest.raises(ValueError, match=sentence):
        shares.recipes(BASE, [share], [0])


def test_a_share_that_is_there_twice_is_named():
    with pytest.raises(ValueError, match=r"shares \[0.1, 0.1\] have '1/10 of the tokens' more than once"):
        shares.recipes(BASE, [0.1, 0.1], [0])


def test_widths_train_at_equal_l0(stores, tmp_path):
    table = widths.train_widths(BASE, [24, 48, 96], stores, tmp_path, [0], progress=False)
    assert np.allclose(table["lr"], BASE.lr * np.sqrt(BASE.d_sae / table["d_sae"]))
    assert list(table) == widths.COLUMNS and table["d_sae"].to_list() == [24, 48, 96]
    assert table["variant"].to_list() == ["24 latents", "48 latents", "96 latents"]
    assert table["l0"].to_numpy() == pytest.approx(BASE.target_l0, rel=0.2)
    assert all(folders.load(row.folder).cfg.d_sae == row.d_sae for row in table.itertuples())
    assert comparison.not_converged(table).startswith("Not converged"), "40 steps are few"
    assert widths.variant(16_384) == "16,384 latents"


def test_impossible_widths_are_one_sentence():
    with pytest.raises(ValueError, match="target_l0 3 must lie between 0 and d_sae 2"):
        widths.recipes(BASE, [24, 2], [0])
    with pytest.raises(ValueError, match="equal L0, and target_l0 is 0; give one above 0"):
        widths.recipes(dataclasses.replace(BASE, target_l0=0), [24], [0])


def of_rows(rows):
    n, d_model = rows.shape
    rows = torch.nn.functional.normalize(rows, dim=1)
    return folders.from_parameters(
        Parameters(rows.clone(), rows, torch.zeros(n), torch.zeros(d_model), torch.zeros(n)), torch.zeros(d_model),
        1.0, {},
    )  # fmt: skip


def planted():
    """Latent 0 is kept, 1 is split into two, 2 into three, 3 is gone; the cosine to a part is 1/√(1 + 0.5²)."""
    axes = torch.eye(32)
    narrow = of_rows(axes[:4])
    parts = [axes[0]] + [axes[1] + 0.5 * axes[i] for i in (10, 11)] + [axes[2] + 0.5 * axes[i] for i in (12, 13, 14)]
    return narrow, of_rows(torch.stack([*parts, axes[20], axes[21]]))


def test_splitting_of_planted_decoders_by_hand():
    narrow, wide = planted()
    table = widths.splitting(narrow, wide, np.array([2, 0, 3]), np.random.default_rng(0), n_random=50)
    chosen = table[table["of"] == widths.CHOSEN]
    assert chosen["latent"].to_list() == [2, 0, 3] and chosen["near"].to_list() == [3, 1, 0]
    np.testing.assert_allclose(chosen["best"], [1 / np.sqrt(1.25), 1, 0], atol=1e-6)
    [other] = table[table["of"] == widths.OTHERS].itertuples()
    assert other.latent == 1 and other.near == 2
    drawn = table[table["of"] == widths.RANDOM]
    assert len(drawn) == 50 and drawn["latent"].isna().all()
    strict = widths.splitting(narrow, wide, np.array([2]), np.random.default_rng(0), cosine=0.9, others=np.array([0]))
    assert strict["near"].to_list()[:2] == [0, 1] and strict["latent"].to_list()[:2] == [2, 0]


def test_random_pairs_share_the_directions_of_all_rows_and_nothing_else():
    g = torch.Generator().manual_seed(0)
    isotropic = torch.randn(400, 64, generator=g)
    shared = isotropic + 10 * torch.eye(64)[0] * torch.randn(400, 1, generator=g).sign()
    best = {}
    for name, rows in {"isotropic": isotropic, "shared": shared}.items():
        sae = of_rows(rows)
        table = widths.splitting(sae, sae, np.arange(5), np.random.default_rng(0), n_random=200)
        means = widths.over_latents(table).set_index(["of", "metric"])["value"]
        assert means[widths.CHOSEN, "best"] == pytest.approx(1, abs=1e-5), "each latent is its own nearest"
        best[name] = means[widths.RANDOM, "best"]
        again = widths.splitting(sae, sae, np.arange(5), np.random.default_rng(0), n_random=200)
        assert again.equals(table)
    assert best["isotropic"] < 0.6 < best["shared"]


def test_what_cannot_be_compared_is_said():
    narrow, wide = planted()
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="an SAE of d_in 32 and d_sae 8 beside a wide one of d_in 32 and d_sae 4"):
        widths.splitting(wide, narrow, np.array([0]), rng)
    with pytest.raises(ValueError, match=r"latents \[4\] must lie between 0 and 3"):
        widths.splitting(narrow, wide, np.array([1, 4]), rng)
    with pytest.raises(ValueError, match="cosine 1.5 must lie between 0 and 1"):
        widths.splitting(narrow, wide, np.array([1]), rng, cosine=1.5)
