"""prepare, train, score, compare: in this order; what has been done on equal inputs is not done again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness import metrics, records
from harness.assets import Store
from harness.features import Features
from harness.generate import Sampler, to_uint8
from harness.progress import Reporter
from harness.protocol import Protocol
from harness.records import FloorRecord, Metrics, RecordFile, ScoreRecord, StageRecord, TokenizerRecord
from harness.signals import deferred
from harness.suites.base import Budget, Judge, Prepared, Suite, Surroundings
from recipes.core import checkpoint
from recipes.core.distributed import World
from recipes.core.errors import UserError
from recipes.core.spec import Execution, digest_of
from recipes.models.autoencoder import Autoencoder, to_unit
from recipes.registry import recipe, recipe_options
from recipes.run import Run, Training, flops_per_step, layout, load_for_sampling, train_run

GRID_COLUMNS, GRID_ROWS = 10, 10
RECONSTRUCTED = 2048
#: Samples that are drawn, and kept until all are measured, as one.
SHARD = 1024


@dataclass(frozen=True)
class Session:
    """One output folder, worked on by one command."""

    suite: Suite
    budget: Budget
    folder: Path
    store: Store
    reporter: Reporter
    world: World = field(default_factory=World)
    execution: Execution = field(default_factory=lambda: Execution(device="cpu"))
    data: str | None = None
    """Where the images lie, if the user said so."""

    @property
    def records(self) -> RecordFile:
        """The results so far."""
        return RecordFile(self.folder)

    def common(self) -> dict[str, Any]:
        """The fields that every record of the suite shares."""
        return {
            "suite": self.suite.name,
            "suite_digest": self.suite.identity(),
            "notice": self.suite.notice,
            "provenance": records.provenance(),
        }

    def refuse_foreign_records(self) -> None:
        """Results of another specification must not land in one file.

        Raises:
            UserError: the folder holds some.
        """
        mine = self.suite.identity()
        for record in self.records.all():
            if record.suite_digest != mine:
                raise UserError(
                    f"{self.folder} holds results of another specification of suite {record.suite} "
                    f"(digest {record.suite_digest[:8]}, not {mine[:8]}); choose another --out."
                )

    @contextmanager
    def costed(self, stage: str, arm: str | None = None, seed: int | None = None) -> Iterator[dict[str, float]]:
        """Record what a stage cost; facts put into the yielded dictionary are kept beside it."""
        began, facts = time.perf_counter(), dict[str, float]()
        yield facts
        if not self.world.main:
            return
        self.records.append(
            StageRecord(
                **self.common(),
                stage=stage,
                arm=arm,
                seed=seed,
                seconds=time.perf_counter() - began,
                peak_memory_bytes=records.peak_memory_bytes(),
                facts=facts,
            )
        )


def prepare(session: Session, arms: Sequence[str]) -> Prepared:
    """Find or make every asset that the arms need.

    Raises:
        UserError: the folder holds results of another specification, or an asset is missing.
    """
    session.refuse_foreign_records()
    around = Surroundings(session.store, _TimedReporter(session), session.world, session.execution, session.data)
    return session.suite.prepare(around, arms)


def examine(session: Session, prepared: Prepared, arms: Sequence[str]) -> None:
    """Measure the tokenizers and the noise floor, and check the gate. Only where there is something to judge by.

    Raises:
        UserError: a tokenizer's own rFID is over the suite's gate.
    """
    if prepared.judge is None or not session.world.main:
        return
    done = session.records.keys()
    names = {name for arm in arms if (name := prepared.tokenizer_of(arm)) is not None}
    for name in sorted(names):
        if ("tokenizer", name, None, None) not in done:
            session.records.append(_measure_tokenizer(session, prepared, name, prepared.tokenizers[name]))
    _measure_floor(session, prepared, done)
    for before in session.records.all():
        if isinstance(before, TokenizerRecord) and before.run is None and before.rfid > session.suite.max_rfid:
            raise UserError(
                f"the rFID of {before.name} is {before.rfid:.2f}, over the gate of {session.suite.max_rfid:g}: FID "
                "would measure the tokenizer, not the recipes. Train it longer (--set tokenizer.training.steps=...)."
            )


class _TimedReporter(Reporter):
    """Records the cost of every stage that the suite's preparation reports."""

    def __init__(self, session: Session) -> None:
        super().__init__(session.reporter.console, quiet=session.reporter.quiet)
        self._session = session

    @contextmanager
    def stage(self, label: str, total: int, start: int = 0) -> Iterator[Any]:
        """See `Reporter.stage`."""
        with self._session.costed(f"prepare {label}"), super().stage(label, total, start) as on_step:
            yield on_step


