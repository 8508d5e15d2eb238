"""Figures of costs: what a dictionary is behind the dense probe against what it takes to make it."""

import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from lib.results.figures import CYCLE, _panels

MAKING = "cost of making the dictionary (FLOPs)"
GAP = "AUROC gap to the dense probe"
ROOM, END = 1.0, 1.6  # decades between the ends and the known costs, and of each end
UNKNOWN = "not known"
CAPTION_LINES = 3  # for which labels leave room
PADDING = 3.0  # points around a label
DISTANCES = (5, 12, 20, 30, 42, 56, 72, 90, 110)  # points from a marker to its label
ANGLES = (0, 180, 45, 315, 135, 225, 90, 270, 70, 290, 110, 250, 20, 340, 160, 200)  # degrees


def gaps_against_cost(
    table: pd.DataFrame, cost: str = "making", hue: str = "kind", *, xlabel: str = MAKING, ylabel: str = GAP
) -> Figure:
    """A labelled point for each ``variant``: its ``value`` with the interval (``low``, ``high``) against a logarithmic
    ``cost``, coloured by ``hue``; the dotted line at zero is the dense probe.

    What costs nothing stands side by side at a marked left end, what has no known cost at a right one. A label has a
    line to its point, and lies over no other label, point or interval while there is room.

    Raises:
        ValueError: no row, a cost that is negative, or a row without a value.
    """
    costs = table[cost].to_numpy(dtype=float)
    if not len(table) or (costs < 0).any() or table["value"].isna().any():
        raise ValueError(
            f"{len(table)} points, {cost} from {np.nanmin(costs, initial=0):g}, {table['value'].isna().sum()} without "
            "a value; there must be points, of costs of at least 0, each with a value"
        )
    figure, (ax,) = _panels(1, width=9.6, height=5.4)
    ax.set_xscale("log")
    places = _places(ax, costs)
    colours = dict(zip(dict.fromkeys(table[hue]), itertools.cycle(CYCLE)))
    value, low, high = (table[name].to_numpy(dtype=float) for name in ("value", "low", "high"))
    spread = np.nan_to_num(np.clip([value - low, high - value], 0, None))
    for i, kind in enumerate(table[hue]):
        style = {"fmt": "o", "ms": 6, "capsize": 3, "color": colours[kind]}
        ax.errorbar(places[i], value[i], yerr=spread[:, [i]], **style)
    ax.axhline(0, color="black", linestyle=":", linewidth=1.5)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.margins(y=0.2)
    figure.supxlabel("\n" * CAPTION_LINES, fontsize=8)  # ``figures.save`` writes over it
    points = np.column_stack([places, value, value - spread[0], value + spread[1]])
    where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right", "va": "bottom"}
    ax.annotate("dense probe", (1, 0), (-4, 2), fontsize=8.5, color="0.15", **where)
    _label(ax, points, table["variant"].tolist())
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
    decades = range(int(np.ceil(first - 0.5)), int(np.floor(last + 0.5)) + 1, 1 + int(last - first) // 8)
    ticks = {10.0**i: f"$10^{{{i}}}$" for i in decades} if len(known) else {}
    for here, start, stop, text in ends:
        places[here] = np.linspace(start, stop, int(here.sum()) + 2)[1:-1]
        ticks[10 ** ((start + stop) / 2)] = text
        ax.axvspan(10**start, 10**stop, color="black", alpha=0.05, linewidth=0)
    limits = [start for _, start, _, _ in ends] + [stop for _, _, stop, _ in ends] + [first - 0.5, last + 0.5]
    ax.set_xlim(10 ** min(limits), 10 ** max(limits))
    ax.set_xticks(list(ticks), list(ticks.values()))
    ax.minorticks_off()
    for tick in ax.xaxis.get_major_ticks()[len(ticks) - len(ends) :]:
        tick.gridline.set_visible(False)
    return 10**places


def _label(ax: Axes, points: np.ndarray, names: list[str]) -> None:
    """Write each name beside its point (x, y, low, high), at the first of the places around it where it is free."""
    figure = ax.figure
    figure.draw_without_rendering()
    pixels = figure.dpi / 72
    x, y = ax.transData.transform(points[:, :2]).T
    low, high = (ax.transData.transform(points[:, [0, column]])[:, 1] for column in (2, 3))
    bars = [Bbox([[x[i], low[i]], [x[i], high[i]]]).padded(6 * pixels) for i in range(len(names))]
    inside = ax.get_window_extent()
    taken = [text.get_window_extent() for text in ax.texts]
    for i in np.argsort(y, kind="stable"):  # from below
        label = ax.annotate(names[i], points[i, :2], (0, 0), textcoords="offset points", fontsize=8.5, color="0.15")
        label.set_in_layout(False)
        others = [bar for j, bar in enumerate(bars) if j != i] + taken
        in_the_way, boxes = {}, {}
        for offset in _offsets():
            _move(label, offset)
            box = boxes[offset] = label.get_window_extent().padded(PADDING * pixels)
            line = np.linspace([x[i], y[i]], [x[i] + offset[0] * pixels, y[i] + offset[1] * pixels], 20)
            outside = not (inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1)
            hidden = box.overlaps(bars[i]) + sum(box.overlaps(other) for other in others)
            crossed = sum(any(other.contains(*point) for point in line) for other in others)
            in_the_way[offset] = 100 * outside + 10 * hidden + crossed
            if not in_the_way[offset]:
                break
        best = min(in_the_way, key=in_the_way.get)
        _move(label, best)
        taken.append(boxes[best])
        if np.hypot(*best) > DISTANCES[1]:
            line = {"arrowstyle": "-", "color": "0.5", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3}
            ax.annotate("", points[i, :2], best, textcoords="offset points", arrowprops=line).set_in_layout(False)


def _offsets() -> Iterator[tuple[float, float]]:
    """Places around a point, near ones first, in points."""
    for distance in DISTANCES:
        for angle in np.radians(ANGLES):
            yield round(distance * np.cos(angle), 3), round(distance * np.sin(angle), 3)


def _move(label: Annotation, offset: tuple[float, float]) -> None:
    """Put a label on the side of its point that the offset says, the text growing away from the point."""
    x, y = offset
    label.set_position(offset)
    label.set_horizontalalignment("left" if x > 0 else "right" if x < 0 else "center")
    label.set_verticalalignment("bottom" if x == 0 and y > 0 else "top" if x == 0 else "center")
