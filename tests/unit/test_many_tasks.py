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
    whole = many_tasks.Plan(list(settings), [1, 4], [1e-3, 1e-1], ("principal components", "coordinates"), 2, 50, 0)
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
    assert without["ahead"] == 0 and without["p"] == 1 and without["changed"] == 0 and with_saes["changed"] == 1
    assert with_saes["p"] == pytest.approx(2 / (many_tasks.CHOICE_REPLICATES + 1)), "as small as its replicates show"
    assert with_saes["ahead"] == pytest.approx(with_saes["value"] - without["value"]) and with_saes["p"] < 0.1


def test_a_choice_among_controls_has_as_many_arrows_as_that_among_sae_probes():
    """So that neither is better because validation is asked more often."""
    y = np.arange(40) % 2
    of_task = Task(y, np.arange(40) < 20, np.arange(40), np.arange(40) >= 20)
    rng, of_best = np.random.default_rng(0), []
    arrows = [Probe("dense", "mean"), Probe("TF-IDF")]
    arrows += [Probe("k-sparse", "best", "SAE", seed, "best", k) for seed in range(3) for k in (1, 4)]
    arrows += [Probe("all latents", "best", "SAE", 0)]
    arrows += [Probe("control", "best", "coordinates", draw, "best", k) for draw in range(10) for k in (1, 4)]
    arrows += [Probe("all columns of a control", "best", name, 0) for name in ("untrained SAE", "training tokens")]
    scores = {probe: rng.normal(size=40) for probe in arrows}
    chosen = many_tasks.quivers(scores, of_task, 0)
    ranks = {probe: many_tasks.on_saes.val_auroc(of_all, of_task) for probe, of_all in scores.items()}
    assert chosen["with SAE probes"] == [max(arrows[:9], key=ranks.get)]
    assert len(chosen["with controls"]) == many_tasks.CONTROL_DRAWS and len(chosen["without"]) == 1
    arrows_of = "SAE probes", "controls"
    for draw in range(400):  # noise: the best of as many is as good on validation
        scores = {probe: rng.normal(size=40) for probe in arrows}
        ranks = {probe: many_tasks.on_saes.val_auroc(of_all, of_task) for probe, of_all in scores.items()}
        chosen = many_tasks.quivers(scores, of_task, draw)
        of_best.append([np.mean([ranks[probe] for probe in chosen[f"with {what}"]]) for what in arrows_of])
    with_saes, with_controls = np.mean(of_best, axis=0)
    assert with_saes == pytest.approx(with_controls, abs=0.012)


def test_each_k_has_its_own_best_form_and_so_have_all_latents():
    """One latent tells the classes in the mean, four together in the maximum."""
    rows = table()
    y, rng = rows["label"].to_numpy(), np.random.default_rng(0)
    one, four = (0.01 * rng.random((len(y), 30)).astype(np.float32) for _ in range(2))
    one[:, 7] += 1.0 * y + 0.4 * rng.normal(size=len(y))
    for place in range(4):
        four[:, place] += 0.9 * y + 0.7 * rng.normal(size=len(y))
    pooled = {"mean": scipy.sparse.csr_matrix(one), "max": scipy.sparse.csr_matrix(four)}
    resid = {name: rng.normal(size=(len(y), 12)).astype(np.float32) for name in pooled}
    features = Features(resid, {Key("pretraining SAE", 0, False): pooled})
    found = values(many_tasks.measure(task(rows), features, plan(bases=())))
    alone = {}
    for name, columns in pooled.items():
        single = Features({name: resid[name]}, {Key("pretraining SAE", 0, False): {name: columns}})
        alone[name] = values(many_tasks.measure(task(rows), single, plan(bases=())))
    for k, best in ((1, "mean"), (4, "max")):
        key = "k-sparse", "pretraining SAE", k
        assert found[key] == alone[best][key] > min(of[key] for of in alone.values())
    key = "all latents", "pretraining SAE", None
    assert found[key] == max(of[key] for of in alone.values())


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


def test_tasks_of_one_text_or_of_one_source_are_a_cluster():
    def of(name, *texts):
        rows = pd.DataFrame({"text": texts, "label": 0, "group": texts, "split": "train"})
        return TaskTexts(name, "", rows, len(texts), {}, [])

    tasks = [of("5_hist_fig_ismale", "x"), of("spam", "q"), of("7_hist_fig_ispolitician", "y"), of("my_own", "y"),
             of("my_other", "z")]  # fmt: skip
    cluster = task_features.clusters(tasks)
    assert len({cluster[task.name] for task in tasks if task.name != "spam"}) == 1 and cluster["spam"] == "spam"


def test_a_text_that_any_task_tests_on_sets_no_threshold():
    first = TaskTexts("a", "", table(20), 20, {}, [])
    second = TaskTexts("b", "", table(20).assign(split="train"), 20, {}, [])
    texts = task_features.texts_of([first, second]).set_index("text")["is_train"]
    assert texts.to_dict() == dict(zip(first.rows["text"], first.rows["split"] == "train", strict=True))