def open_run(session: Session, prepared: Prepared, arm: str, seed: int) -> Run:
    """The run of an arm and a seed, started or not."""
    spec = session.suite.run_spec(arm, seed, prepared.hashes)
    return Run(spec, session.folder / "runs" / spec.name)


def train(session: Session, prepared: Prepared, arm: str, seed: int) -> Run:
    """Train a run to the budget, or find that it is."""
    run = open_run(session, prepared, arm, seed)
    milestones = session.budget.milestones()
    if set(milestones) <= set(run.steps()):
        return run
    label = f"train {session.suite.arms[arm].label}, seed {seed}"
    began = run.resumable() or 0
    spread = layout(run.spec, session.execution, session.world)
    if session.execution.device != "cpu" or session.world.size > 1 or spread.accumulation > 1:
        session.reporter.say(f"  batch {spread}, {run.spec.train.precision}, {session.world.device.type}")
    with (
        deferred() as stop,
        session.costed("train", arm, seed) as facts,
        session.reporter.stage(label, milestones[-1], began) as on_step,
    ):
        training = Training(session.execution, session.world, on_step=on_step, stop=stop)
        train_run(run, prepared.inputs(arm), milestones, training)
        facts["from_step"], facts["to_step"] = began, milestones[-1]
        facts["train_seconds"] = run.clock(milestones[-1])["seconds"]
    return run


def score(session: Session, prepared: Prepared, run: Run) -> None:
    """Score every milestone under the curve protocol, and the last one under all of them."""
    last = session.budget.milestones()[-1]
    cells = [(step, session.suite.curve_protocol, 0) for step in session.budget.milestones()]
    cells += [(last, session.suite.curve_protocol, 1)]
    cells += [(last, protocol, 0) for protocol in session.suite.final_protocols]
    session.world.barrier()  # nobody writes a record while the others look which are missing
    done = session.records.keys()
    session.world.barrier()
    digest = run.spec.digest()
    missing = [
        (step, protocol, seed)
        for step, protocol, seed in cells
        if ("score", digest, step, _protocol_digest(protocol, prepared), seed) not in done
    ]
    if missing:
        label = f"score {session.suite.arms[run.spec.arm].label}, seed {run.spec.train.seed}"
        units = sum(protocol.samples for _, protocol, _ in missing)
        with (
            session.costed("score", run.spec.arm, run.spec.train.seed),
            session.reporter.stage(label, units) as on_step,
        ):
            flops = flops_per_step(run.spec, session.suite.image_size)
            finished = 0
            for step, protocol, generation_seed in missing:
                score_checkpoint(
                    session,
                    prepared,
                    run,
                    step,
                    protocol,
                    generation_seed,
                    flops,
                    _offset(on_step, finished),
                )
                finished += protocol.samples
    named = prepared.tokenizer_of(run.spec.arm) or "from scratch"
    unmeasured = recipe(run.spec.recipe).trains_tokenizer and ("tokenizer", named, digest, last) not in done
    if unmeasured and session.world.main:
        _, tokenizer = load_for_sampling(run, last, None, average=True, device=session.world.device)
        session.records.append(_measure_tokenizer(session, prepared, named, tokenizer, run, last))


def _offset(on_step: Callable[[int], None], done: int) -> Callable[[int], None]:
    return lambda more: on_step(done + more)


def _protocol_assets(prepared: Prepared) -> dict[str, str]:
    return {name: prepared.hashes[name] for name in ("features", "reference")}


def _protocol_digest(protocol: Protocol, prepared: Prepared) -> str:
    return protocol.digest_with(_protocol_assets(prepared))


