"""Sample, score and record checkpoints that have no record yet."""

from __future__ import annotations

import glob
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from harness.features.base import LOGITS
from harness.features.pixels import FLAT, HASH, of_a_set
from harness.metrics.evaluate import METRICS, PAIRWISE, Rules, evaluate
from harness.metrics.statistics import Measured
from harness.pipeline.checkpoints import notes_of, open_imported
from harness.pipeline.evaluations import evaluations_of, title_of, tokenizer_key
from harness.pipeline.events import events_of
from harness.pipeline.pace import pace_of
from harness.pipeline.session import Session, prepare, threads_of
from harness.pipeline.tokenizers import measure_tokenizer
from harness.pipeline.train import notes_of_run
from harness.preparation.base import Evaluator, Prepared
from harness.records.schema import Metrics, ScoreRecord
from harness.runtime.locks import alone, held
from harness.sampling.protocol import Protocol
from harness.scoring.doubts import of_numbers
from harness.scoring.feature_shards import Shards
from harness.scoring.image_files import write_npz
from harness.scoring.sample_set import LABELS, Evaluation, draw
from recipes.core.errors import UserError
from recipes.core.spec import digest_of
from recipes.training.flops import flops_to
from recipes.training.run_folder import Run, load_for_sampling

#: Metrics stored in a record (if the feature network provides their output).
RECORDED = ("fid", "sfid", "is", "precision", "recall")


def score(session: Session, prepared: Prepared, run: Run) -> None:
    """Score a run: its missing evaluations, and its tuned tokenizer."""
    score_evaluations(session, prepared, evaluations_of(session, prepared, run), f"score {title_of(session, run)}")
    key, last, done = tokenizer_key(session, prepared, run), session.budget.milestones()[-1], session.records.keys()
    if key is not None and key not in done and session.world.main:
        named = prepared.tokenizer_of(run.spec.variant) or "from scratch"
        _, tokenizer = load_for_sampling(run, last, None, average=True, device=session.world.device)
        with threads_of(session):
            session.records.append(measure_tokenizer(session, prepared, named, tokenizer, run, last))


def score_evaluations(session: Session, prepared: Prepared, evaluations: Sequence[Evaluation], label: str) -> None:
    """Draw, judge and record those evaluations of a run that have no record yet."""
    session.world.barrier()  # nobody writes a record while the others look which are missing
    done = session.records.keys()
    session.world.barrier()
    missing = [e for e in evaluations if e.record_key not in done]
    if session.world.main:
        _clear_leftovers(session, [e for e in evaluations if e.record_key in done])
    if not missing:
        return
    run, search, finished = missing[0].run, missing[0].search, 0
    with (
        held(run.folder, on=session.world.main),
        threads_of(session),
        session.costed("search" if search else "score", run.spec.variant, run.spec.train.seed),
        session.reporter.stage(label, sum(evaluation.protocol.samples for evaluation in missing)) as on_step,
        events_of(run, session.wandb, on=session.world.main and not search) as events,
    ):
        for evaluation in missing:
            on_sample = _offset(on_step, finished)
            outcome = draw_and_score(session, prepared, evaluation, on_sample, keep=session.keep_samples and not search)
            if outcome.metrics is not None:
                record = _score_record(session, prepared, evaluation, outcome)
                session.records.append(record)
                outcome.shards.clear()
                if events is not None:
                    events.score(record, outcome.grid)
            finished += evaluation.protocol.samples


def _clear_leftovers(session: Session, scored: Sequence[Evaluation]) -> None:
    """Delete shards of evaluations that are already recorded."""
    for evaluation in scored:
        # a protocol's name may hold what is a pattern to glob, such as [0,0.7]
        for folder in (session.folder / "shards").glob(
            f"{glob.escape(f'{evaluation.run.folder.name}-{evaluation.name}')}-*"
        ):
            shutil.rmtree(folder, ignore_errors=True)


def _offset(on_step: Callable[[int], None], done: int) -> Callable[[int], None]:
    return lambda more: on_step(done + more)


