"""What stands beside the rules: every part has an entry, and its figure or table is in the notebook of its record."""

import re

import pytest
import yaml

from lib.base import build_graph
from lib.base.files import DATA
from lib.results import claims, evidence

RULES = claims.load()
FILE = yaml.safe_load((DATA / "evidence.yaml").read_text(encoding="utf-8"))
FIRST = 13  # claims of the first scorecard
WORDS = {"reproduced", "direction only", "not reproduced"}


def test_every_part_has_an_entry_and_no_other_has():
    assert list(FILE) == list(RULES.claims)
    for claim in RULES.claims.values():
        assert [claim.id + letter for letter in FILE[claim.id]["parts"]] == [part.id for part in claim.parts]
        for entry in FILE[claim.id]["parts"].values():
            assert "also" in entry and ("figure" in entry) != ("section" in entry)


def test_every_claim_of_the_first_scorecard_has_its_verdict_and_every_part_of_it_a_fault():
    beside = evidence.load(RULES)
    assert set(beside) == set(RULES.parts())
    for number, claim in enumerate(RULES.claims.values(), 1):
        for part in claim.parts:
            of_part = beside[part.id]
            assert set(part.faults) <= set(of_part.faults)
            if number <= FIRST:
                assert set(of_part.first) == {"default", "public"} and set(of_part.first.values()) <= WORDS
                assert of_part.faults, part.id
            else:
                assert of_part.first_text() == "—" and not of_part.faults
        if "metric" in (claim.needs or {}):
            assert all(1 in beside[part.id].faults for part in claim.parts), "an encoder cannot show it"


@pytest.mark.parametrize("part", RULES.parts().values(), ids=lambda part: part.id)
def test_the_figure_or_the_section_is_in_the_notebook_of_the_record(part):
    of_part = evidence.load(RULES)[part.id]
    source = (build_graph.NOTEBOOKS / f"{part.record}.py").read_text(encoding="utf-8")
    if of_part.figure:
        assert f'"{of_part.figure}"' in source and "figures.save(" in source
    else:
        assert re.search(rf"^# ## {re.escape(of_part.section)}$", source, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("C1: {firsts: {}}", r"claim C1 of data/evidence.yaml has \['firsts'\]; allowed are \['first', 'parts'\]"),
        ("C1: {parts: {z: {}}}", r"claim C1, parts of data/evidence.yaml has \['z'\]"),
        ("C1: {parts: {a: {picture: x}}}", r"part C1a of data/evidence.yaml has \['picture'\]"),
        ("C1: {parts: {a: {also: [13]}}}", r"part C1a, also of data/evidence.yaml has \[13\]"),
        ("C1: {parts: {a: {figure: 08_loss_parts}}}", "part C1a has the figure 08_loss_parts, which is not one of 05"),
        ("C99: {}", r"the file of data/evidence.yaml has \['C99'\]"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path, text, message):
    path = tmp_path / "evidence.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        evidence.load(RULES, path)


def test_what_has_no_entry_has_no_figure_and_the_faults_of_its_rule(tmp_path):
    path = tmp_path / "evidence.yaml"
    path.write_text("C2: {parts: {a: {figure: 05_k_sparse}}}")
    beside = evidence.load(RULES, path)
    assert beside["C1a"] == evidence.Evidence("", "", {}, RULES.parts()["C1a"].faults)
    assert beside["C2a"].figure == "05_k_sparse"