def open_trained(session: Session, arm: str, seed: int) -> tuple[Run, Autoencoder | None]:
    """A trained run of the suite, and the tokenizer that it started from.

    Raises:
        UserError: it has no checkpoint.
    """
    prepared = prepare(session, [arm])
    run = open_run(session, prepared, arm, seed)
    if not run.steps():
        raise UserError(f"{run.folder} has no checkpoint; train it: repa-bench train --recipes {arm} --seeds {seed}.")
    return run, prepared.tokenizer(arm)


def open_imported(session: Session, folder: Path, tokenizer: str | None) -> tuple[Run, Autoencoder | None]:
    """A run's folder, wherever it was made, and a tokenizer of the catalogue if one is named.

    Raises:
        UserError: the folder is not a run, or the tokenizer is not on this machine.
    """
    from harness.catalogue import require
    from recipes.released import load_autoencoder

    run = Run.open(folder)
    if not run.steps():
        raise UserError(f"{folder} has no checkpoint.")
    if tokenizer is None:
        return run, None
    return run, load_autoencoder(require(session.store, tokenizer).path)[0]


def open_sampler(session: Session, run: Run, tokenizer: Autoencoder | None, step: int, protocol: Protocol) -> Sampler:
    """A checkpoint, ready to draw from with the weights that the protocol names."""
    average = protocol.weights == "ema"
    sit, tokenizer = load_for_sampling(run, step, tokenizer, average=average, device=session.world.device)
    options = recipe_options(run.spec.recipe, run.spec.options, where=run.spec.arm)
    return Sampler(sit, tokenizer, options.path)


@dataclass(frozen=True)
class SampleNames:
    """Where a sample set leaves something: named by all that decides it, so that nothing stale is ever read."""

    grid: Path
    shards: Path

    @classmethod
    def of(cls, session: Session, run: Run, step: int, protocol: Protocol, digest: str, seed: int) -> SampleNames:
        """For a checkpoint under a protocol."""
        name = f"{step:07d}-{protocol.name}-g{seed}"
        key = digest_of([run.weights_hash(step), digest, seed])[:12]
        return cls(
            grid=session.folder / "samples" / run.folder.name / f"{name}.png",
            shards=session.folder / "shards" / f"{run.folder.name}-{name}-{key}",
        )

    def clear(self) -> None:
        """The shards have been measured."""
        shutil.rmtree(self.shards, ignore_errors=True)


@dataclass(frozen=True)
class Judged:
    """A sample set that was drawn and measured."""

    metrics: Metrics | None
    """In the main process."""
    count: int
    seconds: float
    """Of drawing."""


def draw_and_judge(
    session: Session,
    prepared: Prepared,
    sampler: Sampler,
    protocol: Protocol,
    generation_seed: int,
    names: SampleNames,
    on_sample: Callable[[int], None],
) -> Judged:
    """Draw the protocol's samples in shards, keep a grid of the first, and measure them.

    A shard is a range of sample indices, whatever the number of processes: each process draws every n-th, a finished
    one is never drawn again, and all are gone once they are measured.
    """
    judge, began, world = prepared.require_judge(), time.perf_counter(), session.world
    starts = range(0, protocol.samples, SHARD)
    done = 0
    for start in starts[world.rank :: world.size]:
        indices = torch.arange(start, min(start + SHARD, protocol.samples))
        if not (names.shards / f"{start:07d}").exists():
            _draw_shard(session, judge, sampler, protocol, generation_seed, names, indices)
        done += len(indices)
        on_sample(min(done * world.size, protocol.samples))
    world.barrier()
    if not world.main:
        return Judged(None, protocol.samples, time.perf_counter() - began)
    parts = [checkpoint.load_part(names.shards / f"{start:07d}", "features") for start in starts]
    fake = Features(torch.cat([p["features"] for p in parts]), torch.cat([p["logits"] for p in parts]))
    labels = torch.cat([p["labels"] for p in parts])
    seconds = time.perf_counter() - began
    found = _metrics(fake, labels, judge, protocol, session.suite.knows_labels)
    return Judged(found, len(fake.features), seconds)


