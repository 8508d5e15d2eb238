"""Averages over tasks: by hand, in planted worlds, and the published numbers by the authors' own averages."""

import os

import numpy as np
import pandas as pd
import pytest

from lib.results import claims, published, scorecard, task_tables
from lib.texts import sources


def measured(aheads, probe="k-sparse", variant="pretraining SAE", k=16, setting="normal", level=None, seed=0, **more):
    """A row for each task: the dense probe at 0.8, the other one ahead by what is given."""
    return pd.DataFrame([
        {"task": f"t{i}", "kind": "a" if i % 2 else "b", "setting": setting, "level": level, "probe": probe,
         "variant": variant, "seed": seed, "k": k, "n_train": 60, "n_test": 40, "value": 0.8 + ahead, "low": 0.7,
         "high": 0.9, "ahead": ahead, "p": 0.5, "val": 0.8, "changed": float(ahead != 0)} | more
        for i, ahead in enumerate(aheads)
    ])  # fmt: skip


def dense(n, **options):
    return measured(np.zeros(n), probe="dense", variant=None, k=None, **options)


def test_a_mean_over_tasks_is_over_seeds_first_and_its_interval_that_of_student_for_few():
    table = pd.concat([dense(4), measured([0.0, 0.1, 0.2, 0.3]), measured([0.2, 0.1, 0.0, 0.3], seed=1)])
    [row] = task_tables.by_level(table, 0.02, 100, 0).to_dict("records")
    values = np.array([0.1, 0.1, 0.1, 0.3])
    half = 3.182446 * values.std(ddof=1) / 2
    assert row["value"] == pytest.approx(0.15) and row["n"] == 4 and row["win_rate"] == 1.0
    assert [row["low"], row["high"]] == pytest.approx([0.15 - half, 0.15 + half], abs=1e-6)
    assert row["verdict"] == "inconclusive"


def test_one_task_has_no_interval_and_no_verdict():
    [row] = task_tables.by_level(pd.concat([dense(1), measured([0.3])]), 0.02, 100, 0).to_dict("records")
    assert row["value"] == pytest.approx(0.3) and np.isnan(row["low"]) and row["verdict"] == "inconclusive"


def test_the_interval_covers_the_mean_of_all_tasks():
    """In 200 draws of 40 tasks the mean lies outside in at most 7 of 100."""
    rng, misses = np.random.default_rng(0), 0
    for draw in range(200):
        table = pd.concat([dense(40), measured(rng.normal(-0.03, 0.05, 40))])
        [row] = task_tables.by_level(table, 0.02, 400, draw).to_dict("records")
        misses += not row["low"] <= -0.03 <= row["high"]
    assert misses <= 22


@pytest.mark.parametrize(("effect", "word"), [(0.1, "ahead"), (-0.1, "behind"), (0.0, "no difference")])
def test_planted_worlds_are_called_what_they_are(effect, word):
    rng = np.random.default_rng(1)
    table = pd.concat([dense(60), measured(effect + rng.normal(0, 0.02, 60))])
    assert task_tables.by_level(table, 0.02, 500, 0)["verdict"].tolist() == [word]


def test_settings_of_stress_are_a_family_over_their_levels_and_others_stand_alone():
    parts = [dense(30), measured([-0.1] * 30)]
    for setting, levels in (("scarcity", [16, 64]), ("label noise", [0.1])):
        parts += [measured([-0.2, -0.4] * 15, setting=setting, level=level) for level in levels]
    rows = task_tables.behind_dense(pd.concat(parts), 200, 0).set_index("setting")
    assert rows.loc["scarcity", "value"] == pytest.approx(0.3) and rows.loc["normal", "value"] == pytest.approx(0.1)
    assert rows.loc["normal", "alpha"] == 0.05 and rows.loc["scarcity", "alpha"] < 0.05


def test_ahead_of_controls_pairs_tasks():
    table = pd.concat([
        dense(30), measured([0.1] * 30), measured([0.3] * 30, probe="control", variant="untrained SAE"),
        measured([0.0] * 30, probe="control", variant="coordinates"),
        measured([0.0] * 30, probe="control", variant="coordinates", k=128),
    ])  # fmt: skip
    ahead = task_tables.ahead_of_controls(table, 16, 200, 0).set_index("variant")["value"]
    assert ahead.round(6).to_dict() == {"untrained SAE": -0.2, "coordinates": 0.1}


def test_what_a_choice_gains_and_of_which_tasks():
    gains = [0.2, 0.0, 0.0, -0.3]
    table = pd.concat([
        measured(np.zeros(4), probe="quiver", variant="without", k=None),
        measured(gains, probe="quiver", variant="with SAE probes", k=None, p=1.0),
    ])  # fmt: skip
    table.loc[(table["variant"] == "with SAE probes") & (table["task"] == "t0"), "p"] = 0.001
    table.loc[(table["variant"] == "with SAE probes") & (table["task"] == "t3"), "p"] = 0.04  # above Holm's level
    rows = task_tables.gained_by_choice(table, 200, 0).set_index("metric")["value"]
    assert rows["auroc_gained_by_choice"] == pytest.approx(-0.025) and rows["choices_changed"] == 0.5
    named = task_tables.tasks_that_gain(table, 10_000).loc["with SAE probes"]
    assert named["better"] == "t0" and named["worse"] == "none" and named["changed"] == "50%"
    few = task_tables.tasks_that_gain(table.assign(p=1.0), 100).loc["with SAE probes"]
    assert few["better"] == "none can be shown with 100 replicates", "2/101 is above 0.05 / 4"


