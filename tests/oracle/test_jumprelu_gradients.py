"""Sparse steps equal dense autograd, and the threshold gradients equal the closed form written by hand."""

import pytest
import torch

from lib.sae import jumprelu
from lib.sae.jumprelu import PENALTIES, Parameters, _dense_products, find_entries, penalty, penalty_slope, sparse_step

D_SAE, D_MODEL, TOKENS = 64, 24, 200


def parameters(seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    dec = torch.nn.functional.normalize(torch.randn(D_SAE, D_MODEL, generator=g, dtype=dtype), dim=1)
    enc = dec + 0.1 * torch.randn(D_SAE, D_MODEL, generator=g, dtype=dtype)
    rest = [0.1 * torch.randn(n, generator=g, dtype=dtype) for n in (D_SAE, D_MODEL)]
    return Parameters(enc, dec, *rest, threshold=1 + torch.rand(D_SAE, generator=g, dtype=dtype))


class DenseJumpReLU(torch.autograd.Function):
    """pre · H(pre − θ), with the straight-through gradient of arXiv 2407.14435."""

    @staticmethod
    def forward(ctx, pre, threshold, bandwidth):
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx, grad):
        pre, threshold = ctx.saved_tensors
        kernel = ((pre - threshold).abs() < ctx.bandwidth / 2).to(pre)
        return grad * (pre > threshold), -(threshold / ctx.bandwidth * kernel * grad).sum(0), None


class DenseStep(torch.autograd.Function):
    """H(pre − θ) with its straight-through gradient to the threshold."""

    @staticmethod
    def forward(ctx, pre, threshold, bandwidth):
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre)

    @staticmethod
    def backward(ctx, grad):
        pre, threshold = ctx.saved_tensors
        kernel = ((pre - threshold).abs() < ctx.bandwidth / 2).to(pre)
        return None, -(kernel * grad / ctx.bandwidth).sum(0), None


