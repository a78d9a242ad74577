"""References in the form of ADM's: an .npz of statistics, images, or both. Invalid covariances are refused."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.features.base import FEATURES, SPATIAL
from harness.metrics.frechet import Moments
from recipes.core.atomic import sha256_of
from recipes.core.errors import UserError
from recipes.core.weights import some
from recipes.data.decoding import array_header
from recipes.data.files import UNZIPPABLE

#: Arrays of an ADM reference that hold statistics: (mean, covariance) of an output.
STATISTICS = {FEATURES: ("mu", "sigma"), SPATIAL: ("mu_s", "sigma_s")}
#: Name of the array that holds images, uint8 (N, H, W, 3).
IMAGES = "arr_0"
#: Relative tolerance (of the largest entry) for float32 rounding, e.g. asymmetry.
TOLERANCE = 1e-6
#: Sanity limit on the feature dimension (a covariance of this size is 512 MiB).
MOST_FEATURES = 8192
#: Sanity limit on covariance entries.
MOST = 1e30
#: Low float32 mantissa bits that are zero in values rounded to float16.
LOW_BITS = 0x1FFF


@dataclass(frozen=True)
class AdmReference:
    """An .npz in the form of ADM's references: statistics, images, or both."""

    path: Path
    moments: Mapping[str, Moments]
    """By output; their count is 0, which is not known: the file does not say of how many images they are."""
    has_images: bool
    warnings: Mapping[str, tuple[str, ...]]
    """By output: what is odd about its statistics, and yet may be meant."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return sha256_of(self.path)


def is_adm_reference(path: Path) -> bool:
    """Whether a path looks like an ADM reference (by suffix or content)."""
    if not path.is_file():
        return False
    if path.suffix.lower() in (".npz", ".zip"):  # a data set's zip may have a million names
        return path.suffix.lower() == ".npz"
    try:
        with zipfile.ZipFile(path) as archive:
            names = {f"{name}.npy" for pair in STATISTICS.values() for name in pair} | {f"{IMAGES}.npy"}
            return not names.isdisjoint(archive.namelist())
    except UNZIPPABLE:
        return False


def read_adm_reference(path: Path) -> AdmReference:
    """Statistics (mu, sigma, mu_s, sigma_s) of an ADM reference, and whether it has images (arr_0).

    Raises:
        UserError: not an .npz, one that holds objects, or statistics that are no mean and covariance.
    """
    moments, warnings = {}, {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            for name in names & {name for pair in STATISTICS.values() for name in pair}:
                _refuse_large(path, archive, name)
        with np.load(path, allow_pickle=False) as file:
            for output, (mean, covariance) in STATISTICS.items():
                if (mean in names) != (covariance in names):
                    here, other = (mean, covariance) if mean in names else (covariance, mean)
                    raise UserError(f"{path} holds {here} and no {other}: download the reference again.")
                if mean in names:
                    m, s = file[mean], file[covariance]
                    moments[output] = _moments(path, mean, covariance, m, s)
                    warnings[output] = _oddities(path, mean, covariance, m, s)
    except UNZIPPABLE as error:
        raise UserError(f"{path} cannot be read as an .npz ({error}).") from None
    if not moments and IMAGES not in names and len(names) > 1:
        raise UserError(
            f"{path} holds {some(names)}; a reference has its mean as mu, its covariance as sigma (those of sFID as "
            f"mu_s, sigma_s), or images as {IMAGES}: save its arrays under these names."
        )
    return AdmReference(path, moments, IMAGES in names, warnings)


def _refuse_large(path: Path, archive: zipfile.ZipFile, name: str) -> None:
    """Check the declared array size before reading (a small file can declare a huge array).

    Raises:
        UserError: it is of more features than any network has, or has not as many bytes as its header says.
    """
    with archive.open(f"{name}.npy") as member:
        shape, _, dtype = array_header(member)
        offset = member.tell()
    if max(shape, default=0) > MOST_FEATURES:
        raise UserError(
            f"{path}: {name} is of shape {shape}; no network has more than {MOST_FEATURES:,} features. Write the "
            "statistics, or download the reference, again."
        )
    size, wanted = archive.getinfo(f"{name}.npy").file_size - offset, math.prod(shape) * dtype.itemsize
    if size != wanted and not dtype.hasobject:
        raise UserError(
            f"{path}: {name} has {size:,} bytes and {shape} are {wanted:,}: it was damaged or cut short. Write the "
            "statistics, or download the reference, again."
        )


def _moments(path: Path, mean: str, covariance: str, m: NDArray[Any], s: NDArray[Any]) -> Moments:
    """Read two arrays that are called `mean` and `covariance`."""
    for name, array in ((mean, m), (covariance, s)):
        if array.dtype.kind != "f":
            raise UserError(
                f"{path}: {name} is {array.dtype}; means and covariances are float32 or float64: write the statistics "
                "again."
            )
    m, s = m.astype(np.float64), s.astype(np.float64)
    if m.ndim != 1 or s.shape != (len(m), len(m)) or not (np.isfinite(m).all() and np.isfinite(s).all()):
        raise UserError(
            f"{path}: {mean} {m.shape} and {covariance} {s.shape} are not a finite mean (D,) and covariance (D, D)"
            f"{_mistaken(m, s)}; write the statistics, or download the reference, again."
        )
    size = float(np.abs(s).max(initial=0))
    if float(np.abs(s - s.T).max(initial=0)) > TOLERANCE * size:
        wrong = "it is not symmetric, so a triangle, rows or columns of it are lost"
    elif float(s.diagonal().min(initial=0)) < -TOLERANCE * size:
        wrong = "variances on its diagonal are negative"
    elif not float(s.trace()) > 0:
        wrong = "it has no variance at all"
    elif size > MOST:
        wrong = f"its numbers go to {size:.1g}, which no features do"
    else:
        both = torch.from_numpy((s + s.T) / 2)  # an eigendecomposition reads one triangle only
        return Moments(torch.from_numpy(m), both, 0)
    raise UserError(
        f"{path}: {covariance} is no covariance: {wrong}; write the statistics, or download the reference, again."
    )


def _mistaken(mean: NDArray[Any], covariance: NDArray[Any]) -> str:
    """Hint at the likely mistake for wrong shapes."""
    if mean.ndim == 2 and covariance.ndim == 1:
        return " but look exchanged"
    if mean.ndim == 1 and covariance.shape == mean.shape:
        return ": standard deviations or variances are not enough"
    return ""


def _oddities(path: Path, mu: str, name: str, mean: NDArray[Any], covariance: NDArray[Any]) -> tuple[str, ...]:
    """Warnings about statistics that are valid but suspicious."""
    found = []
    if not mean.any():
        found.append(f"{path.name}: {mu} is 0 everywhere, as of features that were centred: FID is then another's.")
    elif mean.min() < 0:
        found.append(f"{path.name}: {mu} is negative in places, which the mean of Inception's features never is.")
    narrow = covariance.astype(np.float32)
    if np.array_equal(narrow, covariance) and not (narrow.view(np.uint32) & LOW_BITS).any():
        found.append(f"{path.name}: {name} was rounded to 16 bits, which moves FID; take statistics in float64.")
    if np.abs(covariance.diagonal() - 1).max() < TOLERANCE:
        found.append(f"{path.name}: every variance of {name} is 1, as in a matrix of correlations, not of covariances.")
    if len(covariance) > 1 and not (covariance - np.diag(covariance.diagonal())).any():
        found.append(f"{path.name}: {name} has nothing beside its diagonal: it may be of variances alone.")
    return tuple(found)
