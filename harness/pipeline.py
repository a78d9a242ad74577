"""prepare, train, score, compare: in this order; what has been done on equal inputs is not done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from harness.suites.base import Budget, Prepared, Suite
from recipes.core.errors import UserError
from recipes.models.autoencoder import Autoencoder, to_unit
from recipes.registry import recipe, recipe_options
from recipes.run import Run, flops_per_step, load_for_sampling, train_run

GRID_COLUMNS, GRID_ROWS = 10, 10
RECONSTRUCTED = 2048
CHUNK = 256


@dataclass(frozen=True)
class Session:
    """One output folder, worked on by one command."""

    suite: Suite
    budget: Budget
    folder: Path
    store: Store
    reporter: Reporter

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


def prepare(session: Session) -> Prepared:
    """Make what is missing, measure the tokenizer and the noise floor, and check the gate.

    Raises:
        UserError: the tokenizer's own rFID is over the suite's gate.
    """
    session.refuse_foreign_records()
    reporter = _TimedReporter(session)
    prepared = session.suite.prepare(session.store, reporter)
    done = session.records.keys()
    if ("tokenizer", None, None) not in done:
        session.records.append(_measure_tokenizer(session, prepared, prepared.inputs.tokenizer))
    _measure_floor(session, prepared, done)
    before = next(r for r in session.records.all() if isinstance(r, TokenizerRecord) and r.run is None)
    if before.rfid > session.suite.max_rfid:
        raise UserError(
            f"the tokenizer's rFID is {before.rfid:.2f}, over the gate of {session.suite.max_rfid:g}: FID would "
            "measure the tokenizer, not the recipes. Train it longer (--set tokenizer.training.steps=...)."
        )
    return prepared


class _TimedReporter(Reporter):
    """Records the cost of every stage that the suite's preparation reports."""

    def __init__(self, session: Session) -> None:
        super().__init__(session.reporter.console)
        self._session = session

    @contextmanager
    def stage(self, label: str, total: int, start: int = 0) -> Iterator[Any]:
        """See `Reporter.stage`."""
        with self._session.costed(f"prepare {label}"), super().stage(label, total, start) as on_step:
            yield on_step


def open_run(session: Session, prepared: Prepared, arm: str, seed: int) -> Run:
    """The run of an arm and a seed, started or not."""
    spec = session.suite.run_spec(arm, seed, prepared)
    return Run(spec, session.folder / "runs" / spec.name)


def train(session: Session, prepared: Prepared, arm: str, seed: int) -> Run:
    """Train a run to the budget, or find that it is."""
    run = open_run(session, prepared, arm, seed)
    milestones = session.budget.milestones()
    if set(milestones) <= set(run.steps()):
        return run
    label = f"train {session.suite.arms[arm].label}, seed {seed}"
    began = run.resumable() or 0
    with (
        session.costed("train", arm, seed) as facts,
        session.reporter.stage(label, milestones[-1], began) as on_step,
    ):
        train_run(run, prepared.inputs, milestones, on_step=on_step)
        facts["from_step"], facts["to_step"] = began, milestones[-1]
        facts["train_seconds"] = run.clock(milestones[-1])["seconds"]
    return run


def score(session: Session, prepared: Prepared, run: Run) -> None:
    """Score every milestone under the curve protocol, and the last one under all of them."""
    last = session.budget.milestones()[-1]
    cells = [(step, session.suite.curve_protocol, 0) for step in session.budget.milestones()]
    cells += [(last, session.suite.curve_protocol, 1)]
    cells += [(last, protocol, 0) for protocol in session.suite.final_protocols]
    done = session.records.keys()
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
            flops = flops_per_step(run.spec, prepared.reference_images.shape[-1])
            finished = 0
            for step, protocol, generation_seed in missing:
                record = score_checkpoint(
                    session,
                    prepared,
                    run,
                    step,
                    protocol,
                    generation_seed,
                    flops,
                    _offset(on_step, finished),
                )
                session.records.append(record)
                finished += protocol.samples
    if recipe(run.spec.recipe).trains_tokenizer and ("tokenizer", digest, last) not in done:
        _, tokenizer = load_for_sampling(run, last, prepared.inputs.tokenizer, average=True)
        session.records.append(_measure_tokenizer(session, prepared, tokenizer, run, last))


def _offset(on_step: Callable[[int], None], done: int) -> Callable[[int], None]:
    return lambda more: on_step(done + more)


def _protocol_assets(prepared: Prepared) -> dict[str, str]:
    return {name: prepared.hashes[name] for name in ("features", "reference")}


def _protocol_digest(protocol: Protocol, prepared: Prepared) -> str:
    return protocol.digest_with(_protocol_assets(prepared))


def open_sampler(run: Run, prepared: Prepared, step: int, protocol: Protocol) -> Sampler:
    """A checkpoint, ready to draw from with the weights that the protocol names."""
    sit, tokenizer = load_for_sampling(run, step, prepared.inputs.tokenizer, average=protocol.weights == "ema")
    options = recipe_options(run.spec.recipe, run.spec.options, where=run.spec.arm)
    return Sampler(sit, tokenizer, options.path)


