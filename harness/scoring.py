"""Any samples against any reference: one pass over the images, ADM's conventions, one JSON-able result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness import metrics
from harness.inception import Inception
from harness.metrics import Moments, Sums
from harness.samples import ImageSet, open_samples
from recipes.core.checkpoint import sha256_of
from recipes.core.errors import UserError, nearest
from recipes.core.spec import digest_of

#: What `score --samples` measures unless told otherwise, in ADM's order.
DEFAULT_METRICS = ("fid", "sfid", "is", "precision", "recall")
METRICS = (*DEFAULT_METRICS, "f_score", "density", "coverage", "kid")
MANIFOLD = ("precision", "recall", "f_score", "density", "coverage")
#: ADM's conventions, in words; their digest names the protocol.
CONVENTIONS = {
    "name": "adm-files",
    "version": 1,
    "features": "inception-2015 pool_3, TensorFlow 1 bilinear resize to 299",
    "spatial": "mixed_6/conv, 7 channels, (h, w, c)",
    "inception score": "softmax of pool_3 x W without bias, splits of 5,000 in order",
    "manifold": "pool_3, k = 3 (density and coverage: 5)",
    "kid": "100 subsets of 1,000, cubic kernel",
}
BATCH = 64


@dataclass(frozen=True)
class Measured:
    """A set of images, reduced to what the metrics need."""

    count: int
    moments: Moments
    spatial: Moments
    logits: Tensor
    features: NDArray[np.float32]
    """(N, 2048), memory-mapped where there are many."""


def parse_metrics(text: str | None) -> tuple[str, ...]:
    """``fid,is`` to names.

    Raises:
        UserError: an unknown name, with the nearest.
    """
    if text is None:
        return DEFAULT_METRICS
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in METRICS:
            raise UserError(f"--metrics: there is no metric '{name}'.{nearest(name, METRICS)}")
    if not names:
        raise UserError(f"--metrics names none; there are {', '.join(METRICS)}.")
    return names


def measure(
    images: ImageSet, network: Inception, folder: Path, *, batch: int = BATCH, on_done: Callable[[int], None]
) -> Measured:
    """One pass over a set of images.

    Args:
        images: read in order.
        network: what looks at them.
        folder: where the features are kept while they are needed.
        batch: images at once; decides nothing.
        on_done: told how many are done.

    Raises:
        UserError: fewer than two images.
    """
    if len(images) < 2:
        raise UserError(f"one image has no covariance: give at least two ({len(images)} found).")
    sums, spatial, logits, done = None, None, [], 0
    features: NDArray[np.float32] | None = None
    for part in images.batches(batch):
        out = network(part)
        if sums is None or spatial is None or features is None:
            width = out.features.shape[1]
            sums, spatial = Sums.empty(width), Sums.empty(out.spatial.shape[1])
            features = np.lib.format.open_memmap(
                folder / "features.npy", mode="w+", dtype=np.float32, shape=(len(images), width)
            )
        assert features is not None
        sums.add(out.features.cpu())
        spatial.add(out.spatial.cpu())
        features[done : done + len(part)] = out.features.cpu().numpy()
        logits.append(out.logits.cpu())
        done += len(part)
        on_done(done)
    if done != len(images):
        raise ValueError(f"{done} images were read of {len(images)}")
    assert sums is not None
    assert spatial is not None
    assert features is not None
    return Measured(done, sums.moments(), spatial.moments(), torch.cat(logits), features)


@dataclass(frozen=True)
class Reference:
    """What samples are compared with. Parts may be absent."""

    digest: str
    count: int | None
    moments: Moments | None = None
    spatial: Moments | None = None
    features: NDArray[np.float32] | None = None


def read_statistics(path: Path) -> dict[str, NDArray[np.float64]]:
    """mu, sigma, mu_s, sigma_s of an ADM reference, those that it holds.

    Raises:
        UserError: not an .npz, or it holds objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {k: np.asarray(file[k], np.float64) for k in ("mu", "sigma", "mu_s", "sigma_s") if k in file.files}
    except (OSError, ValueError) as error:
        raise UserError(f"--reference {path} cannot be read as an .npz ({error}).") from None


