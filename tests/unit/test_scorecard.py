"""From records to verdicts and pages: by hand, in planted worlds, and for the records that are kept."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from lib.base import build_graph
from lib.base.files import ROOT
from lib.results import claims, evidence, figures, scorecard, scorecard_pages
from lib.results.claims import Claim, Margin, Part, Rules
from lib.runs import runner
from lib.stats import verdicts

AUROC = Margin("auroc", 0.02, "AUROC", "less does not matter")
NEEDS = {"record": "02_x", "metric": "has_user_turn", "why": "an encoder has no turn"}


def part(id="C1a", **change):
    quantity = {"metric": "m", "variant": "A", "k": "$show_k"}
    whole = Part(id, "t", "05_x", quantity, "above", AUROC, None, False, "no", ())
    return whole._replace(**change)


def rules(*parts, **change):
    """Rules of a claim with these parts."""
    claim = Claim("C1", "title", "a is above b", "w", "ood 0.9", "d", None, {"p": "direction only"}, list(parts))
    return Rules({"C1": claim._replace(**change)}, {"auroc": AUROC}, {}, {"date": "today", "known": "nothing."})


def of(value, low=None, high=None, **columns):
    return {"metric": "m", "variant": "A", "k": 5, "value": value, "low": low, "high": high, "n": 10} | columns


def record(*rows):
    return {"notebook": "05_x", "parameters": {"show_k": 5}, "metrics": list(rows)}


def verdict(given, *rows, **other_records):
    return scorecard.evaluate(rules(given), {"05_x": record(*rows)} | other_records, "p")[0]


# Verdicts


@pytest.mark.parametrize(
    ("change", "row", "expected"),
    [
        ({}, of(0.1, 0.05, 0.15), "reproduced"),
        ({}, of(-0.1, -0.15, -0.05), "opposite"),
        ({}, of(0.0, -0.01, 0.01), "no difference"),
        ({}, of(0.1, -0.01, 0.21), "inconclusive"),
        ({}, of(0.1), "inconclusive"),  # one seed: no interval
        ({}, of(None), "not applicable"),
        ({"says": "same", "against": 1.0}, of(0.995, 0.99, 1.0), "reproduced"),
        ({"says": "same", "against": 1.0}, of(0.9, 0.88, 0.93), "opposite"),
        ({"against": 0.5}, of(0.4, 0.3, 0.47), "opposite"),  # above zero, and below what it is taken against
    ],
)
def test_verdicts_by_hand(change, row, expected):
    judged = verdict(part(**change), row)
    assert judged.verdict == expected
    assert (judged.why == "") == (expected != "not applicable" and row["low"] is not None)
    assert judged.n == (None if row["value"] is None else 10)


def test_a_missing_value_or_interval_says_why():
    assert verdict(part(), of(0.1)).why == "no interval"
    assert verdict(part(), of(0.1)).measured == "0.100 (no interval)"
    assert verdict(part(), of(None)).why == "no value of m (variant A, k show_k)"
    assert verdict(part(), of(None, why="there is no gap")).why == "there is no gap"


def test_a_filter_takes_the_parameter_of_its_record_or_of_another():
    rows = [of(0.1, 0.05, 0.15), of(-0.9, -1.0, -0.8, k=20)]
    assert verdict(part(), *rows).measured == "0.100 [0.050, 0.150]"
    without = {"notebook": "05_x", "parameters": {}, "metrics": rows}
    other = {"notebook": "07_y", "parameters": {"show_k": 20}, "metrics": []}
    assert scorecard.evaluate(rules(part()), {"05_x": without, "07_y": other}, "p")[0].verdict == "opposite"


@pytest.mark.parametrize(
    ("given", "rows", "sentence"),
    [
        (part(), [of(1.0, metric="other")], "C1a needs m (variant A, k show_k) of 05_x: it has no such row"),
        (
            part(),
            [of(1.0, k=7)],
            "C1a needs m (variant A, k show_k) of 05_x: none of its 1 rows of this metric matches",
        ),
        (part(), [of(1.0), of(2.0)], "C1a needs m (variant A, k show_k) of 05_x: 2 rows match, and one must"),
        (part(quantity={"metric": "m", "k": "$x"}), [], "C1a needs m (k x) of 05_x: no record has a parameter x"),
        (part(family=True), [of(1.0, 0.9, 1.1)], "must be at Holm's levels, and a row has no alpha"),
    ],
)
def test_what_a_record_lacks_is_said_in_one_sentence_and_the_page_is_written(given, rows, sentence):
    judged = verdict(given, *rows)
    assert judged.verdict == "not applicable" and judged.is_lacking and judged.why.endswith(sentence)
    (warning,) = scorecard.lacking([judged])
    assert warning.startswith("p: C1a needs m (")
    assert "**not applicable**: C1a needs" in scorecard_pages.part_tables([judged], rules(given))


@pytest.mark.parametrize(("value", "expected"), [(1.0, "reproduced"), (0.0, "not applicable")])
def test_a_claim_that_the_setting_cannot_show_says_why(value, expected):
    setting = {"notebook": "02_x", "parameters": {}, "metrics": [{"metric": "has_user_turn", "value": value}]}
    given = rules(part(), part("C1b"), needs=NEEDS)
    rows = scorecard.evaluate(given, {"05_x": record(of(0.1, 0.05, 0.15)), "02_x": setting}, "p")
    assert {(row.verdict, row.why) for row in rows} == {(expected, NEEDS["why"] if value == 0 else "")}
    assert not scorecard.lacking(rows)
    page = scorecard_pages.part_tables(rows, given)
    assert page.count(NEEDS["why"]) == page.count("as above") == (value == 0)


@pytest.mark.parametrize(("d_sae", "expected"), [(4096, "reproduced"), (768, "not applicable")])
def test_a_claim_may_need_the_least_value_of_a_parameter(d_sae, expected):
    needs = {"record": "05_x", "parameter": "d_sae", "least": 4096, "why": "too few latents"}
    of_profile = {"05_x": record(of(0.1, 0.05, 0.15)) | {"parameters": {"show_k": 5, "d_sae": d_sae}}}
    (row,) = scorecard.evaluate(rules(part(), needs=needs), of_profile, "p")
    assert (row.verdict, row.why) == (expected, "too few latents" if expected == "not applicable" else "")


def test_without_a_record_a_part_is_not_run():
    (row,) = scorecard.evaluate(rules(part()), {"04_y": record()}, "p")
    assert (row.verdict, row.why) == ("not run", "no record of 05_x")


@pytest.mark.parametrize(
    ("says", "members", "expected", "holding", "farthest"),
    [
        ("above", [(0.1, 0.05, 0.15), (0.3, 0.2, 0.4)], "reproduced", "2 of 2", "v0"),
        ("above", [(0.1, 0.05, 0.15), (-0.3, -0.4, -0.2)], "opposite", "1 of 2", "v1"),
        ("above", [(0.0, -0.01, 0.01), (0.005, 0.0, 0.01)], "no difference", "0 of 2", "v0"),
        ("above", [(0.1, 0.05, 0.15), (0.0, -0.01, 0.01)], "inconclusive", "1 of 2", "v1"),
        ("above", [(0.1, 0.05, 0.15), (None, None, None)], "inconclusive", "1 of 2", "v0"),
        ("above", [(None, None, None), (None, None, None)], "not applicable", "", ""),
        ("below", [(-0.1, -0.15, -0.05), (-0.3, -0.4, -0.2)], "reproduced", "2 of 2", "v0"),
        ("same", [(0.001, -0.01, 0.01), (-0.005, -0.01, 0.0)], "reproduced", "2 of 2", "v1"),
        ("same", [(0.001, -0.01, 0.01), (-0.2, -0.3, -0.1)], "opposite", "1 of 2", "v1"),
    ],
)
def test_of_a_family_every_member_must_hold(says, members, expected, holding, farthest):
    rows = [of(*member, variant=f"v{i}", alpha=0.05 / (i + 1)) for i, member in enumerate(members)]
    judged = verdict(part(says=says, family=True, quantity={"metric": "m"}), *rows)
    assert (judged.verdict, judged.holding, judged.farthest) == (expected, holding, farthest)
    if expected != "not applicable":
        assert judged.measured.startswith(f"{holding} hold; {farthest} ")


# Planted worlds


UNITS, REPLICATES, BLOCK = 200, 400, 25  # BLOCK worlds share the units that are drawn


def worlds(effects, error, draws, family):
    """Records of paired differences with these means and this error, and their bootstrap intervals."""
    rng = np.random.default_rng(0)
    for draw in range(draws):
        if draw % BLOCK == 0:
            times_drawn = rng.multinomial(UNITS, np.full(UNITS, 1 / UNITS), REPLICATES)
        units = np.array(effects)[:, None] + error * UNITS**0.5 * rng.standard_normal((len(effects), UNITS))
        replicates = units @ times_drawn.T / UNITS
        p = verdicts.p_values(replicates)
        levels = verdicts.holm_levels(p) if family else np.full(len(p), verdicts.ALPHA)
        rows = []
        for i, (values, drawn, alpha) in enumerate(zip(units, replicates, levels, strict=True)):
            rows.append(of(values.mean(), *np.quantile(drawn, [alpha / 2, 1 - alpha / 2]), variant=i, alpha=alpha))
        yield {"05_x": record(*rows)}


def shares(effects, error, draws=100):
    """In which share of worlds a part that says above, below or the same has which verdict; several are a family."""
    family = len(effects) > 1
    given = rules(*(part(f"C1{says}", says=says, family=family, quantity={"metric": "m"}) for says in verdicts.SAYS))
    rows = [row for world in worlds(effects, error, draws, family) for row in scorecard.evaluate(given, world, "p")]
    counts = pd.Series([(row.letter, row.verdict) for row in rows]).value_counts() / draws
    return lambda says, *expected: sum(counts.get((says, name), 0.0) for name in expected)


DRAWS = 300
AT_MOST = 0.05 + 2 * (0.05 * 0.95 / DRAWS) ** 0.5  # five of a hundred, and the noise of so many draws


@pytest.mark.parametrize("effects", [[0.06], [0.06, 0.08, 0.1]])
def test_a_planted_effect_is_called_so(effects):
    share = shares(effects, error=0.01)
    assert share("above", "reproduced") >= 0.95
    assert share("below", "opposite") >= 0.95
    assert share("same", "opposite") >= 0.95


@pytest.mark.parametrize("effects", [[0.0], [0.0, 0.002, -0.002]])
def test_a_planted_sameness_is_called_so_and_too_small_an_effect_is_no_difference(effects):
    share = shares(effects, error=0.003)
    assert share("same", "reproduced") >= 0.95
    assert share("above", "no difference") >= 0.95 and share("below", "no difference") >= 0.95


@pytest.mark.parametrize("error", [0.004, 0.03])
@pytest.mark.parametrize("members", [1, 4])
def test_a_world_without_an_effect_shows_one_in_at_most_five_of_a_hundred_draws(error, members):
    share = shares([0.0] * members, error, DRAWS)
    for says in ("above", "below"):
        assert share(says, "no difference", "inconclusive") >= 1 - AT_MOST
    assert share("same", "opposite") <= AT_MOST


def test_one_member_without_an_effect_keeps_a_family_from_being_reproduced():
    assert shares([0.2, 0.2, 0.0], 0.03, DRAWS)("above", "reproduced") <= AT_MOST
    assert shares([0.0, 0.0, 0.02], 0.003, DRAWS)("same", "reproduced") <= AT_MOST


def test_a_wide_interval_is_inconclusive():
    share = shares([0.02], error=0.2)
    assert share("above", "inconclusive") >= 0.9 and share("same", "inconclusive") >= 0.9


# The records that are kept


def test_the_scorecard_reads_every_notebook_before_it():
    """So that a claim may rest on any of them without an edit of the notebook."""
    *others, last = build_graph.notebooks()
    assert last.stem == "10_scorecard" and build_graph.upstream(last) == [path.stem for path in others]


def test_records_that_were_made_under_these_rules_have_all_that_the_rules_ask_for():
    """No typing error is "not applicable". A record of rules from before counts another number of parts."""
    by_profile, rules = scorecard.committed(), claims.load()
    for profile, of_profile in by_profile.items():
        rows = of_profile["10_scorecard"]["metrics"]
        counted = sum(row["value"] for row in rows if row["metric"] == "parts" and row["profile"] == profile)
        if counted == len(rules.parts()):
            assert not scorecard.lacking(scorecard.evaluate(rules, of_profile, profile))


def test_the_scorecards_of_the_pages_are_up_to_date():
    by_profile = scorecard.committed()
    assert list(by_profile)[:2] == ["embedded", "minilm"]
    pages = scorecard_pages.pages(claims.load(), by_profile, evidence.load(claims.load()))
    assert set(pages) == {"README.md", "docs/scorecard.md"}
    for name, block in pages.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        assert scorecard_pages.render(text, block, name) == text, f"{name}: make scorecard"


# Pages, tables and the figure


def test_a_changed_record_changes_the_tables_and_markers_are_needed():
    page = "a\n<!-- scorecard -->\nold\n<!-- /scorecard -->\nb\n"
    for name in ("README.md", "docs/scorecard.md"):
        good, bad = (
            scorecard_pages.render(page, scorecard_pages.pages(rules(part()), {"p": {"05_x": record(row)}})[name])
            for row in (of(0.95, 0.9, 0.99), of(-0.3, -0.4, -0.2))
        )
        assert good.startswith("a\n<!--") and good.endswith("-->\nb\n") and "\nold\n" not in good
        if name == "README.md":
            assert "| title | reproduced |" in good and "| title | opposite |" in bad and "0.300" not in bad
        else:
            assert "**reproduced**" in good and "**opposite**: -0.300 [-0.400, -0.200]" in bad
    with pytest.raises(ValueError, match="docs/scorecard.md has 0 lines <!-- /scorecard -->"):
        scorecard_pages.render("<!-- scorecard -->", "", "docs/scorecard.md")


def test_a_claim_in_short():
    def rows(*named):
        return [scorecard.Row(f"C1{letter}", "C1", "t", "p", name) for letter, name in zip("abcd", named, strict=False)]

    assert scorecard.in_short(rows("opposite", "reproduced", "opposite")) == "reproduced b · opposite a, c"
    assert scorecard.in_short(rows("not applicable", "not applicable")) == "not applicable"
    assert scorecard.in_short(rows("no difference", "inconclusive")) == "no difference a · inconclusive b"


def test_a_new_claim_and_a_new_profile_reach_every_table_without_another_edit():
    given = claims.load()
    first = next(iter(given.claims.values()))
    name = f"C{len(given.claims) + 1}"
    new = [one._replace(id=name + one.id.removeprefix(first.id)) for one in first.parts]
    claim = first._replace(id=name, title="something new", claim="Something new holds.", parts=new)
    given = given._replace(claims=given.claims | {name: claim})
    by_profile = scorecard.committed()
    by_profile["of a reader"] = by_profile["embedded"]
    pages = scorecard_pages.pages(given, by_profile)
    assert f"| [{name}](docs/scorecard.md#{name.lower()}) | something new |" in pages["README.md"]
    assert f"### {name}\n\nSomething new holds." in pages["docs/scorecard.md"]
    heads = [line for line in pages["docs/scorecard.md"].splitlines() if line.startswith("|  | part |")]
    assert len(heads) == len(given.claims) and all("| of a reader |" in head for head in heads)
    assert "| not run | " in pages["docs/scorecard.md"].partition("## Earlier verdicts")[2], "it has no earlier one"
    rows = scorecard.every(given, by_profile)
    assert f"Of {len(given.parts())} parts of {len(given.claims)} claims:" in scorecard.summary(rows)
    assert {one.id for one in new} <= set(scorecard.table(rows, given)["id"])


def test_text_is_escaped_in_the_tables():
    given = rules(part(title="<b>"), title="<i>", claim="a | <b>")
    rows = scorecard.evaluate(given, {"05_x": record(of(0.1, 0.05, 0.15))}, "p")
    in_parts = scorecard_pages.part_tables(rows, given)
    assert "a \\| &lt;b&gt;" in in_parts and "| &lt;b&gt; |" in in_parts
    assert "&lt;i&gt;" in scorecard_pages.short_table(rows, given)


def test_profiles_stand_side_by_side_with_the_earlier_verdicts():
    given = rules(part(), part("C1b", quantity={"metric": "m", "k": 20}))
    here = {"05_x": record(of(0.1, 0.05, 0.15), of(-0.1, -0.15, -0.05, k=20))}
    rows = scorecard.every(given, {"p": here, "q": {}})
    assert scorecard_pages.short_table(rows, given).splitlines()[2] == (
        "| [C1](docs/scorecard.md#c1) | title | reproduced a · opposite b | not run |"
    )
    head, _, line = scorecard_pages.comparison_table(rows, given).splitlines()
    assert head == "|  | claim | p, earlier | p, now | q, earlier | q, now |"
    assert line == "| C1 | title | direction only | reproduced a · opposite b | not run | not run |"
    counts = scorecard.counts(rows).set_index(["profile", "verdict"])["value"].to_dict()
    assert counts == {("p", "reproduced"): 1, ("p", "opposite"): 1, ("q", "not run"): 2}


def test_what_became_of_each_verdict():
    given = rules(part(faults=(5,)), part("C1b", quantity={"metric": "m", "k": 20}))
    rows = scorecard.every(given, {"embedded": {"05_x": record(of(0.1, 0.05, 0.15), of(-0.1, -0.15, -0.05, k=20))}})
    beside = {"C1a": evidence.Evidence("05_x", "", {"default": "reproduced", "public": "not reproduced"}, (1, 5))}
    head, _, *lines = scorecard_pages.changed_table(rows, given, beside).splitlines()
    assert head == "| part | title | first scorecard | minilm | embedded | public | faults |"
    assert lines == [
        "| C1a | t | reproduced (public: not reproduced) | not run | reproduced | not run | 1, 5 |",
        "| C1b | t | — | not run | opposite | not run | — |",
    ]


def test_the_takeaway_counts_and_compares_profiles():
    given = rules(part(), part("C1b", quantity={"metric": "m", "k": 20}))
    p = {"05_x": record(of(0.1, 0.05, 0.15), of(-0.1, -0.15, -0.05, k=20))}
    q = {"05_x": record(of(0.1, 0.05, 0.15), of(0.0, -0.15, 0.15, k=20))}
    expected = [
        "Of 2 parts of 1 claims:",
        "- p: 1 reproduced, 1 opposite",
        "    - reproduced: C1a",
        "    - opposite: C1b",
        "- q: 1 reproduced, 1 inconclusive",
        "    - reproduced: C1a",
        "Reproduced in every profile: C1a.",
        "Opposite in every profile: none.",
    ]
    rows = scorecard.every(given, {"p": p, "q": q})
    assert [line for line in scorecard.summary(rows).splitlines() if line] == expected
    assert "every profile" not in scorecard.summary(rows[:2])


def test_the_figure_has_a_line_per_part_below_its_claim():
    given = rules(part(), part("C1b", family=True, quantity={"metric": "f"}))
    family = [of(x, x - 0.1, x + 0.1, metric="f", variant=x, alpha=0.025) for x in (0.3, -0.3)]
    rows = scorecard.every(given, {"p": {"05_x": record(of(0.1, 0.05, 0.15), *family)}, "q": {}})
    figure = figures.verdicts(scorecard.table(rows, given), scorecard.VERDICTS)
    (ax,) = figure.axes
    left = {text.get_position(): text.get_text().strip() for text in ax.texts if text.get_position()[0] < 0}
    titles, holds_if = ([left[x, y + 0.5] for y in range(3)] for x in sorted({x for x, _ in left}))
    assert titles == ["C1  title", "a  t", "b  t"]
    assert holds_if == ["", *(one.rule_text() for one in given.parts().values())]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["holds if it is", "p", "q"]
    cells = {text.get_text() for text in ax.texts if 0 < text.get_position()[0] < 1}
    assert cells == {"reproduced", "0.100 [0.050, 0.150]", "opposite", "1 of 2: -0.300 [-0.400, -0.200]"}
    colours = {patch.get_facecolor() for patch in ax.patches}
    assert len(ax.patches) == 4 and len(colours) == 3  # reproduced, opposite, not run


def test_titles_and_rules_do_not_run_into_what_stands_beside_them():
    rows = scorecard.every(claims.load(), scorecard.committed())
    figure = figures.verdicts(scorecard.table(rows, claims.load()), scorecard.VERDICTS)
    (ax,) = figure.axes
    figure.canvas.draw()
    begins = sorted({text.get_position()[0] for text in ax.texts if text.get_position()[0] < 0}) + [0.0]
    for text in ax.texts:
        if (x := text.get_position()[0]) < 0:
            end = ax.transData.inverted().transform(text.get_window_extent().get_points())[1, 0]
            assert end <= begins[begins.index(x) + 1], text.get_text()


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
    assert "data/records/minilm/05_probing.json" in text and "data/records/embedded/" not in text
    assert isinstance(scorecard.table([], rules()), pd.DataFrame)


def test_publishing_a_run_over_all_tasks_keeps_one_record_which_is_that_of_its_profile(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "run_dir", lambda profile: tmp_path / "runs" / profile)
    monkeypatch.setattr(runner, "DATA", tmp_path)
    for check in ("check_committed", "check_made_by_commit"):
        monkeypatch.setattr(runner.records, check, lambda *record: None)
    measured = {"notebook": "09_many_tasks", "outputs": {"tasks": {}}}
    results = tmp_path / "runs" / "mine-tasks-all" / "results"
    results.mkdir(parents=True)
    (results / "09_many_tasks.json").write_text(json.dumps(measured))
    runner.publish("mine-tasks-all")
    kept = scorecard.committed(tmp_path / "records")
    assert kept == {"mine": {"09_many_tasks": measured}}
    empty, other = {"notebook": "09_many_tasks", "outputs": {}}, {"notebook": "05_x", "outputs": {"a": {}}}
    assert scorecard.with_run(kept, "mine", [other, empty])["mine"] == {"05_x": other, "09_many_tasks": measured}
    assert scorecard.with_run({}, "mine", [other, empty])["mine"]["09_many_tasks"] == empty


@pytest.mark.parametrize("path", sorted((ROOT / "data" / "records").glob("*/*.json")), ids=lambda path: path.stem)
def test_no_record_holds_a_path_of_the_machine_that_made_it(path):
    of_a_machine = r"(?<![\w.:/])/(?:home|root|tmp|Users|var|mnt|work)/[^\s\"']*"
    assert not re.findall(of_a_machine, path.read_text(encoding="utf-8"))
