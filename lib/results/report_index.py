"""The first page of the report: the answer, every part's verdict by profile, and what would change it.

Each verdict leads to the figure that shows it: in this site's executed notebook, or of another profile as a picture.
All text is escaped by the template (jinja2 autoescape).
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lib.base.files import ROOT
from lib.results import scorecard
from lib.results.claims import Claim, Part, Rules
from lib.results.evidence import Evidence
from lib.results.scorecard import MANY_TASKS, Record, Row
from lib.stats import other_verdicts, verdicts
from lib.stats.other_verdicts import Change, Difference
from lib.stats.verdicts import Interval

ORDER = ("embedded", "public", "minilm")  # of columns, behind the site's own profile
FRONT = "05_rotation"  # the figure on the page itself
TASKS = "tasks"  # the column of a run over many tasks
SYMBOLS = dict(zip(scorecard.VERDICTS, "✓✗=?–·", strict=True))
DATA_SETS = {"embedded": "prompts of this project", "public": "public data sets"}
MEANINGS = {
    verdicts.REPRODUCED: "the interval shows what the part says",
    verdicts.OPPOSITE: "the interval shows the contrary",
    verdicts.NO_DIFFERENCE: "the interval lies within the margin, where the part says that there is a difference",
    verdicts.INCONCLUSIVE: "the interval shows none of these: this many prompts, seeds or tasks cannot tell",
    verdicts.NOT_APPLICABLE: "this setting does not have the quantity, or the records do not hold it",
}


class Place(NamedTuple):
    """Where a figure or a section stands in this site: its page, anchor, and the heading above it."""

    page: str
    anchor: str
    heading: str
    heading_anchor: str

    @property
    def href(self) -> str:
        """The address of the figure."""
        return f"{self.page}.html#{self.anchor}"

    @property
    def section_href(self) -> str:
        """The address of the heading above it."""
        return f"{self.page}.html#{self.heading_anchor}"


class Site(NamedTuple):
    """What the page is made of beside rules and records: the site's ``profile``, its ``places`` by figure and by
    notebook and heading, the folder of all profiles' figures, the data of the ``front`` figure, and ``extras``, pages
    by file name and what they are."""

    profile: str
    places: dict[Any, Place]
    figures: Path
    notebooks: list[dict[str, str]]
    front: str
    extras: list[tuple[str, str]]

    @property
    def front_href(self) -> str:
        """The address of the front figure in its notebook."""
        return self.places[FRONT].href


class Cell(NamedTuple):
    """A part in a column: ``change`` says what would give another verdict, ``href`` leads to ``shown``, the figure or
    table; ``picture`` is the file behind it where it is none of the site's notebooks."""

    column: str
    row: Row
    change: str
    href: str
    shown: str
    picture: Path | None

    @property
    def symbol(self) -> str:
        """The verdict as one character."""
        return SYMBOLS[self.row.verdict]

    @property
    def css(self) -> str:
        """The verdict as the name of a style."""
        return self.row.verdict.replace(" ", "-")


class Line(NamedTuple):
    """A part with its cells, and the section of the notebook where it is measured."""

    part: Part
    section: str
    section_href: str
    cells: list[Cell]


class Block(NamedTuple):
    """A claim with its lines."""

    claim: Claim
    lines: list[Line]

    @property
    def columns(self) -> list[str]:
        """The columns in which a part of the claim has a verdict."""
        return list(dict.fromkeys(cell.column for line in self.lines for cell in line.cells))

    def cells(self, column: str) -> list[Cell]:
        """All cells of a column."""
        return [cell for line in self.lines for cell in line.cells if cell.column == column]


class Column(NamedTuple):
    """A profile, or its run over many tasks: what it is, how many parts have which verdict, and where it came from."""

    name: str
    about: str
    counts: dict[str, int]
    origin: str


def differences(part: Part, of_profile: dict[str, Record]) -> list[Difference]:
    """What a part is judged by, as differences by name; empty where the record lacks it or has no value."""
    try:
        rows = scorecard.needed(part, of_profile)
    except scorecard.Lacking:
        return []
    against = part.against or 0.0
    measured = []
    for row in rows:
        value, low, high = (row.get(name) for name in ("value", "low", "high"))
        interval = None if None in (value, low, high) else Interval(low - against, high - against)
        name = scorecard.name_among(row, rows)
        measured.append(Difference(name, None if value is None else value - against, interval))
    return measured if any(each.value is not None for each in measured) else []


def change_text(part: Part, of_profile: dict[str, Record]) -> str:
    """What would give another verdict on a part, in a sentence (:mod:`lib.stats.other_verdicts`); empty where nothing
    was measured."""
    of_part = differences(part, of_profile)
    if not of_part:
        return ""
    changes = other_verdicts.changes(part.says, of_part, part.margin.value)
    by_verdict: dict[str, list[Change]] = {}
    for change in changes:
        by_verdict.setdefault(change.verdict, []).append(change)
    clauses = [f"{verdict} if {', or if '.join(map(_clause, several))}" for verdict, several in by_verdict.items()]
    if not clauses:
        return "An interval is missing; with one it could show something."
    sentence = "; ".join(clauses)
    return sentence[0].upper() + sentence[1:] + "."


