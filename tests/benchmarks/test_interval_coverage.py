"""Does the 95 % interval of a speedup hold the truth in 95 % of simulated comparisons? `nox -s bench`."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.speedup import Panel, Point, estimate, speedup

STEPS = (250, 500, 750, 1000, 1250, 1500)
PANELS = 1000


def truth(recipe: str, budget: float) -> float:
    """Falling power laws; `fast` is ahead by more than its factor of 1.9, since it also ends lower."""
    return 60 * budget**-0.55 + 3.0 if recipe == "slow" else 60 * (1.9 * budget) ** -0.55 + 2.6


def draw(
    seeds: int, training: float, generation: float, shared: float, rng: np.random.Generator
) -> tuple[Panel, Panel]:
    """Training seeds move whole curves, partly both recipes' alike; every checkpoint moves alone besides."""
    slow, fast = {}, {}
    for seed in range(seeds):
        common = rng.normal()
        for curves, recipe in ((slow, "slow"), (fast, "fast")):
            whole = math.sqrt(shared) * common + math.sqrt(1 - shared) * rng.normal()
            curves[seed] = [
                Point(t, t, truth(recipe, t) * math.exp(training * whole + generation * rng.normal())) for t in STEPS
            ]
    return slow, fast


@pytest.mark.benchmark(group="95 % interval of a speedup, 1,000 simulated comparisons")
@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
@pytest.mark.parametrize("noise", [(0.013, 0.004, 0.3), (0.03, 0.015, 0.0)], ids=["literature", "digits"])
def test_coverage(benchmark, seeds, noise):
    """Noise: variation over training seeds, over generation seeds, and the share of the first that is common."""
    true = speedup(*([(t, truth(recipe, t)) for t in STEPS] for recipe in ("slow", "fast"))).loglog
    rng = np.random.default_rng(seeds)

    def run() -> float:
        held = 0
        for _ in range(PANELS):
            low, high = estimate(*draw(seeds, *noise, rng)).interval
            held += (low is None or low <= true) and (high is None or true <= high)
        return held / PANELS

    coverage = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info["coverage"] = coverage
    assert 0.93 <= coverage <= 0.97
