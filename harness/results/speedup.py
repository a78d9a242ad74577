"""Speedup of one FID curve over another, and averaging of curves; no statistics here (see confidence.py).

A curve that is not monotone crosses a target at the first checkpoint from which it stays at or below it, up to the last
one that reaches it. Whether worse checkpoints follow that one is said (`sustained`). A target that is not reached gives
a bound, never a number. How sure a speedup is: `harness.results.confidence`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

#: (budget, FID), budgets rising.
Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Crossing:
    """Where a curve crosses a target."""

    before: float | None
    """Budget of the last checkpoint above the target before; none if the first one is at or below it already."""
    at: float
    """Budget of the first checkpoint at or below the target, from which it stays there."""
    loglog: float | None
    """Budget by interpolation in log budget and log FID; none without a checkpoint above the target."""
    linear: float | None
    """Budget by linear interpolation."""
    sustained: bool
    """Whether every later checkpoint stays at or below the target."""


def crossing(curve: Curve, target: float) -> Crossing | None:
    """Where a curve crosses the target; None if it stays above it."""
    reaching = [k for k, (_, fid) in enumerate(curve) if fid <= target]
    if not reaching:
        return None
    first = last = reaching[-1]
    while first > 0 and curve[first - 1][1] <= target:
        first -= 1
    at, fid = curve[first]
    sustained = last == len(curve) - 1
    if first == 0:
        return Crossing(None, at, None, None, sustained)
    before, above = curve[first - 1]
    share = math.log(above / target) / math.log(above / fid)
    return Crossing(
        before,
        at,
        loglog=math.exp(math.log(before) + share * math.log(at / before)),
        linear=before + (above - target) / (above - fid) * (at - before),
        sustained=sustained,
    )


@dataclass(frozen=True)
class Speedup:
    """One pair of curves, in one currency. Above 1 means that the baseline needs more."""

    target: float
    low: float | None
    """Lower bound, from the first checkpoint at or below the target. None if not reached."""
    high: float | None
    """Upper bound, from the last checkpoint above the target; None if there is none."""
    loglog: float | None
    linear: float | None
    bound: float | None
    """If the target is not reached: the speedup is below this."""
    sustained: bool
    """Whether the curve stays at or below the target to its end."""

    @property
    def censored(self) -> bool:
        """Whether there is only a bound: not reached, or reached before the first checkpoint."""
        return self.loglog is None

    @property
    def bound_text(self) -> str | None:
        """``< 0.86`` or ``> 3.2`` where there is only a bound."""
        if self.bound is not None:
            return f"< {self.bound:.3g}"
        return f"> {self.low:.3g}" if self.loglog is None and self.low is not None else None


def speedup(baseline: Curve, curve: Curve, target: float | None = None) -> Speedup:
    """Compare a curve with a baseline.

    Args:
        baseline: its last checkpoint gives the target and the budget to beat.
        curve: the other's.
        target: another FID, which both have to reach: the baseline's budget is then where it crosses it (log-log).

    Raises:
        ValueError: an empty curve, or a baseline that does not come down through the target that is given.
    """
    if not baseline or not curve:
        raise ValueError("a speedup needs two curves with at least one checkpoint each")
    budget, reached = baseline[-1]
    if target is not None:
        theirs = crossing(baseline, target)
        if theirs is None or theirs.loglog is None:
            raise ValueError(f"the baseline does not come down through {target:g}")
        budget, reached = theirs.loglog, target
    found = crossing(curve, reached)
    if found is None:
        return Speedup(reached, None, None, None, None, budget / curve[-1][0], sustained=False)
    return Speedup(
        reached,
        low=budget / found.at,
        high=None if found.before is None else budget / found.before,
        loglog=None if found.loglog is None else budget / found.loglog,
        linear=None if found.linear is None else budget / found.linear,
        bound=None,
        sustained=found.sustained,
    )


@dataclass(frozen=True)
class Point:
    """One checkpoint."""

    step: int
    budget: float
    fid: float


#: Training seed to its checkpoints, by step.
Panel = Mapping[int, Sequence[Point]]


def at_steps(curve: Sequence[Point], steps: Sequence[float]) -> NDArray[np.float64]:
    """Log budget and log FID, (2, k), at k steps between the ends; linear in the log of the step."""
    rows = np.log([(point.step, point.budget, point.fid) for point in curve]).T
    where = np.log(steps)
    return np.stack([np.interp(where, rows[0], row) for row in rows[1:]])


def average(curves: Sequence[Sequence[Point]]) -> list[tuple[float, float]]:
    """Geometric means of budget and FID over training seeds, at every step of one that lies between all ends.

    Where a seed has no checkpoint at a step of another's, it is interpolated.
    """
    low, high = max(curve[0].step for curve in curves), min(curve[-1].step for curve in curves)
    steps = sorted({point.step for curve in curves for point in curve if low <= point.step <= high})
    means = np.exp(np.mean([at_steps(curve, steps) for curve in curves], axis=0))
    return list(zip(*means.tolist(), strict=True))


def value_of(found: Speedup) -> float:
    """The number to calculate with: the log-log interpolation, or the bound where there is none."""
    if found.loglog is not None:
        return found.loglog
    value = found.bound if found.bound is not None else found.low
    assert value is not None
    return value


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds; the deviation needs two."""

    mean: float
    sd: float | None
    values: tuple[float, ...]


def spread(values: Sequence[float]) -> Spread:
    """Summarise one number for each seed."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, tuple(values))
