"""The page of a run over many tasks: whether SAEs help on them, in its first sentence, with a scatter and tables.

All text is escaped by the template (jinja2 autoescape): names of tasks and notes come from whoever made the tasks. The
page opens from disk and asks no network; its content security policy allows the template's own script, by its hash, and
nothing else, so that a text that slipped in unescaped could not run.
"""

import itertools
import math
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from lib.base.files import ROOT, script_hash, write_text
from lib.base.registry import lookup
from lib.results.figures import CYCLE

FACTS = ["setting", "level", "n_train", "n_test"]
KEY = ["task", "setting", "level", "probe", "variant", "k"]
TASK_COLUMNS = [*KEY, "kind", "n_train", "n_test", "value", "low", "high"]
AVERAGE_COLUMNS = ["setting", "level", "probe", "variant", "k", "value", "low", "high", "win_rate", "n", "verdict"]
VERDICTS = {"ahead": "Yes", "behind": "No", "no difference": "They make no difference", "inconclusive": "Cannot tell"}
SETTINGS: dict[str, Callable[[float], str]] = {  # in the page's order: what a level of it is
    "normal": lambda level: "",
    "scarcity": lambda level: f"{level:,.0f} training rows",
    "class imbalance": lambda level: f"{100 * level:.3g} % positives",
    "label noise": lambda level: f"{100 * level:.3g} % of labels flipped",
    "ood": lambda level: f"level {level:g}",
}
BESIDE = ("TF-IDF", "all latents", "control")  # probes that the table of tasks shows beside the two compared
N_LABELS = 10
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)  # between two ticks
SHAPES = (  # of markers: circle, square, diamond, triangle
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z",
    "M-4.5,-4.5h9v9h-9z",
    "M0,-6.2l6.2,6.2l-6.2,6.2l-6.2,-6.2z",
    "M0,-5.8l5.8,10.2h-11.6z",
)


class About(NamedTuple):
    """What a run measured: model, layer, the SAEs, and of these the one (``variant``) and the ``k`` that the answer is
    about; ``margin`` is the smallest difference in AUROC that matters.

    ``notes``: what was dropped, cut or left out. ``measured``: further sentences on how the run measured.
    """

    title: str
    model: str
    layer: int
    saes: Sequence[str]
    k: int
    variant: str
    margin: float
    notes: Sequence[str] = ()
    measured: Sequence[str] = ()

    @property
    def probe(self) -> str:
        """The SAE probe that the answer is about."""
        return f"probe on {self.k} latent{'s' if self.k != 1 else ''}"


Key = tuple[str, str | None, float | None]  # probe, variant, k


class Number(NamedTuple):
    """An AUROC and its interval; None where there is none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


class Entry(NamedTuple):
    """A task in a setting: AUROC of the dense probe, of the SAE probe, and of the probes ``beside`` them."""

    task: str
    kind: str
    setting: str
    level: float | None
    n_train: int | None
    n_test: int | None
    dense: Number
    sae: Number
    beside: list[Number]

    @property
    def difference(self) -> float | None:
        """SAE minus dense, where there are both."""
        return None if self.dense.value is None or self.sae.value is None else self.sae.value - self.dense.value


class Marker(NamedTuple):
    """How a kind of task is drawn, and the number of its points."""

    colour: str
    shape: str
    n: int


class Frame(NamedTuple):
    """Places in a scatter: a square of ``side`` pixels for AUROCs from ``low`` to ``high``, ``room`` for labels to its
    right, and a label's height."""

    left: float
    top: float
    side: float
    room: float
    line: float
    low: float
    high: float

    def x(self, auroc: float) -> float:
        """The place of a value on the horizontal axis."""
        return round(self.left + (auroc - self.low) / (self.high - self.low) * self.side, 2)

    def y(self, auroc: float) -> float:
        """The place of a value on the vertical axis, which points upward."""
        return round(self.top + (self.high - auroc) / (self.high - self.low) * self.side, 2)


class Scale(NamedTuple):
    """The axis of a table's intervals: differences from −``reach`` to ``reach`` on ``width`` pixels."""

    reach: float
    width: int = 150

    def x(self, difference: float) -> float:
        """The place of a difference."""
        return round((difference / self.reach + 1) / 2 * self.width, 2)


