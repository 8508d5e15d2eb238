import json

import pandas as pd
import pytest
import yaml

from lib.base import build_graph
from lib.base.files import ROOT
from lib.results import figures, scorecard
from lib.runs import runner

CLAIM = {
    "title": "t",
    "claim": "a is above b",
    "where": "w",
    "paper": {"ood": 0.9},
    "record": "05_x",
    "seeds": "05_x.seeds",
    "measured": {"a b": {"metric": "m", "variant": "A", "k": "$show_k"}, "other": {"metric": "m", "variant": "B"}},
    "rule": {
        "reproduced": ["a b.low > other.high", "a b.value >= 0.9"],
        "direction only": ["a b.low > 0.5 * other.value"],
    },
    "rule_written": "before",
    "difference": "d",
}


def record(a=(0.95, 0.9, 0.99), b=(0.5, 0.4, 0.6), extra=()):
    of_another_k = (0.1, 0.0, 0.2)
    rows = [
        {"metric": "m", "variant": variant, "k": k, "value": value, "low": low, "high": high, "n": 10}
        for variant, k, (value, low, high) in (("A", 5, a), ("A", 20, of_another_k), ("B", 5, b))
    ]
    return {"notebook": "05_x", "parameters": {"show_k": 5, "seeds": [0, 1, 2]}, "metrics": rows + list(extra)}


def verdict(of, claim=CLAIM):
    return scorecard.evaluate({"C1": claim}, of, "p")[0]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0.95, 0.9, 0.99), (0.5, 0.4, 0.6), "reproduced"),
        ((0.85, 0.8, 0.89), (0.5, 0.4, 0.6), "direction only"),  # below 0.9
        ((0.95, 0.55, 0.99), (0.5, 0.4, 0.6), "direction only"),  # intervals touch
        ((0.3, 0.2, 0.4), (0.5, 0.4, 0.6), "not reproduced"),
        ((None, None, None), (0.5, 0.4, 0.6), "not applicable"),
        ((0.95, None, None), (0.5, 0.4, 0.6), "not applicable"),  # one seed: no interval
    ],
)
def test_verdicts_by_hand(a, b, expected):
    row = verdict({"05_x": record(a, b)})
    assert row.verdict == expected
    assert (row.why == "") == (expected == "reproduced")
    assert row.seeds == 3 and row.paper == "ood 0.9"


@pytest.mark.parametrize(("value", "expected"), [(1.0, "reproduced"), (0.0, "not applicable")])
def test_a_claim_that_the_setting_cannot_show_says_why(value, expected):
    claim = CLAIM | {"needs": {"record": "02_x", "metric": "has_user_turn", "why": "an encoder has no turn"}}
    setting = {"notebook": "02_x", "parameters": {}, "metrics": [{"metric": "has_user_turn", "value": value}]}
    row = verdict({"05_x": record(), "02_x": setting}, claim)
    assert (row.verdict, row.why) == (expected, "an encoder has no turn" if value == 0 else "")


def test_without_a_record_a_claim_is_not_run():
    row = verdict({"04_y": record()})
    assert row.verdict == "not run" and row.why == "no record of 05_x" and row.seeds is None


def test_a_filter_takes_the_records_own_parameter_and_one_row_only():
    row = verdict({"05_x": record()})
    assert row.measured == {"a b": "0.950 [0.900, 0.990]", "other": "0.500 [0.400, 0.600]"} and row.n == 10
    twice = record(extra=[{"metric": "m", "variant": "B", "k": 1, "value": -0.8, "low": -0.9, "high": -0.7}])
    with pytest.raises(ValueError, match="2 rows of 05_x match"):
        verdict({"05_x": twice})
    for reduce, value in (("max", 0.5), ("min", -0.8), ("farthest", -0.8)):
        assert scorecard.quantity(twice, {"variant": "B", "reduce": reduce})["value"] == value
    assert scorecard.quantity(twice, {"variant": ["B", "C"], "k": 1})["value"] == -0.8
    with pytest.raises(ValueError, match="unknown reduce 'mean'"):
        scorecard.quantity(twice, {"variant": "B", "reduce": "mean"})


