"""Simulated comparisons whose truth is known, for the error rates of intervals and verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from harness.results.confidence import verdict
from harness.results.curves import Observation
from harness.results.estimate import Estimate, estimate
from harness.results.speedup import Panel, Point

STEPS = (250, 500, 750, 1000, 1250, 1500)
#: Another grid, which has neither the baseline's steps nor its end.
OTHER_STEPS = (200, 450, 700, 950, 1200, 1450, 1700)


@dataclass(frozen=True)
class Noise:
    """Of log FID over training seeds."""

    whole: float
    """On a whole curve."""
    each: float
    """On every checkpoint alone, besides."""
    shared: float = 0.3
    """Fraction of the first that two recipes of one seed have in common."""
    memory: float | None = None
    """Of an autocorrelated curve, from one checkpoint to the next; then `whole` is its standard deviation."""
    heavy: bool = False
    """Student's t with 3 degrees of freedom, of the same standard deviation, for a normal one."""
    growth: float = 0.0
    """All of it is so at the end, and less before by this power of the step."""


NOISES = {
    "literature": Noise(0.013, 0.004),
    "digits": Noise(0.04, 0.015, shared=0.0),
    "autocorrelated": Noise(0.04, 0.0, memory=0.8),
    "heavy-tailed": Noise(0.04, 0.015, heavy=True),
}
#: One that hurts a test whose error is taken elsewhere than its difference.
GROWING = Noise(0.04, 0.015, growth=1.5)
#: Grids that miss the baseline's end by far.
SPARSE_STEPS = ((500, 4000), (400, 1000, 4000), (200, 4000))
#: Which of n seeds both recipes have.
DESIGNS = {"paired": lambda n: n, "partly shared": lambda n: max(1, n // 2), "unpaired": lambda n: 0}


def truth(budget: np.ndarray) -> np.ndarray:
    """FID of the baseline: a power law with a floor. A recipe that is s times faster is there at 1/s of the budget."""
    return 60 * budget**-0.55 + 3.0


def curves(
    rng: np.random.Generator, noise: Noise, seeds: int, common: np.ndarray, steps: tuple[int, ...], factor: float
) -> list[list[Point]]:
    """FIDs of training seeds; `common`, (seeds,), is what each has of its partner's noise."""

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_t(3, shape) / math.sqrt(3) if noise.heavy else rng.normal(size=shape)

    budgets = np.array(steps, float)
    own = draw(seeds, len(steps)) if noise.memory is not None else np.repeat(draw(seeds, 1), len(steps), axis=1)
    if noise.memory is not None:
        for k in range(1, len(steps)):
            own[:, k] = noise.memory * own[:, k - 1] + math.sqrt(1 - noise.memory**2) * own[:, k]
    whole = math.sqrt(noise.shared) * common[:, None] + math.sqrt(1 - noise.shared) * own
    grown = (budgets / STEPS[-1]) ** noise.growth
    fids = truth(factor * budgets) * np.exp(grown * (noise.whole * whole + noise.each * draw(seeds, len(steps))))
    return [[Point(s, float(s), float(f)) for s, f in zip(steps, row, strict=True)] for row in fids]


def panels(
    rng: np.random.Generator,
    noise: Noise,
    seeds: int,
    factor: float,
    *,
    shared: int | None = None,
    steps: tuple[int, ...] = STEPS,
    others: int | None = None,
    louder: float = 1.0,
) -> tuple[Panel, Panel]:
    """A baseline and a recipe that is `factor` times faster.

    Args:
        rng: of all draws.
        noise: of the baseline's seeds.
        seeds: of the baseline.
        factor: the truth.
        shared: how many seeds both have; all by default.
        steps: of the recipe's checkpoints.
        others: the recipe's seeds; as many as the baseline's by default.
        louder: how many times the recipe's noise is the baseline's.
    """
    shared, others = seeds if shared is None else shared, others or seeds
    common = rng.standard_t(3, seeds) / math.sqrt(3) if noise.heavy else rng.normal(size=seeds)
    theirs = rng.standard_t(3, others) / math.sqrt(3) if noise.heavy else rng.normal(size=others)
    theirs[:shared] = common[:shared]
    recipe = replace(noise, whole=louder * noise.whole, each=louder * noise.each)
    base = curves(rng, noise, seeds, common, STEPS, 1.0)
    fast = curves(rng, recipe, others, theirs, steps, factor)
    numbers = [*range(shared), *range(100, 100 + others - shared)]
    return dict(enumerate(base)), dict(zip(numbers, fast, strict=True))


@dataclass(frozen=True)
class Rates:
    """Fractions of simulated comparisons."""

    covered: float
    """Intervals that hold the truth."""
    better: float
    worse: float


def rates(estimates: Iterator[Estimate], factor: float) -> Rates:
    """Of comparisons, each its own family."""
    held = better = worse = count = 0
    for e in estimates:
        low, high = e.interval
        judged = None if e.p is None else verdict(e.interval, e.p, e.ahead)
        count += 1
        better += judged == "better"
        worse += judged == "worse"
        # an end at the tested factor is one that the test excludes
        excluded = e.p is not None and e.p < 0.05 and factor == 1
        held += (low is None or low <= factor) and (high is None or factor <= high) and not excluded
    return Rates(held / count, better / count, worse / count)


def estimates(count: int, seed: int, noise: Noise, seeds: int, factor: float, **more: object) -> Iterator[Estimate]:
    """Of as many comparisons, by the product's own rule."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        base, fast = panels(rng, noise, seeds, factor, **more)  # type: ignore[arg-type]
        yield estimate(base, fast, step=STEPS[-1], noise=None)


def in_seconds(
    count: int, noise: Noise, seeds: int, factor: float, *, pace: float, shared: int | None = None
) -> Iterator[Estimate]:
    """Counted in seconds: each run has a pace, whose logarithm varies so. All runs have the same steps."""
    rng = np.random.default_rng(seeds)
    for _ in range(count):
        base, other = (
            {
                seed: [Point(p.step, p.budget * own, p.fid) for p in curve]
                for (seed, curve), own in zip(side.items(), np.exp(rng.normal(0, pace, seeds)), strict=True)
            }
            for side in panels(rng, noise, seeds, factor, shared=shared)
        )
        yield estimate(base, other, step=STEPS[-1], noise=None)


def observations(
    rng: np.random.Generator, noise: Noise, seeds: int, recipes: int, flops: float = 1.0
) -> list[Observation]:
    """A baseline and recipes that are equal to it, in iterations, images and FLOPs."""
    out = []
    common = rng.normal(size=seeds)
    for recipe in range(recipes + 1):
        for seed, curve in enumerate(curves(rng, noise, seeds, common, STEPS, 1.0)):
            for point in curve:
                budgets = {"iterations": point.budget, "images": 64 * point.budget, "flops": flops * point.budget}
                out.append(Observation(str(recipe), seed, 0, point.step, point.fid, budgets))
    return out