class Label(NamedTuple):
    """A label of a point at ``x``, ``y``, written at the height ``at``."""

    text: str
    x: float
    y: float
    at: float


class Scatter(NamedTuple):
    """A drawing of the points; its labels are ranks with a list below where ``is_narrow``, names otherwise."""

    is_narrow: bool
    frame: Frame
    labels: list[Label]


def save(path: Path, tasks: pd.DataFrame, averages: pd.DataFrame, about: About) -> Path:
    """Write the page (:func:`page`) to ``path``, atomically; returns ``path``."""
    write_text(path, page(tasks, averages, about))
    return path


def page(tasks: pd.DataFrame, averages: pd.DataFrame, about: About) -> str:
    """The page of a run as HTML.

    Args:
        tasks: a row per task, setting, level, probe, variant and k, with ``kind``, ``n_train``, ``n_test``, and the
            test AUROC ``value`` with its 95 % interval ``low`` to ``high``.
        averages: a row per setting, level, probe, variant and k: the mean over ``n`` tasks of AUROC minus the dense
            probe's (``value``), its interval over tasks, ``win_rate``, and ``verdict``, one of ``VERDICTS``.

    Raises:
        ValueError: a column is missing, two rows have one key, or a setting or a verdict is unknown.
    """
    tasks, averages = _checked(tasks, TASK_COLUMNS, "tasks"), _checked(averages, AVERAGE_COLUMNS, "averages")
    if tasks.duplicated(KEY).any():
        raise ValueError(f"tasks has two rows of {tasks.loc[tasks.duplicated(KEY), KEY].iloc[0].to_dict()}")
    beside = _beside(tasks, about)
    entries = _entries(tasks, about, beside)
    normal = [entry for entry in entries if entry.setting == "normal"]
    points = [entry for entry in normal if entry.difference is not None]
    largest = largest_differences(points)
    rows = averages[averages["probe"] != "dense"]
    rows = rows.assign(order=rows["setting"].map(list(SETTINGS).index)).sort_values(["order", "level"], kind="stable")
    is_main, is_normal = _is_main(rows, about), rows["setting"] == "normal"
    return _template().render(
        about=about,
        answer=answer(averages, about),
        unscored=[entry.task for entry in normal if entry.difference is None],
        normal=sorted(normal, key=lambda entry: (entry.difference is None, -(entry.difference or 0))),
        points=sorted(points, key=lambda entry: entry in largest),  # the labelled ones on top
        largest=largest,
        others=[entry for entry in entries if entry.setting != "normal"],
        beside=_names(beside),
        markers=_markers(points),
        scatters=[_scatter(points, largest, is_narrow) for is_narrow in (False, True)] if points else [],
        by_setting=_records(rows[is_main]),
        by_probe=_records(rows[~is_main & is_normal]),
        rest=_records(rows[~is_main & ~is_normal]),
        settings={entry.setting for entry in entries} | set(rows["setting"]),
    )


def answer(averages: pd.DataFrame, about: About) -> str:
    """Whether SAEs help, in a sentence: the verdict on the main SAE's probe in the normal setting, and its numbers.

    Raises:
        ValueError: ``averages`` has two rows of that probe, or its verdict is unknown.
    """
    averages = _checked(averages, AVERAGE_COLUMNS, "averages")
    rows = averages[_is_main(averages, about) & (averages["setting"] == "normal")]
    if len(rows) > 1:
        raise ValueError(f"averages has {len(rows)} rows of the {about.probe} of {about.variant} in the normal setting")
    if rows["value"].isna().all():
        return f"Cannot tell: no task has both a dense probe and a {about.probe} of {about.variant}."
    row = rows.iloc[0]
    head = lookup(VERDICTS, "verdict", row["verdict"])
    n, difference, low, high = int(row["n"]), row["value"], row["low"], row["high"]
    is_one = n == 1
    if row["verdict"] in ("ahead", "behind"):
        side = "ahead of" if row["verdict"] == "ahead" else "behind"
        gap = f"{'is' if is_one else 'are'} {side} the dense probe by {_number(abs(difference))} AUROC"
        ends = (low, high) if side == "ahead of" else (-high, -low)
        interval = f"95 % {_number(ends[0])} to {_number(ends[1])} over tasks"
    else:
        gap = f"differ{'s' if is_one else ''} from the dense probe by {_signed(difference)} AUROC"
        interval = f"95 % {_signed(low)} to {_signed(high)} over tasks, where {about.margin:g} would matter"
    if is_one:
        return f"{head}: on this one task, a {about.probe} {gap} (one task gives no interval over tasks)."
    details = ["no interval over tasks" if pd.isna(low) or pd.isna(high) else interval]
    if pd.notna(row["win_rate"]):
        details.append(f"ahead on {round(row['win_rate'] * n)} of {n}")
    subject = about.probe.replace("probe", "probes", 1)
    return f"{head}: on these {n} tasks, {subject} {gap} on average ({'; '.join(details)})."


