"""What would change a verdict as a sentence, from rows of a record; and the columns of the first page."""

from pathlib import Path

import pytest

from lib.results import evidence, report_index, scorecard
from lib.results.claims import Claim, Margin, Part, Rules
from lib.results.report_index import Place, Site

AUROC = Margin("auroc", 0.02, "AUROC", "less does not matter")


def part(id="C1a", **change):
    whole = Part(id, "t", "05_x", {"metric": "m"}, "above", AUROC, None, False, "no", ())
    return whole._replace(**change)


def records(*rows, notebook="05_x", profile="p"):
    return {notebook: {"notebook": notebook, "profile": profile, "parameters": {"model": "a/b"}, "metrics": list(rows)}}


def of(value, low=None, high=None, **columns):
    return {"metric": "m", "value": value, "low": low, "high": high, "n": 10} | columns


@pytest.mark.parametrize(
    ("change", "rows", "expected"),
    [
        (
            {},
            [of(0.02, -0.01, 0.05)],
            "Reproduced if it lay 0.011 higher, or if the interval were 0.66 times as wide; opposite if it lay 0.051 "
            "lower.",
        ),
        # The same as 1 within 0.02: its distance to 1 is judged, −0.03 [−0.045, −0.015].
        (
            {"says": "same", "against": 1.0},
            [of(0.97, 0.955, 0.985)],
            "Opposite if it lay 0.006 lower, or if the interval were 0.66 times as wide; reproduced if it lay 0.026 "
            "higher.",
        ),
        (
            {"family": True},
            [
                of(0.1, 0.05, 0.15, variant="A", alpha=0.05),
                of(0.03, -0.01, 0.07, variant="B", alpha=0.025),
                of(-0.02, -0.06, 0.02, variant="C", alpha=0.05),
            ],
            "Reproduced if C lay 0.061 higher and 1 other by less; opposite if C lay 0.021 lower, or if the interval "
            "were 0.49 times as wide.",
        ),
        # A must come down by 0.0045, B up by 0.0055; either is opposite once its other end is beyond the margin.
        (
            {"family": True, "says": "same"},
            [of(0.01, 0.0, 0.0245, variant="A", alpha=0.05), of(-0.01, -0.0255, 0.0, variant="B", alpha=0.05)],
            "Reproduced if B lay 0.006 higher and 1 other lower by less, or if the interval were 0.64 times as wide; "
            "opposite if A lay 0.021 higher.",
        ),
        ({}, [of(0.1)], "An interval is missing; with one it could show something."),
        ({}, [of(None)], ""),
        ({}, [], ""),
    ],
)
def test_what_would_change_a_verdict_by_hand(change, rows, expected):
    assert report_index.change_text(part(**change), records(*rows)) == expected


def rules(*parts):
    claim = Claim("C1", "title", "a is above b", "w", "ood 0.9", "d", None, {}, list(parts))
    return Rules({"C1": claim}, {"auroc": AUROC}, {}, {"date": "today", "known": "nothing."})


def test_columns_stand_in_order_and_a_run_over_tasks_has_its_own(tmp_path):
    given = rules(part(), part("C1b", record="09_many_tasks"))
    own = records(of(0.1, 0.05, 0.15), profile="embedded")
    tasks = {"metric": "auroc_ahead_of_dense", "value": 0.1, "n": 12}
    own |= records(of(0.1, 0.05, 0.15), tasks, notebook="09_many_tasks", profile="embedded-tasks-core")
    by_profile = {"minilm": records(of(0.0, -0.01, 0.01), profile="minilm"), "embedded": own, "public": own}
    (tmp_path / "minilm").mkdir()
    picture = tmp_path / "minilm" / "05_f.png"
    picture.write_bytes(b"")
    beside = {
        "C1a": evidence.Evidence("05_f", "", {}, ()),
        "C1b": evidence.Evidence("", "On average", {}, ()),
    }
    places = {
        "05_f": Place("05_x", "figure-05_f", "Section", "section"),
        ("09_many_tasks", "On average"): Place("09_many_tasks", "average", "On average", "average"),
    }
    site = Site("embedded", places, Path(tmp_path), [], "", [])
    (block,) = report_index.blocks(given, by_profile, beside, site)
    shown = report_index.columns([block], by_profile)
    assert [column.name for column in shown] == ["embedded", "public", "minilm", "tasks", "tasks, public"]
    assert shown[3].about == "b; 12 classification tasks" and shown[0].counts == {"reproduced": 1}
    first, second = block.lines
    assert [cell.href for cell in first.cells] == ["05_x.html#figure-05_f", "", "figures/minilm/05_f.png"]
    assert [cell.picture for cell in first.cells] == [None, None, picture]
    assert [cell.row.verdict for cell in first.cells] == ["reproduced", "reproduced", "no difference"]
    assert (first.section, first.section_href) == ("Section", "05_x.html#section")
    assert [cell.href for cell in second.cells] == ["09_many_tasks.html#average", "", ""]
    assert second.cells[2].row.verdict == scorecard.NOT_RUN and second.cells[2].change == ""


def test_the_answer_is_readmes_paragraph_in_one_line(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n\nOne\nsentence.  Another.\n\nMore.\n")
    assert report_index.answer(readme) == "One sentence. Another."
