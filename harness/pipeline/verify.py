"""Checks reproducibility: retrains a run up to its first scored checkpoint and compares weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.pipeline import session as pipeline_session
from harness.pipeline.checkpoints import open_run
from harness.pipeline.session import Session
from harness.records.schema import ScoreRecord
from recipes.core.errors import UserError
from recipes.training.run_folder import Run
from recipes.training.train import TrainingOptions, train_run


@dataclass(frozen=True)
class Verified:
    """One run, trained again."""

    variant: str
    seed: int
    step: int
    equal: bool
    """Whether its weights are those that were scored, bit by bit."""
    differs: str
    """Differences between the machines, if the weights differ."""


def verify(session: Session, variant: str) -> list[Verified]:
    """The session's training seeds of a variant, each trained again to the first step that was scored.

    Raises:
        UserError: the folder has no such run, by this specification and this version of the recipe's file.
    """
    prepared = pipeline_session.prepare(session, [variant])
    records = [r for r in session.records.all() if isinstance(r, ScoreRecord) and not r.search]
    out = []
    for seed in session.seeds:
        spec = open_run(session, prepared, variant, seed).spec
        scored = [r for r in records if r.run == spec.digest()]
        if not scored:
            raise UserError(
                f"{session.folder} has no score of {variant}, seed {seed}, by this specification; give the --set and "
                "--recipe-file that it was made with, or other --seeds."
            )
        first = min(scored, key=lambda r: r.step)
        with TemporaryDirectory(prefix="repa-bench-verify-") as folder, pipeline_session.threads_of(session):
            run = Run(spec, Path(folder) / spec.name)
            with session.reporter.stage(f"train {variant}, seed {seed}, again", first.step) as on_step:
                options = TrainingOptions(session.execution, session.world, on_step=on_step)
                train_run(run, prepared.inputs(variant), [first.step], options)
            equal = run.weights_hash(first.step) == first.weights_hash
        out.append(Verified(variant, seed, first.step, equal, "" if equal else _differs(session, first)))
    return out


def _differs(session: Session, record: ScoreRecord) -> str:
    """Environment differences that may explain different weights."""
    now, then = session.common()["provenance"], record.provenance
    found = [
        f"{name} {getattr(then, name)} then, {getattr(now, name)} now"
        for name in ("processor", "device")
        if getattr(then, name) != getattr(now, name)
    ]
    found += [
        f"{name} {then.versions.get(name)} then, {version} now"
        for name, version in now.versions.items()
        if then.versions.get(name) != version
    ]
    return "; ".join(found) or "on the same processor, with the same packages"
