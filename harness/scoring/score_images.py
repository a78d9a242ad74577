"""Score image files against a reference (CLI `score --samples`); result is JSON-able."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.features.base import CLEAN, DINOV2, FeatureNetwork
from harness.features.pixels import HASH, rows_about
from harness.metrics.adm_reference import AdmReference, is_adm_reference, read_adm_reference
from harness.metrics.evaluate import METRICS, OF_INCEPTION, PAIRWISE, Rules, evaluate, needing_rows
from harness.metrics.floor import frechet_floor
from harness.metrics.frechet import FrechetResult
from harness.metrics.statistics import Measured
from harness.runtime.progress import Reporter
from harness.scoring import doubts
from harness.scoring.feature_shards import Shards, measure
from harness.scoring.image_sets import ImageSet, open_samples
from harness.scoring.paired_images import Beside, Distance, Paired, Reconstructed
from recipes.core.distributed import World
from recipes.core.errors import UserError
from recipes.core.spec import digest_of
from recipes.models.autoencoder import Autoencoder

VERSION = 2
#: Version of the shard contents; increment when outputs are added so that older shards are not reused.
KEPT = 2
BATCH = 64
#: Number of reference images hashed (duplicate check) when only statistics are needed.
GLANCED = 64
#: Fréchet distances below this fraction of the floor are suspicious.
CLOSER = 0.5


#: File names of JiT's ImageNet reference.
JIT = ("jit_in256_stats.npz", "jit_in512_stats.npz")
OF_JIT = "the reference is JiT's set of ImageNet statistics: its FID compares with no number against ADM's reference"


@dataclass(frozen=True)
class Job:
    """Settings of a scoring job (network, metrics, cache, processes)."""

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
    """Batch size; does not affect results."""
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

    def protocol(self, *, reference: Path, real: int, fake: int) -> dict[str, Any]:
        """The conventions that decide the numbers, of so many reference images and samples."""
        of_inception = "jit-files" if reference.name in JIT else "adm-files"
        return {
            "name": of_inception if self.features == "inception" else f"files-{self.features}",
            "version": VERSION,
            "features": self.network.convention,
            "rules": self.rules.applied(self.wanted, real=real, fake=fake),
            "metrics": {name: METRICS[name].about for name in self.wanted},
        }

    def measure(self, images: ImageSet, label: str) -> tuple[Shards, Measured | None]:
        """Compute features of a set; the Measured only in the main process."""
        key = digest_of([images.identity, self.network.content, self.network.convention, KEPT])
        shards = Shards(self.cache / f"measured-{key[:24]}", len(images))

        # Of two commands that want the same at once, the second finds what the first has made.
        def wait(holder: str) -> None:
            self.reporter.note(f"  {label}: {holder} is measuring the same images; waiting for it")

        with shards.alone(on=self.world.main, on_wait=wait), self.reporter.stage(label, len(images)) as on_done:
            self.world.barrier()
            return shards, measure(images, self.network, shards, batch=self.batch, world=self.world, on_done=on_done)


def _open_reference(path: Path, job: Job) -> tuple[AdmReference | None, list[str]]:
    """The reference's statistics, and the metrics that need its images.

    Raises:
        UserError: it has neither what a metric needs nor the images to compute it from.
    """
    if not is_adm_reference(path):
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


def _statistics(held: AdmReference) -> Measured:
    """Measured from stored statistics only; image size and hashes are still read for warnings."""
    size = seen = None
    if held.has_images:
        with suppress(UserError):  # what is wrong with them is no matter
            shown = open_samples(held.path, flag="--reference")
            size, seen = shown.size, rows_about(shown.read(0, min(len(shown), GLANCED)))[HASH]
    return Measured([], known=dict(held.moments), digest=held.digest, size=size, seen=seen)


def _reference(path: Path, job: Job) -> tuple[Measured | None, list[str]]:
    """The reference in the main process, and warnings."""
    held, missing = _open_reference(path, job)
    known = dict(held.moments) if held else {}
    if not any(METRICS[name].needs_real for name in job.wanted):
        digest = held.digest if held else open_samples(path, flag="--reference").identity
        return Measured([], known=known, digest=digest), []
    outputs = {METRICS[name].output for name in job.wanted}
    warnings = [told for output, some in (held.warnings if held else {}).items() if output in outputs for told in some]
    if held is not None and not missing:
        return _statistics(held), warnings
    images = open_samples(path, flag="--reference")
    if len(images) < 2:
        raise UserError(f"--reference {path} holds one image: one image has no covariance, give at least two.")
    _, measured = job.measure(images, f"reference {path.name}")
    if measured is None:
        return None, []
    warnings += [
        f"{name} is against the {measured.rows:,} images in {path.name}: the file has no statistics of that network."
        for name in job.wanted
        if held is not None and METRICS[name].output in (DINOV2, CLEAN)
    ]
    if held is not None:
        measured = measured.under(known, digest=held.digest)
    return measured, [*images.warnings, *warnings]


def _doubts(
    job: Job, real: Measured, fake: Measured, values: Mapping[str, float], distances: Mapping[str, FrechetResult]
) -> list[str]:
    """Warnings about the values."""
    found = doubts.of_numbers(job.wanted, real, fake, job.rules)
    if near := [name for name in distances if values[name] < CLOSER * values.get(f"{name}_floor", 0.0)]:
        found.append(
            f"{', '.join(near)}: below half of what as many perfect samples have on average: these are closer to the "
            "reference than chance, as copies of its images are."
        )
    return found + [
        f"{name}: {share:.1e} of the eigenvalues' mass is negative: the reference's or the samples' covariance is "
        "none, so the file may be damaged."
        for name in distances
        if (share := distances[name].negative_mass) > doubts.NEGATIVE_MASS
    ]


def _parts(distance: FrechetResult) -> dict[str, float]:
    return {name: value for name, value in asdict(distance).items() if name != "distance"}


def score(samples: ImageSet, reference: Path, job: Job) -> dict[str, Any] | None:
    """Every wanted metric of the samples, what they were made of, and warnings; in the main process.

    The samples' shards stay on the disk until the numbers are there: an interrupted call continues.

    Raises:
        UserError: a file that cannot be used, with its remedy.
    """
    if len(samples) < 2:
        raise UserError(f"one image has no covariance: give at least two ({len(samples)} found).")
    rebuilt = isinstance(samples, Reconstructed)
    real, warnings = _reference(reference, job)
    pairwise = [name for name in job.wanted if name in PAIRWISE]
    if pairwise:
        samples = Beside(samples, open_samples(reference, flag="--reference"))
        job = replace(job, network=Paired(job.network, pairwise, job.lpips))
    shards, fake = job.measure(samples, "samples")
    if real is None or fake is None:
        return None
    found = evaluate(job.wanted, real=real, fake=fake, rules=job.rules, device=job.world.device)
    values, distances = found.values, found.distances
    if not rebuilt:  # the reference's own images, rebuilt without loss, have an rFID of 0
        values |= {f"{name}_floor": frechet_floor(real.moments(METRICS[name].output), fake.rows) for name in distances}
    warnings = _doubts(job, real, fake, values, distances) + warnings
    warnings += doubts.of_sets(job.wanted, fake, real, rebuilt=rebuilt)
    warnings += [OF_JIT] * (reference.name in JIT)
    protocol = job.protocol(reference=reference, real=real.rows, fake=fake.rows)
    with shards.alone():
        shards.clear()
    sizes = {"samples": fake.size, "reference": real.size}
    return {
        **values,
        **({"frechet": {name: _parts(distance) for name, distance in distances.items()}} if distances else {}),
        "n_fake": fake.rows,
        "n_real": real.count,
        "sizes": {name: list(size) for name, size in sizes.items() if size},
        "protocol": f"{protocol['name']}@{protocol['version']}",
        "rules": protocol["rules"],
        "digests": {
            "protocol": digest_of(protocol),
            "samples": fake.digest,
            "reference": real.digest,
            "weights": job.network.content,
        },
        "warnings": list(dict.fromkeys([*samples.warnings, *job.network.notes, *warnings, *fake.notes])),
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
    renamed = {"rfid" if name == "fid" else name: value for name, value in found.items()}
    renamed["digests"] = found["digests"] | {"tokenizer": content}
    return renamed
