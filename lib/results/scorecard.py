"""The paper's claims joined with what was measured: the rule of each part decides, and nobody else.

``data/claims.yaml`` holds the rules (:mod:`lib.results.claims`); :mod:`lib.results.scorecard_pages` writes what comes
of them into README and docs.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lib.base.files import DATA
from lib.results import tables
from lib.results.claims import Claim, Part, Rules
from lib.stats import verdicts
from lib.stats.metrics import Estimate

NOT_RUN = "not run"
VERDICTS = (*verdicts.VERDICTS, NOT_RUN)
MANY_TASKS = "09_many_tasks"
MANY_RUNS = "-tasks-(core|all)$"  # behind a profile's name, in those of its runs over many tasks
STATISTICS = {"value", "low", "high", "alpha", "n", "n_groups", "unit", "why"}  # columns that tell no rows apart
SPEAKS_FOR = {  # how much a difference speaks for what a claim says of it
    "above": lambda difference: difference,
    "below": lambda difference: -difference,
    "same": lambda difference: -abs(difference),
}
Record = dict[str, Any]


class Row(NamedTuple):
    """A part of a claim in one profile.

    ``number`` is the value with its interval, empty if there is none. Of a family it is that of the ``farthest``
    member, the one that speaks most against the claim, and ``holding`` says of how many the claim holds. ``why`` says
    why there is no verdict. ``is_lacking``: the record lacks what the rule asks for.
    """

    id: str
    claim: str
    title: str
    profile: str
    verdict: str
    number: str = ""
    holding: str = ""
    farthest: str = ""
    why: str = ""
    n: int | None = None
    is_lacking: bool = False

    @property
    def letter(self) -> str:
        """The part's letter."""
        return self.id.removeprefix(self.claim)

    @property
    def measured(self) -> str:
        """All that was measured; of a family how many hold, and the farthest by name."""
        return f"{self.holding} hold; {self.farthest} {self.number}" if self.holding else self.number


class Lacking(Exception):
    """A record without the rows that a rule asks for."""


def unmet(claim: Claim, of_profile: dict[str, Record]) -> str:
    """Why a profile's setting cannot show a claim, empty if it can: the claim's ``needs`` name a record, a metric of
    its headline that must be 1 or the least value of a parameter, and the reason where it is not."""
    needs = claim.needs
    if not needs or needs["record"] not in of_profile:
        return ""
    record = of_profile[needs["record"]]
    if "parameter" in needs:
        is_met = record["parameters"].get(needs["parameter"], needs["least"]) >= needs["least"]
    else:
        is_met = any(row["metric"] == needs["metric"] and row["value"] == 1 for row in record["metrics"])
    return "" if is_met else needs["why"]


def _values(value: Any, part: Part, of_profile: dict[str, Record]) -> list:
    """The values that a filter allows; ``$name`` stands for a parameter, which means the same in every notebook."""
    if isinstance(value, str) and value.startswith("$"):
        holders = [record for record in of_profile.values() if value[1:] in record["parameters"]]
        if not holders:
            raise Lacking(f"no record has a parameter {value[1:]}")
        holder = of_profile[part.record] if of_profile[part.record] in holders else holders[0]
        value = holder["parameters"][value[1:]]
    return value if isinstance(value, list) else [value]


def needed(part: Part, of_profile: dict[str, Record]) -> list[dict[str, Any]]:
    """The rows of its record's headline that a part is judged by, those without a value among them.

    Raises:
        Lacking: none, several of which no family is made, or some without Holm's level.
    """
    record = of_profile[part.record]
    allowed = {name: _values(value, part, of_profile) for name, value in part.quantity.items()}
    rows = [row for row in record["metrics"] if all(row.get(name) in values for name, values in allowed.items())]
    if not rows:
        of_metric = sum(row["metric"] == part.quantity["metric"] for row in record["metrics"])
        raise Lacking(f"none of its {of_metric} rows of this metric matches" if of_metric else "it has no such row")
    if len(rows) > 1 and not part.family:
        raise Lacking(f"{len(rows)} rows match, and one must")
    if part.family and any(row["value"] is not None and row.get("alpha") is None for row in rows):
        raise Lacking("intervals of several comparisons must be at Holm's levels, and a row has no alpha")
    return rows


