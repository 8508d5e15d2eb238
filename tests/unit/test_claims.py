"""The file of claims: what is wrong in it is named, and its quantities are those of notebooks."""

import copy

import pytest
import yaml

from lib.base import build_graph
from lib.results import claims

N_OLD = 13  # claims that earlier rules judged
COMPOSED = {"autointerp_fall_over_shuffled"}  # whose name is made of two parts where it is emitted
FILE = {
    "setting": {},
    "written": {"date": "today", "known": "nothing."},
    "margins": {"auroc": {"value": 0.02, "unit": "AUROC", "why": "w"}},
    "faults": {1: {"title": "f"}, 2: {"title": "g", "elsewhere": "the data"}},
    "C1": {
        "title": "t",
        "claim": "a is above b",
        "where": "w",
        "paper": {"ood": 0.9},
        "difference": "d",
        "old_verdict": {"p": "direction only"},
        "needs": {"record": "02_x", "metric": "has_user_turn", "why": "an encoder has no turn"},
        "parts": {
            "a": {
                "title": "above",
                "record": "05_x",
                "quantity": {"metric": "m", "variant": ["A", "B"], "k": "$show_k"},
                "says": "above",
                "margin": "auroc",
                "faults": [1],
            },
            "b": {
                "title": "close to one",
                "record": "05_x",
                "quantity": {"metric": "v"},
                "says": "same",
                "margin": "auroc",
                "against": 1.0,
                "family": True,
                "seen": "in part",
                "faults": [],
            },
        },
    },
}


@pytest.fixture
def load(tmp_path):
    """Load the file with a value in the place that a path of keys names (None: without the key)."""

    def load_changed(*place, value=None):
        content = copy.deepcopy(FILE)
        inner = content
        for key in place[:-1]:
            inner = inner[key]
        if place:
            inner.pop(place[-1], None)
            if value is not None:
                inner[place[-1]] = value
        path = tmp_path / "claims.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return claims.load(path)

    return load_changed


def test_a_rule_as_text(load):
    rules = load()
    a, b = rules.parts().values()
    assert (a.quantity_text(), b.quantity_text()) == ("m (variant A or B, k show_k)", "v")
    assert a.rule_text() == "above 0, margin 0.02 AUROC"
    assert b.rule_text() == "every one the same as 1 within 0.02 AUROC"
    assert (a.seen, b.seen, rules.claims["C1"].paper) == ("no", "in part", "ood 0.9")
    assert claims.known(rules).endswith("Of the 2 parts, 1 rest on quantities that nobody had seen.")
    assert claims.fault_table(rules)["mended by"].tolist() == ["C1a", "the data"]
    assert claims.margin_table(rules).loc["auroc"].tolist() == [0.02, "AUROC", "w"]


PART = ("C1", "parts", "a")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("margins",), None, r"claims.yaml has no \['margins'\]"),
        (("C1", "where"), None, r"claim C1 has no \['where'\]"),
        (("C1", "rule"), "x", r"claim C1 has \['rule'\]; allowed are"),
        (("C1", "needs", "why"), None, r"claim C1, needs has no \['why'\]"),
        (("C1", "needs", "least"), 5, "claim C1 needs .*; that must be a metric, or a parameter and its least value"),
        (("C1", "parts"), {"b": FILE["C1"]["parts"]["b"]}, r"claim C1 has parts \['b'\]; they are named a, b"),
        ((*PART, "margin"), None, r"claim C1, part a has no \['margin'\]"),
        ((*PART, "agianst"), 1.0, r"claim C1, part a has \['agianst'\]; allowed are"),
        ((*PART, "quantity"), {"split": "ood"}, "claim C1, part a: the quantity .* names no metric"),
        ((*PART, "says"), "better", "claim C1, part a, m: unknown says 'better'; allowed are above, below, same"),
        ((*PART, "margin"), "aurok", "claim C1, part a, m: unknown margin 'aurok'; allowed are auroc"),
        ((*PART, "faults"), [3], r"claim C1, part a, m: unknown faults \[3\]; allowed are \[1, 2\]"),
        ((*PART, "against"), "1", "claim C1, part a, m: against '1' is no number"),
        (("margins", "auroc", "unit"), None, r"margin auroc has no \['unit'\]"),
        (("margins", "auroc", "value"), 0.0, "margin auroc is 0.0; it must be a number above zero"),
        (("margins", "auroc", "value"), "small", "margin auroc is 'small'; it must be a number above zero"),
        (("faults", 1, "titel"), "f", r"fault 1 has \['titel'\]; allowed are"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(load, place, value, message):
    with pytest.raises(ValueError, match=message):
        load(*place, value=value)


def test_the_papers_claims_rest_on_records_that_notebooks_write():
    rules = claims.load()
    assert len(rules.claims) >= 13 and list(rules.claims) == [f"C{i}" for i in range(1, len(rules.claims) + 1)]
    paths = {path.stem: path for path in build_graph.notebooks()}
    parameters = {name for path in paths.values() for name in build_graph.parameters(path)}
    for part in rules.parts().values():
        assert part.record in paths, part.id
        named = [value[1:] for value in part.quantity.values() if str(value).startswith("$")]
        assert set(named) <= parameters, part.id


def test_every_metric_of_a_rule_is_emitted_somewhere():
    sources = [*build_graph.notebooks(), *build_graph.LIB.rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    metrics = {part.quantity["metric"] for part in claims.load().parts().values()}
    assert {metric for metric in metrics if f'"{metric}"' not in code and f"{metric}=" not in code} <= COMPOSED


def test_every_fault_of_the_earlier_rules_is_mended_by_a_part_or_belongs_elsewhere():
    rules = claims.load()
    assert list(rules.faults) == list(range(1, 13))
    assert (claims.fault_table(rules)["mended by"] != "").all()
    mended = {fault for part in rules.parts().values() for fault in part.faults}
    assert not any(rules.faults[number].elsewhere for number in mended), "one or the other"


def test_every_earlier_verdict_is_kept():
    earlier = {"reproduced", "direction only", "not reproduced", "not applicable"}
    for claim in list(claims.load().claims.values())[:N_OLD]:
        assert set(claim.old_verdict) >= {"embedded", "minilm"} and set(claim.old_verdict.values()) <= earlier
