"""What stands beside each rule where the scorecard is read, from ``data/evidence.yaml``: the figure that shows a part's
quantity, its claim's verdict in the first scorecard, and the faults that bear on it.

No rule depends on it; what has no entry has no figure, no earlier verdict and no further fault.
"""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lib.base.files import DATA
from lib.results.claims import Rules

CLAIM, PART = {"first", "parts"}, {"figure", "section", "also"}


class Evidence(NamedTuple):
    """Of a part: the ``figure`` of its record that shows the quantity, or the ``section`` of the notebook that does;
    its claim's verdicts in the ``first`` scorecard, by data; all ``faults`` that bear on it, by number."""

    figure: str
    section: str
    first: dict[str, str]
    faults: tuple[int, ...]

    def first_text(self) -> str:
        """The first verdict, with that on the public data where it was another; a dash if the claim is younger."""
        default, public = self.first.get("default"), self.first.get("public")
        if default is None:
            return "—"
        return default if public in (default, None) else f"{default} (public: {public})"


def load(rules: Rules, path: Path = DATA / "evidence.yaml") -> dict[str, Evidence]:
    """What stands beside every part of the rules, by its id.

    Raises:
        ValueError: an unknown claim, part, key or fault, or a figure of another record; it names the part.
    """
    file: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    parts = rules.parts()
    _check("the file", file, rules.claims)
    evidence = {}
    for claim in rules.claims.values():
        of_claim = file.get(claim.id, {})
        _check(f"claim {claim.id}", of_claim, CLAIM)
        of_parts = of_claim.get("parts", {})
        _check(f"claim {claim.id}, parts", of_parts, [part.id.removeprefix(claim.id) for part in claim.parts])
        for part in claim.parts:
            entry = of_parts.get(part.id.removeprefix(claim.id), {})
            _check(f"part {part.id}", entry, PART)
            also = entry.get("also", [])
            _check(f"part {part.id}, also", also, rules.faults)
            figure = entry.get("figure", "")
            if figure and figure.partition("_")[0] != parts[part.id].record.partition("_")[0]:
                raise ValueError(f"part {part.id} has the figure {figure}, which is not one of {part.record}")
            faults = tuple(sorted({*part.faults, *also}))
            evidence[part.id] = Evidence(figure, entry.get("section", ""), of_claim.get("first", {}), faults)
    return evidence


def _check(where: str, entry: Any, allowed: Any) -> None:
    if unknown := [key for key in entry if key not in allowed]:
        raise ValueError(f"{where} of data/evidence.yaml has {unknown}; allowed are {sorted(allowed)}")
