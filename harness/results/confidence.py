"""How sure a speedup is: one rule for intervals and verdicts, families of recipes, single seeds, and power.

The rule, whose error rates in simulation stand in docs/speedups.md:

- For a factor s, each training seed gives a difference d(s): log FID of the recipe at the budget B / s, less log FID of
  the baseline at B, where the comparison is made. Between checkpoints log FID is linear in log budget.
- The 95 % interval is every s whose mean d(s) is not significantly different from 0: within Student's t times its
  standard error, which is taken where the mean crosses 0, or else at the nearest budget that both have.
- Where the recipe has no checkpoint, nothing is tested, and the interval is open.
- ``better`` and ``worse`` are the test at s = 1, with its own error: FID at equal budget, the largest up to B that all
  training seeds have, and at least B / 2. It needs no crossing, so that a target that is never reached cannot pass for
  certainty. If test and interval disagree on whether 1 is excluded, the test decides.
- Nothing is tested far from a checkpoint: a chord lies above a curve that flattens. Where the curves cross there, the
  interval is at least the bracket of the checkpoints around it.
- Numbers that were rounded carry their rounding, and training seeds that agree to the last digit say nothing.
- Equal training seeds on both sides are paired. Otherwise shared seeds are paired, the rest are paired in order, and
  surplus seeds of one side are dropped. With none in common and unequal numbers it is Scheffé's test, exact for
  any noise (Annals of Mathematical Statistics 14, 1943), and with four or more on each side Welch's: more powerful.
- Of several recipes against one baseline, Holm's step-down keeps the chance of any false verdict at 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit
from scipy.stats import nct

Array = NDArray[np.float64]
Verdict = Literal["better", "worse", "inconclusive"]
Method = Literal["paired t", "Welch's t", "Scheffé's t"]
LEVEL = 0.95
#: Fewest seeds on either side for Welch's test: with two, its size is 2 to 8 %, by how unequal noise and numbers are,
#: with three still 3.5 to 6.4 %.
WELCH = 4
#: Power that a plan aims at, and the most training seeds that it looks at.
CHANCE, MOST = 0.8, 1000
#: Floor for standard errors.
LEAST = 1e-12
#: Seeds whose log FID varies less than this count as copies.
ALIKE = 1e-9
#: Log FID is interpolated where the product of the log distances to both checkpoints is at most that in the middle of
#: a doubling of the budget.
NEAR = (math.log(2) / 2) ** 2
#: Smallest fraction of the baseline's budget at which a verdict may be made.
LEAST_SHARE = 0.5
#: An interval, None at an end that nothing bounds.
Interval = tuple[float | None, float | None]


@dataclass(frozen=True)
class TTest:
    """Student's t test of a mean being 0."""

    mean: float
    error: float
    """Its standard error."""
    freedom: float
    """Degrees of freedom."""

    @property
    def half(self) -> float:
        """Half of the 95 % interval of the mean."""
        return float(stdtrit(self.freedom, (1 + LEVEL) / 2)) * self.error

    @property
    def p(self) -> float:
        """Two-sided."""
        return float(2 * stdtr(self.freedom, -abs(self.mean) / max(self.error, LEAST)))

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, of the mean."""
        return self.mean - self.half, self.mean + self.half


def t_test(values: Sequence[float]) -> TTest | None:
    """Student's t test of independent values; None of fewer than two."""
    n = len(values)
    return TTest(fmean(values), stdev(values) / math.sqrt(n), n - 1) if n > 1 else None


@dataclass(frozen=True)
class LogCurve:
    """Log budget, rising, and log FID of one training seed's checkpoints, (k,) each."""

    budgets: Array
    fids: Array

    def at(self, budgets: Array) -> Array:
        """Log FID there; beyond the ends that of the end."""
        return np.interp(budgets, self.budgets, self.fids)

    def around(self, budget: float) -> tuple[float, float]:
        """Log budgets of the neighbouring checkpoints (or `budget` itself beyond the ends)."""
        k = int(np.searchsorted(self.budgets, budget))
        before = self.budgets[k - 1] if k else budget
        return float(before), float(self.budgets[k] if k < len(self.budgets) else budget)

    def near(self, budget: float) -> bool:
        """Whether checkpoints are close enough for interpolation."""
        before, behind = self.around(budget)
        inside = self.budgets[0] - 1e-9 <= budget <= self.budgets[-1] + 1e-9
        return bool(inside) and (budget - before) * (behind - budget) <= NEAR + 1e-12


