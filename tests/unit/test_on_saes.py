import numpy as np
import pandas as pd
import pytest
import torch

from lib.model.activations import PromptTokens
from lib.model.poolings import pool
from lib.probing import controls, ksparse, on_saes, stress
from lib.probing.tasks import Probe, Task
from lib.sae import folders, latents
from lib.sae.jumprelu import Parameters
from lib.stats.metrics import auroc

HOOK = "blocks.2.hook_resid_post"


@pytest.fixture
def world(tmp_path):
    """Prompts of three tokens; latent 4 fires on one token of each positive prompt, everything else is noise."""
    g = torch.Generator().manual_seed(0)
    n, d_model, d_sae = 240, 16, 24
    dec = torch.nn.functional.normalize(torch.randn(d_sae, d_model, generator=g), dim=1)
    p = Parameters(dec.clone(), dec, torch.zeros(d_sae), torch.zeros(d_model), torch.full((d_sae,), 0.9))
    sae = folders.from_parameters(p, torch.zeros(d_model), 1.0, {"hook_name": HOOK, "model_name": "m"})
    y = torch.randint(0, 2, (n,), generator=g)
    x = 0.3 * torch.randn(n, 3, d_model, generator=g)
    x[:, 1] += 4 * y[:, None] * dec[4]
    folders.save(sae, tmp_path / "sae", {})
    splits, ids = np.repeat(["train", "val", "ood"], 80), [f"b{i}" for i in range(n)]
    prompts = pd.DataFrame({"split": splits, "label": y.numpy(), "base_id": ids})
    table = pd.DataFrame({"variant": ["base"], "seed": [None], "folder": [str(tmp_path / "sae")]})
    tokens = PromptTokens(x.flatten(0, 1), torch.arange(0, 3 * n + 1, 3))
    resid = {"mean": pool(x, torch.ones(n, 3, dtype=torch.bool), "mean").numpy()}
    return table, tokens, resid, prompts


def test_every_probe_of_an_sae_and_the_views_add_up(world):
    table, tokens, resid, prompts = world
    task = Task.of(prompts)
    inputs = on_saes.Inputs(tokens, resid, task, HOOK, "m")
    probed = on_saes.probe_saes(table, inputs, on_saes.Grid([1, 2, 100], ["max", "mean"], [0.01, 1.0]))
    kinds = {(probe.kind, probe.pooling) for probe in probed.scores}
    linear = {("reconstruction", "mean"), ("error", "mean"), ("all latents", "mean")}
    assert kinds == {("k-sparse", "max"), ("k-sparse", "mean")} | linear
    assert {probe.k for probe in probed.scores} == {None, 1, 2}, "24 latents: k = 100 is left out"
    assert all((probe.k is None) == (probe.selection is None) for probe in probed.scores)
    probe = probed.first("base", "max", "mean difference", 1)
    assert probe == Probe("k-sparse", "max", "base", None, "mean difference", 1)
    assert probed.chosen[probe].tolist() == [4]
    with pytest.raises(ValueError, match="k may be above the number of latents that fire"):
        probed.first("base", "max", "mean difference", 100)
    encoded = on_saes.Encoded(folders.load(table["folder"][0]), probed.latents["base"]["mean"], resid["mean"])
    parts = on_saes.views(encoded)
    np.testing.assert_allclose(parts["reconstruction"] + parts["error"], resid["mean"], atol=1e-5)


def test_fitted_scores_do_not_see_other_rows(world):
    table, tokens, resid, prompts = world
    task = Task.of(prompts)
    grid = on_saes.Grid([2], ["max"], [0.01, 1.0])
    scores = on_saes.probe_saes(table, on_saes.Inputs(tokens, resid, task), grid).scores
    changed = tokens.activations.clone()
    changed[480:] = torch.randn(240, 16, generator=torch.Generator().manual_seed(5))
    is_fitted = task.train | task.val  # C is chosen on validation
    other = task._replace(y=np.where(is_fitted, task.y, 1 - task.y))
    shifted = {"mean": np.where(is_fitted[:, None], resid["mean"], 7.0).astype(np.float32)}
    elsewhere = on_saes.Inputs(tokens._replace(activations=changed), shifted, other)
    again = on_saes.probe_saes(table, elsewhere, grid).scores
    for probe, values in scores.items():
        np.testing.assert_allclose(again[probe][task.train], values[task.train], rtol=1e-5, err_msg=str(probe))


