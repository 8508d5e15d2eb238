"""Linear probes that read more than one representation of a prompt: several layers, or residual stream and latents."""

import numpy as np
from jaxtyping import Float

from lib.probing import ksparse
from lib.probing.dense import C_GRID, OfCell, chosen_c, fit_logistic
from lib.probing.tasks import Task


def multi_layer(
    pooled: dict[tuple[int, str], Float[np.ndarray, "prompts _"]], task: Task, c_grid: tuple[float, ...] = C_GRID
) -> OfCell:
    """One dense probe on the concatenated activations of all cells of layer × pooling that are given.

    Logistic regression on [z₁; z₂; …], zⱼ the standardised activations of a cell, with one C, chosen by grouped folds
    of the training split (:func:`dense.fit_logistic`). Returns scores of all prompts, and C.

    Raises:
        ValueError: no cell is given, cells differ in their prompts, or as in :func:`dense.search`.
    """
    if not pooled:
        raise ValueError("no cell (layer, pooling) is given; a probe needs 1 at least")
    return _fit({str(cell): x for cell, x in pooled.items()}, task, c_grid)


def dense_plus_latents(
    resid: Float[np.ndarray, "prompts d_model"],
    latents: ksparse.Columns,
    task: Task,
    c_grid: tuple[float, ...] = C_GRID,
) -> OfCell:
    """One probe on the pooled residual stream and on k chosen SAE latents, which add to it what they know beyond it.

    Logistic regression on [z; a], z the standardised residual stream and a the standardised latents, with one C,
    chosen by grouped folds of the training split. The paper's question whether SAE probes help beside dense ones
    (as Kantamneni et al., arXiv 2502.16681, ask it of a set of probes) is its difference from the dense probe.

    Args:
        latents: the k latents, as a dense or sparse matrix (prompts, k), chosen on the training split.

    Raises:
        ValueError: the two differ in their prompts, or as in :func:`dense.search`.
    """
    columns = ksparse.dense(latents, np.arange(latents.shape[1]))
    return _fit({"residual stream": resid, "latents": columns}, task, c_grid)


def _fit(parts: dict[str, np.ndarray], task: Task, c_grid: tuple[float, ...]) -> OfCell:
    y, train, groups, *_ = task
    rows = {name: len(x) for name, x in parts.items()}
    if set(rows.values()) != {len(y)}:
        raise ValueError(f"rows {rows} must be the task's {len(y)} prompts in every part")
    x = np.concatenate(list(parts.values()), axis=1)
    search = fit_logistic(x[train], y[train], groups[train], c_grid)
    return OfCell(search.decision_function(x), chosen_c(search))