@pytest.mark.parametrize(
    "text",
    ["a > 0", "a.mean > 0", "a.low => 0", "a.low > ", "a.low > 0 or 1", "__import__('os').low", "a.low > 2 * 3"],
)
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(ValueError, match="is no condition"):
        scorecard.condition(text)


def test_conditions_are_parsed():
    assert scorecard.condition("a b.low <= -0.02") == (("a b", "low"), "<=", -0.02, None)
    assert scorecard.condition("a.low > b c.high") == (("a", "low"), ">", 1.0, ("b c", "high"))
    assert scorecard.condition("a 10 %.value <= 0.1 * b.value") == (("a 10 %", "value"), "<=", 0.1, ("b", "value"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"where": None}, r"claim C1 has no \['where'\]"),
        ({"rule": {"reproduced": ["a b.low > 0"]}}, "claim C1 has rules"),
        ({"rule": {"reproduced": ["x.low > 0"], "direction only": ["a b.low > 0"]}}, "speaks of 'x'; measured are"),
    ],
)
def test_a_malformed_claim_is_named(tmp_path, change, message):
    claim = {name: value for name, value in (CLAIM | change).items() if value is not None}
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({"C1": claim, "setting": {}}))
    with pytest.raises(ValueError, match=message):
        scorecard.load(path)


def test_every_claim_of_the_paper_has_a_rule_and_a_notebook():
    claims = scorecard.load()
    assert len(claims) >= 13 and list(claims) == [f"C{i}" for i in range(1, len(claims) + 1)]
    names = {path.stem for path in build_graph.notebooks()}
    for claim in claims.values():
        assert claim["record"] in names
        assert set(claim["rule"]["direction only"]) != set(claim["rule"]["reproduced"])
        notebook, _, parameters = claim.get("seeds", "05_probing.seed").partition(".")
        assert set(parameters.split(" or ")) <= set(build_graph.parameters(build_graph.NOTEBOOKS / f"{notebook}.py"))


def test_the_scorecard_reads_every_notebook_before_it():
    """So that a claim may rest on any of them without an edit of the notebook."""
    *others, last = build_graph.notebooks()
    assert last.stem == "10_scorecard" and build_graph.upstream(last) == [path.stem for path in others]


def test_the_filters_match_the_committed_records():
    """Every quantity of every claim is one row of the records that are kept: no typing error is "not applicable"."""
    claims = scorecard.load()
    for profile, of_profile in scorecard.committed().items():
        for row in scorecard.evaluate(claims, of_profile, profile):
            is_decided = row.verdict in scorecard.RULES or row.verdict == "not reproduced"
            needs = claims[row.id].get("needs", {}).get("why")
            is_null = row.why.startswith("no value of") and any(
                scorecard.matches(of_profile[claims[row.id]["record"]], filters)
                for filters in claims[row.id]["measured"].values()
            )
            assert is_decided or row.why == needs or is_null, (profile, row.id, row.why)


def test_the_scorecards_of_the_pages_are_up_to_date():
    claims, by_profile = scorecard.load(), scorecard.committed()
    assert list(by_profile) == ["embedded", "minilm"]
    pages = scorecard.pages(claims, by_profile)
    assert set(pages) == {"README.md", "docs/scorecard.md"}
    for name, block in pages.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        assert scorecard.render(text, block, name) == text, f"{name}: make scorecard"


def test_a_changed_record_changes_the_tables_and_markers_are_needed():
    page = "a\n<!-- scorecard -->\nold\n<!-- /scorecard -->\nb\n"
    for block in ("README.md", "docs/scorecard.md"):
        good, bad = (
            scorecard.render(page, scorecard.pages({"C1": CLAIM}, {"p": {"05_x": record(a)}})[block])
            for a in ((0.95, 0.9, 0.99), (0.3, 0.2, 0.4))
        )
        assert good.startswith("a\n<!--") and good.endswith("-->\nb\n") and "old" not in good
        if block == "README.md":
            assert "| t | reproduced |" in good and "| t | not reproduced |" in bad and "0.300" not in bad
        else:
            assert "**reproduced**" in good and "**not reproduced**" in bad and "0.300 [0.200, 0.400]" in bad
    with pytest.raises(ValueError, match="docs/scorecard.md has 0 lines <!-- /scorecard -->"):
        scorecard.render("<!-- scorecard -->", "", "docs/scorecard.md")