def test_saes_of_another_layer_or_model_are_named(world):
    table, tokens, resid, prompts = world
    inputs, grid = on_saes.Inputs(tokens, resid, Task.of(prompts)), on_saes.Grid([1], ["max"], [1.0])
    with pytest.raises(ValueError, match=f"hook_name '{HOOK}', the activations are of 'blocks.4"):
        on_saes.probe_saes(table, inputs._replace(hook_name="blocks.4.hook_resid_post", model="m"), grid)
    with pytest.raises(ValueError, match="model_name 'm', the activations are of 'other'"):
        on_saes.probe_saes(table, inputs._replace(hook_name=HOOK, model="other"), grid)
    with pytest.raises(ValueError, match=r"k \[50\] must lie between 1 and"):
        on_saes.probe_saes(table, inputs, grid._replace(ks=[50]))
    with pytest.raises(ValueError, match="unknown pooling 'median'; allowed are max, mean, fixed"):
        on_saes.probe_saes(table, inputs, grid._replace(poolings=["median"]))
    allowed = "mean difference, standardised gap, L1 path"
    with pytest.raises(ValueError, match=f"unknown selection 'best'; allowed are {allowed}"):
        on_saes.probe_saes(table, inputs, grid._replace(selections=("best",)))


def test_chosen_latents_are_marked_among_all(world):
    table, tokens, resid, prompts = world
    inputs, grid = on_saes.Inputs(tokens, resid, Task.of(prompts)), on_saes.Grid([1, 2], ["max"], [1.0])
    probed = on_saes.probe_saes(table, inputs, grid)
    probe = probed.first("base", "max", "mean difference", 2)
    latents_table = on_saes.chosen_latents(probed, prompts, ["val", "ood"], [probe])
    assert len(latents_table) == 24 and latents_table["chosen"].sum() == 2 and latents_table["chosen"][4]
    assert latents_table.loc[4, "val"] > 0.95 and latents_table.loc[4, "ood"] > 0.95
    assert 0.3 < latents_table.loc[4, "frequency"] < 0.7


def test_controls_are_drawn_and_have_the_data_of_their_names(world, tmp_path):
    table, tokens, resid, prompts = world
    task, sae = Task.of(prompts), folders.load(table["folder"][0])
    components, random, again = (
        controls.BASES[name].columns(resid["mean"], task, 30, draw)
        for name, draw in (("principal components", 0), ("random directions", 0), ("random directions", 1))
    )
    correlation = np.corrcoef(components[task.train].T)
    np.testing.assert_allclose(correlation, np.eye(16), atol=1e-3)
    assert (np.diff(components[task.train].var(0)) <= 1e-6).all()
    assert random.shape == (240, 30) and not np.allclose(random, again)
    inputs, selections = controls.Inputs(resid, tokens, task, sae), ("mean difference", "standardised gap")
    grid = on_saes.Grid([1, 2], ["mean"], [], selections)
    scores = controls.of_bases(inputs, grid, 2, draws=2) | controls.of_dictionaries(inputs, grid, 2, 2, tmp_path)
    names = {(probe.variant, probe.seed) for probe in scores}
    drawn = ("principal components", "random directions", *controls.DICTIONARIES)
    assert names == {(name, draw) for name in drawn for draw in (0, 1)} | {("coordinates", 0)}
    assert {probe[:2] for probe in scores} == {("control", on_saes.BEST)}
    assert len(scores) == 2 * len(names), "a probe for each k"


def test_contenders_to_be_fitted_anew_are_of_every_seed_and_draw(world):
    table, tokens, resid, prompts = world
    task, sae = Task.of(prompts), folders.load(table["folder"][0])
    inputs = on_saes.Inputs(tokens, {"mean": resid["mean"]}, task)
    variants = tuple(table["variant"].unique())
    grid = on_saes.Grid(
        [1, 2], ["max", "mean"], [1.0], ("mean difference", "standardised gap"), linear_on=[], kept=variants
    )
    probed = on_saes.probe_saes(table, inputs, grid)
    forms = on_saes.best_forms(probed.scores, task, 2, grid.selections)
    every = stress.on_saes(table, probed, forms, 2, stress.Contender(resid["mean"], c=1.0), "mean")
    of_kind = {kind: [probe for probe in every if probe.kind == kind] for kind in (on_saes.K_SPARSE, "reconstruction")}
    assert all({probe[2:4] for probe in probes} == set(forms) for probes in of_kind.values())
    rows = np.flatnonzero(task.train)
    best = on_saes.in_best_form(probed.scores, forms)
    for probe in of_kind[on_saes.K_SPARSE]:
        np.testing.assert_allclose(every[probe].fit_scores(rows, task.y[rows]), best[probe], atol=1e-4)
    basis_inputs = controls.Inputs(resid, tokens, task, sae)
    names = ["principal components", "coordinates", "untrained SAE"]
    grid = grid._replace(poolings=["mean"])
    drawn = controls.contenders(basis_inputs, names, grid, 2, draws=2)
    assert [probe[2:4] for probe in drawn] == [
        (names[0], 0), (names[0], 1), (names[1], 0), (names[2], 0), (names[2], 1),
    ]  # fmt: skip
    assert len({contender.selection for contender in drawn.values()} & set(grid.selections)) >= 1
    assert controls.contenders(basis_inputs, [], grid, 2, draws=2) == {}


