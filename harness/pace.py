"""How long one training step takes, whatever else the machine did meanwhile: for budgets in device-seconds.

A run that had the machine to itself has logged its clock, and the median of the logged stretches is its pace. A run
that shares the machine with others has no such stretch: its pace is measured before they start, alone and quiet.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from harness.locks import held
from harness.probe import step_times
from harness.records import PaceSource
from recipes.core.checkpoint import write_text
from recipes.core.data import batches
from recipes.core.distributed import World
from recipes.core.spec import Execution
from recipes.run import Run, TrainingInputs, build_trainer

#: In a run's folder: the pace of a run that shares the machine.
FILE = "pace.json"
#: A quiet stretch takes so long, and has at least so many steps.
QUIET_SECONDS, QUIET_STEPS = 2.0, 20
#: A stretch of the log is worth a remark where its steps took so many times the median step,
DISTURBED = 1.5
#: and so many seconds were lost: a short stall is none.
LOST_SECONDS = 1.0


@dataclass(frozen=True)
class _Stretch:
    """Steps (first, last] of a run."""

    first: int
    last: int
    seconds: float

    @property
    def each(self) -> float:
        """Seconds of one step."""
        return self.seconds / (self.last - self.first)


def _stretches(steps: Sequence[int], seconds: Sequence[float]) -> list[_Stretch]:
    """Between logged steps. The first, in which kernels are compiled and caches are cold, only if there is no other."""
    marks = [(0, 0.0), *zip(steps, seconds, strict=True)]
    found = [_Stretch(a, b, until - since) for (a, since), (b, until) in pairwise(marks) if b > a]
    return found[1:] or found


def steady(steps: Sequence[int], seconds: Sequence[float]) -> float | None:
    """Seconds of one step, as the median over the steps: what disturbs less than half of a run does not move it.

    Args:
        steps: that were logged, ascending.
        seconds: of training until each, from the first step of the run on, restarts and all.

    Returns:
        None if nothing was logged.
    """
    found = _stretches(steps, seconds)
    return median(s.each for s in found for _ in range(s.last - s.first)) if found else None


def disturbances(steps: Sequence[int], seconds: Sequence[float]) -> list[str]:
    """What took over `DISTURBED` times the median step, as in ``steps 500 to 750 took 2.1 times the median step``."""
    usual = steady(steps, seconds)
    slow: list[_Stretch] = []
    for s in _stretches(steps, seconds):
        if usual is None or s.each <= DISTURBED * usual:
            continue
        if slow and slow[-1].last == s.first:
            before = slow.pop()
            s = _Stretch(before.first, s.last, before.seconds + s.seconds)
        slow.append(s)
    return [
        f"steps {s.first} to {s.last} took {s.each / usual:.1f} times the median step"
        for s in slow
        if usual is not None and s.seconds - usual * (s.last - s.first) >= LOST_SECONDS
    ]


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
        write_text(run.folder / FILE, json.dumps({"step_seconds": median(times), "steps": len(times)}) + "\n")


def quiet(run: Run) -> float | None:
    """Seconds of a step in the run's quiet stretch, if that was measured."""
    try:
        return float(json.loads((run.folder / FILE).read_text())["step_seconds"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # damaged is as good as absent: measure it again
        return None


@dataclass(frozen=True)
class Pace:
    """Of a run up to a checkpoint."""

    step_seconds: float | None
    source: PaceSource | None
    remarks: list[str]
    """Where it was disturbed; of a run that shared the machine nobody can tell."""


def pace_of(run: Run, step: int) -> Pace:
    """The quiet stretch if there is one, else what the log says."""
    if (measured := quiet(run)) is not None:
        return Pace(measured, "quiet stretch", [])
    lines = run.log_path.read_text().splitlines() if run.log_path.exists() else []
    rows = [row for line in lines if line.endswith("}") and (row := json.loads(line))["step"] <= step]
    steps, seconds = [int(row["step"]) for row in rows], [float(row["seconds"]) for row in rows]
    found = steady(steps, seconds)
    return Pace(found, None if found is None else "median of the log", disturbances(steps, seconds))
