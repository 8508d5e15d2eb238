"""The benchmarks run at their smallest and give their rows, so that they keep up with what they call."""

import importlib
import math

import pytest
import torch

from lib.sae.recipes import Recipe

SMALL = {
    "activations": {
        **{"ENCODER_ROUNDS": 1, "CHAT_ROUNDS": 1, "N_TEXTS": 60, "PEER_TOKENS": 400, "PEER_BATCHES": (1024,)},
        **{"N_WINDOWS": 3, "CONTEXT": 32, "N_ANSWERS": 2, "NEW_TOKENS": 2, "PEER_ROWS": (2,), "PLACES": (0.5,)},
        "PROMPTS_OF": ("embedded",),
        "LIMITS": {"harmful": 3, "harmless": 4, "ood_harmful": 2, "ood_toxic_looking": 2, "ood_chat": 2},
    },
    "monitor": {"N_TEXTS": 3, "ROUNDS": 1, "TRIALS": 2},
    "probing": {"ROUNDS": 1, "KS": [1, 2]},
    "tasks": {"TASKS": ("96_spam_is",), "ROWS": 160, "VAL_ROWS": 10, "LEAST_TEST": 60, "C_GRID": [1.0]},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_gives_its_rows(name, monkeypatch):
    if name == "tasks":
        pytest.importorskip("zstandard")
    module = importlib.import_module(f"bench.{name}")
    for constant, value in SMALL[name].items():
        monkeypatch.setattr(module, constant, value)
    rows = list(module.measure())
    assert len({metric for metric, _, _ in rows}) == len(rows) > 4
    assert all(math.isfinite(value) for _, _, values in rows for value in values)
    assert {unit for metric, unit, _ in rows if "_vs_" in f"_{metric}"} == {"ratio"}


def test_the_speeds_of_trainings_are_rows(monkeypatch):
    pytest.importorskip("dictionary_learning")
    from bench import sae_training

    for constant, value in {"ROUNDS": 1, "STEPS": 1, "SETTLED": 2}.items():
        monkeypatch.setattr(sae_training, constant, value)
    small = Recipe(d_sae=256, target_l0=10.0, tokens=4096, batch_tokens=256)
    speeds = list(sae_training._speeds(torch.randn(17_000, 32), small, "chat_"))
    assert {metric: unit for metric, unit, _ in speeds} == {
        **{f"chat_{name}_tokens_per_s": "tokens/s" for name in ("ours", *sae_training.PEERS)},
        **{f"chat_vs_{name}": "ratio" for name in sae_training.PEERS},
    }
