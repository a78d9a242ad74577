"""The Fréchet distance between two Gaussians (FID, arXiv 1706.08500), and streamed moments."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from harness.metrics.manifold import ROWS_AT_ONCE

#: Relative tolerance: smaller differences count as float64 rounding.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Moments:
    """Mean and unbiased covariance of a set of features."""

    mean: Tensor
    """float64, (D,)."""
    covariance: Tensor
    """float64, (D, D)."""
    count: int
    """Samples; 0 where it is not known."""

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """From features (N, D), N >= 2.

        Raises:
            ValueError: fewer than two rows, or a value that is not finite.
        """
        if len(features) < 2:
            raise ValueError("a covariance needs at least two samples")
        x = features.double()
        if not bool(torch.isfinite(x).all()):
            raise ValueError("features hold NaN or infinity")
        return cls(x.mean(0), torch.cov(x.T).reshape(x.shape[1], x.shape[1]), len(x))

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues, ascending, and eigenvectors of the covariance."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return values, vectors

    @property
    def eigenvalues(self) -> Tensor:
        """Eigenvalues of the covariance, ascending, (D,)."""
        return self._spectrum[0]

    @cached_property
    def root(self) -> Tensor:
        """The covariance's symmetric square root, (D, D). Kept: one reference judges many sample sets."""
        values, vectors = self._spectrum
        root: Tensor = (vectors * _leading(values, self.rank).clamp(min=0).sqrt()) @ vectors.T
        return root

    @cached_property
    def negative_mass(self) -> float:
        """Negative eigenvalues' share in the sum of all, in size, in [0, 1]: rounding, unless it is no covariance."""
        return _negative_mass(self._spectrum[0])

    def to(self, device: torch.device) -> Moments:
        """Copy on `device`, keeping the cached eigendecomposition; returns self if already there."""
        if self.mean.device == device:
            return self
        moved = Moments(self.mean.to(device), self.covariance.to(device), self.count)
        if "_spectrum" in self.__dict__:
            moved.__dict__["_spectrum"] = tuple(part.to(device) for part in self._spectrum)
        return moved

    @property
    def rank(self) -> int:
        """The most that the covariance's rank can be: fewer samples than features leave directions without spread."""
        dim = len(self.mean)
        return min(dim, self.count - 1) if self.count else dim


