"""The paper's claims joined with what was measured: each claim's rule decides, and nobody else.

``data/claims.yaml`` says for each claim which rows of which record it rests on and when it is reproduced; it says how
at its top. ``python -m lib.results.scorecard`` writes two tables from the records in ``data/records``: verdicts into
README, and verdicts with values and rules into ``docs/scorecard.md``.
"""

import json
import operator
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lib.base.files import DATA, ROOT, write_text
from lib.results import records, tables

VERDICTS = ("reproduced", "direction only", "not reproduced", "not applicable", "not run")
REPRODUCED, DIRECTION_ONLY, NOT_REPRODUCED, NOT_APPLICABLE, NOT_RUN = VERDICTS
RULES = (REPRODUCED, DIRECTION_ONLY)
KEYS = {"title", "claim", "where", "paper", "record", "measured", "rule", "rule_written", "difference"}
NEEDS = {"record", "metric", "why"}
REDUCE = {"max": lambda v: v.idxmax(), "min": lambda v: v.idxmin(), "farthest": lambda v: v.abs().idxmax()}
OPERATORS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
FIELD = r"(.+)\.(value|low|high)"
CONDITION = re.compile(rf"^{FIELD} (<=|>=|<|>) (?:(-?\d+(?:\.\d+)?)(?: \* {FIELD})?|{FIELD})$")
MARKERS = ("<!-- scorecard -->", "<!-- /scorecard -->")
LEGEND = "Value with 95 % interval; AUROC differences and shares as fractions. All n and seeds are in notebook 10."
Record = dict[str, Any]


class Condition(NamedTuple):
    """``left`` (quantity, field) against ``factor`` times ``right``, or against ``factor`` alone."""

    left: tuple[str, str]
    holds: str
    factor: float
    right: tuple[str, str] | None


class Row(NamedTuple):
    """A claim in one profile.

    ``measured`` is a text by quantity; ``why`` names the conditions that failed, or what is missing.
    """

    id: str
    title: str
    claim: str
    where: str
    paper: str
    profile: str
    measured: dict[str, str]
    n: int | None
    seeds: int | None
    verdict: str
    why: str
    difference: str


class Undecided(Exception):
    """A quantity that a rule needs is not there."""


def load(path: Path = DATA / "claims.yaml") -> dict[str, Record]:
    """The claims, checked.

    Raises:
        ValueError: a claim without one of ``KEYS``, ``needs`` without one of ``NEEDS``, a rule of another name than
            ``RULES``, a condition that is none, or one on a quantity that is not measured.
    """
    claims = {name: claim for name, claim in records.claims(path).items() if name != "setting"}
    for name, claim in claims.items():
        if set(claim.get("needs", NEEDS)) != NEEDS:
            raise ValueError(f"claim {name} needs {sorted(claim['needs'])}; it must say {sorted(NEEDS)}")
        if missing := sorted(KEYS - set(claim)):
            raise ValueError(f"claim {name} has no {missing}; needed are {sorted(KEYS)}")
        if set(claim["rule"]) != set(RULES):
            raise ValueError(f"claim {name} has rules {list(claim['rule'])}; needed are {list(RULES)}")
        for text in sum(claim["rule"].values(), []):
            parsed = condition(text)
            for quantity, _ in filter(None, (parsed.left, parsed.right)):
                if quantity not in claim["measured"]:
                    measured = list(claim["measured"])
                    raise ValueError(f"claim {name}: {text!r} speaks of {quantity!r}; measured are {measured}")
    return claims


def condition(text: str) -> Condition:
    """``quantity.low > 0``, ``quantity.low > other.high`` or ``quantity.value <= 0.1 * other.value``, parsed.

    Raises:
        ValueError: another form.
    """
    match = CONDITION.match(text)
    if not match:
        forms = "'quantity.low > 0', 'a.low > b.high' or 'a.value <= 0.1 * b.value'"
        raise ValueError(f"{text!r} is no condition; the form is {forms}")
    left, field, sign, number, *right = match.groups()
    other = tuple(part for part in right if part) or None
    return Condition((left, field), sign, 1.0 if number is None else float(number), other)


def quantity(record: Record, filters: dict[str, Any]) -> dict[str, Any]:
    """The row of a record's headline that a quantity's filters match.

    Raises:
        Undecided: none matches, or its value is null.
        ValueError: several match and ``reduce`` is not given, or unknown.
    """
    filters = dict(filters)
    reduce = filters.pop("reduce", None)
    if reduce not in (None, *REDUCE):
        raise ValueError(f"unknown reduce {reduce!r}; allowed are {list(REDUCE)}")
    rows = [row for row in matches(record, filters) if row["value"] is not None]
    if not rows:
        raise Undecided(f"no value of {', '.join(f'{name} {value}' for name, value in filters.items())}")
    if reduce:
        return rows[REDUCE[reduce](pd.Series([row["value"] for row in rows]))]
    if len(rows) > 1:
        raise ValueError(f"{len(rows)} rows of {record['notebook']} match {filters}; one must, or give reduce")
    return rows[0]


