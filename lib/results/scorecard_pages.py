"""The scorecard as Markdown: in short in README, with all that it rests on in ``docs/scorecard.md``.

``python -m lib.results.scorecard_pages`` writes both between their markers, from the records in ``data/records``, and
names on the standard error what a record lacks that a rule needs.
"""

import sys

import pandas as pd

from lib.base.files import ROOT, write_text
from lib.results import claims, evidence, scorecard
from lib.results.claims import Rules
from lib.results.evidence import Evidence
from lib.results.scorecard import NOT_RUN, Record, Row, by_field, in_short

MARKERS = ("<!-- scorecard -->", "<!-- /scorecard -->")
SHOWN = ("minilm", "embedded", "public")  # profiles that the table of changes has, run or not
LEGEND = (
    "Value with 95 % interval, or at Holm's level where it is one of several comparisons. Of these: how many hold, and "
    "the one that speaks most against the claim."
)
BECAME = (
    "*First scorecard*: the one verdict on the whole claim when a claim had no parts and the default was an encoder on "
    "the prompts of this project; in brackets that on the public data, where it was another. *Faults*: by the numbers "
    "above, those that the part's rule mends and those of the earlier runs that bear on its number. That is a reading "
    "of both, and no experiment: model, data and rules changed together. A dash: the claim is younger, or no fault "
    "bears on it."
)


def short_table(rows: list[Row], rules: Rules) -> str:
    """A row per claim, in Markdown: its title, which leads to its parts, and the verdicts in short by profile."""
    profiles = by_field(rows, "profile")
    lines = []
    for name, of_claim in by_field(rows, "claim").items():
        cells = [in_short(row for row in of_claim if row.profile == profile) for profile in profiles]
        lines.append([f"[{name}](docs/scorecard.md#{name.lower()})", rules.claims[name].title, *cells])
    return _markdown(["", "claim", *profiles], lines)


def part_tables(rows: list[Row], rules: Rules) -> str:
    """A section per claim, in Markdown: a row per part with its rule, and by profile the verdict and the value."""
    sections = []
    profiles = by_field(rows, "profile")
    for name, of_claim in by_field(rows, "claim").items():
        claim = rules.claims[name]
        lines, said_before = [], set()
        for part in claim.parts:
            cells = [_cell(row, said_before) for row in of_claim if row.id == part.id]
            rule = f"{part.quantity_text()} of {part.record}: {part.rule_text()}"
            mends = ", ".join(map(str, part.faults))
            lines.append([part.id.removeprefix(name), part.title, rule, *cells, part.seen, mends])
        about = f"{claim.claim} The paper ({claim.where}): {claim.paper}. Here: {claim.difference}."
        head = ["", "part", "holds if", *profiles, "seen", "mends"]
        sections.append(f"### {name}\n\n{_escape(about)}\n\n{_markdown(head, lines)}")
    return "\n\n".join(sections)


def _cell(row: Row, said_before: set[tuple[str, str]]) -> str:
    """The verdict and what it rests on; a reason that a part before it in this profile has had is not repeated."""
    why = "as above" if (row.profile, row.why) in said_before and len(row.why) > len("as above") else row.why
    said_before.add((row.profile, row.why))
    said = "; ".join(filter(None, (row.measured, why)))
    return f"**{row.verdict}**" + (f": {said}" if said else "")


def comparison_table(rows: list[Row], rules: Rules) -> str:
    """Each claim's verdict by the earlier rules beside those on its parts, by profile, in Markdown."""
    profiles = by_field(rows, "profile")
    lines = []
    for name, of_claim in by_field(rows, "claim").items():
        claim, cells = rules.claims[name], []
        for profile in profiles:
            cells.append(claim.old_verdict.get(profile, NOT_RUN))
            cells.append(in_short(row for row in of_claim if row.profile == profile))
        lines.append([name, claim.title, *cells])
    head = [text for profile in profiles for text in (f"{profile}, earlier", f"{profile}, now")]
    return _markdown(["", "claim", *head], lines)


def changed_table(rows: list[Row], rules: Rules, beside: dict[str, Evidence]) -> str:
    """A row per part, in Markdown: its claim's verdict in the first scorecard, its own by profile, those of ``SHOWN``
    first, and the faults that bear on it."""
    verdict_of = {(row.id, row.profile): row.verdict for row in rows}
    profiles = list(dict.fromkeys([*SHOWN, *(row.profile for row in rows)]))
    lines = []
    for part in rules.parts().values():
        of_part = beside.get(part.id, Evidence("", "", {}, part.faults))
        now = [verdict_of.get((part.id, profile), NOT_RUN) for profile in profiles]
        lines.append([part.id, part.title, of_part.first_text(), *now, ", ".join(map(str, of_part.faults)) or "—"])
    return _markdown(["part", "title", "first scorecard", *profiles, "faults"], lines)


def _frame(frame: pd.DataFrame) -> str:
    """A table with its index, in Markdown."""
    return _markdown([frame.index.name, *frame.columns], frame.reset_index().astype(str).to_numpy().tolist())


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


def pages(
    rules: Rules, by_profile: dict[str, dict[str, Record]], beside: dict[str, Evidence] | None = None
) -> dict[str, str]:
    """What stands between the markers of each page that shows the scorecard, by the page's path; ``beside``: the
    evidence of the parts."""
    rows = scorecard.every(rules, by_profile)
    by_profiles = by_field(rows, "profile")
    in_numbers = [f"- {name}: {scorecard.count_text(of_profile)}" for name, of_profile in by_profiles.items()]
    sections = {
        f"{len(rules.parts())} parts of {len(rules.claims)} claims": "\n".join(in_numbers),
        "Claims": f"{LEGEND} *Seen*: whether an earlier run had shown the quantity when the rule was written. *Mends*: "
        f"what was wrong with the earlier rules, by number.\n\n{part_tables(rows, rules)}",
        "Margins": f"The smallest difference that matters.\n\n{_frame(claims.margin_table(rules))}",
        "When the rules were written": claims.known(rules),
        "What was wrong with the earlier rules": _frame(claims.fault_table(rules)),
        "What became of each verdict": f"{BECAME}\n\n{changed_table(rows, rules, beside or {})}",
        "Earlier verdicts": f"By the earlier rules, on the records of that time.\n\n{comparison_table(rows, rules)}",
    }
    long = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return {"README.md": short_table(rows, rules), "docs/scorecard.md": long}


def main() -> None:
    """Write the scorecard into README.md and docs/scorecard.md, and name what the records lack."""
    try:
        rules, by_profile = claims.load(), scorecard.committed()
        for name, block in pages(rules, by_profile, evidence.load(rules)).items():
            page = ROOT / name
            write_text(page, render(page.read_text(encoding="utf-8"), block, name), only_if_changed=True)
    except ValueError as error:
        sys.exit(f"error: {error}")
    for sentence in scorecard.lacking(scorecard.every(rules, by_profile)):
        print(f"warning: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    main()
