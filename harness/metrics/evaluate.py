"""Compute metrics by name from the network outputs of two image sets (ADM's conventions)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.features.base import CLEAN, DINOV2, FEATURES, LOGITS, SPATIAL
from harness.metrics import frechet, inception_score, kid, manifold
from harness.metrics.frechet import Moments
from harness.metrics.manifold import Points
from harness.metrics.statistics import Measured
from recipes.core.errors import UserError, nearest

#: Metrics that compare each image with its original.
PAIRWISE = ("psnr", "ssim", "lpips")
#: Metrics that are Fréchet distances.
FRECHET = ("fid", "sfid", "fd", "fd_dinov2", "clean_fid")
#: KID: number of subsets, and images per subset (at most).
KID_SUBSETS, KID_SUBSET = 100, 1000


@dataclass(frozen=True)
class Metric:
    """Which output a metric uses and what it needs."""

    output: str
    about: str
    needs_real_rows: bool = False
    """Whether a reference's mean and covariance are not enough."""
    needs_real: bool = True


METRICS: dict[str, Metric] = {
    "fid": Metric(FEATURES, "Fréchet distance of Inception's pool_3 (gFID; rFID of reconstructions)"),
    "sfid": Metric(SPATIAL, "Fréchet distance of 7 channels of mixed_6/conv"),
    "is": Metric(LOGITS, "Inception score, splits of 5,000 in order", needs_real=False),
    "precision": Metric(FEATURES, "share of samples inside the reference's k-nearest-neighbour balls", True),
    "recall": Metric(FEATURES, "share of the reference inside the samples' balls", True),
    "f_score": Metric(FEATURES, "harmonic mean of precision and recall", True),
    "density": Metric(FEATURES, "reference balls around a sample, over k (k = 5)", True),
    "coverage": Metric(FEATURES, "share of the reference's balls that hold a sample (k = 5)", True),
    "kid": Metric(FEATURES, "kernel distance, 100 subsets of 1,000", True),
    "fd": Metric(FEATURES, "Fréchet distance of another --features network"),
    "fd_dinov2": Metric(DINOV2, "Fréchet distance of DINOv2-L's class token"),
    "clean_fid": Metric(CLEAN, "FID behind clean-fid's resizing: another number, never beside FID"),
    "psnr": Metric("psnr", "dB, mean over images, against the reference's images in order", needs_real=False),
    "ssim": Metric("ssim", "structural similarity, 11 x 11 Gaussian window", needs_real=False),
    "lpips": Metric("lpips", "LPIPS 0.1 on VGG16, images in [-1, 1]", needs_real=False),
}
#: In ADM's order.
DEFAULT = ("fid", "sfid", "is", "precision", "recall")
#: For networks other than Inception, whose Fréchet distance is no FID.
DEFAULT_ELSEWHERE = ("fd", "precision", "recall")
#: Metrics defined only for Inception features.
OF_INCEPTION = ("fid", "sfid", "is", "clean_fid")
_PR, _DC = ("precision", "recall", "f_score"), ("density", "coverage")
#: Metrics based on nearest neighbours.
MANIFOLDS = _PR + _DC