def _draw_shard(
    session: Session,
    judge: Judge,
    sampler: Sampler,
    protocol: Protocol,
    generation_seed: int,
    names: SampleNames,
    indices: Tensor,
) -> None:
    images, labels = [], []
    for chunk in indices.split(session.suite.chunk):
        drawn, classes = sampler.draw(protocol, generation_seed, chunk)
        images.append(drawn)
        labels.append(classes)
    if int(indices[0]) == 0:  # before the shard appears, so that the grid is there where the shard is
        save_grid(names.grid, torch.cat(images)[: GRID_COLUMNS * GRID_ROWS], GRID_COLUMNS)
    found = Features.of(images, judge.extractor)
    tensors = {"features": found.features, "logits": found.logits, "labels": torch.cat(labels)}
    checkpoint.save_folder(names.shards / f"{int(indices[0]):07d}", {"features": tensors}, {"count": len(indices)})


def score_checkpoint(
    session: Session,
    prepared: Prepared,
    run: Run,
    step: int,
    protocol: Protocol,
    generation_seed: int,
    flops: int,
    on_sample: Callable[[int], None],
) -> None:
    """Judge a checkpoint of the suite and record it; `flops` is the cost of one training step."""
    sampler = open_sampler(session, run, prepared.tokenizer(run.spec.arm), step, protocol)
    digest = _protocol_digest(protocol, prepared)
    names = SampleNames.of(session, run, step, protocol, digest, generation_seed)
    judged = draw_and_judge(session, prepared, sampler, protocol, generation_seed, names, on_sample)
    if judged.metrics is not None:
        session.records.append(
            _score_record(session, prepared, run, step, protocol, generation_seed, flops, judged, names)
        )
        names.clear()


def _score_record(
    session: Session,
    prepared: Prepared,
    run: Run,
    step: int,
    protocol: Protocol,
    generation_seed: int,
    flops: int,
    judged: Judged,
    names: SampleNames,
) -> ScoreRecord:
    assert judged.metrics is not None
    spec, clock, arm = run.spec, run.clock(step), session.suite.arms[run.spec.arm]
    return ScoreRecord(
        **session.common(),
        arm=spec.arm,
        label=arm.label,
        about=arm.about,
        recipe=spec.recipe,
        seed=spec.train.seed,
        run=spec.digest(),
        weights_hash=run.weights_hash(step),
        step=step,
        images=step * spec.train.batch_size,
        flops=step * flops,
        train_seconds=clock["seconds"],
        device_seconds=clock["device_seconds"],
        protocol=protocol,
        protocol_digest=_protocol_digest(protocol, prepared),
        generation_seed=generation_seed,
        metrics=judged.metrics,
        n_fake=judged.count,
        n_real=prepared.require_judge().reference_moments.count,
        nfe=protocol.nfe,
        sample_seconds=judged.seconds,
        assets=_protocol_assets(prepared),
        grid=str(names.grid.relative_to(session.folder)),
    )


def score_imported(
    session: Session, folder: Path, tokenizer: str | None, step: int | None, protocols: Sequence[Protocol]
) -> dict[str, Any]:
    """Judge a run's folder, wherever it was made. Writes no record: what the run cost is not known here.

    Raises:
        UserError: the folder is not a run, or something is missing.
    """
    run, start = open_imported(session, folder, tokenizer)
    step = step if step is not None else run.steps()[-1]
    prepared = prepare(session, [])
    judge = prepared.require_judge()
    out: dict[str, Any] = {"run": str(folder), "recipe": run.spec.recipe, "step": step}
    for protocol in protocols:
        sampler = open_sampler(session, run, start, step, protocol)
        names = SampleNames.of(session, run, step, protocol, _protocol_digest(protocol, prepared), 0)
        with session.reporter.stage(f"score {folder.name}", protocol.samples) as on_sample:
            judged = draw_and_judge(session, prepared, sampler, protocol, 0, names, on_sample)
        if judged.metrics is None:
            continue
        names.clear()
        out[protocol.label] = {
            **judged.metrics.model_dump(exclude_none=True),
            "n_fake": judged.count,
            "n_real": judge.reference_moments.count,
            "protocol_digest": _protocol_digest(protocol, prepared),
            "assets": _protocol_assets(prepared),
        }
    return out


