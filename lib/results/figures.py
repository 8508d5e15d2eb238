"""Every figure of the notebooks: labelled axes with units, intervals, and a caption with profile and n."""

import itertools
import textwrap
from collections.abc import Collection, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import offset_copy

LABELS = {0: "harmless", 1: "harmful"}
SPLITS = {
    "train": "training",
    "val": "validation",
    "ood": "out of distribution",
    "rotation": "each wrapper held out of training",
}
OWN_LABELS = {0: "label 0", 1: "label 1"}  # of a user's own data
COLOURS = {"harmless": "#4477aa", "harmful": "#cc3311"}
VERDICT_CELL, TITLE_LETTER, RULE_LETTER = 3.2, 0.02, 0.019  # width of a verdict's cell in inches; of letters in cells
CAPTION_CHARACTERS = 15  # in an inch
MOST_TICKS, TICK_ROOM = 10, 0.07  # of an axis with a tick at each value: ticks, and share of its length between two
LEAST_HEIGHT = 0.05  # of a fraction's axis that no other panel shares, or a thousandth would look like a difference
BESIDE = 3.5  # points between two bars at one place
SHOWN_LENGTHS, LENGTH_BINS = 0.995, 40  # share of the prompts that a figure of lengths shows, and bins
CYCLE = [
    "#4477aa", "#ee7733", "#228833", "#aa3377", "#66ccee", "#bbbbbb",
    "#222255", "#ccbb44", "#117733", "#ee99aa", "#009988", "#663333",
]  # fmt: skip


def _panels(n: int, width: float = 4.2, height: float = 3.4, rows: int = 1, **options) -> tuple[Figure, list[Axes]]:
    sns.set_theme(context="notebook", style="whitegrid", palette=CYCLE, font_scale=0.85)
    size = (width * n, height * rows)
    figure, axes = plt.subplots(rows, n, figsize=size, squeeze=False, layout="constrained", **options)
    return figure, list(axes.flat)


def save(figure: Figure, folder: Path, name: str, caption: str) -> Figure:
    """Write ``folder/name.png`` with the caption below the axes, as wide as they are, and return the figure for
    display."""
    width = int(CAPTION_CHARACTERS * figure.get_figwidth())
    lines = [_balanced(line, width) for line in caption.splitlines()]
    # A profile's name may have a $, which begins no formula.
    figure.supxlabel("\n".join(lines), fontsize=8, color="0.35", parse_math=False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})
    plt.close(figure)
    return figure