@dataclass(frozen=True)
class Baseline:
    """The baseline's seeds at the point of comparison, arrays of shape (m,)."""

    budgets: Array
    """Log budgets."""
    fids: Array
    """Log FIDs there."""
    curves: Sequence[LogCurve]
    """Full curves, at least up to the point of comparison."""


@dataclass(frozen=True)
class Inference:
    """What training seeds say of a speedup."""

    interval: Interval
    """95 %, of the speedup."""
    p: float | None
    """Of the test at equal budget, two-sided, for this recipe alone; None where there is none."""
    ahead: bool
    """Whether the recipe's FID is lower in that test."""
    method: Method
    share: float = 1.0
    """Fraction of the baseline's budget at which the test is made."""
    untested: str = ""
    """Why there is no test."""


def verdict(interval: Interval, p: float, ahead: bool) -> Verdict:
    """By the test at equal budget, with its own p-value or the family's; never against the interval."""
    low, high = interval
    if p < 1 - LEVEL and ahead and low is not None and low >= 1:
        return "better"
    if p < 1 - LEVEL and not ahead and high is not None and high <= 1:
        return "worse"
    return "inconclusive"


@dataclass(frozen=True)
class _Differences:
    """d(s) of one recipe, as a function of u = log s."""

    base: Baseline
    curves: Sequence[LogCurve]
    shared: int
    rounding: float

    @cached_property
    def method(self) -> Method:
        sizes = len(self.curves), len(self.base.fids)
        if sizes == (self.shared, self.shared):
            return "paired t"
        return "Welch's t" if self.shared == 0 and min(sizes) >= WELCH else "Scheffé's t"

    @cached_property
    def budgets(self) -> Array:
        """Log B of each of the recipe's seeds."""
        budgets = self.base.budgets
        return budgets if self.method == "paired t" else np.full(len(self.curves), budgets.mean())

    @cached_property
    def knots(self) -> Array:
        """Values of u = log s with a checkpoint of some seed, within the range covered by all seeds; the mean is
        piecewise linear between them.
        """
        each = [b - curve.budgets[::-1] for b, curve in zip(self.budgets, self.curves, strict=True)]
        low, high = max(u[0] for u in each), min(u[-1] for u in each)
        if low > high:
            raise ValueError("its training seeds have no budget in common")
        inside = np.unique(np.clip(np.concatenate(each), low, high))
        # Rounding makes two of what is one: 0 has to be itself.
        inside[np.abs(inside) < 1e-12] = 0.0
        return np.unique(inside)

    def ours(self, u: Array) -> Array:
        """Log FID of each of the recipe's seeds, (n, k)."""
        return np.stack([curve.at(b - u) for b, curve in zip(self.budgets, self.curves, strict=True)])

    def theirs(self, shift: float) -> Array:
        """Log FID of each of the baseline's seeds at e^-shift of its budget, (m,)."""
        if shift == 0:
            return self.base.fids
        pairs = zip(self.base.budgets, self.base.curves, strict=True)
        return np.array([float(curve.at(b - shift)) for b, curve in pairs])

    def at(self, u: Array, shift: float = 0.0) -> tuple[Array, Array, Array]:
        """Mean, its variance and its degrees of freedom, each of the shape of u."""
        ours = self.ours(u)
        theirs = np.broadcast_to(self.theirs(shift)[:, None], (len(self.base.fids), len(u)))
        n, m = len(ours), len(theirs)
        rounding = self.rounding**2 * (1 / n + 1 / m)
        if self.method != "paired t":
            # Each of its seeds moves the mean budget, and so the recipe's mean FID there by the curve's slope.
            theirs = theirs - np.outer(self.base.budgets - self.base.budgets.mean(), self._slope(u))
        if self.method == "Welch's t":
            a, b = ours.var(0, ddof=1) / n, theirs.var(0, ddof=1) / m
            spread = np.maximum(a**2 / (n - 1) + b**2 / (m - 1), 1e-300)
            freedom = np.maximum((a + b) ** 2 / spread, min(n, m) - 1)
            return ours.mean(0) - theirs.mean(0), a + b + rounding, freedom
        d = _scheffe(ours, theirs) if n <= m else -_scheffe(theirs, ours)
        return d.mean(0), d.var(0, ddof=1) / len(d) + rounding, np.full(len(u), len(d) - 1.0)

    def _slope(self, u: Array) -> Array:
        """Slope of the recipe's mean log FID in log budget, (k,)."""
        low, high = (np.clip(u + step, self.knots[0], self.knots[-1]) for step in (-1e-4, 1e-4))
        change = self.ours(low).mean(0) - self.ours(high).mean(0)
        slope: Array = np.divide(change, high - low, out=np.zeros_like(change), where=high > low)
        return slope

    def test(self, u: float, shift: float = 0.0) -> tuple[float, float, bool]:
        """Half of a 95 % interval of the mean at u, the two-sided p-value of a mean of 0, and whether it is below 0."""
        (mean,), (variance,), (freedom,) = self.at(np.array([u]), shift)
        error = max(math.sqrt(variance), LEAST)
        found = TTest(float(mean), error, float(freedom))
        return found.half, found.p, bool(mean < 0)

    def near(self, u: float, shift: float) -> bool:
        """Whether every seed of both sides was scored near there."""
        ours = all(curve.near(b - u) for b, curve in zip(self.budgets, self.curves, strict=True))
        return ours and all(c.near(b - shift) for b, c in zip(self.base.budgets, self.base.curves, strict=True))

    def around(self, u: float) -> tuple[float, float]:
        """Speedup factors of the checkpoints enclosing u, over all seeds."""
        pairs = list(zip(self.budgets, self.curves, strict=True))
        return (
            math.exp(min(b - curve.around(b - u)[1] for b, curve in pairs)),
            math.exp(max(b - curve.around(b - u)[0] for b, curve in pairs)),
        )

    def alike(self, u: float, shift: float) -> bool:
        """Whether the seeds of one side are copies of each other."""
        return min(float(self.ours(np.array([u])).std()), float(self.theirs(shift).std())) < ALIKE


