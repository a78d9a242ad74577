"""How much sooner one curve reaches another's end.

Target: the baseline's FID at its last checkpoint. Speedup: the baseline's budget there over the other curve's budget
where it first reaches the target. A target that is not reached gives a bound, never a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

#: (budget, FID), budgets rising.
Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Crossing:
    """Where a curve first comes down to a target."""

    before: float | None
    """Budget of the last checkpoint above the target; none if the first one is at or below it already."""
    at: float
    """Budget of the first checkpoint at or below the target."""
    loglog: float | None
    """Budget by interpolation in log budget and log FID; none without a checkpoint above the target."""


def crossing(curve: Curve, target: float) -> Crossing | None:
    """Find the first crossing; none if the curve stays above the target."""
    before: tuple[float, float] | None = None
    for budget, fid in curve:
        if fid <= target:
            if before is None:
                return Crossing(None, budget, None)
            share = (math.log(before[1]) - math.log(target)) / (math.log(before[1]) - math.log(fid))
            log_budget = math.log(before[0]) + share * (math.log(budget) - math.log(before[0]))
            return Crossing(before[0], budget, math.exp(log_budget))
        before = (budget, fid)
    return None


@dataclass(frozen=True)
class Speedup:
    """One pair of curves, in one currency. Above 1 means that the baseline needs more."""

    target: float
    low: float | None
    """By the first checkpoint at or below the target: needs no interpolation. None if not reached."""
    high: float | None
    """By the last checkpoint above it; none where there is no such bound."""
    loglog: float | None
    bound: float | None
    """If the target is not reached: the speedup is below this."""


def speedup(baseline: Curve, curve: Curve) -> Speedup:
    """Compare a curve with a baseline.

    Raises:
        ValueError: an empty curve.
    """
    if not baseline or not curve:
        raise ValueError("a speedup needs two curves with at least one checkpoint each")
    budget, target = baseline[-1]
    found = crossing(curve, target)
    if found is None:
        return Speedup(target, None, None, None, budget / curve[-1][0])
    return Speedup(
        target,
        low=budget / found.at,
        high=None if found.before is None else budget / found.before,
        loglog=None if found.loglog is None else budget / found.loglog,
        bound=None,
    )


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds; the deviation needs two."""

    mean: float
    sd: float | None
    values: tuple[float, ...]


def spread(values: Sequence[float]) -> Spread:
    """Summarise one number for each seed."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, tuple(values))
