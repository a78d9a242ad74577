"""The kernel Inception distance (arXiv 1801.01401)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from harness.metrics.frechet import ROUNDING
from harness.metrics.manifold import Points, take_rows
from recipes.core.draws import seed_of


class Kid(NamedTuple):
    """A kernel distance over subsets."""

    mean: float
    sd: float
    """Standard deviation over subsets (ddof=0, as torch-fidelity). Not usable as a standard error, because subsets
    overlap.
    """
    se: float
    """Standard error of the mean: what other real and generated features would move it by, to first order, and what
    other subsets would. Overestimates when the sets come from the same distribution, by about sqrt(N / subset_size)."""


def _mmd2(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased squared MMD of x (n, D) and y (n, D) under the kernel (x.y / D + 1)^3, and its variances by x and
    by y, each times n, to first order: (3,).
    """
    n, dim = x.shape
    within = [((z @ z.T) / dim + 1).pow(3).fill_diagonal_(0).sum(1) / (n - 1) for z in (x, y)]
    across = ((x @ y.T) / dim + 1).pow(3)
    ours, theirs = within[0] - across.mean(1), within[1] - across.mean(0)
    found = ours.mean() + theirs.mean()
    # Features that are all the same have 0; of equal sets the unbiased estimate is below 0, and stays so.
    found = torch.where(found.abs() <= ROUNDING * across.abs().mean(), 0.0, found)
    return torch.stack((found, 4 * ours.var(), 4 * theirs.var()))


def kid(*, real: Points, fake: Points, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> Kid:
    """KID (arXiv 1801.01401): the unbiased squared MMD, over subsets drawn without replacement from the seed.

    Args:
        real: (N, D).
        fake: (M, D); a tensor lies on the device of `real`.
        subsets: how many.
        subset_size: rows of each set in a subset, 2 to min(N, M).
        seed: the same one draws the same subsets, on every device.

    Raises:
        ValueError: a set is smaller than a subset, a subset than 2, or a value is not finite.
    """
    if not 2 <= subset_size <= min(len(real), len(fake)) or subsets < 1:
        raise ValueError(f"no {subsets} subsets of {subset_size} from {len(real)} real and {len(fake)} fake features")
    values = []
    for k in range(subsets):
        g = torch.Generator().manual_seed(seed_of(seed, "kid", k))
        x, y = (take_rows(z, torch.randperm(len(z), generator=g)[:subset_size]) for z in (real, fake))
        values.append(_mmd2(x, y))
    drawn, of_real, of_fake = torch.stack(values).T
    if not bool(torch.isfinite(drawn).all()):
        raise ValueError("features hold NaN or infinity")
    squared = of_real.mean() / len(real) + of_fake.mean() / len(fake) + drawn.var(correction=0) / subsets
    return Kid(float(drawn.mean()), float(drawn.std(correction=0)), float(squared.sqrt()))
