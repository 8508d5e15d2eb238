"""Figures of notebook 08: a loss in stacked parts, and how often latents fall silent."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lib.results.figures import CYCLE, _panels, _spread


def stacked(table: pd.DataFrame, total: str, xlabel: str) -> Figure:
    """A bar for each ``variant`` of its parts (``part``, ``value``): those above zero to the right, those below to the
    left. The dot is their sum, the part ``total``, with its interval (``low``, ``high``)."""
    variants, parts = (list(dict.fromkeys(table[name])) for name in ("variant", "part"))
    parts.remove(total)
    figure, (ax,) = _panels(1, width=9.6, height=1.3 + 0.45 * len(variants))
    ends = {side: np.zeros(len(variants)) for side in ("left", "right")}
    for part, colour in zip(parts, CYCLE, strict=False):
        values = table[table["part"] == part].set_index("variant")["value"].reindex(variants).to_numpy(dtype=float)
        for side, of_side in (("right", np.maximum(values, 0)), ("left", np.minimum(values, 0))):
            label = part if side == "right" else None
            ax.barh(range(len(variants)), of_side, left=ends[side], color=colour, height=0.6, label=label)
            ends[side] = ends[side] + of_side
    sums = table[table["part"] == total].set_index("variant").reindex(variants)
    style = {"fmt": "o", "color": "black", "capsize": 3, "ms": 5, "label": "all parts together"}
    ax.errorbar(sums["value"], range(len(variants)), xerr=_spread(sums), **style)
    ax.axvline(0, color="0.3", linewidth=1)
    ax.set_yticks(range(len(variants)), variants)
    ax.use_sticky_edges = False
    ax.margins(x=0.03)
    ax.set(xlabel=xlabel, ylim=(len(variants) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def shares(table: pd.DataFrame, label: str, ylabel: str) -> Figure:
    """A heat map of shares between 0 and 1, rows and columns as they are in the table; empty where there is none."""
    figure, (ax,) = _panels(1, width=2.4 + 0.75 * table.shape[1], height=1.6 + 0.27 * len(table))
    style = {"annot": True, "fmt": ".2f", "annot_kws": {"fontsize": 8}, "cmap": "viridis", "vmin": 0, "vmax": 1}
    sns.heatmap(table, ax=ax, cbar_kws={"label": label}, linewidths=0.5, **style)
    ax.grid(False)
    ax.set(xlabel="", ylabel=ylabel)
    ax.set_xticks(np.arange(table.shape[1]) + 0.5, table.columns, rotation=35, ha="right")
    ax.set_yticks(np.arange(len(table)) + 0.5, table.index, rotation=0)
    return figure
