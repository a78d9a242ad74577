"""How long one training step takes, whatever else the machine did meanwhile: for budgets in device-seconds.

A run that had the machine to itself has logged its clock, and the median of the logged stretches is its pace. A run
that shares the machine with others has no such stretch: its pace is measured before they start, alone and quiet.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
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

#: In a run's folder: the pace of a run that shares the machine.
FILE = "pace.json"
#: A quiet stretch takes so long, and has at least so many steps.
QUIET_SECONDS, QUIET_STEPS = 1.5, 20


def measure(run: Run, inputs: TrainingInputs, execution: Execution, world: World) -> None:
    """Train the run's first steps on its own data for about `QUIET_SECONDS`, keep what one took, forget the rest.

    Raises:
        UserError: somebody else works on the run.
    """
    with held(run.folder):
        train = run.spec.train
        trainer = build_trainer(run.spec, inputs, execution=execution, world=world)
        stream = batches(inputs.data, seed=train.seed, batch_size=train.batch_size, start=0, stop=sys.maxsize)
        times = step_times(trainer, stream, QUIET_SECONDS, least=QUIET_STEPS)
        write_text(run.folder / FILE, row_text({"step_seconds": median(times), "steps": len(times)}))


def quiet(run: Run) -> float | None:
    """Seconds of a step in the run's quiet stretch, if that was measured."""
    rows, _ = read_rows(run.folder / FILE, step_seconds=float)  # damaged is as good as absent: measure it again
    found: float | None = rows[0]["step_seconds"] if rows else None
    return found if found is not None and 0 < found < inf else None


@dataclass(frozen=True)
class Pace:
    """Of a run up to a checkpoint."""

    step_seconds: float | None
    source: PaceSource | None
    notes: list[str]
    """Where it was disturbed, or its log damaged; of a run that shared the machine nobody can tell."""


def pace_of(run: Run, step: int) -> Pace:
    """The quiet stretch if there is one, else what the log says."""
    if (measured := quiet(run)) is not None:
        return Pace(measured, "quiet stretch", [])
    rows, damaged = run.log(step)
    steps, seconds = [int(row["step"]) for row in rows], [float(row["seconds"]) for row in rows]
    found = steady(steps, seconds)
    notes = disturbances(steps, seconds) + left_out(run.log_path, damaged)
    return Pace(found, None if found is None else "median of the log", notes)
