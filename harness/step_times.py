"""How long a training step takes, robust against what else the machine did meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from harness.records import ScoreRecord

#: A stretch is disturbed that took so many times the median stretch's time for a step.
DISTURBED = 1.5
#: Fewest stretches that have a median to speak of.
STRETCHES = 3


@dataclass(frozen=True)
class Pace:
    """Of one training."""

    device_seconds: float
    """For each step."""
    source: str
    """What it is made of."""
    disturbed: tuple[tuple[int, int, float], ...] = ()
    """Stretches, from one step to another, and how many times the median they took."""


def pace_of(scores: Sequence[ScoreRecord]) -> Pace:
    """Seconds of a step of one training, by its records."""
    last = max(scores, key=lambda r: r.step)
    devices = last.device_seconds / last.train_seconds
    if last.step_seconds is not None:
        return Pace(last.step_seconds * devices, last.step_seconds_from or "")
    clock = {0: 0.0} | dict(sorted((r.step, r.device_seconds) for r in scores))
    steps = list(clock)
    stretches = [(a, b, (clock[b] - clock[a]) / (b - a)) for a, b in pairwise(steps)]
    if len(stretches) < STRETCHES:
        return Pace(last.device_seconds / last.step, "the whole training")
    middle = median(rate for *_, rate in stretches)
    odd = tuple((a, b, rate / middle) for a, b, rate in stretches if rate > DISTURBED * middle)
    return Pace(middle, "median over scored stretches", odd)
