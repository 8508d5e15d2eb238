"""Many tasks: what each setting changes, planted worlds, and a run that goes on."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from lib.probing import many_tasks, task_features
from lib.probing.many_tasks import Setting
from lib.probing.task_features import Features, Key
from lib.probing.tasks import Probe, Task
from lib.texts.task_files import TaskTexts


def table(n=400, n_ood=0, share=0.5, seed=0):
    rng = np.random.default_rng(seed)
    label = (np.arange(n + n_ood) % 100 < 100 * share).astype(int)
    split = np.where(np.arange(n + n_ood) % 20 < 12, "train", np.where(np.arange(n + n_ood) % 20 < 15, "val", "test"))
    split[n:] = "ood"
    label = rng.permutation(label)
    texts = [f"text {i}" for i in range(n + n_ood)]
    return pd.DataFrame({"text": texts, "label": label, "group": texts, "split": split})


ALONE = (Setting("normal"),)


def plan(settings=ALONE, **change):
    whole = many_tasks.Plan(list(settings), [1, 4], 4, [1e-3, 1e-1], ("principal components", "coordinates"), 2, 50, 0)
    return whole._replace(**change)


def world(rows, signal=0, in_latent=True, d=12, d_sae=30, seed=1):
    """Residual stream and latents of noise; the label is one latent, or one direction, as strong as ``signal``."""
    rng = np.random.default_rng(seed)
    y = rows["label"].to_numpy()
    resid = rng.normal(size=(len(y), d)).astype(np.float32)
    latents = (rng.random((len(y), d_sae)) * (rng.random((len(y), d_sae)) < 0.3)).astype(np.float32)
    if in_latent:
        latents[:, 7] = np.where(y == 1, signal, 0) + 0.01 * latents[:, 7]
    else:
        resid[:, 3] += signal * y
    pooled = {"mean": scipy.sparse.csr_matrix(latents)}
    control = {"mean": scipy.sparse.csr_matrix(latents[:, ::-1] * (rng.random(latents.shape) < 0.5))}
    return Features({"mean": resid}, {Key("pretraining SAE", 0, False): pooled, Key("untrained SAE", 0, True): control})


def task(rows):
    return TaskTexts("planted", "kind", rows, len(rows), {}, [])


def values(results, setting="normal"):
    part = results[results["setting"] == setting]
    return {
        (row.probe, None if pd.isna(row.variant) else row.variant, None if pd.isna(row.k) else int(row.k)): row.value
        for row in part.groupby(["probe", "variant", "k"], dropna=False)["value"].mean().reset_index().itertuples()
    }


# What a setting changes


def test_scarcity_keeps_as_many_rows_of_both_classes_a_fifth_of_them_for_validation():
    rows = table()
    changed = many_tasks.under(Setting("scarcity", 40), rows, np.random.default_rng(0))
    kept = changed.train | changed.val
    assert kept.sum() == 40 and rows["label"][kept].sum() == 20 and changed.val.sum() == 8
    assert not (changed.train & changed.val).any() and set(rows["split"][kept]) <= {"train", "val"}


def test_class_imbalance_takes_positives_away_until_they_are_the_share():
    rows = table()
    changed = many_tasks.under(Setting("class imbalance", 0.1), rows, np.random.default_rng(0))
    kept = changed.train | changed.val
    n_negative = (rows["label"].eq(0) & rows["split"].isin(["train", "val"])).sum()
    assert (rows["label"][kept] == 0).sum() == n_negative
    assert rows["label"][kept].mean() == pytest.approx(0.1, abs=0.01)


def test_label_noise_flips_training_and_validation_labels_and_no_others():
    rows = table()
    changed = many_tasks.under(Setting("label noise", 0.25), rows, np.random.default_rng(0))
    flipped = changed.y != rows["label"].to_numpy()
    seen = rows["split"].isin(["train", "val"]).to_numpy()
    assert flipped.sum() == round(0.25 * seen.sum()) and not flipped[~seen].any()
    assert flipped[changed.val].any()


def test_a_setting_that_leaves_too_few_rows_is_none():
    rng = np.random.default_rng(0)
    assert many_tasks.under(Setting("scarcity", 10_000), table(), rng) is None
    assert many_tasks.under(Setting("class imbalance", 0.005), table(100), rng) is None


# Planted worlds


def test_a_world_in_which_the_label_is_one_latent_is_won_by_it():
    found = values(many_tasks.measure(task(table()), world(table(), signal=1.0), plan()))
    assert found["k-sparse", "pretraining SAE", 1] == pytest.approx(1.0)
    assert found["dense", None, None] < 0.7 and found["control", "untrained SAE", 4] < 0.95
    assert found["quiver", "with SAE probes", None] > found["quiver", "without", None] + 0.3


def test_a_world_in_which_the_label_is_a_direction_is_won_by_the_dense_probe():
    found = values(many_tasks.measure(task(table()), world(table(), signal=4.0, in_latent=False), plan()))
    assert found["dense", None, None] > 0.97 and found["k-sparse", "pretraining SAE", 4] < 0.7
    assert found["quiver", "with SAE probes", None] == found["quiver", "without", None]
    assert found["control", "coordinates", 1] > 0.97  # the direction is a coordinate


def test_a_world_without_a_signal_stays_at_chance_in_every_setting():
    """So nothing that a probe chooses on reaches the test rows."""
    settings = many_tasks.settings([40], [0.2], [0.2])
    areas = []
    for seed in range(3):
        rows = table(600, seed=seed)
        results = many_tasks.measure(task(rows), world(rows, signal=0, in_latent=False, seed=seed), plan(settings))
        areas.append(results["value"].mean())
    assert np.mean(areas) == pytest.approx(0.5, abs=0.04)


def test_texts_out_of_distribution_are_tested_by_the_probes_of_the_normal_setting():
    rows = table(400, n_ood=100)
    features = world(rows, signal=1.0)
    features.latents[Key("pretraining SAE", 0, False)]["mean"][400:, 7] = 0  # the latent falls silent there
    results = many_tasks.measure(task(rows), features, plan())
    assert values(results)["k-sparse", "pretraining SAE", 1] == pytest.approx(1.0)
    assert values(results, "ood")["k-sparse", "pretraining SAE", 1] < 0.7
    ood = results[results["setting"] == "ood"]
    assert set(ood["n_test"]) == {100} and len(ood) == (results["setting"] == "normal").sum()


def test_differences_are_to_the_dense_probe_and_of_a_choice_to_that_without_others():
    results = many_tasks.measure(task(table()), world(table(), signal=1.0), plan())
    dense = results.loc[results["probe"] == "dense", "value"].item()
    sparse = results[results["probe"] == "k-sparse"]
    np.testing.assert_allclose(sparse["ahead"], sparse["value"] - dense)
    choices = results[results["probe"] == "quiver"].set_index("variant")
    without, with_saes = choices.loc["without"], choices.loc["with SAE probes"]
    assert without["ahead"] == 0 and without["p"] == 1
    assert with_saes["ahead"] == pytest.approx(with_saes["value"] - without["value"]) and with_saes["p"] < 0.1


def test_k_above_what_varies_is_left_out_and_a_dead_basis_altogether():
    rows = table(100)
    of_task = Task(rows["label"].to_numpy(), (rows["split"] == "train").to_numpy(), np.arange(100),
                   (rows["split"] == "val").to_numpy())  # fmt: skip
    x = np.zeros((100, 5), dtype=np.float32)
    assert many_tasks.on_columns(Probe("k-sparse"), {"mean": x}, of_task, [1, 4]) == {}
    x[:, 1] = np.random.default_rng(0).random(100)
    assert {probe.k for probe in many_tasks.on_columns(Probe("k-sparse"), {"mean": x}, of_task, [1, 4])} == {1}


def test_a_finished_task_is_read_and_one_that_changed_is_measured_anew(tmp_path, monkeypatch):
    rows = table(200)
    monkeypatch.setattr(many_tasks.task_features, "load", lambda folder, texts: world(rows, signal=1.0))
    jobs = [many_tasks.job(task(rows), tmp_path / "features-x", plan(), tmp_path)]
    [first] = many_tasks.run(jobs, plan())
    jobs[0].result.rename(tmp_path / "kept")
    pd.DataFrame({"kept": [1]}).to_parquet(jobs[0].result)
    [again] = many_tasks.run(jobs, plan())
    assert again["kept"].tolist() == [1] and len(first)
    other = [many_tasks.job(task(rows), tmp_path / "features-x", plan(ks=[1]), tmp_path)]
    flipped = [many_tasks.job(task(rows.assign(label=1 - rows["label"])), tmp_path / "features-x", plan(), tmp_path)]
    assert len({item.result for item in (*jobs, *other, *flipped)}) == 3


# Features


def test_tasks_that_share_a_text_are_one_bundle_also_through_a_third():
    def of(name, *texts):
        rows = pd.DataFrame({"text": texts, "label": 0, "group": texts, "split": "train"})
        return TaskTexts(name, "", rows, len(texts), {}, [])

    tasks = [of("a", "x", "y"), of("b", "z"), of("c", "q"), of("d", "y", "z")]
    assert [sorted(task.name for task in bundle) for bundle in task_features.bundles(tasks)] == [["c"], ["a", "b", "d"]]


def test_a_text_that_any_task_tests_on_sets_no_threshold():
    first = TaskTexts("a", "", table(20), 20, {}, [])
    second = TaskTexts("b", "", table(20).assign(split="train"), 20, {}, [])
    texts = task_features.texts_of([first, second]).set_index("text")["is_train"]
    assert texts.to_dict() == dict(zip(first.rows["text"], first.rows["split"] == "train", strict=True))