def matches(record: Record, filters: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a record's headline that a quantity's filters allow, those without a value among them."""
    of_columns = {name: value for name, value in filters.items() if name != "reduce"}
    allowed = {name: _values(value, record["parameters"]) for name, value in of_columns.items()}
    return [row for row in record["metrics"] if all(row.get(name) in values for name, values in allowed.items())]


def _values(value: Any, parameters: dict[str, Any]) -> list:
    """The values that a filter allows; ``$name`` stands for the record's own parameter."""
    value = parameters[value[1:]] if isinstance(value, str) and value.startswith("$") else value
    return value if isinstance(value, list) else [value]


def holds(parsed: Condition, quantities: dict[str, dict]) -> bool:
    """Whether a condition holds of the quantities.

    Raises:
        Undecided: the quantity has no interval.
    """

    def number(name: str, field: str) -> float:
        value = quantities[name].get(field)
        if value is None:
            raise Undecided(f"{name} has no interval")
        return value

    right = parsed.factor * (number(*parsed.right) if parsed.right else 1.0)
    return bool(OPERATORS[parsed.holds](number(*parsed.left), right))


def unmet(claim: Record, of_profile: dict[str, Record]) -> str:
    """Why a profile's setting cannot show a claim, empty if it can: the claim's ``needs`` name a record, a metric of
    its headline that must be 1, and the reason where it is not."""
    needs = claim.get("needs")
    if not needs or needs["record"] not in of_profile:
        return ""
    rows = of_profile[needs["record"]]["metrics"]
    return "" if any(row["metric"] == needs["metric"] and row["value"] == 1 for row in rows) else needs["why"]


def decide(claim: Record, record: Record, why_not: str = "") -> tuple[str, str, dict[str, dict]]:
    """Verdict, why, and the claim's quantities as rows of the record; ``why_not`` as from :func:`unmet`."""
    quantities: dict[str, dict] = {}
    failed: dict[str, list[str]] = {}
    if why_not:
        return NOT_APPLICABLE, why_not, quantities
    try:
        for name, filters in claim["measured"].items():
            quantities[name] = quantity(record, filters)
        for rule in RULES:
            failed[rule] = [text for text in claim["rule"][rule] if not holds(condition(text), quantities)]
    except Undecided as missing:
        return NOT_APPLICABLE, str(missing), quantities
    verdict = next((rule for rule in RULES if not failed[rule]), NOT_REPRODUCED)
    return verdict, "; ".join(f"not {text}" for text in failed[REPRODUCED]), quantities


def evaluate(claims: dict[str, Record], of_profile: dict[str, Record], profile: str) -> list[Row]:
    """A row per claim from the records of one profile (by notebook)."""
    rows = []
    for name, claim in claims.items():
        record = of_profile.get(claim["record"])
        if record:
            verdict, why, quantities = decide(claim, record, unmet(claim, of_profile))
        else:
            verdict, why, quantities = NOT_RUN, f"no record of {claim['record']}", {}
        sizes = [int(match["n"]) for match in quantities.values() if match.get("n") is not None]
        row = Row(
            id=name,
            title=claim["title"],
            claim=claim["claim"],
            where=claim["where"],
            paper=_paper(claim["paper"]),
            profile=profile,
            measured={quantity: _text(match) for quantity, match in quantities.items()},
            n=sizes[0] if sizes else None,
            seeds=_seeds(claim, of_profile),
            verdict=verdict,
            why=why,
            difference=claim["difference"],
        )
        rows.append(row)
    return rows


def every(claims: dict[str, Record], by_profile: dict[str, dict[str, Record]]) -> list[Row]:
    """The rows of all profiles."""
    return [row for profile, of_profile in by_profile.items() for row in evaluate(claims, of_profile, profile)]


def _text(row: dict[str, Any]) -> str:
    """Value and interval; one digit is enough for counts."""
    return tables.text(pd.Series({"low": None, "high": None} | row), 1 if abs(row["value"]) >= 10 else 3)


def _paper(value: Any) -> str:
    """The paper's numbers as text."""
    if not isinstance(value, dict):
        return "plot only" if value is None else str(value)
    parts = []
    for name, part in value.items():
        separator = ": " if isinstance(part, dict) else " "
        parts.append(name.replace("_", " ") + separator + _paper(part))
    return "; ".join(parts)


def _seeds(claim: Record, of_profile: dict[str, Record]) -> int | None:
    """Entries of the parameter that a claim's ``seeds`` names, or where it is empty of the one that ``or`` names."""
    notebook, _, names = claim.get("seeds", "").partition(".")
    lists = (
        [of_profile[notebook]["parameters"].get(name) for name in names.split(" or ")] if notebook in of_profile else []
    )
    return next((len(values) for values in lists if values), None)


def committed(folder: Path = DATA / "records") -> dict[str, dict[str, Record]]:
    """The records in ``data/records``, by profile and notebook; ``embedded`` first."""
    profiles = [path for path in folder.glob("*") if path.is_dir()]
    by_profile: dict[str, dict[str, Record]] = {}
    for path in sorted(profiles, key=lambda path: (path.name != "embedded", path.name)):
        files = sorted(path.glob("*.json"))
        by_profile[path.name] = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    return by_profile


def table(rows: list[Row]) -> pd.DataFrame:
    """The rows as a table, quantities as one text."""
    frame = pd.DataFrame(rows, columns=Row._fields)
    measured = [shown(row, len(row.measured)) for row in rows]
    return frame.assign(measured=measured, seeds=frame["seeds"].astype("Int64"), n=frame["n"].astype("Int64"))


def rules(claims: dict[str, Record]) -> pd.DataFrame:
    """The conditions of each claim's rules, a row per claim, and when they were written."""
    rows = []
    for name, claim in claims.items():
        conditions = {rule: " and ".join(claim["rule"][rule]) for rule in RULES}
        rows.append({"claim": name, **conditions, "rule written": claim["rule_written"]})
    return pd.DataFrame(rows, columns=["claim", *RULES, "rule written"]).set_index("claim")


def counts(rows: list[Row]) -> pd.DataFrame:
    """Number of claims by profile and verdict."""
    frame = pd.DataFrame(rows, columns=Row._fields)
    return frame.groupby(["profile", "verdict"], sort=False).size().rename("value").reset_index()


def summary(rows: list[Row]) -> str:
    """A list of the verdicts' counts by profile, and the claims on which the profiles agree, as Markdown."""
    verdicts: dict[str, list[str]] = {}
    for row in rows:
        verdicts.setdefault(row.id, []).append(row.verdict)
    lines = [f"Of {len(verdicts)} claims:", ""]
    for profile, part in counts(rows).groupby("profile", sort=False):
        number = dict(zip(part["verdict"], part["value"], strict=True))
        in_order = [f"{number[verdict]} {verdict}" for verdict in VERDICTS if verdict in number]
        lines.append(f"- {profile}: {', '.join(in_order)}")
    if len({row.profile for row in rows}) > 1:
        agreed = [name for name, of_claim in verdicts.items() if len(set(of_claim)) == 1]
        lines += ["", f"The profiles agree on {', '.join(agreed) or 'none'}."]
    return "\n".join(lines)


def shown(row: Row, most: int) -> str:
    """The first ``most`` quantities as text; without any, why there is none."""
    return "; ".join(f"{name} {text}" for name, text in list(row.measured.items())[:most]) or row.why


def verdict_table(rows: list[Row]) -> str:
    """Claims by profile, in Markdown: id, title and a column of verdicts for each profile."""
    lines = []
    for of_claim in _by_claim(rows):
        first = next(iter(of_claim.values()))
        lines.append([first.id, first.title, *(row.verdict for row in of_claim.values())])
    return _markdown(["", "claim", *_profiles(rows)], lines)


def value_table(rows: list[Row]) -> str:
    """Claims by profile, in Markdown: the paper's value, then for each profile the verdict and the quantities."""
    lines = []
    for of_claim in _by_claim(rows):
        first = next(iter(of_claim.values()))
        cells = [f"**{row.verdict}**: {shown(row, len(row.measured))}" for row in of_claim.values()]
        lines.append([first.id, first.claim, first.paper, *cells])
    return _markdown(["", "claim", "the paper", *_profiles(rows)], lines)


def rule_table(claims: dict[str, Record]) -> str:
    """When each claim counts as reproduced, and how the setting differs from the paper's, in Markdown."""
    lines = [[*row, claims[row[0]]["difference"]] for row in rules(claims).itertuples(name=None)]
    return _markdown(["", *RULES, "rule written", "difference from the paper"], lines)


def _profiles(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row.profile for row in rows))


