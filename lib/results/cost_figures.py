"""Figures of costs: what a dictionary is behind the dense probe against what it takes to make it."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.results.figures import _panels, _spread
from lib.results.why_figures import COLOURS, OTHER_SAE

MAKING = "cost of making it (FLOPs)"
GAP = "AUROC gap to the dense probe"
ROOM, END = 0.7, 1.2  # decades between the ends and the known costs, and of each end
UNKNOWN = "not known"


def gaps_against_cost(table: pd.DataFrame, cost: str = "making", *, xlabel: str = MAKING, ylabel: str = GAP) -> Figure:
    """A row for each ``variant``, the cheapest at the top: left its ``cost``, logarithmic, right its ``value`` with the
    interval (``low``, ``high``); the dotted line at zero is the dense probe.

    What costs nothing stands at a marked left end, what has no known cost at a right one. Colours are ``COLOURS``.

    Raises:
        ValueError: no row, a cost that is negative, or a row without a value.
    """
    costs = table[cost].to_numpy(dtype=float)
    if not len(table) or (costs < 0).any() or table["value"].isna().any():
        raise ValueError(
            f"{len(table)} points, {cost} from {np.nanmin(costs, initial=0):g}, {table['value'].isna().sum()} without "
            "a value; there must be points, of costs of at least 0, each with a value"
        )
    table = table.sort_values([cost, "value"], na_position="last")
    rows = np.arange(len(table))
    figure, (left, right) = _panels(2, height=1.4 + 0.26 * len(table), width=4.8, sharey=True, width_ratios=[1, 1.7])
    left.set_xscale("log")
    places = _places(left, table[cost].to_numpy(dtype=float))
    for i, (name, spread) in enumerate(zip(table["variant"], _spread(table).T, strict=True)):
        style = {"fmt": "o", "ms": 5, "color": COLOURS.get(name, OTHER_SAE)}
        left.errorbar(places[i], i, **style)
        right.errorbar(table["value"].iloc[i], i, xerr=spread[:, None], capsize=2.5, **style)
    right.axvline(0, color="black", linestyle=":", linewidth=1.5)
    where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center", "va": "bottom"}
    right.annotate("dense probe", (0, 1), (0, 3), fontsize=8.5, color="0.15", **where)
    left.set_yticks(rows, table["variant"])
    left.set(xlabel=xlabel, ylim=(len(table) - 0.5, -0.5))
    right.set(xlabel=ylabel)
    return figure


def _places(ax: Axes, costs: np.ndarray) -> np.ndarray:
    """Where costs lie on the axis, whose ticks, ends and limits are set."""
    known = costs[costs > 0]
    first, last = np.log10([known.min(), known.max()]) if len(known) else (0.0, 0.0)
    left, right = first - ROOM, last + ROOM
    places = np.log10(np.where(costs > 0, costs, 1.0))
    ends = []  # of the axis, in decades: which points, from where to where, and what is written there
    if (costs == 0).any():
        ends.append((costs == 0, left - END, left, "0"))
    if np.isnan(costs).any():
        ends.append((np.isnan(costs), right, right + END, UNKNOWN))
    # A tick for each decade, or for each second or third where there are many.
    decades = range(int(np.ceil(first - 0.5)), int(np.floor(last + 0.5)) + 1, 1 + int(last - first) // 4)
    ticks = {10.0**i: f"$10^{{{i}}}$" for i in decades} if len(known) else {}
    for here, start, stop, text in ends:
        places[here] = (start + stop) / 2
        ticks[10 ** ((start + stop) / 2)] = text
        ax.axvspan(10**start, 10**stop, color="black", alpha=0.05, linewidth=0)
    limits = [start for _, start, _, _ in ends] + [stop for _, _, stop, _ in ends] + [first - 0.5, last + 0.5]
    ax.set_xlim(10 ** min(limits), 10 ** max(limits))
    ax.set_xticks(list(ticks), list(ticks.values()))
    ax.minorticks_off()
    for tick in ax.xaxis.get_major_ticks()[len(ticks) - len(ends) :]:
        tick.gridline.set_visible(False)
    return 10**places