@pytest.mark.parametrize("kind", PENALTIES)
@pytest.mark.parametrize("bandwidth", [0.05, 0.7])
@pytest.mark.parametrize("dense", [False, True])
def test_every_gradient_equals_dense_autograd(kind, bandwidth, dense, monkeypatch):
    monkeypatch.setattr(jumprelu, "DENSE_ABOVE", -1.0 if dense else 2.0)
    x = torch.randn(TOKENS, D_MODEL, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = parameters()
    result = sparse_step(x, p, 0.01, bandwidth, kind, 0.1)
    q = Parameters(*(tensor.clone().requires_grad_() for tensor in p))
    pre = x @ q.enc.T + q.b_enc
    recon = DenseJumpReLU.apply(pre, q.threshold, bandwidth) @ q.dec + q.b_dec
    frequency = DenseStep.apply(pre, q.threshold, bandwidth).mean(0)
    loss = (recon - x).square().mean() + 0.01 * penalty(frequency, kind, 0.1)
    loss.backward()
    assert abs(result.loss - loss.item()) < 1e-10 and result.l0 > 1
    for name, ours, theirs in zip(Parameters._fields, result.gradients, q, strict=True):
        error = (ours - theirs.grad).norm() / theirs.grad.norm()
        assert theirs.grad.norm() > 0 and error < 1e-5, f"{name}: relative error {error:.1e}"


def test_single_precision_too():
    x = torch.randn(TOKENS, D_MODEL, generator=torch.Generator().manual_seed(1))
    single = sparse_step(x, parameters(dtype=torch.float32), 0.01, 0.3)
    p = parameters(dtype=torch.float32)
    double = sparse_step(x.double(), Parameters(*(t.double() for t in p)), 0.01, 0.3)
    for ours, theirs in zip(single.gradients, double.gradients, strict=True):
        assert (ours - theirs).norm() / theirs.norm() < 1e-5


def test_reconstruction_gradients_equal_finite_differences():
    """The smooth part: moving W_enc, W_dec and the biases a little, with the active set as it is."""
    x = torch.randn(20, D_MODEL, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    p = parameters()
    gradients = sparse_step(x, p, 0.0, 0.1).gradients
    for name in ("enc", "dec", "b_enc", "b_dec"):
        direction = torch.randn_like(getattr(p, name))
        moved = (p._replace(**{name: getattr(p, name) + step * direction}) for step in (1e-7, -1e-7))
        ahead, behind = (sparse_step(x, other, 0.0, 0.1).loss for other in moved)
        expected = (getattr(gradients, name) * direction).sum().item()
        assert abs((ahead - behind) / 2e-7 - expected) < 1e-5 * max(1.0, abs(expected)), name


def test_penalty_by_hand():
    f = torch.tensor([0.0, 0.05, 0.3])
    assert penalty(f, "l0", 0.1).item() == pytest.approx(0.35)
    assert penalty(f, "quadratic_frequency", 0.1).item() == pytest.approx(0.05 * 1.5 + 0.3 * 4)
    assert penalty(f, "squared_frequency", 0.1).item() == pytest.approx((0.0025 + 0.09) / 0.1)
    torch.testing.assert_close(penalty_slope(f, "quadratic_frequency", 0.1), torch.tensor([1.0, 2.0, 7.0]))
    for kind in PENALTIES:
        g = f.clone().requires_grad_()
        penalty(g, kind, 0.1).backward()
        torch.testing.assert_close(g.grad, penalty_slope(f, kind, 0.1))


def test_threshold_gradient_by_hand():
    """One latent, four tokens with pre 0.9, 1.05, 1.2 and 3, θ = 1, ε = 0.4: the first three are within the band."""
    x = torch.tensor([[0.9], [1.05], [1.2 - 1e-9], [3.0]], dtype=torch.float64)
    row = torch.ones(1, 1, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    p = Parameters(row, row, zero, zero, torch.ones(1, dtype=torch.float64))
    result = sparse_step(x, p, 0.5, 0.4, "quadratic_frequency", 0.1)
    frequency = 0.75
    in_band = [0.9, 1.05, 1.2 - 1e-9]
    residual = [-0.9, 0.0, 0.0]  # only the first token is not reconstructed
    by_reconstruction = sum(-(1 / 0.4) * 2 * r / 4 for r in residual)
    by_penalty = -0.5 * (1 + 2 * frequency / 0.1) / 4 / 0.4 * len(in_band)
    assert result.frequency.item() == frequency
    assert result.gradients.threshold.item() == pytest.approx(by_reconstruction + by_penalty)
    assert result.balance == pytest.approx((by_reconstruction, by_penalty / 0.5))


def test_entries_are_the_active_and_the_band():
    pre = torch.tensor([[1.1, 0.0, 2.0], [0.85, 1.15, -1.0]])
    e = find_entries(pre, torch.tensor([0.9, 1.2, 1.0]), 0.2)
    assert list(zip(e.row.tolist(), e.col.tolist())) == [(0, 0), (0, 2), (1, 0), (1, 1)]
    assert e.active.tolist() == [0, 1] and e.in_band.tolist() == [False, False, True, True]
    recon, sampled, transposed = _dense_products(e, torch.eye(3), 2)
    torch.testing.assert_close(recon(e.pre[e.active]), torch.tensor([[1.1, 0.0, 2.0], [0.0, 0.0, 0.0]]))


def wide_world(seed, shift):
    """Tokens with outlier coordinates and a few large norms, correlated with some latents; thresholds by frequency."""
    g = torch.Generator().manual_seed(seed)
    n, d_model, d_sae = 512, 96, 700
    x = torch.randn(n, d_model, generator=g) * torch.cat([torch.full((3,), 8.0), torch.ones(d_model - 3)])
    x[:5] *= 3
    x = (x - x.mean(0)) / (x - x.mean(0)).square().mean().sqrt()
    dec = torch.nn.functional.normalize(torch.randn(d_sae, d_model, generator=g), dim=1)
    dec[:50] = torch.nn.functional.normalize(x[:50], dim=1)
    b_enc = 0.3 * torch.randn(d_sae, generator=g)
    threshold = (torch.addmm(b_enc, x, dec.T).quantile(0.97, dim=0) + shift).clamp(min=0)
    return x, Parameters(dec, dec.clone(), b_enc, torch.zeros(d_model), threshold)


@pytest.mark.parametrize("shift", [0.0, -1.5], ids=["usual thresholds", "some below zero"])
@pytest.mark.parametrize("seed", range(5))
def test_a_product_of_rounded_factors_loses_no_entry_and_adds_few(seed, shift):
    x, p = wide_world(seed, shift)
    exact = find_entries(torch.addmm(p.b_enc, x, p.enc.T), p.threshold, 0.3)
    places = exact.row * len(p.threshold) + exact.col
    found = jumprelu.rounded_candidates(x, p, 0.3)
    assert set(places.tolist()) <= set(found.tolist()) and (found.diff() > 0).all()
    assert len(found) < 1.25 * len(places)
    narrow = jumprelu.rounded_candidates(x, p._replace(threshold=p.threshold + 0.1), 0.3)
    assert not set(places.tolist()) <= set(narrow.tolist()), "a margin that is too small is seen"


def test_a_token_of_a_large_norm_loses_no_active_latent_to_rounded_factors():
    """Errors grow with a token's norm: those of an attention sink exceed what the batch's mean widens the search by."""
    x, p = wide_world(0, 0.0)
    x[0] *= 1000
    pre_of_sink = torch.addmm(p.b_enc, x[:1], p.enc.T)[0]
    threshold = pre_of_sink.clamp(min=0) * (1 - 1e-5)
    found = set(jumprelu.rounded_candidates(x, p._replace(threshold=threshold), 0.0).tolist())
    assert set((pre_of_sink > threshold).nonzero()[:, 0].tolist()) <= found


@pytest.mark.parametrize("seed", range(3))
def test_a_step_is_the_same_with_and_without_rounded_factors(seed, monkeypatch):
    x, p = wide_world(seed, 0.0)
    steps = []
    for is_supported in (True, False):
        monkeypatch.setattr(jumprelu, "multiplies_bfloat16", lambda x, is_supported=is_supported: is_supported)
        steps.append(sparse_step(x, p, 0.5, 0.3, "quadratic_frequency"))
    rounded, plain = steps
    assert rounded.loss == pytest.approx(plain.loss, rel=1e-5) and rounded.l0 == plain.l0
    for name, of_rounded, of_plain in zip(Parameters._fields, rounded.gradients, plain.gradients):
        difference = (of_rounded - of_plain).abs().max()
        assert difference <= 1e-4 * of_plain.abs().max(), name
