"""k-means centres as a dictionary: planted clusters are found, draws are repeatable, few tokens are no error."""

import numpy as np
import pytest
import torch
from test_latents import example

from lib.model.activations import PromptTokens
from lib.probing import controls
from lib.probing.tasks import Task

D_MODEL, N_CLUSTERS, D_SAE = 16, 6, 40


def clusters(n, seed=0, noise=0.05):
    """Tokens around planted centres, which are returned as well."""
    g = torch.Generator().manual_seed(seed)
    planted = 3 * torch.randn(N_CLUSTERS, D_MODEL, generator=g)
    return planted[torch.arange(n) % N_CLUSTERS] + noise * torch.randn(n, D_MODEL, generator=g), planted


def inputs(x):
    tokens = PromptTokens(x, torch.tensor([0, len(x)]))
    task = Task(np.array([1]), np.array([True]), np.zeros(1))
    return controls.Inputs({}, tokens, task, example(D_MODEL, D_SAE)[0])


def test_centres_lie_in_planted_clusters_nearer_to_their_tokens_than_tokens_do():
    x, planted = clusters(3000)
    centres = controls.kmeans_centres(x, x[:D_SAE], torch.Generator().manual_seed(0))
    assert centres.shape == (D_SAE, D_MODEL)
    assert torch.cdist(planted, centres).amin(1).max() < 0.2, "a token is 0.2 from its cluster's mean"
    assert torch.cdist(centres, planted).amin(1).max() < 0.5, "no centre lies between clusters"
    inertia, of_tokens = (torch.cdist(x, rows).amin(1).square().mean() for rows in (centres, x[:D_SAE]))
    assert inertia < 0.7 * of_tokens


def test_the_dictionary_points_at_the_clusters_and_a_draw_is_repeated_to_the_bit():
    x, planted = clusters(3000)
    first, again, other = (controls.DICTIONARIES["k-means centres"](inputs(x), draw) for draw in (0, 0, 1))
    wanted = torch.nn.functional.normalize(planted - x.mean(0), dim=1)
    assert (wanted @ first.W_dec.T).amax(1).min() > 0.995
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.W_dec, other.W_dec)


def test_few_different_tokens_are_a_centre_each_and_random_tokens_fill_the_rest():
    distinct = clusters(12)[0]
    x = distinct[torch.arange(600) % 12]
    drawn = x[torch.randperm(600, generator=torch.Generator().manual_seed(3))[:D_SAE]]
    centres = controls.kmeans_centres(x, drawn, torch.Generator().manual_seed(0))
    torch.testing.assert_close(centres[12:], drawn[: D_SAE - 12], rtol=0, atol=0)
    assert len(torch.unique(centres[:12], dim=0)) == 12 and torch.cdist(centres[:12], distinct).amin(1).max() < 1e-3
    assert torch.isfinite(controls.DICTIONARIES["k-means centres"](inputs(x), 0).W_dec).all()


def test_centres_are_of_more_tokens_and_scale_and_thresholds_of_the_same(monkeypatch):
    monkeypatch.setattr(controls, "SAMPLE_TOKENS", 500)
    x, _ = clusters(2000, noise=1.0)
    given = inputs(x)
    given.like.threshold.data += 4.0  # few latents are active, so that no threshold ends at zero
    sample = controls.training_sample(given.tokens, given.task, torch.Generator().manual_seed(0), 500)
    wanted = (given.like.encode(sample) > 0).float().sum(1).mean().item()
    rows = []
    for n_tokens in (500, 1500):
        monkeypatch.setattr(controls, "CENTRE_TOKENS", n_tokens)
        sae = controls.of_kmeans_centres(given, 0)
        torch.testing.assert_close(sae.b_dec.data, sample.mean(0))
        assert (sae.encode(sample) > 0).float().sum(1).mean().item() == pytest.approx(wanted, rel=0.05)
        rows.append(sae.W_dec.data)
    assert not torch.allclose(*rows)