def test_a_new_claim_reaches_every_table_without_another_edit():
    claims = scorecard.load()
    new = next(iter(claims.values())) | {"title": "something new", "claim": "Something new holds."}
    by_profile = scorecard.committed()
    name = f"C{len(claims) + 1}"
    pages = scorecard.pages(claims | {name: new}, by_profile)
    assert f"| {name} | something new |" in pages["README.md"]
    assert f"| {name} | Something new holds. |" in pages["docs/scorecard.md"]
    rows = scorecard.every(claims | {name: new}, by_profile)
    assert f"Of {len(claims) + 1} claims:" in scorecard.summary(rows) and name in set(scorecard.table(rows)["id"])
    assert name in scorecard.rules(claims | {name: new}).index


def test_text_is_escaped_in_the_table():
    row = scorecard.evaluate({"C1": CLAIM | {"claim": "a | <b>", "title": "<i>"}}, {"05_x": record()}, "p")
    assert "a \\| &lt;b&gt;" in scorecard.value_table(row) and "&lt;i&gt;" in scorecard.verdict_table(row)


def test_profiles_stand_side_by_side():
    claims = {"C1": CLAIM, "C2": CLAIM}
    rows = scorecard.every(claims, {"p": {"05_x": record()}, "q": {}})
    values = scorecard.value_table(rows).splitlines()
    assert values[0] == "|  | claim | the paper | p | q |" and len(values) == 4
    assert "**not run**: no record of 05_x" in values[2]
    verdicts = scorecard.verdict_table(rows).splitlines()
    assert verdicts[0] == "|  | claim | p | q |" and verdicts[2] == "| C1 | t | reproduced | not run |"
    counts = scorecard.counts(rows).set_index(["profile", "verdict"])["value"].to_dict()
    assert counts == {("p", "reproduced"): 2, ("q", "not run"): 2}
    first_rule = scorecard.rule_table(claims).splitlines()[2]
    assert first_rule.startswith("| C1 | a b.low &gt; other.high and a b.value &gt;= 0.9 |")


def test_the_summary_counts_and_compares_profiles():
    claims = {"C1": CLAIM, "C2": CLAIM | {"record": "06_y"}}
    rows = scorecard.every(claims, {"p": {"05_x": record()}, "q": {}})
    expected = ["Of 2 claims:", "", "- p: 1 reproduced, 1 not run", "- q: 2 not run", "", "The profiles agree on C2."]
    assert scorecard.summary(rows).splitlines() == expected
    assert "agree" not in scorecard.summary(rows[:2])


def test_the_figure_labels_every_cell():
    table = scorecard.table(scorecard.every({"C1": CLAIM}, {"p": {"05_x": record()}, "q": {}}))
    figure = figures.verdicts(table, scorecard.VERDICTS)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[0] == "reproduced" and texts[2] == "not run" and len(texts) == 4


def test_publishing_keeps_the_records(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "run_dir", lambda profile: tmp_path / "runs" / profile)
    monkeypatch.setattr(runner, "DATA", tmp_path)
    monkeypatch.setattr(runner, "relative", str)
    for check in ("check_committed", "check_made_by_commit"):  # test_records has these
        monkeypatch.setattr(runner.records, check, lambda *record: None)
    with pytest.raises(ValueError, match="01_datasets.json is missing; run make reproduce PROFILE=mine first"):
        runner.publish("mine")
    (tmp_path / "runs" / "mine" / "results").mkdir(parents=True)
    for path in build_graph.notebooks():
        (tmp_path / "runs" / "mine" / "results" / f"{path.stem}.json").write_text(json.dumps({"notebook": path.stem}))
    runner.publish("mine")
    assert sorted(scorecard.committed(tmp_path / "records")["mine"]) == [path.stem for path in build_graph.notebooks()]


def test_the_run_does_not_depend_on_the_records_it_makes():
    text = build_graph.makefile("embedded")
    assert "data/records/minilm/05_probing.json" in text and "data/records/embedded" not in text
    assert isinstance(scorecard.table([]), pd.DataFrame)
