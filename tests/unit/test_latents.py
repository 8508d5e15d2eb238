import numpy as np
import pytest
import torch

from lib.model.activations import PromptTokens
from lib.model.poolings import POOLINGS, Tokens, pooling
from lib.probing import controls
from lib.probing.tasks import Task
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
    pooled = latents.pool_latents(sae, tokens)
    for i in range(5):
        of_prompt = sae.encode(tokens.activations[tokens.starts[i] : tokens.starts[i + 1]].float()).detach().numpy()
        for name, expected in (("max", of_prompt.max(0)), ("mean", of_prompt.mean(0)), ("fixed", of_prompt[-1])):
            np.testing.assert_allclose(pooled[name][i].toarray()[0], expected, atol=1e-6)


def by_prompt(values, tokens):
    """Values of tokens as (prompts, pos, width), padded on the right, and which of them are what."""
    parts = [values[first:last] for first, last in zip(tokens.starts[:-1], tokens.starts[1:], strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    lengths = tokens.starts.diff()
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    if tokens.in_turn is not None:
        mask[mask.clone()] = tokens.in_turn
    return padded, Tokens(mask, lengths, tokens.fixed)


# Each prompt has a token of the turn; the first one's stand apart from its end, the last one's at it.
IN_TURN = torch.tensor([1, 0, 0] + [1] + [0, 1, 1, 0, 1, 0, 0] + [1, 0] + [0, 0, 0, 0, 1]).bool()


@pytest.mark.parametrize("in_turn", [None, IN_TURN])
@pytest.mark.parametrize("fixed", [-1, -3])
@pytest.mark.parametrize("name", [*POOLINGS, "position -1", "position -2", "position -9"])
def test_a_pooling_is_the_same_for_dense_vectors_and_sparse_latents(name, fixed, in_turn):
    sae, tokens = example()
    tokens = tokens._replace(fixed=fixed, in_turn=in_turn)
    with torch.inference_mode():
        values, of_batch = by_prompt(sae.encode(tokens.activations.float()), tokens)
    (pooled,) = latents.pool_latents(sae, tokens, [name]).values()
    expected = pooling(name).dense(values, of_batch).numpy()
    np.testing.assert_allclose(pooled.toarray(), expected, atol=1e-6)
    if in_turn is not None and name == "max":
        whole = latents.pool_latents(sae, tokens._replace(in_turn=None), [name])[name].toarray()
        assert (whole >= expected).all() and (whole > expected).any()


@pytest.mark.parametrize("name", POOLINGS)
def test_decoding_pooled_latents_is_exact_where_the_pooling_says_so(name):
    sae, tokens = example()
    with torch.inference_mode():
        values, of_batch = by_prompt(sae(tokens.activations.float()), tokens)
    expected = POOLINGS[name].dense(values, of_batch).numpy()
    decoded = latents.reconstruction(sae, latents.pool_latents(sae, tokens, [name])[name])
    assert np.allclose(decoded, expected, atol=1e-5) == POOLINGS[name].exact


def test_an_unknown_pooling_of_latents_is_one_sentence():
    with pytest.raises(ValueError, match=f"^unknown pooling 'median'; allowed are {', '.join(POOLINGS)}, position -n$"):
        latents.pool_latents(*example(), ["mean", "median"])


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
    reconstruction = latents.reconstruction(sae, latents.pool_latents(sae, tokens)["mean"])
    prompts = zip(tokens.starts[:-1], tokens.starts[1:], strict=True)
    expected = [sae(tokens.activations[first:last].float()).mean(0).detach().numpy() for first, last in prompts]
    np.testing.assert_allclose(reconstruction, expected, atol=1e-5)


@pytest.mark.parametrize("setting", latents.OWN_SCALE)
def test_pooled_latents_of_tokens_of_different_scales_are_not_decoded(setting):
    sae, tokens = example()
    sae.cfg.normalize_activations = setting
    sae._setup_activation_normalization()
    pooled = latents.pool_latents(sae, tokens)["mean"]
    with pytest.raises(ValueError, match=f"by its own norm .normalize_activations: {setting}., so that pooled latents"):
        latents.reconstruction(sae, pooled)


def test_an_sae_of_another_width_is_named():
    sae, tokens = example()
    with pytest.raises(ValueError, match="d_in 12, the activations have d_model 10"):
        latents.pool_latents(sae, PromptTokens(tokens.activations[:, :10], tokens.starts))


@pytest.mark.parametrize("name", controls.DICTIONARIES)
def test_a_control_dictionary_has_the_wanted_l0(name):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(6000, 12, generator=g)
    x[5000:] *= 50  # not of a training prompt
    tokens = PromptTokens(x, torch.tensor([0, 5000, 6000]))
    task = Task(np.array([0, 1]), np.array([True, False]), np.arange(2))
    trained = example()[0]
    control, other = (controls.DICTIONARIES[name](controls.Inputs({}, tokens, task, trained), draw) for draw in (0, 1))
    wanted, l0 = ((sae.encode(x[:5000]) > 0).float().sum(1).mean().item() for sae in (trained, control))
    assert l0 == pytest.approx(wanted, rel=0.05)
    assert not torch.allclose(control.W_dec, other.W_dec), "draws differ"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_tokens_are_found(dtype):
    rows = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    order = torch.randint(0, 50, (300,), generator=torch.Generator().manual_seed(1))
    first_of, same_as = latents.distinct_rows(rows[order])
    assert len(first_of) == len(order.unique())
    torch.testing.assert_close(rows[order][first_of][same_as], rows[order], rtol=0, atol=0)


def test_prompts_that_begin_alike_have_the_latents_of_their_own_tokens():
    sae, tokens = example()
    shared = tokens.activations.clone()
    shared[4:7] = shared[0:3]  # the third prompt begins with the whole of the first
    pooled = latents.pool_latents(sae, tokens._replace(activations=shared))
    of_third = sae.encode(shared[4:11].float()).detach().numpy()
    np.testing.assert_allclose(pooled["max"][2].toarray()[0], of_third.max(0), atol=1e-6)
    np.testing.assert_allclose(pooled["mean"][2].toarray()[0], of_third.mean(0), atol=1e-6)


def test_tokens_that_no_pooling_reads_are_not_encoded(monkeypatch):
    sae, tokens = example()
    in_turn, longer = torch.ones(len(tokens.activations), dtype=torch.bool), tokens.starts.diff() > 1
    in_turn[tokens.starts[1:][longer] - 1] = False  # what stands behind a turn
    tokens = tokens._replace(in_turn=in_turn, fixed=-2)
    every = ("max", "mean", "fixed", "position -1")
    expected, n_encoded, encode = latents.pool_latents(sae, tokens, every), [], latents.active_entries

    def counting(sae, x):
        n_encoded.append(len(x))
        return encode(sae, x)

    monkeypatch.setattr(latents, "active_entries", counting)
    pooled = latents.pool_latents(sae, tokens, every[:3], latents.distinct_rows(tokens.activations))
    assert sum(n_encoded) == int(in_turn.sum()) < len(in_turn)
    for name, matrix in pooled.items():
        assert (matrix != expected[name]).nnz == 0