@dataclass(frozen=True)
class Outcome:
    """A sample set that was drawn and measured."""

    metrics: Metrics | None
    """None in all processes but the main one."""
    count: int
    seconds: float
    """Wall clock of drawing the samples."""
    grid: Path
    kept: Path | None
    """The .npz of the samples, if they were to be kept."""
    shards: Shards
    """The feature shards, kept until the record is written."""
    more: dict[str, float] = field(default_factory=dict)
    """Extra metrics from --metrics."""
    dubious: list[str] = field(default_factory=list)
    """Warnings about the samples."""
    few: list[str] = field(default_factory=list)
    """Warnings about metrics for which the protocol has too few samples."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON, in the main process."""
        assert self.metrics is not None
        return {
            **self.metrics.model_dump(exclude_none=True),
            **self.more,
            "n_fake": self.count,
            "warnings": self.dubious + self.few,
            **({"samples": str(self.kept)} if self.kept else {}),
        }


def draw_and_score(
    session: Session,
    prepared: Prepared,
    evaluation: Evaluation,
    on_sample: Callable[[int], None],
    *,
    more: Sequence[str] = (),
    keep: bool = False,
) -> Outcome:
    """Draw an evaluation's samples in shards, keep a grid of the first, and measure them.

    The caller clears the shards after storing the result, so that a killed process need not sample again.
    """
    evaluator = prepared.evaluator.seeing([METRICS[name].output for name in more], session.assets, session.world.device)
    began, world, network = time.perf_counter(), session.world, evaluator.network
    place = session.folder / "samples" / evaluation.run.folder.name / evaluation.name
    key = digest_of([evaluation.key, network.content, network.convention, keep])[:12]
    folder = session.folder / "shards" / f"{evaluation.run.folder.name}-{evaluation.name}-{key}"
    shards = Shards(folder, evaluation.protocol.samples, session.suite.chunk)
    grid, kept = Path(f"{place}.png"), Path(f"{place}.npz") if keep else None
    drawn = draw(
        evaluation, shards, network, world=world, chunk=session.suite.chunk, keep=keep, grid=grid, on_sample=on_sample
    )
    seconds = time.perf_counter() - began
    if drawn is None:
        return Outcome(None, evaluation.protocol.samples, seconds, grid, kept, shards)
    for note in drawn.notes:
        session.note(note, evaluation.run.spec.variant, evaluation.run.spec.train.seed)
    found = _metrics(drawn, evaluator, evaluation.protocol, world.device)
    rules = _rules(evaluation.protocol)
    extra = evaluate(more, real=evaluator.reference.measured, fake=drawn, rules=rules, device=world.device).values
    if kept is not None:
        write_npz(kept, shards.images(), drawn.rows, torch.as_tensor(drawn.points(LABELS)))
    dubious = of_a_set(about, "samples") if (about := drawn.rows_of(HASH, FLAT)) else []
    few = of_numbers([*_recorded(drawn), *more], evaluator.reference.measured, drawn, rules)
    return Outcome(found, drawn.rows, seconds, grid, kept, shards, extra, dubious, few)


def _score_record(session: Session, prepared: Prepared, evaluation: Evaluation, outcome: Outcome) -> ScoreRecord:
    """The record of an evaluation that was judged."""
    assert outcome.metrics is not None
    spec, clock = evaluation.run.spec, evaluation.run.clock(evaluation.step)
    variant = session.suite.variants[spec.variant]
    dubious = [f"at step {evaluation.step} under {evaluation.protocol.label}, {about}" for about in outcome.dubious]
    pace = pace_of(evaluation.run, evaluation.step)
    return ScoreRecord(
        **session.common(),
        variant=spec.variant,
        label=variant.label,
        about=variant.about,
        recipe=spec.recipe,
        source=spec.source,
        seed=spec.train.seed,
        run=spec.digest(),
        notes=[*notes_of_run(evaluation.run, evaluation.step), *pace.notes, *dubious],
        weights_hash=evaluation.run.weights_hash(evaluation.step),
        step=evaluation.step,
        images=evaluation.step * spec.train.batch_size,
        flops=flops_to(spec, session.suite.image_size, evaluation.step),
        changes=[change for change in spec.method.changes if change < evaluation.step],
        train_seconds=clock["seconds"],
        device_seconds=clock["device_seconds"],
        step_seconds=pace.step_seconds,
        step_seconds_from=pace.source,
        protocol=evaluation.protocol,
        protocol_digest=evaluation.protocol_digest,
        generation_seed=evaluation.generation_seed,
        search=evaluation.search,
        metrics=outcome.metrics,
        n_fake=outcome.count,
        n_real=prepared.evaluator.reference.measured.count or 0,
        nfe=evaluation.protocol.nfe,
        sample_seconds=outcome.seconds,
        assets=dict(evaluation.assets),
        grid=str(outcome.grid.relative_to(session.folder)),
        samples=None if outcome.kept is None else str(outcome.kept.relative_to(session.folder)),
    )


