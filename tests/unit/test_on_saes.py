import numpy as np
import pandas as pd
import pytest
import torch

from lib.model.activations import PromptTokens
from lib.model.poolings import pool
from lib.probing import controls, ksparse, on_saes
from lib.probing.tasks import Probe, Task
from lib.sae import folders, latents
from lib.sae.jumprelu import Parameters

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
    changed[240:] = torch.randn(480, 16, generator=torch.Generator().manual_seed(5))
    other = task._replace(y=np.where(task.train, task.y, 1 - task.y))
    shifted = {"mean": np.where(task.train[:, None], resid["mean"], 7.0).astype(np.float32)}
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
    with pytest.raises(ValueError, match="unknown selection 'best'; allowed are mean difference, L1 path"):
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


def test_controls_have_the_data_of_their_names(world):
    _, tokens, resid, prompts = world
    task = Task.of(prompts)
    bases = controls.bases(controls.Inputs(resid["mean"], task, 30, 0))
    assert bases["random directions"].shape == (240, 30) and bases["coordinates"] is resid["mean"]
    components = bases["principal components"][task.train]
    correlation = np.corrcoef(components.T)
    np.testing.assert_allclose(correlation, np.eye(16), atol=1e-3)
    assert (np.diff(components.var(0)) <= 1e-6).all()


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

    def by_variance(x, y, ks):
        order = np.argsort(-x.toarray().var(0), kind="stable")
        return {k: order[:k] for k in ks}

    def both_parts(encoded):
        return np.hstack([encoded.reconstruction, encoded.resid - encoded.reconstruction])

    monkeypatch.setitem(on_saes.VIEWS, "both parts", both_parts)
    monkeypatch.setitem(ksparse.SELECTIONS, "variance", by_variance)
    inputs = on_saes.Inputs(tokens, resid, Task.of(prompts))
    probed = on_saes.probe_saes(table, inputs, on_saes.Grid([2], ["max"], [1.0], tuple(ksparse.SELECTIONS)))
    assert Probe("both parts", "mean", "base") in probed.scores
    chosen = probed.chosen[Probe("k-sparse", "max", "base", None, "variance", 2)]
    training = probed.latents["base"]["max"][:80].toarray()
    assert training[:, chosen].var(0).min() >= np.delete(training.var(0), chosen).max()
