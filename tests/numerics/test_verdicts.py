"""Error rates of intervals and verdicts where the truth is known; whole table: benchmarks/test_verdict_rates.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
from simulation import (
    DESIGNS,
    NOISES,
    OTHER_STEPS,
    SPARSE_STEPS,
    STEPS,
    estimates,
    in_seconds,
    observations,
    rates,
    truth,
)

from harness.results.confidence import SeedNoise, power
from harness.results.curves import compare

PANELS = 400
#: What 400 panels of a true rate of 5 % exceed once in 10,000 tests.
SLACK = 3.8 * math.sqrt(0.05 * 0.95 / PANELS)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_recipes_are_called_equal(noise, design, seeds):
    shared = DESIGNS[design](seeds)
    found = rates(estimates(PANELS, seeds, NOISES[noise], seeds, 1.0, shared=shared), 1.0)
    assert found.better + found.worse <= 0.05 + SLACK
    assert found.covered >= 0.95 - SLACK


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("factor", "steps"), [(1.2, STEPS), (1.5, OTHER_STEPS), (2.0, OTHER_STEPS)])
def test_intervals_hold_the_truth(noise, factor, steps):
    found = rates(estimates(PANELS, 1, NOISES[noise], 3, factor, steps=steps), factor)
    assert found.covered >= 0.95 - SLACK
    assert found.worse <= 0.025 + SLACK


def test_an_effect_is_seen_where_it_is_large_for_the_noise():
    assert rates(estimates(PANELS, 1, NOISES["literature"], 3, 2.0), 2.0).better > 0.9
    assert rates(estimates(PANELS, 1, NOISES["literature"], 3, 0.6), 0.6).worse > 0.9  # never reached


def test_a_recipe_that_ended_early_is_not_called_worse_for_that():
    found = rates(estimates(PANELS, 1, NOISES["digits"], 3, 1.0, steps=STEPS[:3]), 1.0)  # judged at half the budget
    assert max(found.better, found.worse) <= 0.025 + SLACK
    found = rates(estimates(PANELS, 1, NOISES["digits"], 3, 1.0, steps=STEPS[:2]), 1.0)  # not judged
    assert (found.better, found.worse) == (0.0, 0.0)


@pytest.mark.parametrize("steps", SPARSE_STEPS)
def test_checkpoints_far_apart_make_no_verdict_on_equal_recipes(steps):
    found = rates(estimates(PANELS, 1, NOISES["literature"], 5, 1.0, steps=steps), 1.0)
    assert found.better + found.worse <= 0.05 + SLACK
    assert found.covered >= 0.95 - SLACK


def test_a_slower_recipe_is_worse_in_seconds_too():
    """Whatever run is a little quicker than the others."""
    found = rates(in_seconds(PANELS, NOISES["literature"], 5, 0.6, pace=0.01), 0.6)
    assert found.worse > 0.9


def test_a_family_has_a_false_verdict_as_rarely_as_one_comparison():
    rng, panels = np.random.default_rng(0), 300
    false = 0
    for _ in range(panels):
        found = compare(observations(rng, NOISES["literature"], 3, 4), "0")
        false += any(s.estimate.verdict != "inconclusive" for s in found if s.currency == "iterations")
    assert false / panels <= 0.05 + 3.8 * math.sqrt(0.05 * 0.95 / panels)


@pytest.mark.parametrize(("factor", "seeds"), [(1.5, 3), (1.5, 5), (2.0, 3), (1.2, 8)])
def test_power_is_what_a_plan_says(factor, seeds):
    noise = NOISES["digits"]  # seeds have nothing in common, as a plan supposes
    ends = truth(STEPS[-1] * np.array([1.0, factor]))
    slope = math.log(ends[0] / ends[1]) / math.log(factor)
    planned = power(factor, seeds, SeedNoise(math.hypot(noise.whole, noise.each), 0, slope, "simulation"))
    found = rates(estimates(1500, 2, noise, seeds, factor), factor)
    assert found.better == pytest.approx(planned, abs=0.06)
