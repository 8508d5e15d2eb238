"""The paper's claims in parts that can be true or false alone, with the rule of each: ``data/claims.yaml``, checked.

The file says at its top what a part is made of, and when its rules were written.
"""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lib.base.files import DATA
from lib.base.registry import lookup
from lib.results import records
from lib.stats import verdicts

LETTERS = "abcdefghijklmnopqrstuvwxyz"
OTHER_SECTIONS = ("setting", "written", "margins", "faults")  # of the file, beside its claims
CLAIM = ("title", "claim", "where", "paper", "difference", "old_verdict", "parts")
PART = ("title", "record", "quantity", "says", "margin", "faults")
NEEDS = ("record", "why")
THINGS = (["metric"], ["least", "parameter"])  # of a record that can be needed
NOT_SEEN = "no"


class Margin(NamedTuple):
    """The smallest difference that matters, in ``unit``, and ``why``."""

    name: str
    value: float
    unit: str
    why: str


class Part(NamedTuple):
    """One statement of a claim and its rule; ``id`` is the claim's with a letter.

    The rule: the rows of ``record`` that ``quantity`` matches are differences, or values that are compared with
    ``against``, and ``says`` names what the paper says of them (``lib.stats.verdicts.SAYS``). Of a ``family`` every row
    must hold, of another part there is one row. ``seen``: what had been seen of the quantity when the rule was written.
    """

    id: str
    title: str
    record: str
    quantity: dict[str, Any]
    says: str
    margin: Margin
    against: float | None
    family: bool
    seen: str
    faults: tuple[int, ...]

    def quantity_text(self) -> str:
        """Metric and filters: ``auroc (probe dense, split val)``."""
        filters = [f"{name} {_text(value)}" for name, value in self.quantity.items() if name != "metric"]
        return self.quantity["metric"] + (f" ({', '.join(filters)})" if filters else "")

    def rule_text(self) -> str:
        """What must hold: ``above 0, margin 0.02 AUROC``, or ``the same as 1 within 0.01 AUROC``."""
        margin = f"{self.margin.value:g} {self.margin.unit}"
        zero = f"{self.against or 0:g}"
        rule = f"the same as {zero} within {margin}" if self.says == "same" else f"{self.says} {zero}, margin {margin}"
        return ("every one " if self.family else "") + rule


class Claim(NamedTuple):
    """A claim in our words, where the paper makes it, its numbers, how this setting differs, and the claim's parts."""

    id: str
    title: str
    claim: str
    where: str
    paper: str
    difference: str
    needs: dict[str, str] | None
    old_verdict: dict[str, str]
    parts: list[Part]


class Fault(NamedTuple):
    """What was wrong with the earlier rules or runs; ``elsewhere``: what a rule cannot mend, and where it belongs."""

    number: int
    title: str
    elsewhere: str


class Rules(NamedTuple):
    """All of the file: its claims and faults by id and number, and ``written``: when, and what was ``known`` then."""

    claims: dict[str, Claim]
    margins: dict[str, Margin]
    faults: dict[int, Fault]
    written: dict[str, str]

    def parts(self) -> dict[str, Part]:
        """The parts of all claims, by id."""
        return {part.id: part for claim in self.claims.values() for part in claim.parts}


def load(path: Path = DATA / "claims.yaml") -> Rules:
    """The claims and their rules, checked.

    Raises:
        ValueError: a key that is missing or unknown, an unknown margin, ``says`` or fault, a margin without unit or not
            above zero, a quantity without a metric, parts that are not named a, b, c, …; it names claim and part.
    """
    file = records.claims(path)
    _check_keys("data/claims.yaml", file, OTHER_SECTIONS, optional=file)
    _check_keys("written", file["written"], ("date", "known"))
    margins = {name: _margin(name, entry) for name, entry in file["margins"].items()}
    faults = {}
    for number, entry in file["faults"].items():
        _check_keys(f"fault {number}", entry, ("title",), optional=("elsewhere",))
        faults[number] = Fault(number, entry["title"], entry.get("elsewhere", ""))
    of_paper = {name: entry for name, entry in file.items() if name not in OTHER_SECTIONS}
    claims = {name: _claim(name, entry, margins, faults) for name, entry in of_paper.items()}
    return Rules(claims, margins, faults, file["written"])