def test_sae_probes_over_controls_are_paired_by_task():
    table = pd.concat([
        measured([0.2, 0.0, 0.1], probe="quiver", variant="with SAE probes", k=None),
        measured([0.1, 0.0, -0.3], probe="quiver", variant="with controls", k=None),
        measured([0.5, 0.5, 0.5], probe="quiver", variant="with SAE probes", k=None, setting="scarcity", level=16),
    ])  # fmt: skip
    rows = task_tables.gained_by_choice(table, 200, 0)
    over = rows[rows["variant"] == task_tables.OVER_CONTROLS]
    values = np.array([0.1, 0.0, 0.4])
    half = 4.302653 * values.std(ddof=1) / 3**0.5
    assert over["setting"].tolist() == ["normal"], "no setting of stress has controls"
    assert over[["value", "low", "high"]].to_numpy()[0] == pytest.approx([1 / 6, 1 / 6 - half, 1 / 6 + half], abs=1e-6)


@pytest.mark.parametrize("n", [6, 30])
def test_intervals_and_counts_stand_beside_their_values(n):
    """Whatever comes first in the table: a second variant before the first, and a first task that lacks a level."""
    rng = np.random.default_rng(0)
    parts = [dense(n)]
    for variant, mean in (("IT-formatted SAE", -0.3), ("pretraining SAE", 0.3)):
        for setting, level in (("normal", None), ("scarcity", 16), ("label noise", 0.1)):
            aheads = mean + (level or 0) / 100 + rng.normal(0, 0.01, n)
            parts.append(measured(aheads, variant=variant, setting=setting, level=level))
    table = pd.concat([*parts, measured([-0.3] * n, variant="IT-formatted SAE", setting="scarcity", level=64)])
    table = table[~((table["task"] == "t0") & (table["level"] == 16))]
    first = table["task"] == "t0"
    rows = task_tables.by_level(pd.concat([table[~first].iloc[::-1], table[first]]), 0.02, 400, 0)
    for row in rows.itertuples():
        assert row.low - 1e-9 <= row.value <= row.high + 1e-9
        assert row.verdict == ("ahead" if row.variant == "pretraining SAE" else "behind")
        assert row.n == row.n_groups == n - (row.level == 16)
        assert row.win_low - 1e-9 <= row.win_rate <= row.win_high + 1e-9 and 0 <= row.win_low < row.win_high <= 1


def test_a_cluster_counts_once():
    """Four copies of a task are no four tasks: the interval is that of the clusters' means where they are equal large,
    and the value that of all tasks where they are not."""
    values = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    table = pd.concat([dense(20), measured(np.repeat(values, 4))])
    cluster = table["task"].map(lambda task: f"c{int(task[1:]) // 4}")
    [apart] = task_tables.by_level(table, 0.02, 100, 0).to_dict("records")
    [joined] = task_tables.by_level(table.assign(cluster=cluster), 0.02, 100, 0).to_dict("records")
    half = 2.776445 * values.std(ddof=1) / 5**0.5
    assert [joined["low"], joined["high"]] == pytest.approx([0.2 - half, 0.2 + half], abs=1e-6)
    assert joined["n"] == 20 and joined["n_groups"] == 5 and apart["high"] - apart["low"] < 2 * half
    uneven = table.assign(cluster=table["task"].where(table["task"] > "t5", "t5"))
    [row] = task_tables.by_level(uneven, 0.02, 100, 0).to_dict("records")
    assert row["value"] == pytest.approx(0.2) and (row["low"] + row["high"]) / 2 == pytest.approx(0.2)


def test_a_share_of_all_tasks_has_an_interval():
    """Wilson's of 12 of 12 and of 3 of 12, by hand."""
    table = pd.concat([measured([0.1] * 12), measured([0.1] * 3 + [-0.1] * 9, k=1)])
    rows = task_tables.shares(table.assign(value=(table["ahead"] > 0).astype(float)), ["k"]).set_index("k")
    assert rows.loc[16, ["value", "low", "high"]].tolist() == pytest.approx([1.0, 0.757509, 1.0], abs=1e-4)
    assert rows.loc[1, ["value", "low", "high"]].tolist() == pytest.approx([0.25, 0.088945, 0.532320], abs=1e-4)


def test_what_is_measured_on_fewer_tasks_is_said():
    table = pd.concat([measured([0.1] * 3), measured([0.1] * 2, setting="scarcity", level=16)])
    settings = [("normal", None), ("scarcity", 16), ("scarcity", 256)]
    first, second = task_tables.coverage(table, settings, 3)
    assert "scarcity, 16 rows: measured on 2 of 3 tasks" in first and "scarcity, 256 rows: measured on 0 of 3" in second