def score_checkpoint(
    session: Session,
    prepared: Prepared,
    run: Run,
    step: int,
    protocol: Protocol,
    generation_seed: int,
    flops: int,
    on_sample: Callable[[int], None],
) -> ScoreRecord:
    """Sample a checkpoint, keep a grid of the first samples, and measure; `flops` is the cost of one training step."""
    began = time.perf_counter()
    sampler = open_sampler(run, prepared, step, protocol)
    images, labels = [], []
    for batch, classes in sampler.batches(protocol, generation_seed, protocol.samples, CHUNK):
        images.append(batch)
        labels.append(classes)
        on_sample(sum(map(len, images)))
    seconds = time.perf_counter() - began
    grid = f"samples/{run.spec.name}/{step:07d}-{protocol.name}-g{generation_seed}.png"
    save_grid(session.folder / grid, torch.cat(images)[: GRID_COLUMNS * GRID_ROWS], GRID_COLUMNS)
    fake = Features.of(images, prepared.extractor)
    spec = run.spec
    return ScoreRecord(
        **session.common(),
        arm=spec.arm,
        label=session.suite.arms[spec.arm].label,
        about=session.suite.arms[spec.arm].about,
        recipe=spec.recipe,
        seed=spec.train.seed,
        run=spec.digest(),
        weights_hash=run.weights_hash(step),
        step=step,
        images=step * spec.train.batch_size,
        flops=step * flops,
        train_seconds=run.clock(step)["seconds"],
        protocol=protocol,
        protocol_digest=_protocol_digest(protocol, prepared),
        generation_seed=generation_seed,
        metrics=_metrics(fake, torch.cat(labels), prepared, protocol),
        n_fake=len(fake.features),
        n_real=len(prepared.reference.features),
        nfe=protocol.nfe,
        sample_seconds=seconds,
        assets=_protocol_assets(prepared),
        grid=grid,
    )


def _metrics(fake: Features, labels: Tensor, prepared: Prepared, protocol: Protocol) -> Metrics:
    if len(fake.features) != protocol.samples:
        raise ValueError(f"{len(fake.features)} samples were scored, the protocol says {protocol.samples}")
    n = protocol.manifold_size
    precision, recall = metrics.precision_recall(
        real=prepared.reference.features[:n], fake=fake.features[:n], k=protocol.neighbours
    )
    return Metrics(
        fid=metrics.frechet_distance(real=prepared.reference_moments, fake=metrics.Moments.of(fake.features)),
        inception_score=metrics.inception_score(fake.logits),
        precision=precision,
        recall=recall,
        accuracy=(fake.logits.argmax(1) == labels).double().mean().item(),
    )


def _measure_tokenizer(
    session: Session,
    prepared: Prepared,
    tokenizer: Autoencoder,
    run: Run | None = None,
    step: int | None = None,
) -> TokenizerRecord:
    """Reconstruct reference images from their posterior means; rFID is against the whole reference."""
    originals = prepared.reference_images[:RECONSTRUCTED]
    like = next(tokenizer.parameters())
    latents, rebuilt = [], []
    with torch.no_grad():
        for chunk in originals.split(CHUNK):
            latents.append(tokenizer.encode(to_unit(chunk, like)).mean)
            rebuilt.append(to_uint8(tokenizer.decode(latents[-1]), "floor"))
    latent, images = torch.cat(latents), torch.cat(rebuilt)
    name = "before" if run is None else run.spec.name
    grid = f"reconstructions/{name}-{step or 0:07d}.png"
    save_grid(session.folder / grid, torch.cat((originals[:GRID_COLUMNS], images[:GRID_COLUMNS])), GRID_COLUMNS)
    fake = metrics.Moments.of(Features.of(images.split(CHUNK), prepared.extractor).features)
    return TokenizerRecord(
        **session.common(),
        arm=run.spec.arm if run else None,
        seed=run.spec.train.seed if run else None,
        run=run.spec.digest() if run else None,
        step=step,
        rfid=metrics.frechet_distance(real=prepared.reference_moments, fake=fake),
        psnr=metrics.psnr(images, originals),
        latent_variance=float(latent.double().var(dim=(0, 2, 3)).mean()),
        effective_rank=metrics.effective_rank(latent),
        n=len(originals),
        grid=grid,
    )


def _measure_floor(session: Session, prepared: Prepared, done: set[tuple[object, ...]]) -> None:
    """FID between real images: disjoint halves, and as many training images as a protocol draws samples."""
    features = prepared.reference.features
    half, n = len(features) // 2, session.suite.curve_protocol.samples

    def fresh() -> Tensor:
        return Features.of(prepared.inputs.data.images[:n].split(CHUNK), prepared.extractor).features

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
    """Prepare, then train and score every arm with every seed."""
    prepared = prepare(session)
    for seed in seeds:
        for arm in arms:
            score(session, prepared, train(session, prepared, arm, seed))