def open_reference(
    path: Path, network: Inception, wanted: Sequence[str], folder: Path, on_done: Callable[[int], None]
) -> Reference:
    """Statistics where the file has them, images where they are needed.

    Raises:
        UserError: the reference has neither what a metric needs nor the images to compute it from.
    """
    known: dict[str, Moments] = {}
    if path.suffix == ".npz" and path.exists():
        held = read_statistics(path)
        for name, mean, covariance in (("moments", "mu", "sigma"), ("spatial", "mu_s", "sigma_s")):
            if mean in held and covariance in held:
                # The file does not say of how many images its statistics are.
                known[name] = Moments(torch.from_numpy(held[mean]), torch.from_numpy(held[covariance]), 0)
        has_images = _holds(path, "arr_0.npy")
        if not has_images and not known:
            raise UserError(f"--reference {path} holds neither statistics (mu, sigma) nor images (arr_0).")
        if not has_images and (missing := _needing_images(wanted, known)):
            raise UserError(
                f"--reference {path} has no images (arr_0), which {', '.join(missing)} need; leave them out with "
                "--metrics, or give a reference with images."
            )
        if not _needing_images(wanted, known):
            return Reference(sha256_of(path), None, known.get("moments"), known.get("spatial"))
    images = open_samples(path, flag="--reference")
    found = measure(images, network, folder, on_done=on_done)
    return Reference(
        images.digest,
        None if "moments" in known else found.count,
        known.get("moments", found.moments),
        known.get("spatial", found.spatial),
        found.features,
    )


def _holds(path: Path, member: str) -> bool:
    with ZipFile(path) as archive:
        return member in archive.namelist()


def _needing_images(wanted: Sequence[str], known: dict[str, Moments]) -> list[str]:
    def needs(name: str) -> bool:
        return (
            name in MANIFOLD
            or name == "kid"
            or (name == "fid" and "moments" not in known)
            or (name == "sfid" and "spatial" not in known)
        )

    return [name for name in wanted if needs(name)]


def score(
    samples: Path,
    reference: Path,
    network: Inception,
    weights_digest: str,
    wanted: Sequence[str],
    *,
    batch: int = BATCH,
    on_done: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Every wanted metric of the samples, what they were made of, and warnings.

    Raises:
        UserError: a file that cannot be used, with its mend.
    """
    images = open_samples(samples, flag="--samples")
    warnings = list(images.warnings)
    with TemporaryDirectory() as scratch:
        places = [Path(scratch) / name for name in ("real", "fake")]
        for place in places:
            place.mkdir()
        real = open_reference(reference, network, wanted, places[0], lambda done: None)
        fake = measure(images, network, places[1], batch=batch, on_done=on_done)
        if fake.count <= fake.moments.mean.numel() and {"fid", "sfid"} & set(wanted):
            warnings.append(
                f"{fake.count:,} samples are fewer than the {fake.moments.mean.numel():,} features: FID is far above "
                "its value at 50,000, and compares only with the same number of samples."
            )
        values = _values(real, fake, wanted)
    return {
        **values,
        "n_fake": fake.count,
        "n_real": real.count,
        "protocol": f"{CONVENTIONS['name']}@{CONVENTIONS['version']}",
        "digests": {
            "protocol": digest_of(CONVENTIONS),
            "samples": images.digest,
            "reference": real.digest,
            "weights": weights_digest,
        },
        "warnings": warnings,
    }


def _values(real: Reference, fake: Measured, wanted: Sequence[str]) -> dict[str, float]:
    out: dict[str, float] = {}
    if "fid" in wanted:
        assert real.moments is not None
        out["fid"] = metrics.frechet_distance(real=real.moments, fake=fake.moments)
    if "sfid" in wanted:
        assert real.spatial is not None
        out["sfid"] = metrics.frechet_distance(real=real.spatial, fake=fake.spatial)
    if "is" in wanted:
        out["is"] = metrics.inception_score(fake.logits, split_size=metrics.ADM_SPLIT)
    if set(MANIFOLD) & set(wanted):
        assert real.features is not None
        out |= _manifold(real.features, fake.features, wanted)
    if "kid" in wanted:
        assert real.features is not None
        size = min(1000, len(real.features), fake.count)
        found = metrics.kid(real=real.features, fake=fake.features, subset_size=size, seed=0)
        out["kid"] = found[0]
    return {name: out[name] for name in wanted}


def _manifold(real: NDArray[np.float32], fake: NDArray[np.float32], wanted: Sequence[str]) -> dict[str, float]:
    out: dict[str, float] = {}
    if {"precision", "recall", "f_score"} & set(wanted):
        found = metrics.manifold(real=real, fake=fake, k=3)
        out |= {"precision": found.precision, "recall": found.recall, "f_score": found.f_score}
    if {"density", "coverage"} & set(wanted):
        found = metrics.manifold(real=real, fake=fake, k=5)
        out |= {"density": found.density, "coverage": found.coverage}
    return out
