"""Any samples against any reference: one pass over the images, ADM's conventions, one JSON-able result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch

from harness.evaluate import METRICS, OF_INCEPTION, PAIRWISE, Rules, evaluate, needing_rows
from harness.features import CLEAN, DINOV2, FEATURES, SPATIAL, FeatureNetwork
from harness.floor import frechet_floor
from harness.measured import Measured, Shards, measure
from harness.metrics import Moments
from harness.pairs import Beside, Distance, Paired, Reconstructed
from harness.progress import Reporter
from harness.samples import ImageSet, open_samples
from recipes.core.checkpoint import sha256_of
from recipes.core.distributed import World
from recipes.core.errors import UserError
from recipes.core.files import UNZIPPABLE
from recipes.core.spec import digest_of
from recipes.models.autoencoder import Autoencoder

VERSION = 2
#: Arrays of an ADM reference that hold statistics: (mean, covariance) of an output.
STATISTICS = {FEATURES: ("mu", "sigma"), SPATIAL: ("mu_s", "sigma_s")}
BATCH = 64
BESIDE = "another command is measuring the same images; waiting for it"
#: Rounding leaves about 1e-12 of the eigenvalues negative; a covariance that is none leaves more.
NEGATIVE_MASS = 1e-6


@dataclass(frozen=True)
class AdmReference:
    """An .npz in the form of ADM's references: statistics, images, or both."""

    path: Path
    moments: Mapping[str, Moments]
    """By output; their count is 0, which is not known: the file does not say of how many images they are."""
    has_images: bool

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return sha256_of(self.path)


def read_adm_reference(path: Path) -> AdmReference:
    """Statistics (mu, sigma, mu_s, sigma_s) of an ADM reference, and whether it has images (arr_0).

    Raises:
        UserError: not an .npz, one that holds objects, or statistics that are no mean and covariance.
    """
    moments = {}
    try:
        with ZipFile(path) as archive:
            names = set(archive.namelist())
        with np.load(path, allow_pickle=False) as file:
            for output, (mean, covariance) in STATISTICS.items():
                if {mean, covariance} <= set(file.files):
                    m, s = (torch.from_numpy(np.asarray(file[key], np.float64)) for key in (mean, covariance))
                    if m.ndim != 1 or s.shape != (len(m), len(m)) or not bool(m.isfinite().all() & s.isfinite().all()):
                        raise UserError(
                            f"{path}: {mean} {tuple(m.shape)} and {covariance} {tuple(s.shape)} are not a finite mean "
                            "(D,) and covariance (D, D); download the reference again."
                        )
                    moments[output] = Moments(m, s, 0)
    except UNZIPPABLE as error:
        raise UserError(f"{path} cannot be read as an .npz ({error}).") from None
    return AdmReference(path, moments, "arr_0.npy" in names)


@dataclass(frozen=True)
class Job:
    """What is measured with what, and where."""

    network: FeatureNetwork
    features: str
    """The network's name."""
    wanted: tuple[str, ...]
    cache: Path
    """Where shards are kept: the reference's for the next time, the samples' until they are scored."""
    world: World = field(default_factory=World)
    reporter: Reporter = field(default_factory=lambda: Reporter(quiet=True))
    rules: Rules = field(default_factory=Rules)
    batch: int = BATCH
    """Images at once; decides nothing."""
    lpips: Distance | None = None

    def __post_init__(self) -> None:
        """Refuse a metric that the network does not have.

        Raises:
            UserError: with the metric to ask for instead.
        """
        for name in self.wanted:
            if self.features != "inception" and name in OF_INCEPTION:
                raise UserError(
                    f"--metrics {name} is of Inception; with --features {self.features} ask for fd, precision, recall, "
                    "density, coverage or kid."
                )
            if self.features == "inception" and name == "fd":
                raise UserError("--metrics fd is of another --features network; Inception's is called fid.")

    def protocol(self) -> dict[str, Any]:
        """The conventions that decide the numbers."""
        return {
            "name": "adm-files" if self.features == "inception" else f"files-{self.features}",
            "version": VERSION,
            "features": self.network.convention,
            "rules": asdict(self.rules),
            "metrics": {name: METRICS[name].about for name in self.wanted},
        }

    def measure(self, images: ImageSet, label: str) -> tuple[Shards, Measured | None]:
        """One pass over a set; in the main process, what was measured."""
        key = digest_of([images.identity, self.network.content, self.network.convention])
        shards = Shards(self.cache / f"measured-{key[:24]}", len(images))
        # Of two commands that want the same at once, the second finds what the first has made.
        beside = shards.alone(on=self.world.main, on_wait=lambda: self.reporter.say(f"  {label}: {BESIDE}"))
        with beside, self.reporter.stage(label, len(images)) as on_done:
            self.world.barrier()
            return shards, measure(images, self.network, shards, batch=self.batch, world=self.world, on_done=on_done)