def _judge(part: Part, of_profile: dict[str, Record], row: Row) -> Row:
    """A part's row with the verdict: not applicable without a value, inconclusive without an interval."""
    try:
        rows = needed(part, of_profile)
    except Lacking as lacking:
        sentence = f"{part.id} needs {part.quantity_text()} of {part.record}: {lacking}"
        return row._replace(why=sentence, is_lacking=True)
    with_value = [match for match in rows if match["value"] is not None]
    if not with_value:
        reasons = dict.fromkeys(match.get("why") or f"no value of {part.quantity_text()}" for match in rows)
        return row._replace(why="; ".join(reasons))
    members = [_member(part, match) for match in rows]
    farthest = min(with_value, key=lambda match: SPEAKS_FOR[part.says](match["value"] - (part.against or 0.0)))
    row = row._replace(
        number=tables.text(Estimate(*(farthest.get(name) for name in Estimate._fields))),
        why="no interval" if any(_has_no_interval(match) for match in with_value) else "",
        n=None if farthest.get("n") is None else int(farthest["n"]),
    )
    if not part.family:
        return row._replace(verdict=members[0])
    holding = f"{members.count(verdicts.REPRODUCED)} of {len(members)}"
    return row._replace(verdict=verdicts.of_family(members), holding=holding, farthest=name_among(farthest, rows))


def _has_no_interval(row: dict[str, Any]) -> bool:
    return row.get("low") is None or row.get("high") is None


def _member(part: Part, row: dict[str, Any]) -> str:
    """The verdict by one row; without a value or an interval it can show nothing."""
    if row["value"] is None or _has_no_interval(row):
        return verdicts.INCONCLUSIVE
    against = part.against or 0.0
    interval = verdicts.Interval(row["low"] - against, row["high"] - against)
    return verdicts.decide(part.says, interval, part.margin.value)