def _scheffe(x: Array, y: Array) -> Array:
    """n independent differences of x (n, k) and y (m, k), m >= n; of equal numbers, row by row."""
    n, m = len(x), len(y)
    out: Array = x - math.sqrt(n / m) * y[:n] + y[:n].sum(0) / math.sqrt(n * m) - y.mean(0)
    return out


def infer(base: Baseline, curves: Sequence[LogCurve], *, shared: int, rounding: float = 0.0) -> Inference:
    """Interval and test of one recipe against a baseline.

    Args:
        base: two training seeds or more.
        curves: the recipe's, two or more.
        shared: how many training seeds both have; they come first on both sides, in the same order.
        rounding: standard deviation of the rounding of one log FID.

    Raises:
        ValueError: the recipe's seeds have no budget in common.
    """
    if shared:  # what one side has more would be correlated with only some of the pairs
        n = min(len(curves), len(base.fids))
        base, curves = Baseline(base.budgets[:n], base.fids[:n], base.curves[:n]), curves[:n]
    d = _Differences(base, curves, shared, rounding)
    knots = d.knots
    mean, _, _ = d.at(knots)
    crossing = _crossing(knots, mean)
    if d.alike(crossing, 0.0):
        told = "the training seeds of one side have one FID, as copies have"
        return Inference((None, None), None, ahead=False, method=d.method, untested=told)
    low, high = _interval(knots, mean, d.test(crossing)[0])
    if not d.near(crossing, 0.0):
        least, most = d.around(crossing)
        low, high = None if low is None else min(low, least), None if high is None else max(high, most)
    return _judged(d, (low, high), crossing)


def _judged(d: _Differences, interval: Interval, crossing: float) -> Inference:
    """Add the test at equal budget (the largest budget common to all seeds); otherwise test at the nearest available
    factor.
    """
    first, last = float(d.knots[0]), float(d.knots[-1])
    start = max(first, 0.0)
    for u in (start, *d.knots[d.knots > start].tolist()):
        if u <= min(last, -math.log(LEAST_SHARE)) + 1e-12 and d.near(u, u):
            _, p, ahead = d.test(u, u)
            sooner = crossing > u or (crossing == u and ahead)
            return Inference(_with_test(interval, 1.0, p, sooner), p, ahead, d.method, math.exp(-u))
    one = min(start, last)
    _, p, ahead = d.test(one)
    if one != 0 and ahead == (one > 0) and d.near(one, 0.0):
        return Inference(_with_test(interval, math.exp(one), p, ahead), p, ahead, d.method)
    told = "no budget from half of the baseline's on is near a checkpoint of every training seed"
    return Inference(interval, None, ahead, d.method, untested=told)