def _balanced(text: str, width: int) -> str:
    """A text in as few lines as ``width`` allows, all of about one length, so that no word stands alone, and no %."""
    text = text.replace(" %", "\N{NO-BREAK SPACE}%")
    n_lines = len(textwrap.wrap(text, width))
    narrower = (textwrap.wrap(text, least) for least in range(max(1, len(text) // max(n_lines, 1)), width))
    return "\n".join(next((lines for lines in narrower if len(lines) <= n_lines), textwrap.wrap(text, width)))


def composition(prompts: pd.DataFrame, names: dict[int, str] = LABELS) -> Figure:
    """Number of prompts by split, transform and label, of which ``names`` are shown."""
    colours = dict(zip(names.values(), COLOURS.values()))
    splits = [split for split in SPLITS if (prompts["split"] == split).any()]
    figure, axes = _panels(len(splits), width=4.0, height=3.2, sharex=True)
    for ax, split in zip(axes, splits, strict=True):
        rows = prompts[prompts["split"] == split]
        counts = rows.groupby(["transform", "label"], sort=False).size().unstack(fill_value=0).rename(columns=names)
        counts.iloc[::-1].plot.barh(stacked=True, ax=ax, color=colours, width=0.75, legend=ax is axes[0])
        ax.set(title=f"{SPLITS[split]} (n = {len(rows):,})", xlabel="prompts", ylabel="")
        ax.grid(axis="y", visible=False)
    axes[0].legend(title=None, frameon=True)
    return figure


def lengths(prompts: pd.DataFrame, names: dict[int, str] = LABELS) -> Figure:
    """Distribution of prompt lengths in words, by split and label (``names``), in bins of whole words; the longest
    prompts, beyond the share ``SHOWN_LENGTHS``, are left out."""
    splits = [split for split in SPLITS if (prompts["split"] == split).any()]
    figure, axes = _panels(len(splits), width=3.6, height=2.9, sharey=True)
    table = prompts.assign(words=prompts["text"].str.split().str.len(), label=prompts["label"].map(names))
    palette = dict(zip(names.values(), COLOURS.values()))
    top = int(table["words"].quantile(SHOWN_LENGTHS))
    step = -(-(top + 1) // LENGTH_BINS)
    for ax, split in zip(axes, splits, strict=True):
        rows = table[table["split"] == split]
        colours = {"hue": "label", "hue_order": list(palette), "palette": palette, "legend": ax is axes[0]}
        style = {"element": "step", "stat": "density", "common_norm": False, "bins": np.arange(-0.5, top + step, step)}
        sns.histplot(rows, x="words", ax=ax, **colours, **style)
        ax.set(title=SPLITS[split], xlabel="length (words)", ylabel="density (1 / word)")
    axes[0].get_legend().set_title(None)
    return figure


def nearest_neighbours(base: pd.DataFrame, threshold: float, what: str = "removed above") -> Figure:
    """Distribution of each base prompt's largest cosine to the splits before it; ``what`` stands at the threshold."""
    figure, (ax,) = _panels(1, width=5.5, height=3.0)
    table = base[base["split"] != "train"].assign(split=base["split"].map(SPLITS))
    bins = {"stat": "percent", "common_norm": False, "binwidth": 0.025}
    sns.histplot(table, x="cosine", hue="split", element="step", ax=ax, **bins)
    ax.axvline(threshold, color="black", linestyle="--", linewidth=1)
    where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "right", "va": "top"}
    where["bbox"] = {"facecolor": "white", "linewidth": 0, "alpha": 0.8, "pad": 1}
    ax.annotate(what, (threshold, 0.95), (-4, 0), fontsize=8, **where)
    ax.set(xlabel="largest MiniLM cosine to an earlier split's prompt", ylabel="base prompts (%)", xlim=(0, 1))
    sns.move_legend(ax, "upper left", title=None)
    return figure


def points(
    table: pd.DataFrame,
    y: str,
    panel: str,
    hue: str | None = None,
    *,
    reference: pd.DataFrame | None = None,
    reference_label: str = "dense probe",
    xlabel: str = "AUROC",
    xlim: tuple[float, float] | None = None,
    grey: str = "",
) -> Figure:
    """Values with their 95 % intervals, a row per ``y``; ``reference`` gives one dotted line with a band per panel.
    The hue ``grey``, of a control, is grey.
    """
    panels, names = _in_order(table[panel]), list(dict.fromkeys(table[y]))
    hues = list(dict.fromkeys(table[hue])) if hue else [None]
    width, height = max(3.2, 9.6 / len(panels)), 1.1 + 0.3 * len(names) * len(hues) ** 0.5
    figure, axes = _panels(len(panels), width=width, height=height, sharex=True, sharey=True)
    offsets, style = np.linspace(0.22, -0.22, len(hues)) * (len(hues) > 1), {"fmt": "o", "capsize": 2.5, "ms": 5}
    for ax, value in zip(axes, panels, strict=True):
        rows = table[table[panel] == value].dropna(subset=["value"])
        for colour, offset, group in zip(itertools.cycle(CYCLE), offsets, hues, strict=False):
            part = rows[rows[hue] == group] if hue else rows
            position = len(names) - 1 - part[y].map(names.index).to_numpy() + offset
            style["color"] = "0.6" if group == grey else colour
            ax.errorbar(part["value"], position, xerr=_spread(part), label=group, **style)
        if reference is not None:
            _reference(ax, reference[reference[panel] == value], reference_label, vertical=True)
        ax.set(title=SPLITS.get(value, value), xlabel=xlabel, ylim=(-0.6, len(names) - 0.4))
        if xlim:
            ax.set_xlim(xlim)
        ax.set_yticks(range(len(names)), names[::-1])
    if hue or reference is not None:
        _legend(figure)
    return figure


def curves(
    table: pd.DataFrame,
    x: str,
    panel: str,
    hue: str,
    xlabel: str,
    ylabel: str = "AUROC",
    *,
    reference: pd.DataFrame | None = None,
    reference_label: str = "TF-IDF",
    single: pd.DataFrame | None = None,
    colours: Mapping[str, str] | None = None,
    banded: Collection[str] | None = None,
    bar_at: int | float | None = None,
    logx: bool = False,
    share_y: bool = True,
) -> Figure:
    """Lines with 95 % bands (a bar for a single point), a panel per value of ``panel``; a colour per ``hue``, of
    ``colours`` where it is there.

    Where only some lines are ``banded``, the others are thin, and have their intervals at ``bar_at`` alone, as bars
    side by side. ``reference`` is as in :func:`points`; ``single`` has what a line is the mean of, as small points.
    """
    panels, names = _in_order(table[panel]), list(dict.fromkeys(table[hue]))
    colours = dict(zip(names, itertools.cycle(CYCLE))) | dict(colours or {})
    beside = dict(zip(names, BESIDE * (np.arange(len(names)) - (len(names) - 1) / 2))) if banded else {}
    figure, axes = _panels(len(panels), width=max(3.7, 7.5 / len(panels)), height=3.6, sharey=share_y)
    for ax, value in zip(axes, panels, strict=True):
        for group, rows in table[table[panel] == value].groupby(hue, sort=False):
            rows, has_band = rows.dropna(subset=["value"]).sort_values(x), banded is None or group in banded
            low, high = rows[["low", "high"]].astype(float).to_numpy().T
            style = {"color": colours[group], "linewidth": 1.5 if has_band else 1.0}
            ax.plot(rows[x], rows["value"], marker="o", markersize=4 if has_band else 3, label=group, **style)
            if has_band:
                ax.fill_between(rows[x], low, high, color=colours[group], alpha=0.15, linewidth=0)
            if single is not None:
                of_line = single[(single[panel] == value) & (single[hue] == group)]
                ax.plot(of_line[x], of_line["value"], ".", markersize=4, color=colours[group], alpha=0.6)
            barred = rows[rows[x] == bar_at] if not has_band else rows if len(rows) == 1 else rows[:0]
            moved = offset_copy(ax.transData, figure, x=beside.get(group, 0.0), units="points")
            style |= {"fmt": "none", "capsize": 2.5, "transform": moved}
            for end in ("low", "high"):  # what is drawn beside its place is not seen by the axes' limits
                ax.update_datalim(barred[[x, end]].dropna().to_numpy(dtype=float))
            ax.errorbar(barred[x], barred["value"], yerr=_spread(barred), **style)
        if reference is not None:
            _reference(ax, reference[reference[panel] == value], reference_label, vertical=False)
        ax.set(title=SPLITS.get(value, value), xlabel=xlabel, ylabel=ylabel)
        if logx and table.loc[table[panel] == value, "value"].notna().any():
            _log2(ax.xaxis)
        _ticks_at(ax.xaxis, table.loc[(table[panel] == value) & table["value"].notna(), x])
        if share_y:
            ax.label_outer()
        else:
            bottom, top = ax.get_ylim()
            if top - bottom < LEAST_HEIGHT:
                ax.set_ylim(top - LEAST_HEIGHT, top + LEAST_HEIGHT / 20)
    if len(names) > 1 or reference is not None:
        _legend(figure)
    return figure


def _in_order(values: pd.Series) -> list:
    """The different values in the order of the table; splits in their own, whichever a table begins with."""
    different = list(dict.fromkeys(values))
    return [split for split in SPLITS if split in different] if set(different) <= set(SPLITS) else different


def _ticks_at(axis: Axis, values: pd.Series) -> None:
    """Ticks at the values used, where these are few; measured values, such as an L0, keep the axis' own ticks.

    Whole numbers, and values of three digits at most, count as chosen, not measured. One that is too near the tick
    before it to have room for its number has none.
    """
    used = sorted(set(values))
    if 0 < len(used) <= MOST_TICKS and all(value in (round(value), float(f"{value:.3g}")) for value in used):
        places = axis.get_transform().transform(np.array(used, dtype=float))
        ticks = [0]
        for i, place in enumerate(places):
            ticks += [i] * bool(place - places[ticks[-1]] > TICK_ROOM * (places[-1] - places[0]))
        axis.set_major_locator(FixedLocator([used[i] for i in ticks]))
        axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,g}"))
        axis.set_minor_locator(NullLocator())


def facets(table: pd.DataFrame, about: dict) -> Figure:
    """Values with 95 % bars against ``about["x"]``, a line per ``hue``, panels by ``col`` and ``row``.

    These are columns of ``table``, all but ``x`` optional; ``about`` may also hold ``xlabel``, ``ylabel``, ``logx`` and
    ``share_y``.
    """
    x, share_y = about["x"], about.get("share_y", True)
    values = {"hue": [None], "col": [None], "row": [None]}
    values |= {name: list(dict.fromkeys(table[about[name]])) for name in values if name in about}
    rows, columns = len(values["row"]), len(values["col"])
    figure, axes = _panels(columns, width=max(3.4, 8 / columns), height=3.2, rows=rows, sharex=True, sharey=share_y)
    for ax, (row, col) in zip(axes, itertools.product(values["row"], values["col"]), strict=True):
        in_panel = _where(table, about, {"row": row, "col": col})
        for colour, hue in zip(itertools.cycle(CYCLE), values["hue"], strict=False):
            part = _where(in_panel, about, {"hue": hue})
            if pd.api.types.is_numeric_dtype(part[x]):
                part = part.sort_values(x)
            style = {"color": colour, "marker": "o", "markersize": 4, "capsize": 2.5}
            ax.errorbar(part[x], part["value"], yerr=_spread(part), label=hue, **style)
        titles = [
            f"{about[name].removeprefix('cell.')} {SPLITS.get(value, value)}"
            for name, value in (("row", row), ("col", col))
            if name in about
        ]
        ax.set(title=", ".join(titles), xlabel=about.get("xlabel", x.removeprefix("cell.")))
        ax.set(ylabel=about.get("ylabel", "value"))
        if about.get("logx"):
            _log2(ax.xaxis)
        if share_y:
            ax.label_outer()
    if "hue" in about:
        _legend(figure)
    return figure


def _where(table: pd.DataFrame, about: dict, values: dict) -> pd.DataFrame:
    """The rows in which the columns that ``about`` names have the values."""
    for name, value in values.items():
        if name in about:
            table = table[table[about[name]] == value]
    return table


def growth(table: pd.DataFrame) -> Figure:
    """Cost against ``scale``, both logarithmic: a panel per ``panel`` (its y label), a colour per ``line``.

    The line's ``slope`` is in the legend. Bars reach from ``low`` to ``high``; the dotted line of slope 1, cost in
    proportion to the scale, starts at a panel's first point.
    """
    figure, axes = _panels(2, width=4.6, height=3.7, rows=table["panel"].nunique() // 2)
    colours = dict(zip(dict.fromkeys(table["line"]), CYCLE, strict=False))
    style = {"fmt": "o-", "markersize": 4, "capsize": 2.5}
    for ax, (panel, rows) in zip(axes, table.groupby("panel", sort=False), strict=True):
        for (line, slope), part in rows.groupby(["line", "slope"], sort=False):
            label = f"{line}: slope {slope}"
            ax.errorbar(part["scale"], part["value"], yerr=_spread(part), color=colours[line], label=label, **style)
        first, ends = rows.loc[rows["scale"].idxmin()], rows["scale"].agg(["min", "max"])
        in_proportion = first["value"] * ends / first["scale"]
        ax.plot(ends, in_proportion, color="black", linestyle=":", linewidth=1.5, label="slope 1")
        _log2(ax.xaxis)
        _log2(ax.yaxis)
        ax.set(xlabel="scale factor", ylabel=panel)
        ax.legend(fontsize=8)
    return figure


def _log2(axis: Axis) -> None:
    """A logarithmic axis whose ticks are the powers of two, written out."""
    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log", base=2)
    axis.set_major_formatter("{x:g}")


def _legend(figure: Figure) -> None:
    """Of all panels, above them, in as many columns as the figure's width has room for."""
    of_panels = [zip(*ax.get_legend_handles_labels(), strict=True) for ax in figure.axes]
    of_label = {label: handle for handle, label in itertools.chain(*of_panels)}
    labels, handles = list(of_label), list(of_label.values())
    columns = int(figure.get_figwidth() / (0.5 + 0.075 * max(map(len, labels), default=1)))
    figure.legend(handles, labels, loc="outside upper center", ncols=max(1, min(5, columns)), fontsize=8)


def _spread(rows: pd.DataFrame) -> np.ndarray:
    value, low, high = (rows[name].astype(float) for name in ("value", "low", "high"))
    return np.clip([value - low, high - value], 0, None)


def _reference(ax: Axes, rows: pd.DataFrame, label: str, vertical: bool) -> None:
    for row in rows.itertuples():
        line, band = (ax.axvline, ax.axvspan) if vertical else (ax.axhline, ax.axhspan)
        line(row.value, color="black", linestyle=":", linewidth=1.5, label=label)
        band(row.low, row.high, color="black", alpha=0.08, linewidth=0)


def norms(table: pd.DataFrame, layers: list[int]) -> Figure:
    """Left: token norm by layer (median and quartiles over prompts); right: harvest speed by prompt length."""
    figure, (left, right) = _panels(2, width=4.4, height=3.2)
    values = [np.concatenate(table[f"norm.{layer}"].to_list()) for layer in layers]
    low, middle, high = np.array([np.percentile(v, [25, 50, 75]) for v in values]).T
    left.errorbar(layers, middle, yerr=[middle - low, high - middle], marker="o", capsize=3)
    left.set(title="norms", xlabel="layer (residual stream after block)", ylabel="token norm ‖x‖₂ (model units)")
    left.set(xticks=layers, ylim=(0, None))
    right.plot(table["length"], table["tokens_per_s"] / 1000, "o")
    right.set(title="harvest, these layers in one pass", xlabel="mean prompt length of the shard (tokens)")
    right.set(ylabel="thousand tokens / s", ylim=(0, 1.1 * table["tokens_per_s"].max() / 1000))
    return figure


def projection(points_by_split: dict[str, pd.DataFrame]) -> Figure:
    """Prompts on the mean-difference direction and the largest orthogonal principal component."""
    figure, axes = _panels(len(points_by_split), width=4.2, height=3.8, sharex=True, sharey=True)
    for ax, (split, table) in zip(axes, points_by_split.items(), strict=True):
        rows = table.assign(label=table["label"].map(LABELS))
        sns.scatterplot(
            rows,
            x="direction",
            y="component",
            hue="label",
            hue_order=list(COLOURS),
            palette=COLOURS,
            style="kind",
            style_order=["plain", "jailbreak", "innocuous"],
            s=12,
            alpha=0.55,
            linewidth=0,
            ax=ax,
            legend="brief" if ax is axes[-1] else False,
        )
        ax.set(title=f"{SPLITS[split]} (n = {len(rows):,})", xlabel="mean-difference direction (model units)")
        ax.set(ylabel="first orthogonal component (model units)")
        ax.label_outer()
    sns.move_legend(axes[-1], "center left", bbox_to_anchor=(1, 0.5), title=None, frameon=False)
    return figure


def verdicts(table: pd.DataFrame, order: tuple[str, ...]) -> Figure:
    """A line per part (``id``, ``title``, ``rule``) of a ``claim`` below its ``claim_title``, with a cell per
    ``profile``: the ``verdict``, whose colour is by its place in ``order``, of several comparisons how many hold, and
    the ``number``, of which the rule says which way speaks for the claim, and in what unit."""
    profiles = list(dict.fromkeys(table["profile"]))
    colours = dict(zip(order, ["#4477aa", "#ee7733", "#eedd88", "#cfd8dc", "#eeeeee", "#fafafa"], strict=True))
    places, lines = {}, []  # of the parts; text, rule and weight
    for (claim, title), parts in table.drop_duplicates("id").groupby(["claim", "claim_title"], sort=False):
        lines.append((f"{claim}  {title}", "", "bold"))
        places |= {name: len(lines) + place for place, name in enumerate(parts["id"])}
        lines += [(f"  {row.id.removeprefix(claim)}  {row.title}", row.rule, "normal") for row in parts.itertuples()]
    titles = TITLE_LETTER * max(len(text) for text, _, _ in lines)
    rules = RULE_LETTER * max(len(rule) for _, rule, _ in lines)
    figure, (ax,) = _panels(1, width=VERDICT_CELL * (len(profiles) + titles + rules), height=0.7 + 0.22 * len(lines))
    for y, (text, rule, weight) in enumerate(lines):
        ax.text(-titles - rules, y + 0.5, text, fontsize=8.5, weight=weight, va="center")
        ax.text(-rules, y + 0.5, rule, fontsize=7.5, va="center")
    for row in table.itertuples():
        x, y = profiles.index(row.profile), places[row.id]
        ax.add_patch(plt.Rectangle((x, y), 0.985, 0.92, color=colours[row.verdict], linewidth=0))
        style = {"va": "center", "color": "white" if row.verdict == order[0] else "black"}
        ax.text(x + 0.02, y + 0.48, row.verdict, fontsize=8.5, weight="bold", **style)
        ax.text(x + 0.35, y + 0.48, f"{row.holding}: {row.number}".removeprefix(": "), fontsize=7.5, **style)
    ax.set(xlim=(-titles - rules, len(profiles)), ylim=(len(lines), 0), yticks=[])
    ax.set_xticks([-rules / 2, *np.arange(len(profiles)) + 0.49], ["holds if it is", *profiles], parse_math=False)
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.grid(False)
    sns.despine(ax=ax, left=True, bottom=True)
    return figure
