"""Statistics of latents against closed forms and loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.metrics.latents import cknna, principal_images, spatial_variance, total_variation


def test_by_hand():
    x = torch.tensor([[[[0.0, 1.0], [2.0, 5.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])
    assert spatial_variance(x) == pytest.approx((14 / 3) / 2)  # (0, 1, 2, 5) about 2: 4 + 1 + 0 + 9 over 3
    assert total_variation(x) == pytest.approx(((1 + 3) + (2 + 4)) / 2)


@given(scale=st.floats(0.1, 10), shift=st.floats(-5, 5), seed=st.integers(0, 50))
def test_scale_and_shift(scale, shift, seed):
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert spatial_variance(scale * x + shift) == pytest.approx(scale**2 * spatial_variance(x), rel=1e-9)
    assert total_variation(scale * x + shift) == pytest.approx(scale * total_variation(x), rel=1e-9)


def test_the_first_component_is_the_one_that_varies():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 4, 4, generator=g) * torch.tensor([0.1, 3.0, 0.1, 0.1, 1.0])[:, None, None]
    images = principal_images(x, 16)
    assert images.shape == (6, 3, 16, 16)
    assert torch.equal(images[:, :, ::4, ::4], images[:, :, 3::4, 3::4])  # enlarged, not blurred
    small = images[:, 0, ::4, ::4].flatten().double()
    assert abs(np.corrcoef(small, x[:, 1].flatten())[0, 1]) > 0.95
    assert torch.equal(images, principal_images(x, 16))
    assert principal_images(x[:, :1], 4)[:, 1:].unique().tolist() == [128]


def loops(a: np.ndarray, b: np.ndarray, k: int) -> float:
    """CKNNA written from its definition."""
    n = len(a)
    kernels = [x @ x.T for x in (y / np.linalg.norm(y, axis=1, keepdims=True) for y in (a, b))]
    neighbours = []
    for kernel in kernels:
        masked = kernel.copy()
        np.fill_diagonal(masked, -np.inf)
        neighbours.append([set(np.argsort(-row)[:k]) for row in masked])

    def hsic(i: int, j: int) -> float:
        p, q = np.zeros((n, n)), np.zeros((n, n))
        for r in range(n):
            for c in neighbours[i][r] & neighbours[j][r]:
                p[r, c], q[r, c] = kernels[i][r, c], kernels[j][r, c]
        one = np.ones(n)
        trace = np.trace(p @ q)
        return (
            trace + (one @ p @ one) * (one @ q @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (p.sum(0) * q.sum(1)).sum()
        ) / (n * (n - 3))

    return hsic(0, 1) / math.sqrt(hsic(0, 0) * hsic(1, 1))


def test_cknna_is_its_definition():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(30, 6))
    b = np.concatenate((a[:, :3], rng.normal(size=(30, 3))), 1)
    assert cknna(torch.from_numpy(a), torch.from_numpy(b), 5) == pytest.approx(loops(a, b, 5), rel=1e-9)


@given(seed=st.integers(0, 30))
def test_cknna_ends(seed):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(60, 8, generator=g, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=g, dtype=torch.float64)).Q
    assert cknna(a, 3 * a @ rotation) == pytest.approx(1, abs=1e-9)
    other = torch.randn(60, 8, generator=g, dtype=torch.float64)
    assert abs(cknna(a, other)) < 0.5


def test_cknna_wants_items():
    with pytest.raises(ValueError, match="5 and 5 items for 10 neighbours"):
        cknna(torch.zeros(5, 2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="5 and 6 items"):
        cknna(torch.zeros(5, 2), torch.zeros(6, 2), 2)


def features(seed: int, n: int = 40) -> torch.Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))


CONSTANT = {
    "ones": torch.ones(40, 8),
    "one row": features(1, 1).expand(40, -1),
    "one direction": features(1, 1) * torch.rand(40, 1, generator=torch.Generator().manual_seed(2)).add(0.1),
    "zeros": torch.zeros(40, 8),
    "rounding": features(1, 1) * (1 + 1e-7 * features(3)),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_constant_features_align_with_nothing(name):
    constant = CONSTANT[name]
    assert cknna(constant, features(0)) == 0.0
    assert cknna(features(0), constant) == 0.0
    assert cknna(constant, constant) == 0.0


def test_cknna_refuses_what_is_no_number():
    x = features(0)
    for value in (float("nan"), float("inf")):
        bad = torch.where(x == x[3, 3], value, x)
        with pytest.raises(ValueError, match="NaN"):
            cknna(x, bad)
