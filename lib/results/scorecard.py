"""The paper's claims joined with what was measured: each claim's rule decides, and nobody else.

``data/claims.yaml`` says for each claim which rows of which record it rests on and when it is reproduced; it says how at
its top. ``python -m lib.results.scorecard`` writes the table into README, from the records in ``data/records``.
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
RULES = VERDICTS[:2]
KEYS = {"title", "claim", "where", "paper", "record", "measured", "rule", "difference"}
REDUCE = {"max": lambda v: v.idxmax(), "min": lambda v: v.idxmin(), "farthest": lambda v: v.abs().idxmax()}
OPERATORS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
FIELD = r"(.+)\.(value|low|high)"
CONDITION = re.compile(rf"^{FIELD} (<=|>=|<|>) (?:(-?\d+(?:\.\d+)?)(?: \* {FIELD})?|{FIELD})$")
MARKERS = ("<!-- scorecard -->", "<!-- /scorecard -->")
Record = dict[str, Any]


class Condition(NamedTuple):
    """``left`` (quantity, field) against ``factor`` times ``right``, or against ``factor`` alone."""

    left: tuple[str, str]
    holds: str
    factor: float
    right: tuple[str, str] | None


class Row(NamedTuple):
    """A claim in one profile. ``measured`` is a text by quantity; ``why`` names the conditions that failed, or what is missing."""

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
        ValueError: a claim without one of ``KEYS``, a rule of another name than ``RULES``, a condition that is none, or one
            on a quantity that is not measured.
    """
    claims = {name: claim for name, claim in records.claims(path).items() if name != "setting"}
    for name, claim in claims.items():
        if missing := sorted(KEYS - set(claim)):
            raise ValueError(f"claim {name} has no {missing}; needed are {sorted(KEYS)}")
        if set(claim["rule"]) != set(RULES):
            raise ValueError(f"claim {name} has rules {list(claim['rule'])}; needed are {list(RULES)}")
        for text in sum(claim["rule"].values(), []):
            parsed = condition(text)
            for quantity, _ in filter(None, (parsed.left, parsed.right)):
                if quantity not in claim["measured"]:
                    raise ValueError(f"claim {name}: {text!r} speaks of {quantity!r}; measured are {list(claim['measured'])}")
    return claims


def condition(text: str) -> Condition:
    """``quantity.low > 0``, ``quantity.low > other.high`` or ``quantity.value <= 0.1 * other.value``, parsed.

    Raises:
        ValueError: another form.
    """
    found = CONDITION.match(text)
    if not found:
        raise ValueError(f"{text!r} is no condition; the form is 'quantity.low > 0', 'a.low > b.high' or 'a.value <= 0.1 * b.value'")
    left, field, sign, number, *right = found.groups()
    other = tuple(part for part in right if part) or None
    return Condition((left, field), sign, 1.0 if number is None else float(number), other)


def quantity(record: Record, how: dict[str, Any]) -> dict[str, Any]:
    """The row of a record's headline that a quantity's filter matches.

    Raises:
        Undecided: none matches, or its value is null.
        ValueError: several match and ``reduce`` is not given, or unknown.
    """
    how = dict(how)
    reduce = how.pop("reduce", None)
    if reduce not in (None, *REDUCE):
        raise ValueError(f"unknown reduce {reduce!r}; allowed are {list(REDUCE)}")
    wanted = {name: _values(value, record["parameters"]) for name, value in how.items()}
    rows = [row for row in record["metrics"] if all(row.get(name) in values for name, values in wanted.items())]
    rows = [row for row in rows if row["value"] is not None]
    if not rows:
        raise Undecided(f"no value of {', '.join(f'{k} {v}' for k, v in how.items())}")
    if len(rows) > 1 and reduce is None:
        raise ValueError(f"{len(rows)} rows of {record['notebook']} match {how}; one must, or give reduce")
    return rows[REDUCE[reduce](pd.Series([row["value"] for row in rows])) if reduce else 0]


def _values(value: Any, parameters: dict[str, Any]) -> list:
    value = parameters[value[1:]] if isinstance(value, str) and value.startswith("$") else value
    return value if isinstance(value, list) else [value]


def holds(what: Condition, found: dict[str, dict]) -> bool:
    """Whether a condition holds of the quantities found.

    Raises:
        Undecided: the quantity has no interval.
    """

    def number(name: str, field: str) -> float:
        value = found[name].get(field)
        if value is None:
            raise Undecided(f"{name} has no interval")
        return value

    right = what.factor * (number(*what.right) if what.right else 1.0)
    return bool(OPERATORS[what.holds](number(*what.left), right))


def decide(claim: Record, record: Record) -> tuple[str, str, dict[str, dict]]:
    """Verdict, why, and the quantities found."""
    found: dict[str, dict] = {}
    try:
        for name, how in claim["measured"].items():
            found[name] = quantity(record, how)
        failed = {rule: [text for text in claim["rule"][rule] if not holds(condition(text), found)] for rule in RULES}
    except Undecided as missing:
        return VERDICTS[3], str(missing), found
    verdict = next((rule for rule in RULES if not failed[rule]), VERDICTS[2])
    return verdict, "; ".join(f"not {text}" for text in failed[RULES[0]]), found