def test_probes_on_shuffled_labels_know_nothing(world):
    table, tokens, resid, prompts = world
    task = Task.of(prompts)
    columns = latents.pool_latents(folders.load(table["folder"][0]), tokens)["max"]
    scores = controls.of_shuffled_labels(stress.Contender(columns, k=2), task, draws=30)
    y = task.y[task.val]
    areas = [auroc(y, of_draw[task.val], np.ones((1, len(y))))[0] for of_draw in scores.values()]
    assert len(areas) == 30 and abs(np.mean(areas) - 0.5) < 0.25, "the sign of the one latent that tells is chance"
    rows = np.flatnonzero(task.train)
    right = stress.Contender(columns, k=2).fit_scores(rows, task.y[rows])
    assert auroc(y, right[task.val], np.ones((1, len(y))))[0] > 0.95


def test_the_best_form_is_chosen_on_validation_for_each_sae():
    y = np.tile([0, 1], 20)
    task = Task(y, np.arange(40) < 10, np.arange(40), val=(np.arange(40) >= 10) & (np.arange(40) < 20))
    good = np.where(task.val, y, 1 - y).astype(float)  # right in validation only
    bad = np.where(task.val, 1 - y, y).astype(float)

    def key(variant, pooling, selection, k):
        return Probe("k-sparse", pooling, variant, None, selection, k)

    scores = {key("a", "max", "s", 5): good, key("a", "mean", "s", 5): bad, key("a", "mean", "t", 5): bad}
    scores |= {key("a", "mean", "s", 9): good, key("b", "max", "s", 2): bad, key("b", "mean", "t", 2): good}
    forms = on_saes.best_forms(scores, task, 5, ["s", "t"])
    assert forms == {("a", None): ("max", "s"), ("b", None): ("mean", "t")}
    best = on_saes.in_best_form(scores, forms)
    assert {(probe.variant, probe.k) for probe in best} == {("a", 5), ("b", 2)}
    assert all((of_probe == good).all() for of_probe in best.values())
    own = on_saes.in_own_pooling(scores | {key("a", "max", "t", 5): bad}, forms, ["a"], 5)
    assert {(probe.pooling, probe.selection) for probe in own} == {(on_saes.BEST, "s"), (on_saes.BEST, "t")}
    with pytest.raises(ValueError, match=r"no probe at k ≤ 1 has one of the selections \['s'\]"):
        on_saes.best_forms(scores, task, 1, ["s"])


def test_c_is_chosen_on_validation_and_not_on_training():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300)
    x = rng.standard_normal((300, 200)).astype(np.float32)
    x[:, 0] += 1.5 * y
    task = Task(y, np.arange(300) < 100, np.arange(300), val=(np.arange(300) >= 100) & (np.arange(300) < 200))
    tested = np.arange(300) >= 200

    def area(scores, rows):
        return auroc(y[rows], scores[rows], np.ones((1, rows.sum())))[0]

    tuned = on_saes.tuned_linear(x, task, [1e3, 1e-3]).scores
    strong, weak = (on_saes.tuned_linear(x, task, [c]).scores for c in (1e-3, 1e3))
    assert area(strong, task.val) > area(weak, task.val) and area(tuned, tested) == area(strong, tested)
    with pytest.raises(ValueError, match="C is chosen on 0 validation prompts; they must hold both classes"):
        on_saes.tuned_linear(x, task._replace(val=None), [1.0])


def test_fvu_of_a_pooled_reconstruction(world):
    table, tokens, resid, _ = world
    sae = folders.load(table["folder"][0])
    pooled = latents.pool_latents(sae, tokens)["mean"]
    error = resid["mean"] - latents.reconstruction(sae, pooled)
    expected = (error**2).sum() / ((resid["mean"] - resid["mean"].mean(0)) ** 2).sum()
    assert latents.pooled_fvu(sae, pooled, resid["mean"]) == pytest.approx(expected)


def test_one_entry_makes_a_probe_on_saes_or_a_selection(world, monkeypatch):
    """The errands of docs/architecture.md: a linear probe on both parts of an activation, and latents by variance."""
    table, tokens, resid, prompts = world

    def by_variance(x, y, most):
        return np.argsort(-x.toarray().var(0), kind="stable")[:most]

    def both_parts(encoded):
        return np.hstack([encoded.reconstruction, encoded.resid - encoded.reconstruction])

    monkeypatch.setitem(on_saes.VIEWS, "both parts", both_parts)
    monkeypatch.setitem(ksparse.SELECTIONS, "variance", by_variance)
    inputs = on_saes.Inputs(tokens, resid, Task.of(prompts))
    probed = on_saes.probe_saes(table, inputs, on_saes.Grid([2], ["max"], [1.0], tuple(ksparse.SELECTIONS)))
    assert Probe("both parts", "mean", "base") in probed.scores
    chosen = probed.chosen[Probe("k-sparse", "max", "base", None, "variance", 2)]
    training = probed.latents["base"]["max"][:80].toarray()
    assert chosen[0] == 4 and chosen[1] in np.argsort(-training.var(0))[:2]