def score_imported(
    session: Session,
    folder: Path,
    tokenizer: str | None,
    step: int | None,
    protocols: Sequence[Protocol],
    more: Sequence[str] = (),
) -> dict[str, Any]:
    """Score a run's folder, wherever it was made. Writes no record, because the cost of an imported run is unknown.

    Args:
        session: with the suite whose metric and reference judge it.
        folder: the run.
        tokenizer: an asset, where the run holds none.
        step: which checkpoint; the last by default.
        protocols: how.
        more: metrics besides those of a record.

    Raises:
        UserError: the folder is not a run, or something is missing.
    """
    if pairwise := [name for name in more if name in PAIRWISE]:
        raise UserError(
            f"--metrics {pairwise[0]} compares images with their originals, and samples of a run have none."
        )
    opened = [open_imported(session, folder, tokenizer, step, protocol) for protocol in protocols]
    prepared = prepare(session, [])
    evaluations = [replace(evaluation, assets=prepared.evaluator_assets) for evaluation in opened]
    out: dict[str, Any] = {"run": str(folder), "recipe": evaluations[0].run.spec.recipe, "step": evaluations[0].step}
    out["warnings"] = notes_of(evaluations[0])
    for evaluation in evaluations:
        lock = session.folder / "shards" / f".{folder.name}-{evaluation.name}.lock"
        with (
            alone(lock, on=session.world.main),  # another command may score the same
            threads_of(session),
            session.reporter.stage(f"score {folder.name}", evaluation.protocol.samples) as on_sample,
        ):
            session.world.barrier()
            outcome = draw_and_score(session, prepared, evaluation, on_sample, more=more, keep=session.keep_samples)
            if outcome.metrics is None:
                continue
            outcome.shards.clear()
        out[evaluation.protocol.label] = {
            **outcome.as_dict(),
            "n_real": prepared.evaluator.reference.measured.count or 0,
            "protocol_digest": evaluation.protocol_digest,
            "assets": dict(evaluation.assets),
        }
    return out


def _rules(protocol: Protocol) -> Rules:
    return Rules(neighbours=protocol.neighbours, manifold_size=protocol.manifold_size)


def _recorded(fake: Measured) -> list[str]:
    return [name for name in RECORDED if fake.has(METRICS[name].output)]


def _metrics(fake: Measured, evaluator: Evaluator, protocol: Protocol, device: torch.device) -> Metrics:
    if fake.rows != protocol.samples:
        raise ValueError(f"{fake.rows} samples were scored, the protocol says {protocol.samples}")
    rules = _rules(protocol)
    found = evaluate(_recorded(fake), real=evaluator.reference.measured, fake=fake, rules=rules, device=device).values
    accuracy = None
    if evaluator.knows_labels:
        guessed = torch.as_tensor(fake.points(LOGITS)).argmax(1)
        accuracy = (guessed == torch.as_tensor(fake.points(LABELS))).double().mean().item()
    return Metrics(
        fid=found["fid"],
        sfid=found.get("sfid"),
        inception_score=found["is"],
        inception_score_se=found["is_se"],
        precision=found["precision"],
        recall=found["recall"],
        accuracy=accuracy,
    )
