"""Cost as it grows: seconds and resident memory of harvest and SAE training against the number of tokens and the width.

At 1× 32,768 tokens of docstrings are harvested, and an SAE is trained on three passes over them: the size of the
embedded profile. The store grows with the tokens; training holds at most ``BUFFER_TOKENS`` of it. Every point is a
process of its own, forked from one that has imported the modules and holds no data, so that no point's memory hides in
another's; its seconds begin when the model is loaded.
"""

import dataclasses
import itertools
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.base.files import ROOT, run_dir
from lib.model import activations, models, weights
from lib.results import figures
from lib.sae import training
from lib.sae.recipes import Recipe
from lib.texts import corpora

PROFILE = "embedded"  # whose data are measured
LAYER, ROUNDS = 2, 3
TOKENS, WIDTHS = (1, 4, 16), (1, 2, 4)  # scale factors; 16 × is four times what fits into the buffer
WINDOW, WINDOWS, HELD_OUT = 128, 256, 128  # tokens of a window; windows at 1 ×, also of a shard; windows held out
PASSES, BUFFER_TOKENS = 3, 4 * WINDOW * WINDOWS
RECIPE = Recipe(d_sae=768, target_l0=32.0, tokens=PASSES * WINDOW * WINDOWS, batch_tokens=1024)
CURVES = {("harvest", "tokens"): TOKENS, ("training", "tokens"): TOKENS, ("training", "width"): WIDTHS}
QUANTITIES = {
    "seconds": "s",
    "memory_gib": "GiB",  # resident memory at its peak
    "added_gib": "GiB",  # the same above that at the start
}
LABELS = {
    "seconds": "wall time of {job} (s)",
    "memory_gib": "peak resident memory (GiB)",
    "added_gib": "peak above imports and model (GiB)",
}

Cost = dict[str, float]


def slope(scales: tuple[int, ...], values: list[float]) -> float:
    """Exponent b of the least-squares line log value = a + b log scale; 1: cost in proportion, 0: constant."""
    return float(np.polyfit(np.log(scales), np.log(values), 1)[0])


def measure() -> Iterator[tuple[str, str, list[float]]]:
    """All points in turn, round by round; a slope is taken within a round. At 1 × tokens and width are one point."""
    windows = _windows(max(TOKENS) * WINDOWS + HELD_OUT)
    rounds = [_round(windows) for _ in range(ROUNDS)]
    for ((job, axis), scales), (quantity, unit) in itertools.product(CURVES.items(), QUANTITIES.items()):
        by_round = [[costs[job, axis, scale][quantity] for scale in scales] for costs in rounds]
        for i, scale in enumerate(scales):
            yield f"{job}_{quantity}_{axis}_x{scale}", unit, [values[i] for values in by_round]
        yield f"{job}_{quantity}_{axis}_slope", "exponent", [slope(scales, values) for values in by_round]


def _windows(n: int) -> list[list[int]]:
    """Token ids of ``n`` windows of the same length; a small corpus is repeated."""
    length = WINDOW + 2  # [CLS] and [SEP] stand around a window
    split = models.split_tokens(models.load_model(weights.MINILM), corpora.corpus("docstrings"), length)
    return list(itertools.islice(itertools.cycle([ids for ids in split if len(ids) == length]), n))


def _round(windows: list[list[int]]) -> dict[tuple[str, str, int], Cost]:
    """Costs by job, axis and scale; trained on what was harvested."""
    costs, stores, parent = {}, {}, run_dir("bench")
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        held_out, _ = _alone(_harvest, windows[-HELD_OUT:], Path(folder))
        for scale in TOKENS:
            harvested = windows[: scale * WINDOWS]
            stores[scale], costs["harvest", "tokens", scale] = _alone(_harvest, harvested, Path(folder))
        for axis, scale in [("tokens", scale) for scale in TOKENS] + [("width", scale) for scale in WIDTHS[1:]]:
            tokens, width = (scale, 1) if axis == "tokens" else (1, scale)
            _, costs["training", axis, scale] = _alone(_train, stores[tokens], held_out, tokens, width)
    return costs | {("training", "width", 1): costs["training", "tokens", 1]}


def _harvest(windows: list[list[int]], parent: Path) -> Path:
    content = activations.texts_hash([str(ids) for ids in windows])
    return activations.harvest_tokens(
        models.load_model(weights.MINILM),
        {"model": weights.MINILM},
        content,
        windows,
        LAYER,
        parent,
        special=False,
        shuffle_seed=0,
        shard_tokens=WINDOWS * (WINDOW + 2),
    )


def _train(store: Path, held_out: Path, tokens: int, width: int) -> Path:
    recipe = dataclasses.replace(RECIPE, tokens=tokens * RECIPE.tokens, d_sae=width * RECIPE.d_sae)
    return training.train(recipe, store, held_out, store.parent, progress=False, buffer_tokens=BUFFER_TOKENS)


def _alone(job: Callable[..., Path], *arguments: Any) -> tuple[Path, Cost]:
    """What a job makes and what it costs, in a process of its own."""
    context = multiprocessing.get_context("forkserver")  # a spawned process would report this one's peak as its own
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_measured, job, *arguments).result()


def _measured(job: Callable[..., Path], *arguments: Any) -> tuple[Path, Cost]:
    models.load_model(weights.MINILM)  # in trainings too, as in notebook 03
    before, started = _peak(), time.perf_counter()
    product = job(*arguments)
    seconds = time.perf_counter() - started
    return product, {"seconds": seconds, "memory_gib": _peak(), "added_gib": _peak() - before}


def _peak() -> float:
    """GiB that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def draw(rows: list[dict[str, Any]], folder: Path = ROOT / "figures" / "bench") -> Figure:
    """``scaling.png`` from the benchmark's rows."""
    caption = (
        f"1× = {WINDOW * WINDOWS:,} tokens harvested, {RECIPE.tokens:,} trained on ({PASSES} passes), "
        f"d_sae {RECIPE.d_sae}; the store grows with the tokens,\n"
        f"training holds at most {BUFFER_TOKENS:,} of them. Median and range of n = {rows[0]['n']} rounds; "
        f"profile {rows[0]['profile']}, {rows[0]['hardware']['threads']} cores"
    )
    return figures.save(figures.growth(_points(rows)), folder, "scaling", caption)


def _points(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The table of :func:`lib.results.figures.growth`."""
    by_name = {row["name"]: row for row in rows}
    points = []
    for (quantity, label), ((job, axis), scales) in itertools.product(LABELS.items(), CURVES.items()):
        exponent = "{value:.2f} [{min:.2f}, {max:.2f}]".format(**by_name[f"{job}_{quantity}_{axis}_slope"])
        for scale in scales:
            row = by_name[f"{job}_{quantity}_{axis}_x{scale}"]
            points.append({
                "panel": label.format(job=job),
                "line": f"{job}, {axis}",
                "slope": exponent,
                "scale": scale,
                "value": row["value"],
                "low": row["min"],
                "high": row["max"],
            })
    return pd.DataFrame(points)