def _open_reference(path: Path, job: Job) -> tuple[AdmReference | None, list[str]]:
    """The reference's statistics, and the metrics that need its images.

    Raises:
        UserError: it has neither what a metric needs nor the images to compute it from.
    """
    if path.suffix != ".npz" or not path.is_file():
        return None, needing_rows(job.wanted, ())
    held = read_adm_reference(path)
    # A network's statistics are its own: ADM's are of Inception.
    usable = set(held.moments) if job.features == "inception" else set[str]()
    missing = needing_rows(job.wanted, usable)
    if missing and not held.has_images:
        if not held.moments:
            raise UserError(f"--reference {path} holds neither statistics (mu, sigma) nor images (arr_0).")
        raise UserError(
            f"--reference {path} has no images (arr_0), which {', '.join(missing)} need; leave them out with "
            "--metrics, or give a reference with images."
        )
    return (held if usable else None), missing


def _reference(path: Path, job: Job) -> tuple[Measured | None, list[str]]:
    """The reference in the main process, and warnings."""
    held, missing = _open_reference(path, job)
    known = dict(held.moments) if held else {}
    if not any(METRICS[name].needs_real for name in job.wanted):
        return Measured([], known=known, digest=open_samples(path, flag="--reference").identity), []
    if held is not None and not missing:
        return Measured([], known=known, digest=held.digest), []
    images = open_samples(path, flag="--reference")
    if len(images) < 2:
        raise UserError(f"--reference {path} holds one image: one image has no covariance, give at least two.")
    _, found = job.measure(images, f"reference {path.name}")
    if found is None:
        return None, []
    warnings = [
        f"{name} is against the {found.rows:,} images in {path.name}: the file has no statistics of that network."
        for name in job.wanted
        if held is not None and METRICS[name].output in (DINOV2, CLEAN)
    ]
    if held is not None:
        found = found.under(known, digest=held.digest)
    return found, [*images.warnings, *warnings]


def score(samples: ImageSet, reference: Path, job: Job) -> dict[str, Any] | None:
    """Every wanted metric of the samples, what they were made of, and warnings; in the main process.

    The samples' shards stay on the disk until the numbers are there: an interrupted call continues.

    Raises:
        UserError: a file that cannot be used, with its mend.
    """
    if len(samples) < 2:
        raise UserError(f"one image has no covariance: give at least two ({len(samples)} found).")
    real, warnings = _reference(reference, job)
    pairwise = [name for name in job.wanted if name in PAIRWISE]
    if pairwise:
        samples = Beside(samples, open_samples(reference, flag="--reference"))
        job = replace(job, network=Paired(job.network, pairwise, job.lpips))
    shards, fake = job.measure(samples, "samples")
    if real is None or fake is None:
        return None
    details: dict[str, dict[str, float]] = {}
    told = evaluate(job.wanted, real=real, fake=fake, rules=job.rules, device=job.world.device, details=details)
    warnings += [
        f"{name}: {found['negative_mass']:.1e} of the eigenvalues' mass is negative: the reference's or the samples' "
        "covariance is none, so the file may be damaged."
        for name, found in details.items()
        if found["negative_mass"] > NEGATIVE_MASS
    ]
    told |= {f"{name}_floor": frechet_floor(real.moments(METRICS[name].output), fake.rows) for name in details}
    width = fake.moments(FEATURES).mean.numel()
    if fake.rows <= width and any(name in told for name in ("fid", "sfid", "fd", "fd_dinov2", "clean_fid")):
        warnings.append(
            f"{fake.rows:,} samples are fewer than the {width:,} features: FID is far above its value at 50,000, and "
            "compares only with the same number of samples."
        )
    protocol = job.protocol()
    with shards.alone():
        shards.clear()
    return {
        **told,
        **({"frechet": details} if details else {}),
        "n_fake": fake.rows,
        "n_real": real.count,
        "protocol": f"{protocol['name']}@{protocol['version']}",
        "digests": {
            "protocol": digest_of(protocol),
            "samples": fake.digest,
            "reference": real.digest,
            "weights": job.network.content,
        },
        "warnings": list(dict.fromkeys([*samples.warnings, *warnings, *shards.mended])),
    }


#: What is measured of a tokenizer; LPIPS where its network is on the machine.
OF_A_TOKENIZER = ("fid", "psnr", "ssim", "lpips")


def score_tokenizer(reference: Path, tokenizer: Autoencoder, content: str, job: Job) -> dict[str, Any] | None:
    """What a tokenizer loses of the reference's images: FID is then called rFID. In the main process.

    Args:
        reference: images; statistics that come with them are what rFID is against.
        tokenizer: from posterior means, uint8 by truncation.
        content: its hash.
        job: with the metrics.

    Raises:
        UserError: see `score`.
    """
    originals = open_samples(reference, flag="--reference")
    found = score(Reconstructed(originals, tokenizer.to(job.world.device), content), reference, job)
    if found is None:
        return None
    # No floor: the reference's own images, rebuilt without loss, have an rFID of 0.
    kept = {name: value for name, value in found.items() if not name.endswith("_floor")}
    renamed = {"rfid" if name == "fid" else name: value for name, value in kept.items()}
    renamed["digests"] = found["digests"] | {"tokenizer": content}
    return renamed
