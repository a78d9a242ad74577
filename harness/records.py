"""Results: one JSON object a line, typed and versioned, appended whole or not at all. Reports read nothing else."""

from __future__ import annotations

import json
import os
import platform
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, TypeAdapter, ValidationError

from harness import code
from harness.locks import alone
from harness.protocol import Protocol
from recipes.core.checkpoint import open_own, write_text
from recipes.core.errors import DamagedError, UserError
from recipes.core.jsons import load_json
from recipes.core.spec import Count, NotNegative, Positive, Seed, Share, Spec, digest_of

FILE = "records.jsonl"
#: Who writes to it has this, beside it.
LOCK = f".{FILE}.lock"
#: Where lines go that are not what was written.
DAMAGED_FILE = "records.damaged.jsonl"
#: Among the versions: the hash of the code that ran, which an installed package has too.
SOURCE = "repa-bench source"
#: A line's own digest, beside its fields.
CHECK = "check"
PACKAGES = (
    "torch", "torchvision", "diffusers", "timm", "lpips", "datasets", "numpy", "scikit-learn", "torch-fidelity",
    "clean-fid",
)  # fmt: skip


class Provenance(Spec):
    """Where a number came from."""

    created: str
    """UTC, ISO 8601."""
    commit: str | None
    """Of our own repository; none for installed packages, which `SOURCE` among the versions identifies."""
    dirty: bool | None
    """Whether tracked files differed from the commit."""
    versions: dict[str, str]
    device: str
    processor: str
    cores: int
    threads: int
    system: str


class _Base(Spec):
    schema_version: Literal[1] = 1
    suite: str
    suite_digest: str
    notice: str
    """What the suite is not: printed wherever its numbers are."""
    provenance: Provenance


class Metrics(Spec):
    """One sample set against one reference; lower FID is better."""

    fid: float
    inception_score: NotNegative
    inception_score_se: NotNegative | None = None
    """Standard error; see `harness.metrics.InceptionScore`."""
    precision: Share
    recall: Share
    sfid: float | None = None
    """Where the feature network has a layer for it."""
    accuracy: Share | None
    """Share of the samples that the feature network gives the label they were asked for, if it knows the labels."""


PaceSource = Literal["quiet stretch", "median of the log"]


class ScoreRecord(_Base):
    """A checkpoint under a protocol."""

    kind: Literal["score"] = "score"
    arm: str
    label: str
    """The arm's name for people."""
    about: str
    recipe: str
    seed: Seed
    run: str
    """Digest of the run's specification."""
    remarks: list[str] = []
    """What happened to the run and a reader should know: a damaged checkpoint, updates left out."""
    weights_hash: str
    step: Count
    images: Annotated[int, Field(ge=1)]
    flops: Annotated[int, Field(ge=1)]
    train_seconds: Positive
    """Wall-clock seconds of training, evaluation and checkpoints left out."""
    device_seconds: Positive
    """The same, times the devices that were at work."""
    step_seconds: Positive | None = None
    """Seconds of one training step up to here, without what else the machine did; see `harness.pace`."""
    step_seconds_from: PaceSource | None = None
    protocol: Protocol
    protocol_digest: str
    generation_seed: Seed
    search: bool = False
    """Tried to choose a setting by: no result."""
    metrics: Metrics
    n_fake: Count
    n_real: int
    """0 where the reference's statistics do not say."""
    nfe: Count
    sample_seconds: NotNegative
    assets: dict[str, str]
    grid: str
    """PNG of the first samples of each of the first ten classes, beside the records: a column for a class, no
    scaling."""
    samples: str | None = None
    """The .npz of all samples, if they were kept."""

    @staticmethod
    def key_of(run: str, step: int, protocol_digest: str, generation_seed: int, search: bool) -> tuple[object, ...]:
        """What may stand in the file only once."""
        return ("score", run, step, protocol_digest, generation_seed, search)

    def key(self) -> tuple[object, ...]:
        """See `key_of`."""
        return self.key_of(self.run, self.step, self.protocol_digest, self.generation_seed, self.search)


class TokenizerRecord(_Base):
    """A tokenizer, before joint training (no run) or at a checkpoint of it."""

    kind: Literal["tokenizer"] = "tokenizer"
    name: str = "tokenizer"
    """Which one, in suites with several."""
    arm: str | None = None
    seed: int | None = None
    run: str | None = None
    step: int | None = None
    rfid: float
    psnr: float
    """dB."""
    ssim: float | None = None
    lpips: float | None = None
    """Where VGG16 is on the machine."""
    latent_variance: float
    """Mean over the channels of the posterior mean's variance."""
    effective_rank: float
    """Participation ratio of the latent covariance."""
    spatial_variance: float | None = None
    """See `harness.latents`."""
    total_variation: float | None = None
    n: int
    grid: str
    """PNG: originals above reconstructions."""
    components: str | None = None
    """PNG: the latents' first three principal components as colours."""

    def key(self) -> tuple[object, ...]:
        """What may stand in the file only once."""
        return (self.kind, self.name, self.run, self.step)


class FloorRecord(_Base):
    """FID between two sets of real images: what no model can be told apart below."""

    kind: Literal["floor"] = "floor"
    name: str
    fid: float
    n_fake: int
    n_real: int
    """0 where the reference's statistics do not say."""

    def key(self) -> tuple[object, ...]:
        """What may stand in the file only once."""
        return (self.kind, self.name)