@dataclass
class MomentSums:
    """Count, mean and scatter of features that come in batches, on one device or on many.

    The scatter is about the mean, and two of them are joined by the update of Chan, Golub and LeVeque ("Updating
    formulae and a pairwise algorithm for computing sample variances", 1982), so that a mean far from zero costs no
    digits of the covariance as raw sums of squares would.
    """

    n: int
    mean: Tensor
    """float64, (D,)."""
    scatter: Tensor
    """float64, (D, D): the sum of (x - mean)(x - mean)^T."""

    @classmethod
    def empty(cls, dim: int, device: torch.device | str | None = None) -> MomentSums:
        """Empty sums for `dim`-dimensional features; without a device, they move to the first batch's device."""
        zeros = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        return cls(0, zeros.new_zeros(dim), zeros)

    def add(self, features: Tensor) -> MomentSums:
        """Take in features (B, D), B >= 0, in place; a refused batch changes nothing.

        Returns:
            itself.

        Raises:
            ValueError: the shape is another, or a value is not finite; the message names the row.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features have shape {tuple(features.shape)}, not (B, {len(self.mean)})")
        bad = (~torch.isfinite(features).all(1)).nonzero()
        if len(bad):
            row = int(bad[0, 0])
            raise ValueError(f"row {row} of the batch (row {self.n + row} of all) holds NaN or infinity")
        if self.n == 0:
            self.mean, self.scatter = self.mean.to(features.device), self.scatter.to(features.device)
        for chunk in features.split(ROWS_AT_ONCE) if len(features) else ():
            x = chunk.to(self.mean.device, torch.float64)
            mean = x.mean(0)
            x = x - mean
            self._join(len(x), mean, x.T @ x)
        return self

    def _join(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.n + n
        shift = mean - self.mean
        self.scatter = (self.scatter + scatter).addr_(shift, shift, alpha=self.n * n / total)
        self.mean = self.mean + shift * (n / total)
        self.n = total

    def merge(self, other: MomentSums) -> MomentSums:
        """The sums of both sets, on the device of `self`; neither is changed.

        Raises:
            ValueError: the features have another number of dimensions.
        """
        if len(self.mean) != len(other.mean):
            raise ValueError(f"sums of {len(self.mean)} and of {len(other.mean)} dimensions cannot be merged")
        if not self.n or not other.n:
            some = self if self.n else other
            return MomentSums(some.n, some.mean.clone(), some.scatter.clone())
        out = MomentSums(self.n, self.mean, self.scatter)
        out._join(other.n, other.mean.to(self.mean.device), other.scatter.to(self.mean.device))
        return out

    __add__ = merge

    def moments(self) -> Moments:
        """Mean and unbiased covariance.

        Raises:
            ValueError: fewer than two features were added.
        """
        if self.n < 2:
            raise ValueError("a covariance needs at least two samples")
        return Moments(self.mean.clone(), (self.scatter + self.scatter.T) / (2 * (self.n - 1)), self.n)


def _leading(ascending: Tensor, rank: int) -> Tensor:
    """The `rank` largest of sorted eigenvalues; zero in place of the others."""
    return torch.where(torch.arange(len(ascending), device=ascending.device) >= len(ascending) - rank, ascending, 0.0)


def _negative_mass(eigenvalues: Tensor, rounding: float = 0.0) -> float:
    """The share of eigenvalues that are negative, in [0, 1]; those not larger than `rounding` count as 0."""
    eigenvalues = torch.where(eigenvalues.abs() > rounding, eigenvalues, 0.0)
    total, negative = float(eigenvalues.abs().sum()), -float(eigenvalues.clamp(max=0).sum())
    return negative / total if total > 0 else 0.0


@dataclass(frozen=True)
class FrechetResult:
    """A Fréchet distance and its parts."""

    distance: float
    """The sum of the two terms."""
    mean_term: float
    """|m1 - m2|^2."""
    trace_term: float
    """tr(S1 + S2 - 2 (S1 S2)^(1/2))."""
    negative_mass: float
    """Negative eigenvalues' share in the sum of all, in size, under the root or of the reference, whichever is larger:
    Near 0 unless one of the matrices is not a valid covariance."""


def frechet(*, real: Moments, fake: Moments) -> FrechetResult:
    """FID (arXiv 1706.08500, eq. 6): |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), on the device of `real`.

    The trace of the root is the sum of the roots of the eigenvalues of the symmetric S1^(1/2) S2 S1^(1/2): no general
    matrix square root, no complex parts. Terms within float64 rounding are set to 0, so that equal sets have distance
    0.
    """
    mean, covariance = fake.mean.to(real.mean.device), fake.covariance.to(real.mean.device)
    middle = real.root @ covariance @ real.root
    eigenvalues = torch.linalg.eigvalsh((middle + middle.T) / 2)
    # Beyond the rank they are rounding, and the roots of two thousand roundings add up.
    positive = _leading(eigenvalues, min(real.rank, fake.rank)).clamp(min=0)
    squares = float(real.mean.square().sum() + mean.square().sum())
    mean_term = _beyond(float((real.mean - mean).square().sum()), ROUNDING**2 * squares)
    traces = float(real.covariance.trace() + covariance.trace())
    rounding = ROUNDING * float(real.covariance.trace() * covariance.trace())  # under the root
    # The roots of small eigenvalues have half the digits; the distance is at most the trace norm of the difference.
    alike = float((real.covariance - covariance).abs().max()) <= ROUNDING * float(real.covariance.abs().max())
    trace_term = 0.0 if alike else _beyond(traces - 2 * float(positive.sqrt().sum()), ROUNDING * traces)
    return FrechetResult(
        distance=mean_term + trace_term,
        mean_term=mean_term,
        trace_term=trace_term,
        negative_mass=max(_negative_mass(eigenvalues, rounding), real.negative_mass),
    )


def _beyond(value: float, rounding: float) -> float:
    """Set |value| <= rounding to 0; keeps larger negative values and NaN."""
    return 0.0 if abs(value) <= rounding else value


def frechet_distance(*, real: Moments, fake: Moments) -> float:
    """FID as one number; see `frechet`."""
    return frechet(real=real, fake=fake).distance