def _by_claim(rows: list[Row]) -> list[dict[str, Row]]:
    """For each claim its row by profile."""
    names = dict.fromkeys(row.id for row in rows)
    return [{row.profile: row for row in rows if row.id == name} for name in names]


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    marked = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(_escape(cell) for cell in line) + " |" for line in marked)


def _escape(text: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("\n", " ")):
        text = text.replace(character, entity)
    return text


def render(text: str, block: str, name: str = "README.md") -> str:
    """A page's text with the block between its markers.

    Raises:
        ValueError: a marker is missing, or stands twice.
    """
    opening, closing = MARKERS
    for marker in MARKERS:
        if (lines := text.count(marker)) != 1:
            raise ValueError(f"{name} has {lines} lines {marker}; one is needed, with {opening} before {closing}")
    before, _, rest = text.partition(opening)
    after = rest.partition(closing)[2]
    return f"{before}{opening}\n{block}\n{closing}{after}"


def pages(claims: dict[str, Record], by_profile: dict[str, dict[str, Record]]) -> dict[str, str]:
    """What stands between the markers of each page that shows the scorecard, by the page's path."""
    rows = every(claims, by_profile)
    long = f"{value_table(rows)}\n\n{LEGEND}\n\n## Rules\n\n{rule_table(claims)}"
    return {"README.md": verdict_table(rows), "docs/scorecard.md": long}


def main() -> None:
    """Write the scorecard into README.md and docs/scorecard.md."""
    try:
        for name, block in pages(load(), committed()).items():
            page = ROOT / name
            write_text(page, render(page.read_text(encoding="utf-8"), block, name), only_if_changed=True)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