def name_among(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The values of a row in the columns that tell the rows apart."""
    apart = [name for name in row if name not in STATISTICS and len({str(other.get(name)) for other in rows}) > 1]
    return ", ".join(str(row[name]) for name in apart if row[name] is not None)


def evaluate(rules: Rules, of_profile: dict[str, Record], profile: str) -> list[Row]:
    """A row per part of every claim, from the records of one profile (by notebook)."""
    rows = []
    for claim in rules.claims.values():
        why_not = unmet(claim, of_profile)
        for part in claim.parts:
            row = Row(part.id, claim.id, part.title, profile, verdicts.NOT_APPLICABLE, why=why_not)
            if part.record not in of_profile:
                row = row._replace(verdict=NOT_RUN, why=f"no record of {part.record}")
            elif not why_not:
                row = _judge(part, of_profile, row)
            rows.append(row)
    return rows


def every(rules: Rules, by_profile: dict[str, dict[str, Record]]) -> list[Row]:
    """The rows of all profiles."""
    return [row for profile, of_profile in by_profile.items() for row in evaluate(rules, of_profile, profile)]


def with_run(by_profile: dict[str, dict[str, Record]], profile: str, run: list[Record]) -> dict[str, dict[str, Record]]:
    """The records by profile and notebook, first ``profile`` with those of its ``run``.

    Where the run measured no task, the kept record of its profile's run over many tasks stays.
    """
    own = {record["notebook"]: record for record in run}
    kept = by_profile.get(profile, {}).get(MANY_TASKS)
    if kept and not own.get(MANY_TASKS, {}).get("outputs"):
        own[MANY_TASKS] = kept
    return {profile: own} | {name: records for name, records in by_profile.items() if name != profile}


def committed(folder: Path = DATA / "records") -> dict[str, dict[str, Record]]:
    """The records in ``data/records``, by profile and notebook; ``embedded`` first.

    The record of a run over all tasks (``<profile>-tasks-all``), or where there is none over twelve (``-tasks-core``),
    is that of its profile's notebook 09.
    """
    profiles = [path for path in folder.glob("*") if path.is_dir()]
    by_profile: dict[str, dict[str, Record]] = {}
    for path in sorted(profiles, key=_place):
        files = sorted(path.glob("*.json"))
        profile = re.sub(MANY_RUNS, "", path.name)
        of_path = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
        by_profile[profile] = by_profile.get(profile, {}) | of_path
    return by_profile


def _place(path: Path) -> tuple[bool, bool, bool, str]:
    """Where a profile's records stand: runs over many tasks behind all profiles, those over all tasks last."""
    name = path.name
    return bool(re.search(MANY_RUNS, name)), name.endswith("-all"), not name.startswith("embedded"), name


def table(rows: list[Row], rules: Rules) -> pd.DataFrame:
    """The rows as a table, with the title of each claim and the rule of each part."""
    frame = pd.DataFrame(rows, columns=Row._fields)
    titles = frame["claim"].map({name: claim.title for name, claim in rules.claims.items()})
    rule = frame["id"].map({name: part.rule_text() for name, part in rules.parts().items()})
    measured = [row.measured for row in rows]
    return frame.assign(claim_title=titles, rule=rule, measured=measured, n=frame["n"].astype("Int64"))


def counts(rows: list[Row]) -> pd.DataFrame:
    """Number of parts by profile and verdict, in the order of the verdicts."""
    frame = pd.DataFrame(rows, columns=Row._fields).assign(place=lambda t: t["verdict"].map(VERDICTS.index))
    numbers = frame.groupby(["profile", "place", "verdict"], sort=False).size().rename("value").reset_index()
    order = {profile: place for place, profile in enumerate(dict.fromkeys(frame["profile"]))}
    in_order = numbers.assign(first=numbers["profile"].map(order)).sort_values(["first", "place"])
    return in_order[["profile", "verdict", "value"]].reset_index(drop=True)


def count_text(rows: Iterable[Row]) -> str:
    """The numbers of verdicts of one profile: ``3 reproduced, 1 inconclusive``."""
    return ", ".join(f"{row.value} {row.verdict}" for row in counts(list(rows)).itertuples())


def summary(rows: list[Row]) -> str:
    """Verdicts by profile, and the parts that hold, or are contradicted, in every profile that decides, as Markdown."""
    of_part = by_field(rows, "id")
    lines = [f"Of {len(of_part)} parts of {len(by_field(rows, 'claim'))} claims:", ""]
    for profile, of_profile in by_field(rows, "profile").items():
        lines.append(f"- {profile}: {count_text(of_profile)}")
        for verdict in (verdicts.REPRODUCED, verdicts.OPPOSITE):
            ids = [row.id for row in of_profile if row.verdict == verdict]
            lines += [f"    - {verdict}: {', '.join(ids)}"] if ids else []
    if len(by_field(rows, "profile")) > 1:
        for verdict in (verdicts.REPRODUCED, verdicts.OPPOSITE):
            ids = [name for name, of_id in of_part.items() if {row.verdict for row in of_id} == {verdict}]
            lines += ["", f"{verdict.capitalize()} in every profile: {', '.join(ids) or 'none'}."]
    return "\n".join(lines)


def in_short(rows: Iterable[Row]) -> str:
    """The verdicts on a claim's parts in one profile: ``reproduced a, d · opposite b``, or the one that all have."""
    of_verdict = by_field(rows, "verdict")
    if len(of_verdict) == 1:
        return next(iter(of_verdict))
    in_order = sorted(of_verdict.items(), key=lambda item: VERDICTS.index(item[0]))
    return " · ".join(f"{verdict} {', '.join(row.letter for row in of)}" for verdict, of in in_order)


def by_field(rows: Iterable[Row], field: str) -> dict[str, list[Row]]:
    """The rows by one of their fields, in order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(getattr(row, field), []).append(row)
    return groups


def lacking(rows: Iterable[Row]) -> list[str]:
    """What records lack that rules ask for, a sentence per part and profile."""
    return [f"{row.profile}: {row.why}" for row in rows if row.is_lacking]