def _metrics(fake: Features, labels: Tensor, judge: Judge, protocol: Protocol, knows_labels: bool) -> Metrics:
    if len(fake.features) != protocol.samples:
        raise ValueError(f"{len(fake.features)} samples were scored, the protocol says {protocol.samples}")
    n = protocol.manifold_size
    precision, recall = metrics.precision_recall(
        real=judge.reference.features[:n], fake=fake.features[:n], k=protocol.neighbours
    )
    return Metrics(
        fid=metrics.frechet_distance(real=judge.reference_moments, fake=metrics.Moments.of(fake.features)),
        inception_score=metrics.inception_score(fake.logits, split_size=metrics.ADM_SPLIT),
        precision=precision,
        recall=recall,
        accuracy=(fake.logits.argmax(1) == labels).double().mean().item() if knows_labels else None,
    )


def _measure_tokenizer(
    session: Session,
    prepared: Prepared,
    name: str,
    tokenizer: Autoencoder,
    run: Run | None = None,
    step: int | None = None,
) -> TokenizerRecord:
    """Reconstruct reference images from their posterior means; rFID is against the whole reference."""
    judge = prepared.require_judge()
    originals = judge.reference_images[:RECONSTRUCTED]
    tokenizer = tokenizer.to(session.world.device)
    like = next(tokenizer.parameters())
    latents, rebuilt = [], []
    with torch.no_grad():
        for chunk in originals.split(session.suite.chunk):
            mean = tokenizer.encode(to_unit(chunk, like)).mean
            latents.append(mean.cpu())
            rebuilt.append(to_uint8(tokenizer.decode(mean), "floor").cpu())
    latent, images = torch.cat(latents), torch.cat(rebuilt)
    grid = f"reconstructions/{name if run is None else run.spec.name}-{step or 0:07d}.png"
    save_grid(session.folder / grid, torch.cat((originals[:GRID_COLUMNS], images[:GRID_COLUMNS])), GRID_COLUMNS)
    fake = metrics.Moments.of(Features.of(images.split(session.suite.chunk), judge.extractor).features)
    return TokenizerRecord(
        **session.common(),
        name=name,
        arm=run.spec.arm if run else None,
        seed=run.spec.train.seed if run else None,
        run=run.spec.digest() if run else None,
        step=step,
        rfid=metrics.frechet_distance(real=judge.reference_moments, fake=fake),
        psnr=metrics.psnr(images, originals),
        latent_variance=float(latent.double().var(dim=(0, 2, 3)).mean()),
        effective_rank=metrics.effective_rank(latent),
        n=len(originals),
        grid=grid,
    )


def _measure_floor(session: Session, prepared: Prepared, done: set[tuple[object, ...]]) -> None:
    """FID between real images: disjoint halves, and as many training images as a protocol draws samples."""
    judge = prepared.require_judge()
    features = judge.reference.features
    half, n = len(features) // 2, min(session.suite.curve_protocol.samples, len(judge.training_images))

    def fresh() -> Tensor:
        return Features.of(judge.training_images[:n].split(session.suite.chunk), judge.extractor).features

    pairs: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        f"{n} training images, as many as samples are drawn": lambda: (features, fresh()),
        "two disjoint halves of the reference": lambda: (features[:half], features[half:]),
    }
    for name, make in pairs.items():
        if ("floor", name) in done:
            continue
        real, fake = make()
        fid = metrics.frechet_distance(real=metrics.Moments.of(real), fake=metrics.Moments.of(fake))
        session.records.append(FloorRecord(**session.common(), name=name, fid=fid, n_fake=len(fake), n_real=len(real)))


def save_grid(path: Path, images: Tensor, columns: int) -> None:
    """Write uint8 images (N, 3, H, W) as one PNG, row by row, one pixel for a pixel."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    canvas = np.zeros((rows * height, columns * width, channels), dtype=np.uint8)
    for k, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        y, x = divmod(k, columns)
        canvas[y * height : (y + 1) * height, x * width : (x + 1) * width] = image
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    Image.fromarray(canvas).save(temporary, format="PNG")
    temporary.replace(path)


def run_suite(session: Session, arms: Sequence[str], seeds: Sequence[int]) -> None:
    """Prepare, then train and score every arm with every seed; under torchrun, all processes share the work."""
    prepared = prepare(session, arms)
    prepared.require_judge()
    examine(session, prepared, arms)
    for seed in seeds:
        for arm in arms:
            score(session, prepared, train(session, prepared, arm, seed))
