"""What perfect samples would get, against sets that are drawn."""

from __future__ import annotations

import pytest
import torch

from harness.metrics.floor import frechet_floor
from harness.metrics.frechet import Moments, frechet_distance


def gaussian(dim: int, decay: float) -> tuple[Moments, torch.Tensor]:
    """A Gaussian of eigenvalues 1 / i^decay, turned, and a root of its covariance: (D, D)."""
    g = torch.Generator().manual_seed(dim)
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=g, dtype=torch.float64)).Q
    root = torch.arange(1, dim + 1, dtype=torch.float64).pow(-decay / 2)[:, None] * turn
    return Moments(torch.randn(dim, generator=g, dtype=torch.float64), root.T @ root, 0), root


@pytest.mark.parametrize("decay", [0.0, 1.0])
@pytest.mark.parametrize("count", [12, 30, 60, 120, 300, 1000])
def test_the_floor_is_what_drawn_sets_get(count, decay):
    real, root = gaussian(60, decay)
    g = torch.Generator().manual_seed(count)
    drawn = torch.tensor(
        [
            frechet_distance(
                real=real,
                fake=Moments.of(real.mean + torch.randn(count, 60, generator=g, dtype=torch.float64) @ root),
            )
            for _ in range(100)
        ]
    )
    error = float(drawn.std()) / 10
    bias = 0.05 if count < 60 else 0.01
    assert frechet_floor(real, count) == pytest.approx(float(drawn.mean()), rel=bias, abs=3 * error)


def test_many_samples_have_the_floor_of_the_expansion():
    """And few have more than that: it is too low by a fifth where there are as many samples as dimensions."""
    real, _ = gaussian(60, 1.0)
    values = torch.arange(1, 61, dtype=torch.float64).reciprocal()
    pairs = float((values * values[:, None] / (values + values[:, None])).sum())
    expanded = float(values.sum()) + (pairs + float(values.sum()) / 2) / 2
    assert frechet_floor(real, 10**6) == pytest.approx(expanded / 10**6, rel=1e-4)
    assert frechet_floor(real, 60) > 1.15 * expanded / 60


def test_a_reference_without_spread_has_no_floor():
    assert frechet_floor(Moments(torch.ones(3), torch.zeros(3, 3, dtype=torch.float64), 5), 10) == 0
    line = torch.diag(torch.tensor([2.0, 0.0, -1e-17], dtype=torch.float64))  # rounding below zero
    assert frechet_floor(Moments(torch.ones(3), line, 5), 1001) == pytest.approx(2 * 1.5 / 1000, rel=2e-3)
