"""Probes as monitors: their scores side by side, and what each takes to read a prompt."""

import time
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int
from transformer_lens.model_bridge import TransformerBridge

from lib.model.activations import PromptTokens
from lib.probing import costs, ksparse
from lib.probing.combined import dense_plus_latents, multi_layer
from lib.probing.tasks import Task
from lib.probing.token_probes import Fitted
from lib.stats.metrics import Scores

DENSE, WITH_LATENTS = "dense", "dense and latents"
TRIALS = 3  # of a time, of which the median is taken


class Monitor(NamedTuple):
    """Scores of all prompts, and the cost of one of them.

    Attributes:
        flops: floating-point operations that reading takes for each prompt, beyond the model's own pass.
        layer: the block up to which the model has to run; None if it needs no model.
    """

    scores: Scores
    flops: float
    layer: int | None


class Read(NamedTuple):
    """What monitors read.

    Attributes:
        pooled: activations by (layer, pooling); the monitors read the pooling ``pooling``.
        layer: of the SAE and of the tokens; the dense probe and the ones beside it read it.
        latents: the k chosen columns of the pooled latents.
        tokens_per_prompt: the mean number of tokens that are read.
    """

    pooled: dict[tuple[int, str], np.ndarray]
    layer: int
    pooling: str
    latents: ksparse.Columns
    task: Task
    tokens_per_prompt: float


def linear(read: Read, c_grid: tuple[float, ...]) -> dict[str, Monitor]:
    """The dense probe, one on all layers that there are, and one with the chosen latents beside the residual stream.

    All are logistic regressions whose C is chosen by grouped folds of the training split (``lib.probing.combined``).
    FLOPs are those of the dot products, and of the rows of the encoder that the chosen latents need of every token.

    Raises:
        ValueError: as in :func:`lib.probing.dense.search`.
    """
    here, task = read.pooled[read.layer, read.pooling], read.task
    cells = {cell: x for cell, x in read.pooled.items() if cell[1] == read.pooling}
    dense = multi_layer({(read.layer, read.pooling): here}, task, c_grid).scores
    d_model, k = here.shape[1], read.latents.shape[1]
    encoder = _rows(d_model, k) * read.tokens_per_prompt
    several = multi_layer(cells, task, c_grid).scores
    beside = dense_plus_latents(here, read.latents, task, c_grid).scores
    last = max(layer for layer, _ in cells)
    return {
        DENSE: Monitor(dense, 2.0 * d_model, read.layer),
        f"dense, {len(cells)} layers": Monitor(several, 2.0 * d_model * len(cells), last),
        WITH_LATENTS: Monitor(beside, 2.0 * (d_model + k) + encoder, read.layer),
    }


def of_latents(scores: Scores, read: Read) -> Monitor:
    """The k-sparse probe on the chosen latents."""
    d_model, k = read.pooled[read.layer, read.pooling].shape[1], read.latents.shape[1]
    return Monitor(scores, 2.0 * k + _rows(d_model, k) * read.tokens_per_prompt, read.layer)


def _rows(d_model: int, k: int) -> float:
    return costs.rows(costs.Size(d_model, k), k)


def on_tokens(fitted: dict[str, Fitted], read: Read) -> dict[str, Monitor]:
    """The token probes as monitors, named ``tokens, <aggregation>``."""
    return {
        f"tokens, {name}": Monitor(probe.scores, probe.flops_per_token * read.tokens_per_prompt, read.layer)
        for name, probe in fitted.items()
    }


def cost_table(monitors: dict[str, Monitor], bridge: TransformerBridge, tokens: float) -> pd.DataFrame:
    """FLOPs of one prompt by monitor, in columns ``model`` (``costs.forward_pass`` of ``tokens`` tokens through the
    blocks up to its layer) and ``probe``. Attention's products of tokens are not counted."""
    of_block = [sum(weight.numel() for weight in block.parameters()) for block in bridge.blocks]
    table = {
        name: {
            "model": 0.0 if monitor.layer is None else costs.forward_pass(sum(of_block[: monitor.layer + 1]), tokens),
            "probe": monitor.flops,
        }
        for name, monitor in monitors.items()
    }
    return pd.DataFrame(table).T


def milliseconds(probe: Fitted, tokens: PromptTokens, prompts: Int[np.ndarray, " rows"]) -> float:
    """Median wall time of scoring ``prompts``, in milliseconds for each, the tokens being there already.

    It differs from run to run and from machine to machine: show it, and keep it out of records.
    """
    seconds = []
    for _ in range(TRIALS):
        start = time.perf_counter()
        probe.score(tokens, prompts)
        seconds.append(time.perf_counter() - start)
    return float(1e3 * np.median(seconds) / len(prompts))
