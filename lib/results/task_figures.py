"""Figures over many tasks: every task as a point."""

import itertools

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.results.figures import CYCLE, _panels

N_NAMED = 10  # tasks of largest difference, which are named


def scatter(table: pd.DataFrame, xlabel: str, ylabel: str, *, named: int = N_NAMED) -> Figure:
    """Each task as a point at ``x`` and ``y`` with the diagonal, in the colour of its ``kind``; those farthest from the
    diagonal are named, in a column at the right."""
    figure, (ax,) = _panels(1, width=8.4, height=6.8)
    figure.set_layout_engine("none")  # Names stand outside the axes, and room is kept for them.
    ax.set_position((0.1, 0.27, 0.58, 0.71))
    for colour, (kind, rows) in zip(itertools.cycle(CYCLE), table.groupby("kind", sort=False), strict=False):
        ax.plot(rows["x"], rows["y"], "o", color=colour, markersize=5, alpha=0.85, label=f"{kind} ({len(rows)})")
    values = table[["x", "y"]].to_numpy()
    room = 0.03 * np.ptp(values) + 1e-3
    low, high = values.min() - room, values.max() + room
    ax.plot([low, high], [low, high], ":", color="0.4", label="equal")
    ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(low, high), ylim=(low, high))
    ax.set_aspect("equal")
    farthest = table.assign(apart=(table["y"] - table["x"]).abs()).nlargest(named, "apart").sort_values("y")
    heights = _apart(farthest["y"].tolist(), low, high)
    for row, height in zip(farthest.itertuples(), heights, strict=True):
        line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkB": 3}
        place = (1.04, (height - low) / (high - low))
        ax.annotate(row.task, (row.x, row.y), place, textcoords="axes fraction", fontsize=7, va="center",
                    arrowprops=line, annotation_clip=False)  # fmt: skip
    figure.legend(loc="lower center", bbox_to_anchor=(0.5, 0.07), ncols=3, frameon=False, fontsize=7.5)
    return figure


def _apart(heights: list[float], low: float, high: float) -> list[float]:
    """Ascending heights moved apart so that labels do not lie on each other, within ``low`` to ``high``."""
    gap = (high - low) / 24
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    over = max(0.0, placed[-1] - high) if placed else 0.0
    for i in range(len(placed) - 1, -1, -1):
        limit = placed[i + 1] - gap if i + 1 < len(placed) else placed[i] - over
        placed[i] = min(placed[i], limit)
    return placed
