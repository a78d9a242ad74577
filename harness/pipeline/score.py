"""Draw, judge and record what is not scored yet."""

from __future__ import annotations

import glob
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness.features.base import LOGITS
from harness.features.pixels import FLAT, HASH, of_a_set
from harness.metrics.evaluate import METRICS, PAIRWISE, Rules, evaluate
from harness.metrics.statistics import Measured
from harness.pipeline.checkpoints import notes_of, open_imported
from harness.pipeline.evaluations import cells_of, protocol_assets, protocol_digest, score_key, title_of, tokenizer_key
from harness.pipeline.pace import pace_of
from harness.pipeline.session import Session, prepare, threads_of
from harness.pipeline.tokenizers import measure_tokenizer
from harness.pipeline.train import remarks_of
from harness.preparation.base import Judge, Prepared
from harness.records.schema import Metrics, ScoreRecord
from harness.runtime.locks import alone, held
from harness.sampling.protocol import Protocol
from harness.scoring.doubts import of_numbers
from harness.scoring.feature_shards import Shards
from harness.scoring.image_files import write_npz
from harness.scoring.sample_set import LABELS, Cell, draw
from recipes.core.errors import UserError
from recipes.core.spec import digest_of
from recipes.training.flops import flops_per_step
from recipes.training.run_folder import Run, load_for_sampling

#: Metrics of a record, those that the feature network has.
RECORDED = ("fid", "sfid", "is", "precision", "recall")


def score(session: Session, prepared: Prepared, run: Run) -> None:
    """Score what is not scored yet."""
    score_cells(session, prepared, cells_of(session, prepared, run), f"score {title_of(session, run)}")
    key, last, done = tokenizer_key(session, prepared, run), session.budget.milestones()[-1], session.records.keys()
    if key is not None and key not in done and session.world.main:
        named = prepared.tokenizer_of(run.spec.arm) or "from scratch"
        _, tokenizer = load_for_sampling(run, last, None, average=True, device=session.world.device)
        with threads_of(session):
            session.records.append(measure_tokenizer(session, prepared, named, tokenizer, run, last))


def score_cells(
    session: Session, prepared: Prepared, cells: Sequence[Cell], label: str, *, search: bool = False
) -> None:
    """Draw, judge and record those of one run's cells that have no record yet; `search` marks settings tried out."""
    session.world.barrier()  # nobody writes a record while the others look which are missing
    done = session.records.keys()
    session.world.barrier()
    missing = [cell for cell in cells if score_key(cell, prepared, search) not in done]
    if session.world.main:
        _clear_leftovers(session, [cell for cell in cells if cell not in missing])
    if not missing:
        return
    run, finished = missing[0].run, 0
    flops = flops_per_step(run.spec, session.suite.image_size)
    with (
        held(run.folder, on=session.world.main),
        threads_of(session),
        session.costed("search" if search else "score", run.spec.arm, run.spec.train.seed),
        session.reporter.stage(label, sum(cell.protocol.samples for cell in missing)) as on_step,
    ):
        for cell in missing:
            on_sample = _offset(on_step, finished)
            judged = draw_and_judge(session, prepared, cell, on_sample, keep=session.keep_samples and not search)
            if judged.metrics is not None:
                session.records.append(_score_record(session, prepared, cell, flops, judged, search))
                judged.shards.clear()
            finished += cell.protocol.samples


def _clear_leftovers(session: Session, scored: Sequence[Cell]) -> None:
    """Shards of cells whose record is there: their process was killed before it cleared them."""
    for cell in scored:
        # a protocol's name may hold what is a pattern to glob, such as [0,0.7]
        for folder in (session.folder / "shards").glob(f"{glob.escape(f'{cell.run.folder.name}-{cell.name}')}-*"):
            shutil.rmtree(folder, ignore_errors=True)


def _offset(on_step: Callable[[int], None], done: int) -> Callable[[int], None]:
    return lambda more: on_step(done + more)


@dataclass(frozen=True)
class Judged:
    """A sample set that was drawn and measured."""

    metrics: Metrics | None
    """In the main process."""
    count: int
    seconds: float
    """Of drawing."""
    grid: Path
    kept: Path | None
    """The .npz of the samples, if they were to be kept."""
    shards: Shards
    """What the network said, until the result is kept."""
    more: dict[str, float] = field(default_factory=dict)
    """Metrics that were asked for besides."""
    dubious: list[str] = field(default_factory=list)
    """What is odd about the samples."""
    few: list[str] = field(default_factory=list)
    """What their number, which the protocol says, is too small for."""


