"""Paths and losses against independent computations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.core.interpolant import coefficients, interpolate, sample_times
from recipes.core.losses import alignment_loss, denoising_loss, discriminator_loss, generator_loss, kl_loss


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_path_ends_and_derivatives(path):
    t = torch.linspace(0, 1, 11, dtype=torch.float64, requires_grad=True)
    at = coefficients(path, t)
    ends = torch.stack((at.alpha[[0, -1]], at.sigma[[0, -1]])).detach()
    torch.testing.assert_close(ends, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-12)
    (d_alpha,) = torch.autograd.grad(at.alpha.sum(), t, retain_graph=True)
    (d_sigma,) = torch.autograd.grad(at.sigma.sum(), t)
    torch.testing.assert_close(at.d_alpha.detach(), d_alpha)
    torch.testing.assert_close(at.d_sigma.detach(), d_sigma)


def test_linear_target_is_noise_minus_data(generator):
    x, noise = torch.randn(2, 5, 3, 4, 4, generator=generator)
    point = interpolate(x, noise, torch.rand(5, generator=generator), "linear")
    torch.testing.assert_close(point.target, noise - x)


def test_lognormal_times_have_lognormal_levels():
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    linear = sample_times(u, "linear", "lognormal")
    level = (linear / (1 - linear)).log()
    assert level.mean() == pytest.approx(0, abs=1e-6)
    assert level.std() == pytest.approx(1, abs=1e-3)
    cosine = sample_times(u, "cosine", "lognormal")
    torch.testing.assert_close(torch.tan(cosine * torch.pi / 2).log(), level, rtol=1e-9, atol=1e-9)
    assert torch.equal(sample_times(u, "linear", "uniform"), u)


def test_alignment_equals_the_loop_over_images(generator):
    """The released code normalises and multiplies image by image, token by token."""
    p, f = torch.randn(2, 3, 5, 7, generator=generator)
    total = 0.0
    for image in range(3):
        for token in range(5):
            a, b = p[image, token], f[image, token]
            total += float(-(a / a.norm()) @ (b / b.norm()))
    assert alignment_loss([p], [f]).item() == pytest.approx(total / 15, rel=1e-5)
    assert alignment_loss([p, p], [f, -f]).item() == pytest.approx(0, abs=1e-6)


@given(scale=st.floats(1e-3, 1e3))
def test_alignment_ignores_scale_and_is_bounded(scale):
    g = torch.Generator().manual_seed(1)
    p, f = torch.randn(2, 2, 3, 8, generator=g)
    value = alignment_loss([p * scale], [f])
    torch.testing.assert_close(value, alignment_loss([p], [f]), rtol=1e-4, atol=1e-5)
    assert alignment_loss([f * scale], [f]).item() == pytest.approx(-1, abs=1e-5)


def test_alignment_in_half_precision_stays_finite():
    tokens = torch.full((1, 2, 4096), 200.0, dtype=torch.float16)  # the norm overflows float16
    assert alignment_loss([tokens], [tokens]).item() == pytest.approx(-1, abs=1e-3)


def test_kl_equals_torch_distributions(generator):
    mean, std = torch.randn(3, 2, 4, 4, generator=generator), torch.rand(3, 2, 4, 4, generator=generator) + 0.1
    normal, unit = torch.distributions.Normal(mean, std), torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(normal, unit).flatten(1).sum(1)
    torch.testing.assert_close(kl_loss(mean, std), expected, rtol=1e-4, atol=1e-4)


def test_denoising_is_per_image():
    v = torch.zeros(2, 1, 2, 2)
    target = torch.stack((torch.ones(1, 2, 2), 3 * torch.ones(1, 2, 2)))
    assert denoising_loss(v, target).tolist() == [1.0, 9.0]


def test_hinge_losses():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.0])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * (0.5 + 0.5))
    assert generator_loss(fake).item() == pytest.approx(1.0)
