"""Expected Fréchet distance of perfect samples (finite-sample floor)."""

from __future__ import annotations

import math

import torch

from harness.metrics.frechet import Moments

#: Eigenvalues below this share of the largest are ignored.
NEGLIGIBLE = 1e-10
#: Step of the integration in log k.
STEP = 0.05


def frechet_floor(real: Moments, count: int) -> float:
    """The Fréchet distance that perfect samples would have on average: `count` of the Gaussian with these moments.

    With n = count - 1 and S of eigenvalues l, the mean's error costs tr S / count. The covariance's costs
    2 tr S - 2 E tr (S^(1/2) S' S^(1/2))^(1/2), S' that of the samples: by the deterministic equivalent of the resolvent
    of a sample covariance (Silverstein and Bai, "On the empirical distribution of eigenvalues of a class of large
    dimensional random matrices", 1995), and tr S / 4n more, by which real numbers differ from complex ones. For n far
    above the dimensions that is (sum_ij l_i l_j / (l_i + l_j) + tr S / 2) / 2n; here n may be anything.
    `tests/numerics/test_floor.py` compares it with drawn sets.

    The moments are taken as exact: where the reference is of few images, its own errors come on top.
    Heavier-than-Gaussian tails add error too.

    Args:
        real: the reference.
        count: samples, at least 2.
    """
    values, n = real.eigenvalues.clamp(min=0), count - 1
    trace = float(values.sum())
    if trace == 0:
        return 0.0
    # sqrt(a) is the integral of a / (a + t) / (pi sqrt(t)) over t > 0; with t = k (1 - freedom(k) / n), by parts.
    squares = values.square()
    low, high = NEGLIGIBLE**2 * float(squares.max()), float(squares.sum()) / NEGLIGIBLE
    k = torch.arange(math.log(low), math.log(high), STEP, dtype=torch.float64, device=values.device).exp()
    shrunk = 1 / (squares + k[:, None])
    freedom, slope = shrunk @ squares, shrunk.square() @ squares
    lost = k.sqrt() * (1 - (1 - freedom / n).clamp(min=0).sqrt()) * slope
    return trace / count + trace / (4 * n) + 4 / math.pi * float((lost * k).sum()) * STEP
