import numpy as np
import pandas as pd
import pytest
import torch

from lib.model.activations import PromptTokens, pool
from lib.probing import on_saes
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
    prompts = pd.DataFrame({"split": np.repeat(["train", "val", "ood"], 80), "label": y.numpy(), "base_id": [f"b{i}" for i in range(n)]})
    table = pd.DataFrame({"variant": ["base"], "seed": [None], "folder": [str(tmp_path / "sae")]})
    tokens = PromptTokens(x.flatten(0, 1), torch.arange(0, 3 * n + 1, 3))
    resid = {"mean": pool(x, torch.ones(n, 3, dtype=torch.bool), "mean").numpy()}
    return table, tokens, resid, prompts


def test_every_probe_of_an_sae_and_the_views_add_up(world):
    table, tokens, resid, prompts = world
    given = on_saes.task(prompts)
    found = on_saes.probe_saes(table, tokens, resid, given, [1, 2, 100], ["max", "mean"], [0.01, 1.0], HOOK, "m")
    kinds = {(key[2], key[3]) for key in found.scores}
    assert kinds == {("k-sparse", "max"), ("k-sparse", "mean"), ("reconstruction", "mean"), ("error", "mean"), ("all latents", "mean")}
    assert {key[5] for key in found.scores} == {0, 1, 2}, "24 latents: k = 100 is left out"
    key = on_saes.first_key(found.chosen, "base", "max", "mean difference", 1)
    assert found.chosen[key].tolist() == [4]
    parts = on_saes.views(folders.load(table["folder"][0]), found.latents["base"], resid["mean"], "mean")
    np.testing.assert_allclose(parts["reconstruction"] + parts["error"], resid["mean"], atol=1e-5)


def test_fitted_scores_do_not_see_other_rows(world):
    table, tokens, resid, prompts = world
    given = on_saes.task(prompts)
    scores = on_saes.probe_saes(table, tokens, resid, given, [2], ["max"], [0.01, 1.0]).scores
    changed = tokens.activations.clone()
    changed[240:] = torch.randn(480, 16, generator=torch.Generator().manual_seed(5))
    other = given._replace(y=np.where(given.train, given.y, 1 - given.y))
    shifted = {"mean": np.where(given.train[:, None], resid["mean"], 7.0).astype(np.float32)}
    found = on_saes.probe_saes(table, tokens._replace(activations=changed), shifted, other, [2], ["max"], [0.01, 1.0]).scores
    for key, values in scores.items():
        np.testing.assert_allclose(found[key][given.train], values[given.train], rtol=1e-5, err_msg=str(key))


def test_saes_of_another_layer_or_model_are_named(world):
    table, tokens, resid, prompts = world
    rest = (resid, on_saes.task(prompts), [1], ["max"], [1.0])
    with pytest.raises(ValueError, match=f"hook_name '{HOOK}', the activations are of 'blocks.4"):
        on_saes.probe_saes(table, tokens, *rest, "blocks.4.hook_resid_post", "m")
    with pytest.raises(ValueError, match="model_name 'm', the activations are of 'other'"):
        on_saes.probe_saes(table, tokens, *rest, HOOK, "other")
    with pytest.raises(ValueError, match=r"k \[50\] must lie between 1 and"):
        on_saes.probe_saes(table, tokens, resid, on_saes.task(prompts), [50], ["max"], [1.0])


def test_controls_have_the_data_of_their_names(world):
    _, tokens, resid, prompts = world
    given = on_saes.task(prompts)
    found = on_saes.controls(resid["mean"], given, 30, 0)
    assert found["random directions"].shape == (240, 30) and found["coordinates"] is resid["mean"]
    components = found["principal components"][given.train]
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
