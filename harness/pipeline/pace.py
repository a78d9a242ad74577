"""Seconds per training step on an undisturbed machine, for budgets in device-seconds.

A run that had the machine to itself has logged its clock, and the median of the logged stretches is its pace. A run
that shares the machine with others has no such stretch: its pace is measured before they start, alone and quiet.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from statistics import median

from harness.pipeline.probe import step_times
from harness.records.schema import PaceSource
from harness.results.step_times import disturbances, steady
from harness.runtime.locks import held
from recipes.core.atomic import write_text
from recipes.core.distributed import World
from recipes.core.json_lines import left_out, read_rows, row_text
from recipes.core.spec import Execution
from recipes.data.loader import batches
from recipes.training.build import build_trainer
from recipes.training.run_folder import Run
from recipes.training.spec import TrainingInputs

#: File in the run's folder with paces measured by `measure`.
FILE = "pace.json"
#: Duration and minimum steps of the isolated measurement.
QUIET_SECONDS, QUIET_STEPS = 1.5, 20


def measure(run: Run, inputs: TrainingInputs, execution: Execution, world: World) -> None:
    """Train the run's first steps on its own data for about `QUIET_SECONDS`, keep what one took, forget the rest.

    Raises:
        UserError: somebody else works on the run.
    """
    with held(run.folder):
        train, rows = run.spec.train, ""
        for begin in (0, *run.spec.method.changes):
            trainer = build_trainer(run.spec, inputs, execution=execution, world=world)
            trainer.position = begin
            stream = batches(inputs.data, seed=train.seed, batch_size=train.batch_size, start=begin, stop=sys.maxsize)
            times = step_times(trainer, stream, QUIET_SECONDS, least=QUIET_STEPS)
            rows += row_text({"step_seconds": median(times), "steps": len(times)})
        write_text(run.folder / FILE, rows)


def quiet(run: Run, step: int = 1) -> float | None:
    """Mean seconds per step over the first `step` steps from the isolated measurement (one per phase), or None."""
    rows, _ = read_rows(run.folder / FILE, step_seconds=float)  # damaged is as good as absent: measure it again
    paces = [row["step_seconds"] for row in rows]
    if len(paces) <= len(run.spec.method.changes) or not all(0 < pace < inf for pace in paces):
        return None
    return mean_pace(run.spec.method.changes, paces, step)


def mean_pace(changes: Sequence[int], paces: Sequence[float], step: int) -> float:
    """Mean seconds of the first `step` steps, of which those from each change on have a pace of their own."""
    bounds = [0, *changes, max(step, *changes, 0)] if changes else [0, step]
    phases = zip(paces, pairwise(bounds), strict=True)
    return sum(pace * max(0, min(end, step) - begin) for pace, (begin, end) in phases) / step


def _logged(changes: Sequence[int], steps: Sequence[int], seconds: Sequence[float]) -> float | None:
    """Mean seconds per step from the log: the median per phase, or the previous phase's where it has no data."""
    marks, found = [(0, 0.0), *zip(steps, seconds, strict=True)], list[float | None]()
    for begin, end in pairwise((0, *changes, sys.maxsize)):
        inside = [(s, t) for s, t in marks if begin <= s <= end]
        since, clock = inside[0] if inside else (0, 0.0)
        pace = steady([s - since for s, _ in inside[1:]], [t - clock for _, t in inside[1:]])
        found.append(found[-1] if pace is None and found else pace)
    first = next((pace for pace in found if pace is not None), None)
    return None if first is None else mean_pace(changes, [first if pace is None else pace for pace in found], steps[-1])


@dataclass(frozen=True)
class Pace:
    """The pace of a run up to a checkpoint."""

    step_seconds: float | None
    source: PaceSource | None
    notes: list[str]
    """Notes on disturbances or a damaged log (unknown for runs that shared the machine)."""


def pace_of(run: Run, step: int) -> Pace:
    """Isolated measurement if available, else from the log."""
    changes = run.spec.method.changes
    if (measured := quiet(run, step)) is not None:
        return Pace(measured, "quiet stretch", [])
    rows, damaged = run.log(step)
    steps, seconds = [int(row["step"]) for row in rows], [float(row["seconds"]) for row in rows]
    found = _logged(changes, steps, seconds)
    notes = ([] if changes else disturbances(steps, seconds)) + left_out(run.log_path, damaged)
    return Pace(found, None if found is None else "median of the log", notes)
