"""Figures of SAEs alone: how often their latents fire, and how their training went."""

import itertools

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from lib.results.figures import CYCLE, _panels

HISTOGRAM_COLUMNS = 4
COUNTS = (0, 1, 5, 20, 50, 100, 200, 400, 800, 1600, 3200, 6400)  # ticks of an axis of square roots


def frequency_histograms(frequencies: dict[str, list[np.ndarray]], baseline: str, line: float) -> Figure:
    """Histograms of the latents' firing frequencies, a panel per variant: means over its SAEs, one for each seed.

    ``baseline`` is outlined in every panel. Frequencies are logarithmic and cut at the high-frequency ``line``, so that
    no bin holds both sides; counts stand at their square roots, where few latents above the line are seen beside many
    below it. A latent that never fires is in no bin.
    """
    rows = -(-len(frequencies) // HISTOGRAM_COLUMNS)
    columns = -(-len(frequencies) // rows)
    figure, axes = _panels(columns, width=3.2, height=3.4, rows=rows, sharex=True, sharey=True)
    edges = line * 10.0 ** np.arange(-4, 1.01, 0.125)
    counts = {name: np.mean([np.histogram(x, edges)[0] for x in part], axis=0) for name, part in frequencies.items()}
    first = np.flatnonzero(sum(counts.values()))[:1].sum()
    for i, (ax, colour, name) in enumerate(zip(axes, itertools.cycle(CYCLE), frequencies, strict=False)):
        ax.stairs(counts[name], edges, fill=True, color=colour, alpha=0.55)
        ax.stairs(counts[baseline], edges, color="black", linewidth=1)
        ax.axvline(line, color="black", linestyle="--", linewidth=1)
        above, mass, l0 = np.mean([_above(x, line) for x in frequencies[name]], axis=0)
        held = f"above {line:.0%}: {above:.1f} latents, {mass:.1%} of firings"
        ax.set_title(f"{name}\nL0 {l0:.1f}\n{held}", fontsize=9)
        ax.set_xscale("log")
        ax.set_yscale("function", functions=(np.sqrt, np.square))
        top = 1.1 * max(part.max() for part in counts.values())
        ax.set(xlim=edges[[first, -1]], ylabel="latents per bin" if i % columns == 0 else "", ylim=(0, top))
        ax.set_yticks([count for count in COUNTS if count <= top])
        ax.tick_params(axis="y", labelsize=8)
        if i + columns >= len(frequencies):
            ax.set_xlabel("firing frequency (fraction of tokens)")
            ax.tick_params(labelbottom=True)
    for ax in axes[len(frequencies) :]:
        ax.set_visible(False)
    return figure


def _above(frequency: np.ndarray, line: float) -> tuple[int, float, float]:
    """Latents above a line, their share of all firings, and L0."""
    above, l0 = frequency > line, float(frequency.sum())
    return int(above.sum()), float(frequency[above].sum()) / max(l0, 1e-12), l0


def training_curves(curves: dict[str, pd.DataFrame]) -> Figure:
    """FVU, L0, dead and high-frequency latents of the training batches against tokens seen.

    L0 is logarithmic, and so are the high-frequency latents from one up: where all latents are frequent before a
    penalty has settled, those of the others would lie on zero.
    """
    names = {
        "fvu": "FVU (fraction of variance)",
        "l0": "L0 (latents per token)",
        "dead": "dead latents",
        "high_frequency": "latents active on\n> 10 % of tokens",
    }
    figure, axes = _panels(len(names), width=3.0, height=2.9)
    for ax, (column, label) in zip(axes, names.items(), strict=True):
        for colour, (name, curve) in zip(CYCLE, curves.items(), strict=False):
            ax.plot(curve["tokens"] / 1000, curve[column], color=colour, label=name)
        ax.set(xlabel="training tokens (thousands)", ylabel=label)
    _, l0, dead, frequent = axes
    l0.set_yscale("log")
    l0.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    dead.yaxis.set_major_locator(MaxNLocator(integer=True))
    frequent.set_yscale("symlog", linthresh=1)
    frequent.set_ylim(bottom=-0.1)
    for ax in (l0, frequent):
        ax.yaxis.set_major_formatter("{x:,g}")
        ax.yaxis.set_minor_locator(NullLocator())
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=8)
    return figure
