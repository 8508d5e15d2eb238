"""Monitors: what reading a prompt takes, by hand; and that latents beside the residual stream can help."""

import numpy as np
import pytest

from lib.probing import monitors
from lib.probing.tasks import Task
from lib.stats.metrics import auroc

N, D = 400, 3
RNG = np.random.default_rng(0)
Y = np.arange(N) % 2
TASK = Task(Y, np.arange(N) < 300, np.arange(N), np.arange(N) >= 350)
SIGNAL = (Y + RNG.normal(0, 0.5, N)).astype(np.float32)[:, None]
NOISE = RNG.normal(size=(N, D)).astype(np.float32)


def read(latents):
    pooled = {(1, "mean"): NOISE, (2, "mean"): NOISE[:, ::-1].copy(), (2, "max"): NOISE}
    return monitors.Read(pooled, 2, "mean", latents, TASK, tokens_per_prompt=5.0)


def test_latents_help_where_they_hold_what_the_residual_stream_does_not():
    of = monitors.linear(read(SIGNAL), (1.0,))
    rest = ~TASK.train
    areas = {name: auroc(Y[rest], one.scores[rest], np.ones((1, rest.sum())))[0] for name, one in of.items()}
    assert areas["dense and latents"] > 0.85 and areas["dense"] < 0.65


def test_flops_and_layers_by_hand():
    of = monitors.linear(read(SIGNAL), (1.0,))
    assert {name: (one.flops, one.layer) for name, one in of.items()} == {
        "dense": (2 * D, 2),
        "dense, 2 layers": (2 * D * 2, 2),
        "dense and latents": (2 * (D + 1) + 2 * D * 5, 2),
    }
    assert monitors.of_latents(SIGNAL[:, 0], read(SIGNAL)).flops == 2 + 2 * D * 5


def test_the_model_runs_up_to_the_layer_that_a_monitor_reads(gemma):
    scores = np.zeros(4)
    of = {"first": monitors.Monitor(scores, 7.0, 0), "words": monitors.Monitor(scores, 0.0, None)}
    of["last"] = monitors.Monitor(scores, 7.0, gemma.cfg.n_layers - 1)
    table = monitors.cost_table(of, gemma, tokens=10.0)
    of_block = [sum(p.numel() for p in block.parameters()) for block in gemma.blocks]
    assert table["model"].to_dict() == {"first": 20.0 * of_block[0], "words": 0.0, "last": 20.0 * sum(of_block)}
    assert table["probe"].to_dict() == {"first": 7.0, "words": 0.0, "last": 7.0}


def test_prompts_without_folds_are_refused():
    with pytest.raises(ValueError, match="too few"):
        monitors.linear(read(SIGNAL)._replace(task=TASK._replace(groups=np.zeros(N, dtype=int))), (1.0,))
