"""Metrics on features, in float64, with named roles: `real` is the reference, `fake` is what a model made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Mean and unbiased covariance of a set of features."""

    mean: Tensor
    """float64, (D,)."""
    covariance: Tensor
    """float64, (D, D)."""
    count: int

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
    def root(self) -> Tensor:
        """The covariance's symmetric square root, (D, D). Kept: one reference judges many sample sets."""
        values, vectors = torch.linalg.eigh(self.covariance)
        root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return root


def frechet_distance(*, real: Moments, fake: Moments) -> float:
    """FID (arXiv 1706.08500, eq. 6): |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of the symmetric S1^(1/2) S2 S1^(1/2): no general
    matrix square root, no complex parts.
    """
    middle = real.root @ fake.covariance @ real.root
    eigenvalues = torch.linalg.eigvalsh((middle + middle.T) / 2).clamp(min=0)
    difference = real.mean - fake.mean
    trace = real.covariance.trace() + fake.covariance.trace() - 2 * eigenvalues.sqrt().sum()
    return float(difference.square().sum() + trace)


def inception_score(logits: Tensor, splits: int = 1) -> float:
    """IS (arXiv 1606.03498): exp of the mean KL of p(y|x) from p(y), averaged over splits taken in order."""
    logp = logits.double().log_softmax(dim=1)
    scores = []
    for part in logp.chunk(splits):
        marginal = part.exp().mean(0, keepdim=True).log()
        scores.append((part.exp() * (part - marginal)).sum(1).mean().exp())
    return float(torch.stack(scores).mean())


def _radii(points: Tensor, k: int) -> Tensor:
    """Distance of every point to its k-th neighbour among the others."""
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").kthvalue(k + 1, dim=1).values


def _inside(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Share of the points that lie in at least one ball."""
    distances = torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist")
    return float((distances <= radii).any(dim=1).double().mean())


def precision_recall(*, real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991) of features (N, D) and (M, D).

    Returns:
        precision, the share of `fake` inside a k-nearest-neighbour ball of `real`, and recall, the reverse.
    """
    real, fake = real.double(), fake.double()
    return _inside(fake, real, _radii(real, k)), _inside(real, fake, _radii(fake, k))


def effective_rank(latents: Tensor) -> float:
    """Participation ratio of the covariance's spectrum, (sum l)^2 / sum l^2, of latents (N, ...) seen as vectors.

    A collapse that keeps the variance (channels turned into copies) shows here.
    """
    x = latents.flatten(1).double()
    x = x - x.mean(0)
    # The traces of the covariance and of its square are those of the Gram matrix, which is small where N is.
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    return float(gram.trace().square() / gram.square().sum())


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean peak signal-to-noise ratio, in dB, of uint8 images (N, 3, H, W)."""
    error = (a.double() - b.double()).square().flatten(1).mean(1).clamp(min=1e-10)
    return float((10 * torch.log10(255.0**2 / error)).mean())
