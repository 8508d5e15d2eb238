"""Silent latents: counted by hand, against latents of equal frequency, and with the latent that takes their place."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from lib.probing import silence
from lib.probing.tasks import Task

N = 40  # harmful base prompts


@pytest.fixture
def prompts():
    rows = [
        (split, transform, label, f"{label} {i}")
        for split in ("train", "val")
        for label in (0, 1)
        for i in range(N)
        for transform in ("plain", "jailbreak", "spelling")
    ]
    table = pd.DataFrame(rows, columns=["split", "transform", "label", "base_id"])
    is_innocuous = table["transform"] == "spelling"
    return table.assign(label=table["label"].where(~is_innocuous, 0))


@pytest.fixture
def latents(prompts):
    """60 latents: 0 fires on every harmful prompt, and in the jailbreak is silent for a quarter, where 1 begins to
    fire; 2 speaks for harmless prompts; the others fire at random, about as often as 0, and never fall silent."""
    rng = np.random.default_rng(0)
    x = np.zeros((len(prompts), 60), dtype=np.float32)
    harmful = prompts["base_id"].str.startswith("1 ").to_numpy()
    number = prompts["base_id"].str.split().str[1].astype(int).to_numpy()
    falls = harmful & (prompts["transform"] == "jailbreak").to_numpy() & (number % 4 == 0)
    x[:, 0] = harmful & ~falls
    x[:, 1] = falls
    x[:, 2] = ~harmful
    always = rng.random((2 * N, 57)) < 0.9
    x[:, 3:] = always[number + N * harmful]
    return scipy.sparse.csr_matrix(x)


def test_shares_are_counted_by_hand(prompts, latents):
    pairs = silence.pairs(prompts)
    assert list(pairs) == ["jailbreak", "spelling"] and all(len(of_one.base) == N for of_one in pairs.values())
    plain = prompts.iloc[pairs["jailbreak"].plain]
    assert set(plain["transform"]) == {"plain"} and set(plain["label"]) == {1}
    assert set(plain["split"]) == {"val"}, "latents were chosen on training prompts"
    task, both = Task.of(prompts), np.array([0, 2])
    chosen = silence.speaking(latents, task, both, 1, pairs)
    assert chosen.tolist() == [0], "latent 2 speaks for harmless prompts"
    assert silence.speaking(latents, task, both, 0, silence.pairs(prompts, label=0)).tolist() == [2]
    table = silence.by_latent(latents, pairs, chosen)
    assert table.loc[0, "jailbreak"] == 0.25 and table.loc[0, "spelling"] == 0

    beside = silence.controls(latents, pairs["jailbreak"].plain, chosen, np.array([0, 1, 2]), np.random.default_rng(0))
    assert beside.shape == (1, silence.N_CONTROLS) and beside.min() >= 3 and len(set(beside[0])) == silence.N_CONTROLS
    drawn = silence.shares(latents, pairs, chosen, beside, 500, 0)
    beyond = drawn.against("latents", silence.CONTROL).estimates().set_index("wrapper")
    assert beyond.loc["jailbreak", "value"] == 0.25 and beyond.loc["spelling", "value"] == 0
    half = 1.96 * (0.25 * 0.75 / N) ** 0.5
    assert beyond.loc["jailbreak", "low"] == pytest.approx(0.25 - half, abs=0.03)
    assert beyond.loc["jailbreak", "high"] == pytest.approx(0.25 + half, abs=0.03)


def test_latents_are_drawn_as_base_prompts_are():
    """One latent is silent in half of its pairs, the other in none: of two such latents the mean is hardly known."""
    n, share = 200, {}
    of_one = silence.Pairs(np.arange(n), n + np.arange(n), np.arange(n).astype(str))
    fires = np.ones((2 * n, 3), dtype=np.float32)
    fires[n : n + n // 2, 0] = 0  # silent in half of the pairs
    beside = np.full((2, 1), 2)
    for chosen in ([0, 1], [0, 0]):
        drawn = silence.shares(scipy.sparse.csr_matrix(fires), {"w": of_one}, np.array(chosen), beside, 400, 0)
        share[tuple(chosen)] = drawn.where(latents=silence.CHOSEN).estimates().iloc[0]
    both = share[0, 1]
    assert both["value"] == 0.25 and (both["low"], both["high"]) == pytest.approx((0, 0.53), abs=0.05)
    assert share[0, 0]["value"] == 0.5 and share[0, 0]["low"] > 0.4, "latents that agree add nothing"


def test_a_wrapper_that_only_adds_text_behind_can_silence_no_latent_of_a_causal_model():
    texts = {"plain": "How?", "suffix": "How? !!!", "prefix": "Please. How?"}
    rows = [("val", name, 1, "a", text) for name, text in texts.items()]
    prompts = pd.DataFrame(rows, columns=["split", "transform", "label", "base_id", "text"])
    assert silence.that_may_silence(prompts, ["suffix", "prefix", "elsewhere"]) == ["prefix", "elsewhere"]


def test_the_latent_that_takes_over_is_found(prompts, latents):
    pairs, decoder = silence.pairs(prompts), np.eye(60, 70, dtype=np.float32)
    decoder[1] = [0.6, 0.8, *[0] * 68]
    table = silence.in_place(latents, pairs, np.array([0, 5]), decoder).set_index("latent")
    first = table.loc[0]
    assert (first["fires"], first["silent"]) == (2 * N, 1 / 8), "over the pairs of both wrappers"
    assert first["in_place"] == 1 and (first["excess"], first["cosine"]) == pytest.approx((1.0, 0.6))
    assert table.loc[5, "silent"] == 0 and pd.isna(table.loc[5, "in_place"])


def test_controls_fire_as_often(prompts, latents):
    plain, rng = silence.pairs(prompts)["jailbreak"].plain, np.random.default_rng(1)
    count = np.asarray((latents[plain] > 0).sum(0)).ravel()
    beside = silence.controls(latents, plain, np.array([0]), np.array([0]), rng)
    nearest = np.sort(np.abs(np.delete(count, 0) - count[0]))[: 2 * silence.N_CONTROLS]
    assert np.abs(count[beside] - count[0]).max() <= nearest[-1]
    assert silence.controls(latents[:, [0, 3]], plain, np.array([0]), np.array([0]), rng).tolist() == [[1]]
    with pytest.raises(ValueError, match="none but the 1 chosen latents fires on a plain prompt"):
        silence.controls(latents[:, [0]], plain, np.array([0]), np.array([0]), rng)


def test_a_wrapper_in_which_nothing_can_fall_silent_is_left_out(prompts, latents):
    pairs = silence.pairs(prompts)
    never = silence.shares(latents, pairs, np.array([1]), np.array([[3, 4]]), 10, 0)
    assert len(never.dimensions) == 0, "latent 1 fires on no plain prompt"


def test_the_mean_over_jailbreaks_beside_each_wrapper(prompts, latents):
    decoder = np.eye(60, dtype=np.float32)
    of_probe = silence.of_probe(latents, prompts, np.array([0, 2]), decoder, ["jailbreak"], replicates=200, seed=0)
    assert of_probe.table.index.tolist() == [(1, 0), (0, 2)] and of_probe.table.loc[(0, 2)].tolist() == [0, 0]
    assert of_probe.begins.loc[(1, 0)].tolist() == [0, 0], "on harmless prompts it never fires"
    assert of_probe.begins.loc[(0, 2)].tolist() == [0, 0]
    for counts in (of_probe.table_of, of_probe.begins_of):
        assert counts.index.equals(of_probe.table.index) and (counts == N).all(None), "every pair could change"
    taken_over = silence.by_latent(latents, silence.pairs(prompts), np.array([1]), begins=True)
    assert taken_over.loc[1].tolist() == [0.25, 0]
    assert of_probe.latents.tolist() == [0] and of_probe.instead["in_place"].tolist() == [1]
    beyond = silence.beyond_control(of_probe.drawn, ["jailbreak"], 0).estimates().set_index("wrapper")
    assert list(beyond.index) == ["jailbreak", "spelling", silence.JAILBREAKS]
    assert beyond.loc["jailbreak", "value"] == beyond.loc[silence.JAILBREAKS, "value"] == 0.25
    plain = prompts[prompts["transform"] == "plain"].reset_index(drop=True)
    assert silence.of_probe(latents[: len(plain)], plain, np.array([0]), decoder, [], replicates=10, seed=0) is None
