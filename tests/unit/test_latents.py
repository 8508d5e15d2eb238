import numpy as np
import pytest
import torch

from lib.model.activations import PromptTokens
from lib.probing.on_saes import Task, untrained
from lib.sae import folders, latents
from lib.sae.jumprelu import Parameters


def example(d_model=12, d_sae=30):
    g = torch.Generator().manual_seed(0)
    dec = torch.nn.functional.normalize(torch.randn(d_sae, d_model, generator=g), dim=1)
    p = Parameters(dec.clone(), dec, torch.zeros(d_sae), torch.zeros(d_model), torch.full((d_sae,), 0.8))
    sae = folders.from_parameters(p, torch.randn(d_model, generator=g), 1.3, {})
    lengths = torch.tensor([3, 1, 7, 2, 5])
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    return sae, PromptTokens(torch.randn(18, d_model, generator=g).half(), starts)


@pytest.mark.parametrize("batch", [1, 4, 1000])
def test_pooled_latents_equal_a_plain_loop(monkeypatch, batch):
    monkeypatch.setattr(latents, "BATCH_TOKENS", batch)
    sae, tokens = example()
    found = latents.pool_latents(sae, tokens)
    for i in range(5):
        single = sae.encode(tokens.activations[tokens.starts[i] : tokens.starts[i + 1]].float()).detach().numpy()
        for pooling, expected in (("max", single.max(0)), ("mean", single.mean(0)), ("fixed", single[-1])):
            np.testing.assert_allclose(found[pooling][i].toarray()[0], expected, atol=1e-6)


@pytest.mark.parametrize("change", [{}, {"apply_b_dec_to_input": True}, {"normalize_activations": "layer_norm"}])
def test_active_entries_are_those_of_encode(change):
    sae, tokens = example()
    sae.cfg.__dict__.update(change)
    if "normalize_activations" in change:
        sae = type(sae)(sae.cfg)
        sae.load_state_dict(example()[0].state_dict())
    x = tokens.activations.float()
    with torch.inference_mode():
        expected = sae.encode(x).numpy()
        flat, values = latents.active_entries(sae, x)
    np.testing.assert_array_equal(flat, np.flatnonzero(expected))
    np.testing.assert_allclose(values, expected.ravel()[flat], rtol=1e-4, atol=1e-5)


def test_the_pooled_reconstruction_is_the_mean_of_the_tokens_reconstructions():
    sae, tokens = example()
    found = latents.reconstruction(sae, latents.pool_latents(sae, tokens)["mean"])
    expected = [sae(tokens.activations[a:b].float()).mean(0).detach().numpy() for a, b in zip(tokens.starts[:-1], tokens.starts[1:], strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_sae_of_another_width_is_named():
    sae, tokens = example()
    with pytest.raises(ValueError, match="d_in 12, the activations have d_model 10"):
        latents.pool_latents(sae, PromptTokens(tokens.activations[:, :10], tokens.starts))


def test_the_untrained_sae_has_the_wanted_l0():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(6000, 12, generator=g)
    x[5000:] *= 50  # not of a training prompt
    tokens, given = PromptTokens(x, torch.tensor([0, 5000, 6000])), Task(np.array([0, 1]), np.array([True, False]), np.arange(2))
    like = example()[0]
    l0 = [(sae.encode(x[:5000]) > 0).float().sum(1).mean().item() for sae in (like, untrained(like, tokens, given, seed=0))]
    assert l0[1] == pytest.approx(l0[0], rel=0.05)