@dataclass(frozen=True)
class Rules:
    """What a protocol decides about the metrics."""

    neighbours: int = 3
    """k of precision, recall and F-score (ADM)."""
    coverage_neighbours: int = 5
    """k of density and coverage (arXiv 2002.09797)."""
    manifold_size: int | None = None
    """Number of rows used for the nearest-neighbour metrics."""
    split: int = inception_score.ADM_SPLIT
    """Images of a part of the Inception score."""

    def applied(self, wanted: Collection[str], *, real: int, fake: int) -> dict[str, Any]:
        """The rules as a dict, plus the actual splits (IS) and subsets (KID) for sets of these sizes.

        Args:
            wanted: metrics.
            real: images of the reference.
            fake: samples.
        """
        found: dict[str, Any] = asdict(self)
        if "is" in wanted:
            splits = -(-fake // self.split)
            found["is"] = {"splits": splits, "of": min(self.split, fake), "last_of": fake - (splits - 1) * self.split}
        if "kid" in wanted:
            found["kid"] = {"subsets": kid_subsets(real, fake), "of": kid_subset(real, fake)}
        return found


def kid_subset(real: int, fake: int) -> int:
    """Images of each set in one of KID's subsets."""
    return min(KID_SUBSET, real, fake)


def kid_subsets(real: int, fake: int) -> int:
    """Number of KID subsets; 1 if a subset would contain both sets entirely."""
    return 1 if real == fake == kid_subset(real, fake) else KID_SUBSETS


def parse(text: str | None, default: Sequence[str] = DEFAULT) -> tuple[str, ...]:
    """``fid,is`` to names.

    Raises:
        UserError: an unknown name, with the nearest.
    """
    if text is None:
        return tuple(default)
    names = tuple(dict.fromkeys(part.strip().replace("-", "_") for part in text.split(",") if part.strip()))
    for name in names:
        if name not in METRICS:
            raise UserError(f"--metrics: there is no metric '{name}'.{nearest(name, METRICS)}")
    if not names:
        raise UserError(f"--metrics names none; there are {', '.join(METRICS)}.")
    return names


def needing_rows(wanted: Collection[str], known: Collection[str]) -> list[str]:
    """Wanted metrics that need reference images, not only these moments."""
    return [
        name
        for name in wanted
        if METRICS[name].needs_real_rows or (METRICS[name].needs_real and METRICS[name].output not in known)
    ]


@dataclass(frozen=True)
class Evaluated:
    """Two sets of images, compared."""

    values: dict[str, float]
    """The metrics in the order asked for, and behind ``is`` and ``kid`` their standard errors, NAME_se."""
    distances: dict[str, frechet.FrechetResult]
    """Every Fréchet distance with its parts, and how far the covariances are from having a root."""


def evaluate(
    wanted: Sequence[str],
    *,
    real: Measured,
    fake: Measured,
    rules: Rules | None = None,
    device: torch.device | None = None,
) -> Evaluated:
    """Every wanted metric.

    Args:
        wanted: of `METRICS`.
        real: the reference.
        fake: the samples.
        rules: what the protocol decides.
        device: where the matrix work happens.

    Raises:
        UserError: too few images for a metric, with the number that it needs.
        ValueError: an output is missing, or holds NaN.
    """
    rules, device = rules or Rules(), device or torch.device("cpu")
    out: dict[str, float] = {}
    distances: dict[str, frechet.FrechetResult] = {}
    for name in wanted:
        metric = METRICS[name]
        if name in FRECHET:
            distances[name] = _frechet(name, real.moments(metric.output, device), fake.moments(metric.output, device))
            out[name] = distances[name].distance
        elif name == "is":
            out[name], out["is_se"] = inception_score.inception_score(
                _tensor(fake.points(LOGITS)), split_size=rules.split
            )
        elif name in PAIRWISE:
            out[name] = float(_tensor(fake.points(name)).double().mean())
    out |= _manifolds(wanted, real, fake, rules, device)
    if "kid" in wanted:
        a, b = real.points(FEATURES), fake.points(FEATURES)
        subsets, size = kid_subsets(len(a), len(b)), kid_subset(len(a), len(b))
        out["kid"], _, out["kid_se"] = kid.kid(real=a, fake=b, subsets=subsets, subset_size=size, seed=0)
    return Evaluated({key: out[key] for name in wanted for key in (name, f"{name}_se") if key in out}, distances)


def _frechet(name: str, real: Moments, fake: Moments) -> frechet.FrechetResult:
    if len(real.mean) != len(fake.mean):
        raise UserError(
            f"{name}: the reference's statistics are of {len(real.mean):,} features and the network gives "
            f"{len(fake.mean):,}: they are of another network; give reference images instead."
        )
    return frechet.frechet(real=real, fake=fake)


def _tensor(points: Points) -> Tensor:
    return points if isinstance(points, Tensor) else torch.from_numpy(np.asarray(points))


def _manifolds(
    wanted: Sequence[str], real: Measured, fake: Measured, rules: Rules, device: torch.device
) -> dict[str, float]:
    ks = [k for names, k in ((_PR, rules.neighbours), (_DC, rules.coverage_neighbours)) if set(names) & set(wanted)]
    if not ks:
        return {}
    n = rules.manifold_size
    a, b = _tensor(real.points(FEATURES))[:n].to(device), fake.points(FEATURES)[:n]
    if min(len(a), len(b)) <= max(ks):
        raise UserError(
            f"{', '.join(n for n in wanted if n in MANIFOLDS)} look at the {max(ks)} nearest neighbours: give more "
            f"than {max(ks)} samples and reference images ({len(b)} and {len(a)} found), or leave them out."
        )
    found = manifold.manifolds(real=a, fake=b, ks=sorted(set(ks)))
    k_of = dict.fromkeys(_PR, rules.neighbours) | dict.fromkeys(_DC, rules.coverage_neighbours)
    return {name: getattr(found[k_of[name]], name) for name in wanted if name in k_of}