def _with_test(interval: Interval, at: float, p: float, sooner: bool) -> Interval:
    """Make the interval consistent with the test at one factor.

    Args:
        interval: with the error at the crossing.
        at: the factor that is tested: 1, or the nearest that can be.
        p: of that test; where it is significant the interval ends at the factor.
        sooner: whether the curves cross above the factor that the budgets allow to test.
    """
    low, high = interval
    if p >= 1 - LEVEL:
        return None if low is None else min(low, at), None if high is None else max(high, at)
    if sooner:
        return at if low is None else max(low, at), high
    return low, at if high is None else min(high, at)


def _crossing(knots: Array, mean: Array) -> float:
    """First sign change of the mean from negative to positive, scanning from the largest budget; otherwise the nearest
    end.
    """
    below = np.flatnonzero(mean < 0)
    if not len(below):
        return float(knots[0])
    above = np.flatnonzero(mean[below[0] :] >= 0)
    if not len(above):
        return float(knots[-1])
    k = int(below[0] + above[0])
    return _solve(knots, mean, k - 1, 0.0)


def _solve(knots: Array, mean: Array, k: int, value: float) -> float:
    """Where the mean is `value` between knots k and k + 1."""
    share = (value - mean[k]) / (mean[k + 1] - mean[k])
    return float(knots[k] + share * (knots[k + 1] - knots[k]))


def _interval(knots: Array, mean: Array, half: float) -> Interval:
    """Range of s with |mean| <= half; None where the curve ends before a bound is reached.

    Below the interval the recipe is significantly ahead at every budget, above it behind: a curve that has lost the
    target again at its end has no lower end.
    """
    low = high = None
    if mean[0] < -half:
        beyond = np.flatnonzero(mean >= -half)
        low = math.exp(_solve(knots, mean, int(beyond[0]) - 1, -half) if len(beyond) else knots[-1])
    if mean[-1] > half:
        before = np.flatnonzero(mean <= half)
        high = math.exp(_solve(knots, mean, int(before[-1]), half) if len(before) else knots[0])
    return low, high


def holm(p: Sequence[float]) -> list[float]:
    """p-values that count the family: below 5 % in not more than 5 % of families without a difference (Holm, 1979)."""
    order = sorted(range(len(p)), key=lambda k: p[k])
    out, worst = [1.0] * len(p), 0.0
    for rank, k in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[k]))
        out[k] = worst
    return out


@dataclass(frozen=True)
class SeedNoise:
    """How far training seeds spread on a suite, as it was measured."""

    cv: float
    """Standard deviation of log FID over training seeds."""
    freedom: int
    """Degrees of freedom of that measurement; 0 where its source does not say."""
    slope: float
    """By how much log FID falls for each unit of log budget, at the end of the baseline's curve."""
    source: str
    """Where both are from, for people."""

    def half(self, seeds: int, others: int) -> float:
        """Half of the 95 % interval of a difference of mean log FIDs, over so many seeds on either side."""
        return TTest(0.0, self.cv * math.sqrt(1 / seeds + 1 / others), self.freedom or 1e6).half


def power(factor: float, seeds: int, noise: SeedNoise, recipes: int = 1) -> float:
    """Power: probability that a true speedup is found, for paired, otherwise independent seeds.

    Args:
        factor: the true speedup, above 1.
        seeds: of the baseline and of every recipe.
        noise: of the suite.
        recipes: how many are compared with the baseline; the first step of Holm's divides the level by it.
    """
    if seeds < 2:
        return 0.0
    centre = noise.slope * math.log(factor) * math.sqrt(seeds / 2) / noise.cv
    critical = float(stdtrit(seeds - 1, 1 - (1 - LEVEL) / 2 / recipes))
    chance = float(nct.sf(critical, seeds - 1, centre))
    return chance if math.isfinite(chance) else float(centre > critical)


def seeds_to_detect(factor: float, noise: SeedNoise, recipes: int = 1) -> int:
    """The fewest training seeds that show a speedup with `CHANCE`; `MOST` where even more would be needed."""
    return next((n for n in range(2, MOST) if power(factor, n, noise, recipes) >= CHANCE), MOST)


def detectable(seeds: int, noise: SeedNoise, recipes: int = 1) -> float | None:
    """The smallest speedup that so many training seeds show with `CHANCE`; None if 1000x is not enough."""
    low, high = 0.0, math.log(1000.0)
    if power(math.exp(high), seeds, noise, recipes) < CHANCE:
        return None
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if power(math.exp(middle), seeds, noise, recipes) >= CHANCE else (middle, high)
    return math.exp(high)
