"""Warnings about suspicious image sets or too few images, shown beside the metrics."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.features.pixels import FLAT, HASH, ORIGINAL, of_a_set
from harness.metrics.evaluate import FRECHET, KID_SUBSET, MANIFOLDS, METRICS, PAIRWISE, Rules, kid_subset
from harness.metrics.statistics import Measured

#: Warn below this number of images for precision/recall (ADM's reference has 10,000).
MANIFOLD_IMAGES = 10_000
#: Relative threshold below which eigenvalues count as 0.
NEGLIGIBLE = 1e-10
#: A covariance with rank below this fraction of the dimensions is suspicious.
FULL = 0.95
#: Rounding leaves about 1e-12 of the eigenvalues negative; a covariance that is none leaves more.
NEGATIVE_MASS = 1e-6
#: Factors of variance / mean norm above which two feature sets look incompatible.
SPREAD, LENGTH = 100, 5
#: Width and height.
Size = tuple[int, int] | None


def of_sets(wanted: Sequence[str], fake: Measured, real: Measured, *, rebuilt: bool) -> list[str]:
    """Warnings about samples vs. reference; with `rebuilt` (reconstructions) exact copies are allowed."""
    found = of_a_set(about, "samples") if (about := fake.rows_of(HASH, FLAT)) else []
    found += of_a_set(about, "reference images") if (about := real.rows_of(HASH, FLAT)) else []
    hashes = fake.rows_of(HASH).get(HASH)
    own = real.rows_of(HASH).get(HASH, fake.rows_of(ORIGINAL).get(ORIGINAL))
    own, among = (real.seen, f", among its first {len(real.seen):,}") if real.seen is not None else (own, "")
    if hashes is not None and own is not None and not rebuilt and (copies := int(torch.isin(hashes, own).sum())):
        found.append(f"{copies:,} of the {fake.rows:,} samples are the reference's own images, pixel by pixel{among}.")
    return found + _of_sizes(wanted, fake.size, real.size)


def _of_sizes(wanted: Sequence[str], fake: Size, real: Size) -> list[str]:
    found = []
    if fake and real and fake != real and any(METRICS[name].needs_real for name in wanted):
        found.append(
            f"the samples are {_pixels(fake)} pixels and the reference's images {_pixels(real)}: every metric of both "
            "then measures the resizing too."
        )
    for what, size in (("samples", fake), ("reference's images", real)):
        if size and size[0] != size[1] and not set(wanted) <= set(PAIRWISE):
            found.append(f"the {what} are {_pixels(size)} pixels: feature networks squeeze them into a square.")
    return found


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def of_numbers(wanted: Sequence[str], real: Measured, fake: Measured, rules: Rules) -> list[str]:
    """Warnings about metrics with too few images."""
    distances = [name for name in wanted if name in FRECHET]
    found = _of_widths(distances, real, fake) + _of_scales(distances, real, fake)
    if "kid" in wanted and (size := kid_subset(real.rows, fake.rows)) < KID_SUBSET:
        found.append(
            f"kid: its subsets are of {size:,} images instead of {KID_SUBSET:,}, since there are {fake.rows:,} samples "
            f"and {real.rows:,} reference images: it compares only with KIDs of such subsets."
        )
    last = fake.rows % rules.split
    if "is" in wanted and last:
        found.append(
            f"is: {f'it is of one split of {last:,}' if fake.rows < rules.split else f'its last split has {last:,}'} "
            f"samples instead of {rules.split:,}: IS is lower the smaller a split is."
        )
    balls = [name for name in wanted if name in MANIFOLDS]
    if balls and min(fake.rows, real.rows) < MANIFOLD_IMAGES:
        found.append(
            f"{', '.join(balls)}: {fake.rows:,} samples and {real.rows:,} reference images; with fewer than "
            f"{MANIFOLD_IMAGES:,} of each they depend on the numbers, and compare only where these are the same."
        )
    return found


def _of_scales(distances: Sequence[str], real: Measured, fake: Measured) -> list[str]:
    """Warnings about incompatible feature scales."""
    found = []
    for name in distances:
        ours, theirs = fake.moments(METRICS[name].output), real.moments(METRICS[name].output)
        spreads = float(ours.covariance.trace()), float(theirs.covariance.trace())
        lengths = float(ours.mean.norm()), float(theirs.mean.norm())
        for narrow, what, other in ((0, "samples", "reference"), (1, "reference", "samples")):
            if SPREAD * spreads[narrow] < spreads[1 - narrow]:
                found.append(
                    f"{name}: the features of the {what} vary by less than 1/{SPREAD} that of the {other}: nearly one "
                    "image many times, or statistics of another scale."
                )
        if LENGTH * min(lengths) < max(lengths):
            found.append(
                f"{name}: the mean of the features is {lengths[0]:.3g} long for the samples and {lengths[1]:.3g} for "
                "the reference: they are hardly of one network."
            )
    return found


def _of_widths(distances: Sequence[str], real: Measured, fake: Measured) -> list[str]:
    moments = {name: real.moments(METRICS[name].output) for name in distances}
    found = []
    of_fake = {name: len(m.mean) for name, m in moments.items() if fake.rows <= len(m.mean)}
    of_real = {name: len(m.mean) for name, m in moments.items() if 0 < m.count <= len(m.mean)}
    for few, images, whole in (
        (of_fake, f"{fake.rows:,} samples", "at 50,000"),
        (of_real, f"{real.rows:,} reference images", "against a whole data set"),
    ):
        if few:
            found.append(
                f"{images} are fewer than the {max(few.values()):,} features of {', '.join(few)}: such a distance is "
                f"far above its value {whole}, and compares only with the same number."
            )
    for name, m in moments.items():
        rank = int((m.eigenvalues > NEGLIGIBLE * m.eigenvalues[-1]).sum())
        if not m.count and m.negative_mass < NEGATIVE_MASS and rank < FULL * len(m.mean):
            found.append(
                f"{name}: the reference's covariance has rank {rank:,} of {len(m.mean):,}: it is of about {rank + 1:,} "
                "images, or parts of it are lost."
            )
    return found
