"""Figures of notebook 08: a loss in stacked parts, how often latents fall silent, and what latents are worth OOD."""

from collections.abc import Collection

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lib.results.figures import CYCLE, LABELS, SPLITS, _panels, _spread

OTHER_SAE = "0.35"
COLOURS = {  # of dictionaries and bases, the same in every figure; every other SAE has that of ``OTHER_SAE``
    "pretraining SAE": "#4477aa",
    "finetuned from pretraining SAE": "#ee7733",
    "from scratch": "#228833",
    "principal components": "#aa3377",
    "coordinates": "#66ccee",
    "random directions": "#ccbb44",
    "untrained SAE": "#aaaaaa",
    "training tokens": "#222255",
    "k-means centres": "#ee99aa",
    "shuffled labels": "#663333",
}
BAR_HEIGHT, SHADE = 0.42, 0.75  # of a bar in rows; of a line's brightness in that of its bar
FEW = 20  # prompts of a cell, fewer than which their number is written into it


def stacked(table: pd.DataFrame, total: str, xlabel: str) -> Figure:
    """A bar for each ``variant`` of its parts (``part``, ``value``): those above zero to the right, those below to the
    left. Below the bar is the interval (``low``, ``high``) of each part, a thin line of a darker shade of its colour
    whose dot is below the end of the part. The large dot is their sum, the part ``total``, with its own interval."""
    variants, parts = (list(dict.fromkeys(table[name])) for name in ("variant", "part"))
    parts.remove(total)
    figure, (ax,) = _panels(1, width=9.6, height=1.3 + 0.72 * len(variants))
    rows, ends = np.arange(len(variants)), {side: np.zeros(len(variants)) for side in (1, -1)}
    below = np.linspace(BAR_HEIGHT / 2 + 0.07, 1 - BAR_HEIGHT / 2 - 0.09, len(parts))  # on no bar, and on no other
    for part, colour, y in zip(parts, CYCLE, below, strict=False):
        of_part = table[table["part"] == part].set_index("variant").reindex(variants)
        values = of_part["value"].fillna(0.0).to_numpy(dtype=float)
        before = np.where(values < 0, ends[-1], ends[1])
        ax.barh(rows, values, left=before, color=colour, height=BAR_HEIGHT, label=part)
        line = {"fmt": ".", "color": _darker(colour), "elinewidth": 1.4, "ms": 5}
        ends_of_part = before + of_part["value"].to_numpy(dtype=float)  # a part that is missing has no dot
        ax.errorbar(ends_of_part, rows + y, xerr=_spread(of_part), **line)
        ends = {side: end + np.where(values * side > 0, values, 0.0) for side, end in ends.items()}
    sums = table[table["part"] == total].set_index("variant").reindex(variants)
    style = {"fmt": "o", "color": "black", "capsize": 3, "ms": 5, "mec": "white", "label": "all parts together"}
    ax.errorbar(sums["value"], rows, xerr=_spread(sums), **style)
    ax.axvline(0, color="0.3", linewidth=1)
    ax.set_yticks(rows, variants)
    ax.use_sticky_edges = False
    ax.margins(x=0.03)
    ax.set(xlabel=xlabel, ylim=(len(variants) - BAR_HEIGHT / 2, -BAR_HEIGHT))
    ax.grid(axis="y", visible=False)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _darker(colour: str) -> tuple[float, ...]:
    """A shade of a colour that is seen as a thin line on white."""
    return tuple(SHADE * channel for channel in to_rgb(colour))


def shares(table: pd.DataFrame, counts: pd.DataFrame, jailbreaks: Collection[str], label: str) -> Figure:
    """A heat map of shares between 0 and 1 by latent (rows, with the class that it speaks for) and wrapper (columns,
    jailbreaks first); empty where there is none.

    ``counts`` has what each is a share of, which is written beside it where it is below ``FEW``.
    """
    wrappers = sorted(table, key=lambda wrapper: wrapper not in jailbreaks)
    table, of = table[wrappers], counts[wrappers].to_numpy()
    shown = [
        [f"{share:.2f} of {n}" if n < FEW else f"{share:.2f}" for share, n in zip(*row, strict=True)]
        for row in zip(table.to_numpy(dtype=float), of, strict=True)
    ]
    figure, (ax,) = _panels(1, width=2.4 + 0.85 * len(wrappers), height=1.8 + 0.27 * len(table))
    style = {"annot": np.array(shown), "fmt": "", "annot_kws": {"fontsize": 8}, "cmap": "viridis", "vmin": 0, "vmax": 1}
    sns.heatmap(table, ax=ax, cbar_kws={"label": label}, linewidths=0.5, **style)
    ax.grid(False)
    ax.set(xlabel="", ylabel="latent, and the class that it speaks for")
    kinds = [f"{name} ({'jailbreak' if name in jailbreaks else 'innocuous'})" for name in wrappers]
    ax.set_xticks(np.arange(len(wrappers)) + 0.5, kinds, rotation=35, ha="right")
    names = [f"{latent}, {LABELS[side]}" for side, latent in table.index]
    ax.set_yticks(np.arange(len(table)) + 0.5, names, rotation=0)
    return figure


def latent_scatter(table: pd.DataFrame, x: str, y: str) -> Figure:
    """A dot per latent: AUROC in one split against another, on equal scales, a panel per SAE; chosen latents marked,
    diagonal dotted, lines at 0.5."""
    variants = list(dict.fromkeys(table["variant"]))
    figure, axes = _panels(len(variants), width=4.6, height=5.2, sharex=True, sharey=True)
    ends = table[[x, y]].min().min() - 0.02, table[[x, y]].max().max() + 0.02
    for ax, variant in zip(axes, variants, strict=True):
        rows = table[table["variant"] == variant]
        ax.scatter(rows[x], rows[y], s=6, color="0.6", alpha=0.5, linewidth=0, label="latents")
        chosen = rows[rows["chosen"]]
        ax.scatter(chosen[x], chosen[y], s=28, facecolor="none", edgecolor=CYCLE[1], linewidth=1.5, label="chosen")
        ax.axline((0.5, 0.5), slope=1, color="black", linestyle=":", linewidth=1)
        for line in (ax.axhline, ax.axvline):
            line(0.5, color="black", linewidth=0.9)
        ax.set(title=variant, xlabel=f"AUROC, {SPLITS.get(x, x)}", ylabel=f"AUROC, {SPLITS.get(y, y)}")
        ax.set(xlim=ends, ylim=ends, aspect="equal")
        ax.label_outer()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    return figure
