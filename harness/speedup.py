"""How much sooner one recipe reaches another's end, in what currency, and how sure that is.

Target: the baseline's FID at its last checkpoint. Speedup: the baseline's budget there over the other's budget where it
reaches the target. A target that is not reached gives a bound, never a number.

The rules below were fixed before any comparison was made with them:

- Curves of several training seeds are averaged (geometric mean of FID at equal steps; generation seeds of one training
  seed first), and the speedup is that of the average curves.
- A curve that is not monotone crosses at the first checkpoint from which it stays at or below the target, up to the
  last one that reaches it. Whether worse checkpoints follow that one is said (`sustained`).
- Interval, n >= 2 training seeds: 95 %, from a paired bootstrap over training seeds. The standard error of the log
  speedup over resamples, times sqrt(n / (n - 1)), times Student's t with n - 1 degrees of freedom: the percentiles of a
  bootstrap of three values never leave their range, and cover far less than they claim.
- Interval, n = 1: the literature's prior. Another training seed moves FID with a coefficient of variation of 1.3 %
  (arXiv 2606.20536), here as a factor on each whole curve.
- Verdict: ``better`` if the interval lies above 1, ``worse`` if below, else ``inconclusive``. A single seed is always
  inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, stdev
from typing import Literal

import numpy as np
from scipy.special import stdtrit

#: (budget, FID), budgets rising.
Curve = Sequence[tuple[float, float]]
#: Coefficient of variation of FID over training seeds: "The FID Lottery", arXiv 2606.20536.
PRIOR_CV = 0.013
LEVEL = 0.95
RESAMPLES = 2000
Verdict = Literal["better", "worse", "inconclusive"]


@dataclass(frozen=True)
class Crossing:
    """Where a curve comes down to a target for good."""

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
    """Find it; none if the curve stays above the target."""
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
    """By the first checkpoint at or below the target: needs no interpolation. None if not reached."""
    high: float | None
    """By the last checkpoint above it; none where there is no such bound."""
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


def average(curves: Sequence[Sequence[Point]]) -> list[tuple[float, float]]:
    """The average of curves at the steps that all of them have: mean budget, geometric mean of FID."""
    by_step = [{point.step: point for point in curve} for curve in curves]
    steps = sorted(set.intersection(*(set(curve) for curve in by_step)))
    return [
        (
            fmean(curve[step].budget for curve in by_step),
            math.exp(fmean(math.log(curve[step].fid) for curve in by_step)),
        )
        for step in steps
    ]


@dataclass(frozen=True)
class Estimate:
    """A speedup over training seeds."""

    point: Speedup
    """Of the average curves."""
    interval: tuple[float | None, float | None]
    """95 %; none at an open end."""
    by_seed: dict[int, Speedup]
    """Of each training seed that both have, against its own baseline."""
    seeds: int
    paired: bool
    """Whether both have the same training seeds."""
    verdict: Verdict

    @property
    def evidence(self) -> str:
        """What the interval is made of."""
        if self.seeds == 1:
            return f"single seed; interval from the prior that FID varies by {PRIOR_CV:.1%} over training seeds"
        return f"{'paired ' if self.paired else ''}bootstrap over {self.seeds} training seeds"


def estimate(baseline: Panel, other: Panel) -> Estimate:
    """Speedup, interval and verdict of one recipe against the baseline, in the budgets' currency.

    Raises:
        ValueError: a panel without seeds, or without a step that all of its seeds have.
    """
    if not baseline or not other:
        raise ValueError("a speedup needs at least one training seed of both recipes")
    shared = sorted(set(baseline) & set(other))
    paired = bool(shared)
    ours = [baseline[seed] for seed in (shared or sorted(baseline))]
    theirs = [other[seed] for seed in (shared or sorted(other))]
    base, curve = average(ours), average(theirs)
    point = speedup(base, curve)
    seeds = min(len(ours), len(theirs))
    if seeds == 1:
        interval = _prior_interval(base, curve)
        verdict: Verdict = "inconclusive"
    else:
        logs = _resampled(ours, theirs, paired)
        interval = _bootstrap_interval(point, logs, seeds)
        verdict = _verdict(interval, logs, point)
    by_seed = {seed: speedup(average([baseline[seed]]), average([other[seed]])) for seed in shared}
    return Estimate(point, interval, by_seed, seeds, paired, verdict)


def _prior_interval(base: Curve, curve: Curve) -> tuple[float | None, float | None]:
    """The speedup at targets that are off by as much as two single seeds may differ."""
    spread = float(stdtrit(1e6, (1 + LEVEL) / 2)) * math.sqrt(2) * PRIOR_CV
    budget, target = base[-1]
    ends = [speedup([(budget, target * math.exp(sign * spread))], curve) for sign in (-1, 1)]
    low, high = (value_of(end) for end in ends)  # a lower target is reached later
    return (low if ends[0].bound is None else None, high if ends[1].low is None or ends[1].loglog else None)


def value_of(found: Speedup) -> float:
    """The number to calculate with: the log-log interpolation, or the bound where there is none."""
    if found.loglog is not None:
        return found.loglog
    value = found.bound if found.bound is not None else found.low
    assert value is not None
    return value


@lru_cache(maxsize=8)
def _choices(seeds: int, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.random.default_rng(20250410).integers(0, seeds, (count, seeds))


@dataclass(frozen=True)
class _Resampled:
    logs: list[float]
    """Log speedups, or of their bounds."""
    unreached: float
    """Share of resamples that do not reach the target."""
    at_once: float
    """Share that is below it at the first checkpoint."""


def _resampled(ours: Sequence[Sequence[Point]], theirs: Sequence[Sequence[Point]], paired: bool) -> _Resampled:
    mine = _choices(len(ours), RESAMPLES)
    yours = mine if paired else _choices(len(theirs), RESAMPLES + 1)[1:]
    logs, unreached, at_once = [], 0, 0
    seen: dict[tuple[tuple[int, ...], tuple[int, ...]], Speedup] = {}
    for a, b in zip(mine, yours, strict=True):
        key = (tuple(sorted(a.tolist())), tuple(sorted(b.tolist())))
        if key not in seen:
            seen[key] = speedup(average([ours[k] for k in key[0]]), average([theirs[k] for k in key[1]]))
        found = seen[key]
        unreached += found.bound is not None
        at_once += found.bound is None and found.loglog is None
        logs.append(math.log(value_of(found)))
    return _Resampled(logs, unreached / len(logs), at_once / len(logs))


def _bootstrap_interval(point: Speedup, drawn: _Resampled, seeds: int) -> tuple[float | None, float | None]:
    tail = (1 - LEVEL) / 2
    width = float(stdtrit(seeds - 1, 1 - tail)) * stdev(drawn.logs) * math.sqrt(seeds / (seeds - 1))
    centre = math.log(value_of(point))
    low = None if drawn.unreached > tail else math.exp(centre - width)
    high = None if drawn.at_once > tail else math.exp(centre + width)
    return low, high


def _verdict(interval: tuple[float | None, float | None], drawn: _Resampled, point: Speedup) -> Verdict:
    low, high = interval
    if low is not None and low > 1:
        return "better"
    # Not reached within a budget no larger than the baseline's: slower, if hardly a resample says otherwise.
    never = point.bound is not None and point.bound <= 1 and drawn.unreached >= LEVEL
    return "worse" if never or (high is not None and high < 1 and low is not None) else "inconclusive"


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds; the deviation needs two."""

    mean: float
    sd: float | None
    values: tuple[float, ...]


def spread(values: Sequence[float]) -> Spread:
    """Summarise one number for each seed."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, tuple(values))