def test_kinds_have_every_setting_in_the_order_of_the_normal_one():
    table = pd.concat([dense(4), measured([0.1, 0.3] * 2), measured([0.2, -0.3] * 2, setting="scarcity", level=16)])
    rows = task_tables.by_kind(table, 16, 100, 0)
    assert rows["kind"].unique().tolist() == ["a (2)", "b (2)"] and set(rows["setting"]) == {"normal", "scarcity"}
    assert rows.set_index(["kind", "setting"])["win_rate"].to_dict()["a (2)", "scarcity"] == 0
    assert rows["low"].isna().all(), "two tasks"


def test_figures_and_words_show_the_levels_as_users_say_them():
    table = pd.concat([
        dense(30), measured([0.1] * 30), measured([0.1] * 30, setting="scarcity", level=16),
        measured([0.1] * 30, setting="class imbalance", level=0.05), measured([0.1] * 30, k=128),
    ])  # fmt: skip
    averages = task_tables.by_level(table, 0.02, 100, 0)
    assert task_tables.in_words(averages, 16).index.tolist() == ["all training rows", "16 rows", "5% positive"]
    shown = task_tables.for_figure(averages, 16)
    assert set(shown["panel"]) == {"16 columns"} and len(shown) == 3


def test_the_takeaway_names_settings_by_verdict_and_the_controls_that_are_beaten():
    table = pd.concat([
        dense(30), measured([-0.1] * 30), measured([0.0] * 30, setting="label noise", level=0.1),
        measured([-0.3] * 30, probe="control", variant="untrained SAE"),
        measured([0.3] * 30, probe="control", variant="coordinates"),
        measured([0.0] * 30, probe="quiver", variant="with SAE probes", k=None),
    ])  # fmt: skip
    averages = task_tables.by_level(table, 0.02, 100, 0)
    ahead, gained = task_tables.ahead_of_controls(table, 16, 100, 0), task_tables.gained_by_choice(table, 100, 0)
    text = task_tables.summary(averages, ahead, gained, 16)
    assert "- behind: all training rows\n- no difference: 10% wrong labels\n" in text
    assert "ahead of: untrained SAE (of 2)" in text and "with SAE probes 0.0000 [0.0000, 0.0000]" in text


# The published files


@pytest.fixture(scope="module")
def mirror():
    folder = os.environ.get("MIRROR") or "../shared/datasets"
    try:
        return {name: sources.fetch(file, folder) for name, file in published.FILES.items()}
    except ValueError:
        pytest.skip("neither the published files nor a mirror of them")


def test_the_published_averages_are_recomputed(mirror):
    table, said = published.read(mirror)
    rows = published.averages(table, 200, 0).set_index(["setting", "probe"])
    for key, value in {
        ("normal", "dense"): 0.9414, ("normal", "MLP"): 0.9366, ("normal", "kNN"): 0.8872,
        ("normal", "best latent"): 0.7738, ("ood", "dense"): 0.8265, ("ood", "SAE"): 0.7231,
    }.items():  # fmt: skip
        assert rows.loc[key, "value"] == pytest.approx(value, abs=1e-4)
    assert rows.loc[("normal", "dense"), "n"] == 113 and rows.loc[("ood", "SAE"), "n"] == 8 and not said
    levels = table[table["setting"] == "label noise"]["level"]
    assert 0 < levels.min() and levels.max() < 0.5 and table["value"].between(0, 1).all()


def test_a_published_file_without_a_column_is_refused(mirror, tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text("dataset,method\na,logreg\n")
    with pytest.raises(ValueError, match=r"the published file of dense has no column \['test_auc'\]"):
        published.read(mirror | {"dense": bad})


def test_differences_of_published_results_are_over_common_tasks_and_levels():
    table = pd.DataFrame(
        [("a", 2.0, "dense", 0.9), ("a", 4.0, "dense", 1.0), ("a", 4.0, "k = 16", 0.7), ("b", 4.0, "dense", 0.8),
         ("b", 4.0, "k = 16", 0.7), ("c", 4.0, "k = 16", 0.1)],
        columns=["task", "level", "probe", "value"],
    ).assign(setting="scarcity")  # fmt: skip
    [row] = published.behind_dense(table, 100, 0).to_dict("records")
    assert row["value"] == pytest.approx((0.3 + 0.1) / 2) and row["n"] == 2


def test_what_a_run_does_not_measure_is_what_the_rules_of_the_claim_ask_for():
    """So that a verdict says why there is none, and no record lacks a row."""
    rules = claims.load()
    rows = task_tables.not_measured(False, False, 16).astype(object).where(lambda t: t.notna(), None)
    record = {"notebook": "09_many_tasks", "parameters": {"tasks_show_k": 16}, "metrics": rows.to_dict("records")}
    judged = [row for row in scorecard.evaluate(rules, {"09_many_tasks": record}, "p") if row.claim == "C16"]
    assert {row.verdict for row in judged} == {"not applicable"} and not scorecard.lacking(judged)
    assert all("make tasks" in row.why or "published_results is false" in row.why for row in judged)