def _clause(change: Change) -> str:
    """``it lay 0.011 higher``, of a family ``A lay 0.061 higher and 2 others by less``, or how wide it were."""
    if not change.moves:
        return f"the interval were {change.factor:g} times as wide"
    (name, amount), *others = change.moves.items()
    sides = ("higher", "lower") if amount > 0 else ("lower", "higher")
    text = f"{name or 'it'} lay {abs(amount):g} {sides[0]}"  # a single difference has no name
    for side, counted in zip(sides, (True, False), strict=True):
        n = sum((move * amount > 0) == counted for _, move in others)
        what = f"{n} other{'s' if n > 1 else ''}"
        text += f" and {what}{'' if counted else f' {side}'} by less" if n else ""
    return text


def blocks(rules: Rules, by_profile: dict[str, dict[str, Record]], beside: dict[str, Evidence], site: Site) -> list:
    """The claims with their parts' cells, in the order of the columns."""
    rows = {(row.id, row.profile): row for row in scorecard.every(rules, by_profile)}
    result = []
    for claim in rules.claims.values():
        lines, said = [], set()
        for part in claim.parts:
            evidence = beside[part.id]
            cells = [
                _cell(part, rows[part.id, profile], by_profile[profile], evidence, site)
                for profile in _in_order(by_profile, site.profile)
            ]
            cells = [_said_once(cell, said) for cell in cells]
            place = site.places.get(evidence.figure) or site.places.get((part.record, evidence.section))
            section = place.heading if place else ""
            lines.append(Line(part, section, place.section_href if place else "", cells))
        result.append(Block(claim, lines))
    return result


def _in_order(by_profile: dict[str, dict[str, Record]], own: str) -> list[str]:
    order = [own, *ORDER]
    return sorted(by_profile, key=lambda name: order.index(name) if name in order else len(order))


def _cell(part: Part, row: Row, of_profile: dict[str, Record], evidence: Evidence, site: Site) -> Cell:
    made_by = of_profile[part.record]["profile"] if part.record in of_profile else row.profile
    is_of_tasks = part.record == MANY_TASKS and made_by != row.profile
    column = row.profile if not is_of_tasks else TASKS if row.profile == site.profile else f"{TASKS}, {row.profile}"
    has_verdict = row.verdict not in (verdicts.NOT_APPLICABLE, scorecard.NOT_RUN)
    change = change_text(part, of_profile) if has_verdict else ""
    href, shown, picture = "", evidence.figure or "table", None
    if has_verdict:
        place = site.places.get(evidence.figure) or site.places.get((part.record, evidence.section))
        path = site.figures / made_by / f"{evidence.figure}.png"
        if row.profile == site.profile and place:
            href = place.href
        elif evidence.figure and path.exists():
            href, picture = f"figures/{made_by}/{path.name}", path
    return Cell(column, row, change, href, shown, picture)


def _said_once(cell: Cell, said: set[tuple[str, str]]) -> Cell:
    """The cell; a reason that a part before it has had in this column is not repeated."""
    key = (cell.column, cell.row.why)
    if cell.row.why and key in said:
        return cell._replace(row=cell.row._replace(why="as above"))
    said.add(key)
    return cell


def columns(blocks: Sequence[Block], by_profile: dict[str, dict[str, Record]]) -> list[Column]:
    """The columns of all blocks, those of runs over many tasks last."""
    names = dict.fromkeys(name for block in blocks for name in block.columns)
    result = []
    for name in sorted(names, key=lambda name: name.startswith(TASKS)):
        cells = [cell for block in blocks for cell in block.cells(name)]
        of_profile = by_profile[cells[0].row.profile]
        is_of_tasks = name.startswith(TASKS)
        used = {n: r for n, r in of_profile.items() if (r["profile"] != cells[0].row.profile) == is_of_tasks}
        verdicts = [cell.row.verdict for cell in cells]
        counts = {verdict: verdicts.count(verdict) for verdict in scorecard.VERDICTS if verdict in verdicts}
        result.append(Column(name, _about(used, is_of_tasks), counts, _made(used)))
    return result


def _about(used: dict[str, Record], is_of_tasks: bool) -> str:
    """Model and data of the records, as their parameters say."""
    parameters: dict[str, Any] = {}
    for record in used.values():
        parameters |= record["parameters"]
    model = Path(str(parameters.get("model", ""))).name
    if is_of_tasks:
        counted = [row.get("n") for row in used[MANY_TASKS]["metrics"] if row["metric"] == "auroc_ahead_of_dense"]
        n_tasks = max((int(n) for n in counted if n), default=0)
        data = f"{n_tasks} classification tasks"
    elif parameters.get("train_csv"):
        data = "texts of a CSV"
    else:
        data = DATA_SETS.get(parameters.get("dataset"), "")
    return "; ".join(filter(None, (model, data)))


def _made(used: dict[str, Record]) -> str:
    """When the records were made, as far as they say: by which commits, and in how many minutes."""
    commits = list(dict.fromkeys(str(record.get("commit")) for record in used.values()))
    minutes = sum(record.get("wall_time_s") or 0 for record in used.values()) / 60
    counted = f"{len(used)} record{'s' if len(used) != 1 else ''}"
    made_by = f"commit {commits[0]}" if len(commits) == 1 else f"{len(commits)} commits"
    return f"{counted} of {made_by}" + (f", {minutes:.0f} min" if minutes >= 1 else "")


def answer(readme: Path = ROOT / "README.md") -> str:
    """README's answer, the paragraph below its title, whose words and numbers tests hold to the committed records."""
    paragraph = readme.read_text(encoding="utf-8").split("\n\n")[1]
    return re.sub(r"\s+", " ", paragraph)
