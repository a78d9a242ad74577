"""Train the runs of a suite that are not trained yet."""

from __future__ import annotations

from collections.abc import Mapping

from harness.pipeline.checkpoints import open_run
from harness.pipeline.evaluations import evaluations_of, title_of, tokenizer_key
from harness.pipeline.events import events_of
from harness.pipeline.session import Session, threads_of
from harness.preparation.base import Prepared
from harness.runtime.locks import held
from harness.runtime.signals import deferred
from recipes.training.build import layout
from recipes.training.run_folder import Run
from recipes.training.train import TrainingOptions, train_run


def train(session: Session, prepared: Prepared, variant: str, seed: int) -> Run:
    """Train a run up to the budget unless it already is."""
    run = open_run(session, prepared, variant, seed)
    milestones = session.budget.milestones()
    with held(run.folder, on=session.world.main), threads_of(session):
        _repair_run(session, prepared, run)
        if not set(milestones) <= set(run.steps()):
            _train(session, prepared, run)
    return run


def _repair_run(session: Session, prepared: Prepared, run: Run) -> None:
    """Set aside damaged checkpoints that training or scoring still needs; all processes then see the same ones."""
    if session.world.main:
        for told in run.repair(needed(session, prepared, run)):
            session.note(f"{run.spec.name}: {told}", run.spec.variant, run.spec.train.seed)
        run.prune(session.execution.keep)
    session.world.barrier()


def needed(session: Session, prepared: Prepared, run: Run) -> list[int]:
    """Steps that still have to be trained or scored."""
    milestones, kept, done = session.budget.milestones(), run.steps(), session.records.keys()
    found = [step for step in milestones if step not in kept]
    if prepared.judge is not None:
        found += [e.step for e in evaluations_of(session, prepared, run) if e.record_key not in done]
        if tokenizer_key(session, prepared, run) not in (None, *done):
            found.append(milestones[-1])
    return sorted(set(found))


def _train(session: Session, prepared: Prepared, run: Run) -> None:
    variant, seed, milestones = run.spec.variant, run.spec.train.seed, session.budget.milestones()
    label = f"train {title_of(session, run)}"
    began = run.resumable() or 0
    spread = layout(run.spec, session.execution, session.world)
    if session.execution.device != "cpu" or session.world.size > 1 or spread.accumulation > 1:
        session.reporter.note(f"  batch {spread}, {run.spec.train.precision}, {session.world.device.type}")
    with (
        deferred() as stop,
        session.costed("train", variant, seed) as facts,
        session.reporter.stage(label, milestones[-1], began) as on_step,
        events_of(run, session.wandb, on=session.world.main, begin=began) as events,
    ):
        training = TrainingOptions(session.execution, session.world, on_step=session.reporter.part(on_step), stop=stop)
        if events is not None:
            training.on_log = events.row
        train_run(run, prepared.inputs(variant), milestones, training)
        facts["from_step"], facts["to_step"] = began, milestones[-1]
        clock = run.clock(milestones[-1])
        facts["train_seconds"] = clock["seconds"]
    if clock.get("left_out"):
        session.reporter.note(f"{run.spec.name}: {_left_out(clock['left_out'])}", "yellow")


def notes_of_run(run: Run, step: int) -> list[str]:
    """Notes for readers about a run up to `step` (e.g. skipped updates)."""
    left_out = run.clock(step).get("left_out")
    return run.notes() + ([_left_out(left_out)] if left_out else [])


def _left_out(counts: Mapping[str, int]) -> str:
    told = ", ".join(f"{network} {count}" for network, count in counts.items())
    return f"updates that were not finite and left out: {told}"
