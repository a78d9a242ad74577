"""Point estimate and confidence interval of one recipe's speedup."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.results.confidence import Baseline, Interval, LogCurve, SeedNoise, Verdict, infer
from harness.results.speedup import Panel, Point, Speedup, at_steps, average, speedup, value_of


@dataclass(frozen=True)
class Estimate:
    """A speedup over training seeds."""

    point: Speedup
    """Speedup of the curves averaged over training seeds."""
    interval: Interval
    """95 %, of this recipe alone; None at an unbounded end; (None, None) if unknown."""
    by_seed: dict[int, Speedup]
    """Per-seed speedups, for shared seeds."""
    seeds: int
    """Number of training seeds of the recipe."""
    baseline_seeds: int
    evidence: str
    """What the interval is made of."""
    p: float | None = None
    """Two-sided p of the FID difference at equal budget (uncorrected); None with fewer than two seeds."""
    ahead: bool = False
    """Whether its FID is the lower one in that test."""
    share: float = 1.0
    """Fraction of the baseline's budget at which that test is."""
    untested: str = ""
    """Reason for a missing test despite two or more seeds."""
    p_family: float | None = None
    """The same, with every recipe of the family counted."""
    verdict: Verdict | None = None
    """None without two training seeds on both sides."""


def estimate(baseline: Panel, other: Panel, *, step: float, noise: SeedNoise | None, paired: bool = True) -> Estimate:
    """Speedup and interval of one recipe against the baseline, in the budgets' currency; the verdict is its family's.

    Args:
        baseline: its training seeds, which all reach the step.
        other: the recipe's.
        step: of the baseline, at which the comparison is made.
        noise: of the suite, for a single training seed.
        paired: whether an equal number is an equal seed; not where one side is not ours.

    Raises:
        ValueError: the recipe's seeds have no budget in common.
    """
    ends = np.stack([at_steps(curve, [step])[:, 0] for curve in baseline.values()], axis=1)
    budget, target = np.exp(ends.mean(1)).tolist()
    curve = average(list(other.values()))
    point = speedup([(budget, target)], curve)
    own = dict(zip(baseline, np.exp(ends.T).tolist(), strict=True))
    shared = sorted(baseline.keys() & other.keys()) if paired else []
    by_seed = {seed: speedup([tuple(own[seed])], average([other[seed]])) for seed in shared}
    sizes = len(other), len(baseline)
    if min(sizes) == 1:
        interval, evidence = _single(budget, target, curve, noise, *sizes)
        return Estimate(point, interval, by_seed, *sizes, evidence)
    # seeds that both have come first, and in one order
    first, second = (sorted(seeds, key=lambda seed: (seed not in shared, seed)) for seeds in (baseline, other))
    order = [list(baseline).index(seed) for seed in first]
    found = infer(
        Baseline(ends[0, order], ends[1, order], [_logs(baseline[seed]) for seed in first]),
        [_logs(other[seed]) for seed in second],
        shared=len(shared),
        rounding=_rounding([point.fid for curves in (baseline, other) for c in curves.values() for point in c], target),
    )
    return Estimate(
        point,
        _holding(found.interval, point),
        by_seed,
        *sizes,
        f"{found.method} over {_seeds(*sizes, len(shared))}",
        found.p,
        found.ahead,
        found.share,
        found.untested,
    )


def _seeds(ours: int, theirs: int, shared: int) -> str:
    """Training seeds in words."""
    if ours == theirs == shared:
        return f"{ours} training seeds"
    told = f"{ours} training seeds and {theirs} of the baseline, {shared} shared"
    return told if ours == theirs or not shared else f"{told}, {abs(ours - theirs)} without a partner left out"


def _logs(curve: Sequence[Point]) -> LogCurve:
    return LogCurve(*np.log([(point.budget, point.fid) for point in curve]).T)


def _rounding(fids: Sequence[float], at: float) -> float:
    """Std of the rounding error in log FID if all FIDs have at most 4 decimals, else 0."""
    values = np.array(fids)
    for decimals in range(5):
        if np.abs(values - values.round(decimals)).max() < 1e-9:
            return float(10.0**-decimals / math.sqrt(12) / at)
    return 0.0


def _holding(interval: Interval, point: Speedup) -> Interval:
    """Extend the interval to contain the point estimate (both average budgets differently)."""
    (low, high), value = interval, point.loglog
    if value is None:
        return interval
    return None if low is None else min(low, value), None if high is None else max(high, value)


def _single(
    budget: float, target: float, curve: Sequence[tuple[float, float]], noise: SeedNoise | None, seeds: int, others: int
) -> tuple[Interval, str]:
    """Interval for a single seed: speedups at target*exp(+-half), from the suite's known seed noise; plus an
    explanation.
    """
    if noise is None:
        return (None, None), "a single training seed, and how far FID spreads over seeds here is not known: no interval"
    half = noise.half(seeds, others)
    later, sooner = (speedup([(budget, target * math.exp(sign * half))], curve) for sign in (-1, 1))
    low = value_of(later) if later.bound is None else None
    high = value_of(sooner) if sooner.low is None or sooner.loglog is not None else None
    return (low, high), (
        f"a single training seed: the interval supposes that FID spreads by {noise.cv:.1%} over seeds ({noise.source})"
    )
