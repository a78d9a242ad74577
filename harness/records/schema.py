"""What a record holds: one JSON line for each thing that was measured."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from harness.records.provenance import Provenance
from harness.sampling.protocol import Protocol
from recipes.core.spec import RENAMED, Count, Fraction, NotNegative, Positive, Seed, Spec, with_keys


class _Base(Spec):
    schema_version: Literal[2] = 2
    suite: str
    suite_digest: str
    notice: str
    """Disclaimer shown with the suite's numbers."""
    provenance: Provenance


class Metrics(Spec):
    """One sample set against one reference; lower FID is better."""

    fid: float
    inception_score: NotNegative
    inception_score_se: NotNegative | None = None
    """Standard error; see `harness.metrics.inception_score.InceptionScore`."""
    precision: Fraction
    recall: Fraction
    sfid: float | None = None
    """None if the feature network has no spatial layer."""
    accuracy: Fraction | None
    """Fraction of the samples that the feature network gives the label they were asked for, if it knows the labels."""


PaceSource = Literal["quiet stretch", "median of the log"]


class ScoreRecord(_Base):
    """A checkpoint under a protocol."""

    kind: Literal["score"] = "score"
    variant: str
    label: str
    """Display name."""
    about: str
    recipe: str
    source: str | None = None
    """SHA-256 of the recipe's file, where that is not of this tree."""
    seed: Seed
    run: str
    """Digest of the run's specification."""
    notes: list[str] = []
    """What happened to the run and a reader should know: a damaged checkpoint, updates left out."""
    weights_hash: str
    step: Count
    images: Annotated[int, Field(ge=1)]
    flops: Annotated[int, Field(ge=1)]
    changes: list[int] = []
    """Steps so far at which the cost per step changed (e.g. a loss term stopped)."""
    train_seconds: Positive
    """Wall-clock seconds of training, evaluation and checkpoints left out."""
    device_seconds: Positive
    """The same, times the devices that were at work."""
    step_seconds: Positive | None = None
    """Mean seconds of a training step up to here, without what else the machine did; see `harness.pipeline.pace`."""
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
    variant: str | None = None
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
    """See `harness.metrics.latents`."""
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
    variant: str
    label: str
    seed: int
    run: str
    step: int
    cknna: list[float]
    """After each block; see `harness.metrics.latents.cknna`."""
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


NOTE = "note"


class StageRecord(_Base):
    """What a finished stage cost in this session."""

    kind: Literal["stage"] = "stage"
    stage: str
    variant: str | None = None
    seed: int | None = None
    source: str | None = None
    """New SHA-256 of the recipe file, in a note that the file changed."""
    seconds: float
    peak_memory_bytes: int
    facts: dict[str, float] = {}
    notes: list[str] = []
    """What had to be repaired: then the stage is `NOTE`."""

    def key(self) -> tuple[object, ...]:
        """Unique per entry, as stages repeat."""
        return (self.kind, self.stage, self.variant, self.seed, self.provenance.created)


AnyRecord = ScoreRecord | TokenizerRecord | FloorRecord | AlignmentRecord | StageRecord
Record = Annotated[AnyRecord, Field(discriminator="kind")]


def migrated(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record of any version, as this one names them. Version 1 had arms and remarks."""
    if fields.get("schema_version") != 1:
        return fields
    fields = with_keys(fields, RENAMED | {"remarks": "notes"})
    stage = {"stage": NOTE} if fields.get("stage") == "remark" else {}
    return fields | stage | {"schema_version": 2}


ADAPTER: TypeAdapter[AnyRecord] = TypeAdapter(Record)
