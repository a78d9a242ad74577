"""The speedup of one recipe over training seeds: its point, its interval and what they are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.inference import Ends, Interval, LogCurve, SeedNoise, Verdict, infer
from harness.speedup import Panel, Speedup, at_steps, average, speedup, value_of


@dataclass(frozen=True)
class Estimate:
    """A speedup over training seeds."""

    point: Speedup
    """Of the average curves."""
    interval: Interval
    """95 %, of this recipe alone; None at an open end, and at both where it is not known."""
    by_seed: dict[int, Speedup]
    """Of each training seed that both have, against its own baseline."""
    seeds: int
    """Of the recipe."""
    baseline_seeds: int
    evidence: str
    """What the interval is made of."""
    p: float | None = None
    """Of FID at equal budget, two-sided, of this recipe alone; None without two training seeds."""
    ahead: bool = False
    """Whether its FID is the lower one in that test."""
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
    logs = [np.log([(p.budget, p.fid) for p in other[seed]]).T for seed in second]
    order = [list(baseline).index(seed) for seed in first]
    found = infer(Ends(*ends[:, order]), [LogCurve(*rows) for rows in logs], shared=len(shared))
    same = sizes == (len(shared), len(shared))
    seeds = f"{sizes[0]} training seeds" + ("" if same else f" and {sizes[1]} of the baseline, {len(shared)} shared")
    interval = _holding(found.interval, point)
    return Estimate(point, interval, by_seed, *sizes, f"{found.method} over {seeds}", found.p, found.ahead)


def _holding(interval: Interval, point: Speedup) -> Interval:
    """The interval with the point: budgets that differ between seeds are averaged in another order for each."""
    (low, high), value = interval, point.loglog
    if value is None:
        return interval
    return None if low is None else min(low, value), None if high is None else max(high, value)


def _single(
    budget: float, target: float, curve: Sequence[tuple[float, float]], noise: SeedNoise | None, seeds: int, others: int
) -> tuple[Interval, str]:
    """The speedup at targets that are off by as much as so few training seeds may be, and what that is made of."""
    if noise is None:
        return (None, None), "a single training seed, and how far FID spreads over seeds here is not known: no interval"
    half = noise.half(seeds, others)
    later, sooner = (speedup([(budget, target * math.exp(sign * half))], curve) for sign in (-1, 1))
    low = value_of(later) if later.bound is None else None
    high = value_of(sooner) if sooner.low is None or sooner.loglog is not None else None
    return (low, high), (
        f"a single training seed: the interval supposes that FID spreads by {noise.cv:.1%} over seeds ({noise.source})"
    )