def evaluate(claims: dict[str, Record], of_profile: dict[str, Record], profile: str) -> list[Row]:
    """A row per claim from the records of one profile (by notebook)."""
    rows = []
    for name, claim in claims.items():
        record = of_profile.get(claim["record"])
        verdict, why, found = decide(claim, record) if record else (VERDICTS[4], f"no record of {claim['record']}", {})
        measured = {quantity: _text(row) for quantity, row in found.items()}
        n = next((int(row["n"]) for row in found.values() if row.get("n") is not None), None)
        rows.append(Row(name, claim["title"], claim["claim"], claim["where"], _paper(claim["paper"]), profile, measured, n, _seeds(claim, of_profile), verdict, why, claim["difference"]))
    return rows


def _text(row: dict[str, Any]) -> str:
    """Value and interval; one digit is enough for counts."""
    return tables.text(pd.Series({"low": None, "high": None} | row), 1 if abs(row["value"]) >= 10 else 3)


def _paper(value: Any) -> str:
    """The paper's numbers as text."""
    if isinstance(value, dict):
        return "; ".join(f"{name.replace('_', ' ')}: {_paper(part)}" if isinstance(part, dict) else f"{name.replace('_', ' ')} {part}" for name, part in value.items())
    return "plot only" if value is None else str(value)


def _seeds(claim: Record, of_profile: dict[str, Record]) -> int | None:
    notebook, _, name = claim.get("seeds", "").partition(".")
    return len(of_profile[notebook]["parameters"][name]) if notebook in of_profile else None


def committed(folder: Path = DATA / "records") -> dict[str, dict[str, Record]]:
    """The records in ``data/records``, by profile and notebook; ``embedded`` first."""
    profiles = sorted((path for path in folder.glob("*") if path.is_dir()), key=lambda path: (path.name != "embedded", path.name))
    return {path.name: {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(path.glob("*.json"))} for path in profiles}


def table(rows: list[Row]) -> pd.DataFrame:
    """The rows as a table, quantities as one text."""
    found = pd.DataFrame(rows, columns=Row._fields)
    return found.assign(measured=[shown(row, len(row.measured)) for row in rows], seeds=found["seeds"].astype("Int64"), n=found["n"].astype("Int64"))


def shown(row: Row, most: int) -> str:
    """The first ``most`` quantities as text; without any, why there is none."""
    return "; ".join(f"{name} {text}" for name, text in list(row.measured.items())[:most]) or row.why


def markdown(rows: list[Row]) -> str:
    """Claims by profile: the paper's value, then for each profile the verdict and the first two quantities."""
    profiles = list(dict.fromkeys(row.profile for row in rows))
    head = ["", "claim", "the paper", *profiles]
    lines = [head, ["---"] * len(head)]
    for name in dict.fromkeys(row.id for row in rows):
        of_claim = {row.profile: row for row in rows if row.id == name}
        first = next(iter(of_claim.values()))
        cells = [f"**{of_claim[profile].verdict}**: {shown(of_claim[profile], 2)}" for profile in profiles]
        lines.append([name, first.claim, first.paper, *cells])
    return "\n".join("| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|").replace("\n", " ")


def counts(rows: list[Row]) -> pd.DataFrame:
    """Number of claims by profile and verdict."""
    found = pd.DataFrame(rows, columns=Row._fields)
    return found.groupby(["profile", "verdict"], sort=False).size().rename("value").reset_index()


def render(readme: str, rows: list[Row]) -> str:
    """The README's text with the table between its markers.

    Raises:
        ValueError: a marker is missing, or stands twice.
    """
    for marker in MARKERS:
        if readme.count(marker) != 1:
            raise ValueError(f"README.md has {readme.count(marker)} lines {marker}; one is needed, with {MARKERS[0]} before {MARKERS[1]}")
    before, _, rest = readme.partition(MARKERS[0])
    after = rest.partition(MARKERS[1])[2]
    legend = "Value with 95 % interval; AUROC differences and shares as fractions. All quantities, n and seeds are in notebook 10."
    return f"{before}{MARKERS[0]}\n{markdown(rows)}\n\n{legend}\n{MARKERS[1]}{after}"


def every(claims: dict[str, Record], by_profile: dict[str, dict[str, Record]]) -> list[Row]:
    """The rows of all profiles."""
    return [row for profile, found in by_profile.items() for row in evaluate(claims, found, profile)]


def main() -> None:
    """Write the scorecard into README.md."""
    readme = ROOT / "README.md"
    try:
        text = render(readme.read_text(encoding="utf-8"), every(load(), committed()))
    except ValueError as error:
        sys.exit(f"error: {error}")
    write_text(readme, text, only_if_changed=True)


if __name__ == "__main__":
    main()