def _claim(name: str, entry: dict[str, Any], margins: dict[str, Margin], faults: dict[int, Fault]) -> Claim:
    _check_keys(f"claim {name}", entry, CLAIM, optional=("needs",))
    if "needs" in entry:
        _check_keys(f"claim {name}, needs", entry["needs"], NEEDS, optional=("metric", "parameter", "least"))
        if sorted(set(entry["needs"]) - set(NEEDS)) not in THINGS:
            allowed = "a metric, or a parameter and its least value"
            raise ValueError(f"claim {name} needs {entry['needs']}; that must be {allowed}")
    letters = list(entry["parts"])
    if not letters or letters != list(LETTERS[: len(letters)]):
        raise ValueError(f"claim {name} has parts {letters}; they are named a, b, c and so on, in order")
    parts = [_part(name, letter, part, margins, faults) for letter, part in entry["parts"].items()]
    texts = {key: entry[key] for key in ("title", "claim", "where", "difference", "old_verdict")}
    return Claim(id=name, paper=_paper(entry["paper"]), needs=entry.get("needs"), parts=parts, **texts)


def _part(claim: str, letter: str, entry: dict[str, Any], margins: dict[str, Margin], faults: dict[int, Fault]) -> Part:
    where = f"claim {claim}, part {letter}"
    _check_keys(where, entry, PART, optional=("against", "family", "seen"))
    if "metric" not in entry["quantity"]:
        raise ValueError(f"{where}: the quantity {entry['quantity']} names no metric")
    where += f", {entry['quantity']['metric']}"
    try:
        lookup(verdicts.SAYS, "says", entry["says"])
        margin = lookup(margins, "margin", entry["margin"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if unknown := [number for number in entry["faults"] if number not in faults]:
        raise ValueError(f"{where}: unknown faults {unknown}; allowed are {list(faults)}")
    against, seen = entry.get("against"), entry.get("seen", False)
    if not (against is None or _is_number(against)):
        raise ValueError(f"{where}: against {against!r} is no number")
    return Part(
        id=claim + letter,
        title=entry["title"],
        record=entry["record"],
        quantity=entry["quantity"],
        says=entry["says"],
        margin=margin,
        against=against,
        family=entry.get("family", False),
        seen=seen if isinstance(seen, str) else "yes" if seen else NOT_SEEN,
        faults=tuple(entry["faults"]),
    )


def _margin(name: str, entry: dict[str, Any]) -> Margin:
    _check_keys(f"margin {name}", entry, ("value", "unit", "why"))
    if not (_is_number(entry["value"]) and entry["value"] > 0):
        raise ValueError(f"margin {name} is {entry['value']!r}; it must be a number above zero")
    return Margin(name, **entry)


def _check_keys(where: str, entry: dict, needed: Collection[str], optional: Collection[str] = ()) -> None:
    if missing := [key for key in needed if entry.get(key) is None and not (key == "paper" and key in entry)]:
        raise ValueError(f"{where} has no {missing}; needed are {list(needed)}")
    if unknown := [key for key in entry if key not in needed and key not in optional]:
        raise ValueError(f"{where} has {unknown}; allowed are {[*needed, *optional]}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any) -> str:
    """A filter's value; a list as its alternatives, a record's own parameter by name."""
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value).removeprefix("$")


def _paper(value: Any) -> str:
    """The paper's numbers as text."""
    if not isinstance(value, dict):
        return "no number" if value is None else str(value)
    parts = []
    for name, part in value.items():
        separator = ": " if isinstance(part, dict) else " "
        parts.append(name.replace("_", " ") + separator + _paper(part))
    return "; ".join(parts)


def part_table(rules: Rules) -> pd.DataFrame:
    """The rules, a row per part: title, quantity, record, rule, what had been seen, and the faults that it mends."""
    rows = [
        {
            "part": part.id,
            "title": part.title,
            "quantity": part.quantity_text(),
            "record": part.record,
            "holds if": part.rule_text(),
            "seen": part.seen,
            "mends": ", ".join(map(str, part.faults)),
        }
        for part in rules.parts().values()
    ]
    columns = ["part", "title", "quantity", "record", "holds if", "seen", "mends"]
    return pd.DataFrame(rows, columns=columns).set_index("part")


def margin_table(rules: Rules) -> pd.DataFrame:
    """The margins: value, unit, and why."""
    return pd.DataFrame(rules.margins.values(), columns=Margin._fields).set_index("name")


def fault_table(rules: Rules) -> pd.DataFrame:
    """What was wrong with the earlier rules, and the parts that mend it, or where else it belongs."""
    rows = []
    for fault in rules.faults.values():
        mending = [part.id for part in rules.parts().values() if fault.number in part.faults]
        rows.append({"fault": fault.number, "title": fault.title, "mended by": ", ".join(mending) or fault.elsewhere})
    return pd.DataFrame(rows, columns=["fault", "title", "mended by"]).set_index("fault")


def known(rules: Rules) -> str:
    """When the rules were written, what was known then, and how many parts were on quantities already seen."""
    parts = rules.parts().values()
    unseen = sum(part.seen == NOT_SEEN for part in parts)
    before = f"The rules were written on {rules.written['date']}. Known then: {rules.written['known'].strip()}"
    return f"{before} Of the {len(parts)} parts, {unseen} rest on quantities that nobody had seen."
