import numpy as np
import pytest
import torch

from lib.model.activations import PromptTokens
from lib.probing import dense as dense_probes
from lib.probing.tasks import Task
from lib.stats.metrics import auroc


def score(y, s):
    return auroc(y, s, np.ones((1, len(y))))[0]


def planted(n=600, d=40, seed=0, signal=2.5):
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=d)
    direction /= np.linalg.norm(direction)
    y = rng.integers(0, 2, n)
    x = rng.normal(size=(n, d)) + signal * np.outer(y - 0.5, direction)
    return x.astype(np.float32), y, np.arange(n).astype(str), direction


def test_planted_direction_is_found():
    x, y, groups, direction = planted()
    assert dense_probes.mean_difference(x[:300], y[:300]) @ direction > 0.9
    model = dense_probes.fit_logistic(x[:300], y[:300], groups[:300]).best_estimator_
    w = model[-1].coef_[0] / model[0].scale_
    assert w @ direction / np.linalg.norm(w) > 0.9
    assert score(y[300:], model.decision_function(x[300:])) > 0.9


def test_shuffled_labels_are_at_chance():
    x, y, groups, _ = planted(n=1200)
    shuffled = np.random.default_rng(3).permutation(y)
    scores = dense_probes.fit_logistic(x[:600], shuffled[:600], groups[:600]).decision_function(x[600:])
    assert abs(score(shuffled[600:], scores) - 0.5) < 0.05


def test_validation_rows_change_no_fitted_number():
    x, y, groups, _ = planted()
    first = dense_probes.fit_logistic(x[:400], y[:400], groups[:400]).best_estimator_[-1].coef_
    x[400:] = 1e3
    again = dense_probes.fit_logistic(x[:400], y[:400], groups[:400]).best_estimator_[-1].coef_
    np.testing.assert_array_equal(first, again)