def draw_and_judge(
    session: Session,
    prepared: Prepared,
    cell: Cell,
    on_sample: Callable[[int], None],
    *,
    more: Sequence[str] = (),
    keep: bool = False,
) -> Judged:
    """Draw a cell's samples in shards, keep a grid of the first, and measure them.

    Who has kept the result clears the shards, so that a process killed in between draws nothing again.
    """
    judge = prepared.require_judge().seeing(
        [METRICS[name].output for name in more], session.assets, session.world.device
    )
    began, world, network = time.perf_counter(), session.world, judge.network
    place = session.folder / "samples" / cell.run.folder.name / cell.name
    key = digest_of([cell.key, network.content, network.convention, keep])[:12]
    shards = Shards(session.folder / "shards" / f"{cell.run.folder.name}-{cell.name}-{key}", cell.protocol.samples)
    grid, kept = Path(f"{place}.png"), Path(f"{place}.npz") if keep else None
    drawn = draw(
        cell, shards, network, world=world, chunk=session.suite.chunk, keep=keep, grid=grid, on_sample=on_sample
    )
    seconds = time.perf_counter() - began
    for told in shards.mended:
        session.remark(told, cell.run.spec.arm, cell.run.spec.train.seed)
    if drawn is None:
        return Judged(None, cell.protocol.samples, seconds, grid, kept, shards)
    found = _metrics(drawn, judge, cell.protocol, session.suite.knows_labels, world.device)
    rules = _rules(cell.protocol)
    extra = evaluate(more, real=judge.reference, fake=drawn, rules=rules, device=world.device)
    if kept is not None:
        write_npz(kept, shards.images(), drawn.rows, torch.as_tensor(drawn.points(LABELS)))
    dubious = of_a_set(about, "samples") if (about := drawn.rows_of(HASH, FLAT)) else []
    few = of_numbers([*_recorded(drawn), *more], judge.reference, drawn, rules)
    return Judged(found, drawn.rows, seconds, grid, kept, shards, extra, dubious, few)


def _score_record(
    session: Session, prepared: Prepared, cell: Cell, flops: int, judged: Judged, search: bool
) -> ScoreRecord:
    """Of a judged cell; `flops` is the cost of one training step."""
    assert judged.metrics is not None
    spec, clock, arm = cell.run.spec, cell.run.clock(cell.step), session.suite.arms[cell.run.spec.arm]
    pace = pace_of(cell.run, cell.step)
    return ScoreRecord(
        **session.common(),
        arm=spec.arm,
        label=arm.label,
        about=arm.about,
        recipe=spec.recipe,
        seed=spec.train.seed,
        run=spec.digest(),
        remarks=[
            *remarks_of(cell.run, cell.step),
            *pace.remarks,
            *(f"at step {cell.step} under {cell.protocol.label}, {told}" for told in judged.dubious),
        ],
        weights_hash=cell.run.weights_hash(cell.step),
        step=cell.step,
        images=cell.step * spec.train.batch_size,
        flops=cell.step * flops,
        train_seconds=clock["seconds"],
        device_seconds=clock["device_seconds"],
        step_seconds=pace.step_seconds,
        step_seconds_from=pace.source,
        protocol=cell.protocol,
        protocol_digest=protocol_digest(cell.protocol, prepared),
        generation_seed=cell.generation_seed,
        search=search,
        metrics=judged.metrics,
        n_fake=judged.count,
        n_real=prepared.require_judge().reference.count or 0,
        nfe=cell.protocol.nfe,
        sample_seconds=judged.seconds,
        assets=protocol_assets(prepared),
        grid=str(judged.grid.relative_to(session.folder)),
        samples=None if judged.kept is None else str(judged.kept.relative_to(session.folder)),
    )


def score_imported(
    session: Session,
    folder: Path,
    tokenizer: str | None,
    step: int | None,
    protocols: Sequence[Protocol],
    more: Sequence[str] = (),
) -> dict[str, Any]:
    """Judge a run's folder, wherever it was made. Writes no record: what the run cost is not known here.

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
    cells = [open_imported(session, folder, tokenizer, step, protocol) for protocol in protocols]
    prepared = prepare(session, [])
    judge = prepared.require_judge()
    out: dict[str, Any] = {"run": str(folder), "recipe": cells[0].run.spec.recipe, "step": cells[0].step}
    out["warnings"] = notes_of(cells[0])
    for cell in cells:
        lock = session.folder / "shards" / f".{folder.name}-{cell.name}.lock"
        with (
            alone(lock, on=session.world.main),  # another command may score the same
            threads_of(session),
            session.reporter.stage(f"score {folder.name}", cell.protocol.samples) as on_sample,
        ):
            session.world.barrier()
            judged = draw_and_judge(session, prepared, cell, on_sample, more=more, keep=session.keep_samples)
            if judged.metrics is None:
                continue
            judged.shards.clear()
        out[cell.protocol.label] = {
            **judged.metrics.model_dump(exclude_none=True),
            **judged.more,
            "n_fake": judged.count,
            "n_real": judge.reference.count or 0,
            "protocol_digest": protocol_digest(cell.protocol, prepared),
            "assets": protocol_assets(prepared),
            "warnings": judged.dubious + judged.few,
            **({"samples": str(judged.kept)} if judged.kept else {}),
        }
    return out


def _rules(protocol: Protocol) -> Rules:
    return Rules(neighbours=protocol.neighbours, manifold_size=protocol.manifold_size)


def _recorded(fake: Measured) -> list[str]:
    return [name for name in RECORDED if fake.has(METRICS[name].output)]


def _metrics(fake: Measured, judge: Judge, protocol: Protocol, knows_labels: bool, device: torch.device) -> Metrics:
    if fake.rows != protocol.samples:
        raise ValueError(f"{fake.rows} samples were scored, the protocol says {protocol.samples}")
    rules = _rules(protocol)
    found = evaluate(_recorded(fake), real=judge.reference, fake=fake, rules=rules, device=device)
    accuracy = None
    if knows_labels:
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