class AlignmentRecord(_Base):
    """How far a checkpoint's features agree with the encoder's, at every depth."""

    kind: Literal["alignment"] = "alignment"
    arm: str
    label: str
    seed: int
    run: str
    step: int
    cknna: list[float]
    """After each block; see `harness.latents.cknna`."""
    aligned_depth: int
    """The block that alignment is trained at, from 1."""
    time: float
    """Noise level of the latents."""
    count: int
    """Training images."""

    @staticmethod
    def key_of(run: str, step: int, count: int) -> tuple[object, ...]:
        """What may stand in the file only once."""
        return ("alignment", run, step, count)

    def key(self) -> tuple[object, ...]:
        """See `key_of`."""
        return self.key_of(self.run, self.step, self.count)


REMARK = "remark"


class StageRecord(_Base):
    """What a finished stage cost in this session."""

    kind: Literal["stage"] = "stage"
    stage: str
    arm: str | None = None
    seed: int | None = None
    seconds: float
    peak_memory_bytes: int
    facts: dict[str, float] = {}
    remarks: list[str] = []
    """What had to be mended: then the stage is `REMARK`."""

    def key(self) -> tuple[object, ...]:
        """Stages repeat: each entry stands for itself."""
        return (self.kind, self.stage, self.arm, self.seed, self.provenance.created)


AnyRecord = ScoreRecord | TokenizerRecord | FloorRecord | AlignmentRecord | StageRecord
Record = Annotated[AnyRecord, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[AnyRecord] = TypeAdapter(Record)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


@lru_cache(maxsize=1)
def _surroundings() -> dict[str, object]:
    commit, dirty = code.commit()
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": {"python": platform.python_version(), "repa-bench": _version("repa-bench"), SOURCE: code.digest()}
        | {package: _version(package) for package in PACKAGES},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "system": platform.platform(),
    }


def provenance() -> Provenance:
    """Commit, versions and hardware of this process, now."""
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    return Provenance.parse({"created": now, "threads": torch.get_num_threads(), **_surroundings()}, where="provenance")


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def parse(line: str, where: str) -> AnyRecord:
    """One line.

    Raises:
        DamagedError: it is not what was written.
        UserError: it is not a record of this schema.
    """
    try:
        fields = load_json(line)
        check = fields.pop(CHECK, None)
        sound = check is None or check == digest_of(fields)
    except (ValueError, AttributeError, TypeError):
        sound = False
    if not sound:
        raise DamagedError(
            f"{where} is damaged: it is not what was written. Run the same command again, which measures it anew, or "
            "remove the line."
        )
    try:
        return _ADAPTER.validate_json(json.dumps(fields))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{where}: {key or 'line'}: {first['msg']}. Remove the line, or read the file with the version that wrote "
            "it."
        ) from None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Every finished line with its place; a last one without its newline is a write cut short, and is passed over."""
    if not path.is_file():
        return
    text = path.read_bytes().decode(errors="replace")
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        yield line, f"{path}, line {number}"


def read(path: Path) -> Iterator[AnyRecord]:
    """Every record of a file; a last line without its newline is a write cut short, and is passed over.

    Raises:
        DamagedError: a line that is not what was written.
        UserError: a line that is not a record of this schema.
    """
    for line, where in _lines(path):
        yield parse(line, where)


class RecordFile:
    """The records of one output folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FILE

    def all(self) -> list[AnyRecord]:
        """Every record, in the order of writing."""
        return list(read(self.path))

    def keys(self) -> set[tuple[object, ...]]:
        """What has been measured."""
        return {record.key() for record in read(self.path)}

    def append(self, record: AnyRecord) -> None:
        """Append one record under a lock, and flush it to the disk, unless its key is there: another process was
        faster. A torn last line is cut off first, and what a full disk cuts short is taken back.
        """
        fields = record.model_dump(mode="json")
        line = json.dumps(fields | {CHECK: digest_of(fields)}, sort_keys=True, allow_nan=False) + "\n"
        with self._alone(), open_own(self.path) as file:
            if record.key() in self._sound_keys():
                return
            file.seek(0)
            end = file.read().rfind(b"\n") + 1
            file.truncate(end)
            try:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise

    def mend(self) -> list[str]:
        """Move damaged lines to a file of their own, so that they are measured again; a sentence for each.

        Raises:
            UserError: a line that is not a record of this schema.
        """
        bad = []
        if not self.path.exists():
            return []
        with self._alone():
            lines = list(_lines(self.path))
            for line, where in lines:
                try:
                    parse(line, where)
                except DamagedError:
                    bad.append((line, where))
            if bad:
                with open_own(self.folder / DAMAGED_FILE) as aside:
                    aside.writelines(f"{line}\n".encode() for line, _ in bad)
                damaged = {where for _, where in bad}
                kept = [f"{line}\n" for line, where in lines if where not in damaged]
                write_text(self.path, "".join(kept))
        return [f"{where} was damaged and is now in {DAMAGED_FILE}" for _, where in bad]

    def take(self, wanted: Callable[[AnyRecord], bool]) -> list[str]:
        """Take records out of the file; returns their lines.

        Raises:
            DamagedError: a line that is not what was written.
            UserError: a line that is not a record of this schema.
        """
        if not self.path.exists():
            return []
        with self._alone():
            lines = [(line, wanted(parse(line, where))) for line, where in _lines(self.path)]
            write_text(self.path, "".join(f"{line}\n" for line, gone in lines if not gone))
        return [line for line, gone in lines if gone]

    def _alone(self) -> AbstractContextManager[None]:
        """While nobody else writes to the file."""
        return alone(self.folder / LOCK)

    def _sound_keys(self) -> set[tuple[object, ...]]:
        """`keys`, passing over what cannot be read: a bad line must not cost the next measurement."""
        out = set()
        for line, where in _lines(self.path):
            try:
                out.add(parse(line, where).key())
            except UserError:
                continue
        return out