def test_c_is_chosen_in_folds_of_whole_base_prompts():
    """Copies of a row with one label leak if folds split them: then weak regularisation looks best."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(60, 200)), 10, axis=0).astype(np.float32)
    y, groups = np.repeat(rng.permutation([0, 1] * 30), 10), np.repeat(np.arange(60), 10)
    assert dense_probes.fit_logistic(x, y, groups).best_score_ < 0.75
    assert dense_probes.fit_logistic(x, y, np.arange(600)).best_score_ > 0.99


def test_too_few_groups_or_a_class_missing_in_a_fold():
    x, y, groups, _ = planted(n=40)
    with pytest.raises(ValueError, match="3 base prompts .* too few"):
        dense_probes.fit_logistic(x, y, np.arange(40) % 3)
    y = np.zeros(40, dtype=int)
    y[:2] = 1
    with pytest.raises(ValueError, match="class is missing in one of 4 folds"):
        dense_probes.fit_logistic(x, y, groups)


def test_tfidf_finds_a_word():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    texts = [" ".join(rng.choice(list("abcdefgh"), 6)) * 2 + (" bomb now" if label else " cake now") for label in y]
    assert score(y, dense_probes.fit_tfidf(texts, y, np.arange(200)).decision_function(texts)) > 0.99


def test_attention_probe_finds_one_token_that_a_mean_would_drown():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 40, 400)
    y = rng.integers(0, 2, 400)
    rows = []
    for length, label in zip(lengths, y, strict=True):
        tokens = rng.normal(size=(length, 16)).astype(np.float32)
        tokens[rng.integers(length), 0] = 6.0  # a marked token: its coordinate 1 is the label
        tokens[tokens[:, 0] == 6.0, 1] = 4.0 if label else -4.0
        rows.append(tokens)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), torch.as_tensor(lengths).cumsum(0)])
    data = PromptTokens(torch.from_numpy(np.concatenate(rows)), starts)
    everyone, mean = np.arange(400), np.stack([tokens.mean(0) for tokens in rows])
    head = dense_probes.fit_attention(data, everyone[:300], y[:300], everyone[:300], seed=0, epochs=30, lr=3e-2)
    linear = dense_probes.fit_logistic(mean[:300], y[:300], everyone[:300]).decision_function(mean[300:])
    assert score(y[300:], head.score(data, everyone[300:])) > max(0.97, score(y[300:], linear))
    by_hand = (rows[7] - head.mean.numpy()) / head.scale.numpy()
    weights = torch.softmax(torch.from_numpy(by_hand) @ head.query, 0)
    expected = (weights * (torch.from_numpy(by_hand) @ head.value)).sum() + head.bias
    np.testing.assert_allclose(head.score(data, np.array([7]))[0], expected.item(), rtol=1e-4)


def test_projection_plane_is_orthonormal_and_holds_the_direction():
    x, y, _, _ = planted()
    mean, plane = dense_probes.projection_plane(x, y)
    np.testing.assert_allclose(plane @ plane.T, np.eye(2), atol=1e-5)
    np.testing.assert_allclose(plane[0], dense_probes.mean_difference(x, y), atol=1e-6)
    np.testing.assert_allclose(mean, x.mean(0), atol=1e-6)


def test_one_entry_makes_a_dense_probe(monkeypatch):
    """The errand of docs/architecture.md; probes that read tokens are left out where there are none."""
    x, y, groups, _ = planted()
    norm = dense_probes.DenseProbe(lambda inputs: np.linalg.norm(inputs.x, axis=1))
    monkeypatch.setitem(dense_probes.PROBES, "norm", norm)
    texts = [f"{'yes' if label else 'no'} text {i % 7}" for i, label in enumerate(y)]
    inputs = dense_probes.Inputs(x, texts, Task(y, np.arange(len(y)) < 300, groups))
    scores = dense_probes.all_scores(inputs, known={"dense": x[:, 0]})
    assert list(scores) == ["dense", "mean difference", "TF-IDF", "surface form", "norm"]
    np.testing.assert_array_equal(scores["norm"], np.linalg.norm(x, axis=1))
    assert scores["dense"] is not None and score(y[300:], scores["TF-IDF"][300:]) > 0.99


def test_the_surface_form_is_read_from_training_prompts_and_no_words_are():
    """Positives have a comma each; the words are the same in both classes, so TF-IDF has nothing to read."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    texts = [f"Write about {'one,' if label else 'one'} {rng.integers(50)}" for label in y]
    inputs = dense_probes.Inputs(np.zeros((400, 1)), texts, Task(y, np.arange(400) < 200, np.arange(400)))
    of = {name: dense_probes.PROBES[name].scores(inputs) for name in ("surface form", "TF-IDF")}
    assert score(y[200:], of["surface form"][200:]) == 1.0 and score(y[200:], of["TF-IDF"][200:]) < 0.6


def test_the_probes_of_all_cells_are_each_the_plain_one_and_come_back_from_disk(monkeypatch, tmp_path):
    """The cells' probes are fitted in two processes, the plain ones here."""
    rng = np.random.default_rng(0)
    y, ids = np.arange(200) % 2, np.arange(200) // 2
    cells = [(layer, name) for layer in (1, 2) for name in ("max", "position -1")]
    pooled = {cell: rng.standard_normal((200, 5)) + y[:, None] * cell[0] for cell in cells}
    task = Task(y, np.arange(200) < 150, ids)
    with monkeypatch.context() as patch:
        patch.setenv("LOKY_MAX_CPU_COUNT", "2")
        probes = dense_probes.of_cells(pooled, task)
    for cell, x in pooled.items():
        alone = dense_probes.fit_logistic(x[:150], y[:150], ids[:150])
        np.testing.assert_allclose(probes[cell].scores, alone.decision_function(x))
        assert probes[cell].c == dense_probes.chosen_c(alone)
    back = dense_probes.load_scores(dense_probes.save_scores(probes, tmp_path / "scores.parquet"))
    assert list(back) == list(pooled)
    assert all(np.array_equal(back[cell], probe.scores) for cell, probe in probes.items())