def largest_differences(points: Sequence[Entry]) -> list[Entry]:
    """The ten points of largest absolute difference, largest first."""
    return sorted(points, key=lambda entry: -abs(entry.difference))[:N_LABELS]


def spread(heights: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """Heights at least ``gap`` apart between ``top`` and ``bottom``, as near to ``heights``, ascending, as can be.

    With z_i = y_i − i·gap, the condition is that z does not fall: the least-squares answer is isotonic regression.
    """
    steps = gap * np.arange(len(heights))
    raised = isotonic_regression(np.asarray(heights, dtype=float) - steps).x
    return (np.clip(raised, top, max(top, bottom - gap * (len(heights) - 1))) + steps).tolist()


def _checked(table: pd.DataFrame, columns: list[str], name: str) -> pd.DataFrame:
    """A copy with plain numbers and None for what is missing; in the normal setting a level says nothing."""
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(f"{name} lacks the columns {missing}; it has {list(table.columns)}")
    numbers = [column for column in ("level", "k", "value", "low", "high", "win_rate", "n") if column in columns]
    table = table[columns].reset_index(drop=True)
    table[numbers] = table[numbers].apply(pd.to_numeric).astype(float).replace([np.inf, -np.inf], np.nan)
    variants = table["variant"].astype(object)
    table["variant"] = variants.where(variants.notna(), None)
    table.loc[table["setting"] == "normal", "level"] = np.nan
    table.loc[table["probe"] == "dense", ["variant", "k"]] = [None, np.nan]
    for setting in table["setting"].unique():
        lookup(SETTINGS, "setting", setting)
    for verdict in table["verdict"].dropna().unique() if "verdict" in table else ():
        lookup(VERDICTS, "verdict", verdict)
    return table


def _is_main(rows: pd.DataFrame, about: About) -> pd.Series:
    return (rows["probe"] == "k-sparse") & (rows["k"] == about.k) & (rows["variant"] == about.variant)


def _given(value: Any) -> Any:
    """None for a missing value, as in a record."""
    return None if pd.isna(value) else value


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [{name: _given(value) for name, value in row.items()} for row in rows.to_dict("records")]


def _beside(tasks: pd.DataFrame, about: About) -> list[Key]:
    """The probes that the table shows beside the two compared: at the shown k, and of all latents the main SAE's."""
    rows = _records(tasks[(tasks["setting"] == "normal") & tasks["probe"].isin(BESIDE)])
    keys = {(row["probe"], row["variant"], row["k"]) for row in rows if row["k"] in (None, about.k)}
    shown = [key for key in keys if key[0] != "all latents" or key[1] in (None, about.variant)]
    return sorted(shown, key=lambda key: (BESIDE.index(key[0]), key[1] or "", key[2] or 0))


def _names(beside: list[Key]) -> list[str]:
    """Names of columns: the probe's, with the variant where there are several of it."""
    probes = [probe for probe, _, _ in beside]
    return [f"{probe}: {variant}" if probes.count(probe) > 1 else probe for probe, variant, _ in beside]


def _entries(tasks: pd.DataFrame, about: About, beside: list[Key]) -> list[Entry]:
    """Tasks in order of settings, levels, and the order that they come in."""
    facts: dict[tuple, dict[str, Any]] = {}
    numbers: dict[tuple, dict[Key, Number]] = {}
    for row in _records(tasks):
        cell = (row["setting"], row["level"], row["task"])
        facts.setdefault(cell, row)
        of_probe = (row["probe"], row["variant"], row["k"])
        numbers.setdefault(cell, {})[of_probe] = Number(row["value"], row["low"], row["high"])
    entries = []
    for cell, row in facts.items():
        keys = [("dense", None, None), ("k-sparse", about.variant, about.k), *beside]
        dense, sae, *others = [numbers[cell].get(key, Number()) for key in keys]
        task, kind = (" ".join(str(text).split()) for text in (row["task"], row["kind"] or "of no kind"))
        entries.append(Entry(task, kind, *(row[name] for name in FACTS), dense, sae, others))
    return sorted(entries, key=lambda entry: (list(SETTINGS).index(entry.setting), entry.level or 0))


def _markers(points: Sequence[Entry]) -> dict[str, Marker]:
    """Colour and shape of each kind of task, by name; no two of the first 48 are alike."""
    kinds = [entry.kind for entry in points]
    looks = ((CYCLE[i % 12], SHAPES[(i + i // 12) % 4]) for i in itertools.count())
    return {kind: Marker(*look, n=kinds.count(kind)) for kind, look in zip(sorted(set(kinds)), looks)}


def _scatter(points: Sequence[Entry], largest: Sequence[Entry], is_narrow: bool) -> Scatter:
    low, high = _ends(points)
    frame = Frame(46, 12, 292, 24, 15.0, low, high) if is_narrow else Frame(58, 14, 540, 300, 18.0, low, high)
    ordered = sorted(largest, key=lambda entry: -entry.sae.value)
    heights = [frame.y(entry.sae.value) for entry in ordered]
    first, last = frame.top + frame.line / 2, frame.top + frame.side - frame.line / 2
    labels = []
    for entry, y, at in zip(ordered, heights, spread(heights, frame.line, first, last)):
        named = f"{_signed(entry.difference)} {_shortened(entry.task)}"  # so that Arabic does not draw the number in
        text = str(largest.index(entry) + 1) if is_narrow else named
        labels.append(Label(text, frame.x(entry.dense.value), y, round(at, 2)))
    return Scatter(is_narrow, frame, labels)


def _ends(points: Sequence[Entry]) -> tuple[float, float]:
    """The ends of both axes: the ticks around all values and intervals."""
    ends = [end for entry in points for number in (entry.dense, entry.sae) for end in number if end is not None]
    low, high = max(0.0, min(ends) - 0.005), min(1.0, max(ends) + 0.005)
    step = _step(low, high)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def _step(low: float, high: float) -> float:
    return next((step for step in STEPS if high - low <= 8 * step), STEPS[-1])


def _ticks(frame: Frame) -> list[float]:
    step = _step(frame.low, frame.high)
    return [round(i * step, 2) for i in range(round(frame.low / step), round(frame.high / step) + 1)]


def _scale(rows: list[dict[str, Any]], margin: float) -> Scale:
    ends = [abs(row[name]) for row in rows for name in ("value", "low", "high") if row[name] is not None]
    return Scale(math.ceil(100 * max([1.5 * margin, *ends])) / 100)


def _shortened(text: str, width: int = 34) -> str:
    """The text cut to a width in columns, of which letters of Chinese, Japanese and Korean take two."""
    columns = list(itertools.accumulate(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text))
    if not columns or columns[-1] <= width:
        return text
    return text[: sum(column < width for column in columns)].rstrip() + "…"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value + 0.0:.3f}".replace("-", "−")


def _signed(value: float | None) -> str:
    """A difference with its sign, which a difference that rounds to zero has not."""
    if value is None:
        return "n/a"
    return "0.000" if round(value, 3) == 0 else f"{value:+.3f}".replace("-", "−")


def _described(number: Number) -> str:
    has_interval = number.low is not None and number.high is not None
    return _number(number.value) + (f" ({_number(number.low)} to {_number(number.high)})" if has_interval else "")


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(ROOT / "lib" / "results" / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"number": _number, "signed": _signed, "described": _described, "digest": script_hash}
    environment.filters |= {"ticks": _ticks, "scale": _scale, "level": lambda level, of: SETTINGS[of](level)}
    return environment.get_template("tasks.html")
