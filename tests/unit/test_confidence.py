"""The rule for intervals and verdicts, against hand calculation, scipy's tests and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.results.confidence import (
    Baseline,
    LogCurve,
    SeedNoise,
    detectable,
    holm,
    infer,
    power,
    seeds_to_detect,
    t_test,
    verdict,
)

BUDGETS = np.log([100.0, 200.0, 400.0])


def ends(fids: list[float], budget: float = 400.0) -> Baseline:
    return baseline(np.full(len(fids), math.log(budget)), np.log(fids))


def baseline(budgets: np.ndarray, fids: np.ndarray) -> Baseline:
    """That was scored at its end alone."""
    return Baseline(budgets, fids, [LogCurve(np.array([b]), np.array([f])) for b, f in zip(budgets, fids, strict=True)])


def curves(rows: list[list[float]], budgets: np.ndarray = BUDGETS) -> list[LogCurve]:
    return [LogCurve(budgets, np.log(row)) for row in rows]


def test_two_paired_seeds_by_hand():
    """FID falls as budget^-1 for both seeds, the recipe's at half the budget, 1 % apart from the baseline's noise."""
    base = ends([8.0, 8.0 * 1.02])
    fast = curves([[16.0, 8.0, 4.0], [16.16, 8.08, 4.04]])
    found = infer(base, fast, shared=2)
    # d(s) = log(s / 2) and log(s / 2) - c with c = log 1.02 - log 1.01: mean log(s / 2) - c / 2, standard error c / 2.
    c = math.log(1.02 / 1.01)
    half, centre = 12.7062047 * c / 2, math.log(2) + c / 2
    assert found.interval == pytest.approx((math.exp(centre - half), math.exp(centre + half)))
    assert found.method == "paired t"
    assert found.p == pytest.approx(2 * stats.t.sf(centre / (c / 2), 1))
    assert verdict(found.interval, found.p, found.ahead) == "better"


@given(
    ours=st.lists(st.floats(0.5, 2), min_size=4, max_size=6),
    theirs=st.lists(st.floats(0.5, 2), min_size=4, max_size=6),
    paired=st.booleans(),
)
def test_at_equal_budget_it_is_the_test_that_everybody_has(ours, theirs, paired):
    """A recipe that is never at the target before its end is tested there, as scipy does."""
    n = min(len(ours), len(theirs))
    if paired:
        ours, theirs = ours[:n], theirs[:n]
    rows = [[90 * f, 80 * f, 10 * f] for f in ours]  # the last checkpoint alone is near the baseline
    base = ends(theirs)
    found = infer(base, curves(rows), shared=n if paired else 0)
    a, b = np.log([10 * f for f in ours]), base.fids
    if np.std(a - b if paired else a) < 1e-6 or np.std(b) < 1e-6:
        return
    expected = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    assert found.p == pytest.approx(expected.pvalue, abs=1e-9)


@given(factor=st.floats(0.2, 5), noise=st.lists(st.floats(-0.1, 0.1), min_size=3, max_size=5))
def test_a_budget_scaled_by_c_scales_the_interval_by_c(factor, noise):
    base = ends([8 * math.exp(x) for x in noise], 200.0)
    rows = [[16 * math.exp(-x), 8 * math.exp(x / 2), 4.0] for x in noise]
    one = infer(base, curves(rows), shared=len(rows)).interval
    two = infer(base, curves(rows, BUDGETS + math.log(factor)), shared=len(rows)).interval
    for a, b in zip(one, two, strict=True):
        assert (a is None) == (b is None)
        assert a is None or a == pytest.approx(b * factor, rel=1e-6)


@given(
    noise=st.lists(st.tuples(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2)), min_size=2, max_size=5), gap=st.floats(-1, 1)
)
def test_exchanged_recipes_exchange_the_verdict(noise, gap):
    """At equal budget, both scored there alone: better and worse, p and p."""
    slow, fast = [math.exp(2 + x) for x, _ in noise], [math.exp(2 + gap + y) for _, y in noise]
    at = np.array([math.log(400.0)])
    one = infer(ends(slow), [LogCurve(at, np.log([f])) for f in fast], shared=len(fast))
    two = infer(ends(fast), [LogCurve(at, np.log([f])) for f in slow], shared=len(slow))
    if one.p is None:
        assert min(np.std(np.log(slow)), np.std(np.log(fast))) < 1e-8
        assert two.p is None
        return
    assert one.p == pytest.approx(two.p)
    swapped = {"better": "worse", "worse": "better", "inconclusive": "inconclusive"}
    assert verdict(two.interval, two.p, two.ahead) == swapped[verdict(one.interval, one.p, one.ahead)]


def test_never_reached_is_a_bound_and_a_test_not_a_certainty():
    far = infer(ends([8.0, 8.1, 7.9]), curves([[40.0, 30.0, 12.0], [40.0, 30.0, 12.2], [40.0, 30.0, 11.9]]), shared=3)
    assert far.interval == (None, 1.0)
    assert verdict(far.interval, far.p, far.ahead) == "worse"
    # No seed reaches the target, and still nothing is known: the seeds disagree by how much.
    near = infer(ends([8.0, 8.1, 7.9]), curves([[40.0, 30.0, 8.1], [40.0, 30.0, 9.9], [40.0, 30.0, 8.0]]), shared=3)
    assert near.interval[0] is None
    assert near.interval[1] > 0.9
    assert verdict(near.interval, near.p, near.ahead) == "inconclusive"


def test_there_at_once_has_no_upper_end():
    found = infer(ends([8.0, 8.1]), curves([[5.0, 4.0, 3.0], [5.1, 4.0, 3.1]]), shared=2)
    assert found.interval == (pytest.approx(4.0), None)


def test_a_recipe_that_ends_before_the_budget_is_judged_by_what_it_reached():
    short = BUDGETS - math.log(4)  # 25, 50, 100
    reached = infer(ends([8.0, 8.1, 7.9]), curves([[20.0, 9.0, 5.0 + x] for x in (0, 0.1, 0.05)], short), shared=3)
    assert verdict(reached.interval, reached.p, reached.ahead) == "better"
    not_yet = infer(ends([8.0, 8.1, 7.9]), curves([[20.0, 12.0, 11.0 + x] for x in (0, 0.1, 0.05)], short), shared=3)
    assert not_yet.interval == (None, pytest.approx(4.0))
    assert (not_yet.p, not_yet.untested) == (
        None,
        "no budget from half of the baseline's on is near a checkpoint of every training seed",
    )


STEPS = np.log([100.0, 200.0, 400.0, 800.0, 1000.0])


def falling(scale: float, exponents: list[float], budgets: np.ndarray = STEPS) -> list[LogCurve]:
    """FID = scale * budget^-exponent."""
    return [LogCurve(budgets, math.log(scale) - a * budgets) for a in exponents]


def whole(curves: list[LogCurve]) -> Baseline:
    return Baseline(np.array([c.budgets[-1] for c in curves]), np.array([c.fids[-1] for c in curves]), curves)


@pytest.mark.parametrize("pace", [0.999, 0.98, 0.9, 0.6])
def test_a_recipe_that_ends_a_little_earlier_is_judged_where_it_ends(pace):
    """One training seed that is a little faster must not cost the verdict in seconds, on either side."""
    slow, fast = falling(200.0, [0.50, 0.51, 0.49]), falling(100.0, [0.50, 0.511, 0.488])
    quick = [LogCurve(c.budgets + math.log(p), c.fids) for c, p in zip(slow, (1.0, pace, 1.0), strict=True)]
    found = infer(whole(fast), quick, shared=3)
    assert found.share == pytest.approx(pace)
    # both at that budget: the recipe's quick seed stands at its end, the others between checkpoints
    at = STEPS[-1] + math.log(pace)
    d = [float(a.at(at) - b.at(at)) for a, b in zip(quick, fast, strict=True)]
    assert found.p == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    assert verdict(found.interval, found.p, found.ahead) == "worse"
    swapped = infer(whole(quick), fast, shared=3)
    assert verdict(swapped.interval, swapped.p, swapped.ahead) == "better"


def test_below_half_of_the_budget_nothing_is_tested_that_is_not_ahead_already():
    slow, fast = falling(200.0, [0.50, 0.51, 0.49]), falling(100.0, [0.50, 0.511, 0.488])
    early = [LogCurve(c.budgets[:3], c.fids[:3]) for c in slow]
    assert infer(whole(fast), early, shared=3).p is None


@pytest.mark.parametrize(
    ("steps", "share"),
    [([500.0, 4000.0], 0.5), ([400.0, 4000.0], None), ([200.0, 4000.0], None), ([400.0, 800.0, 4000.0], 0.8),
     ([900.0, 1100.0], 1.0), ([100.0, 980.0, 4000.0], 1.0)],
)  # fmt: skip
def test_far_from_checkpoints_nothing_is_tested(steps, share):
    """Log FID is convex in log budget: a long chord lies above it, and equal recipes would differ."""

    def scored(at: list[float], factor: float) -> LogCurve:
        return LogCurve(np.log(at), np.log((60 * np.array(at) ** -0.55 + 3) * factor))

    base = [scored([250.0, 500.0, 750.0, 1000.0], f) for f in (0.999, 1.0, 1.001)]
    found = infer(whole(base), [scored(steps, f) for f in (1.001, 0.9995, 1.0005)], shared=3)
    if share is None:
        assert found.p is None
        assert found.untested
        low, high = found.interval
        assert low <= 1000 / 4000 + 1e-9
        assert high >= 1000 / steps[-2] - 1e-9
    else:
        assert (found.share, found.p > 0.05) == (pytest.approx(share), True)
        assert found.interval[0] <= 1 <= found.interval[1]


def test_copies_of_one_training_have_no_verdict():
    found = infer(ends([8.29, 8.29]), curves([[16.0, 12.0, 8.30]] * 2), shared=2)
    assert (found.interval, found.p) == ((None, None), None)
    assert "one FID, as copies have" in found.untested


def test_numbers_that_were_rounded_carry_their_rounding():
    """8.30 and 8.31 against 8.29 and 8.30: differences agree to a millionth, since two decimals are all there is."""
    base, rows = ends([8.29, 8.30]), curves([[16.0, 12.0, 8.30], [16.0, 12.1, 8.31]])
    assert infer(base, rows, shared=2).p < 1e-3
    assert infer(base, rows, shared=2, rounding=0.01 / math.sqrt(12) / 8.3).p > 0.1


@pytest.mark.parametrize(("ours", "theirs", "shared"), [(5, 10, 5), (10, 5, 5), (3, 10, 3), (4, 5, 4), (5, 8, 3)])
def test_seeds_without_a_partner_take_nothing_from_the_level(ours, theirs, shared):
    """Recipes of one seed that have nearly all their noise in common, and unequal numbers of seeds.

    Pairs of seeds of which only some are shared differ in their noise, for which a t-test has fewer false verdicts.
    """
    rng, false, panels, rho = np.random.default_rng(1), 0, 3000, 0.9
    for _ in range(panels):
        x, y = rng.normal(0, 0.02, ours), rng.normal(0, 0.02, theirs)
        x[:shared] = rho * y[:shared] + math.sqrt(1 - rho**2) * x[:shared]
        found = infer(baseline(np.zeros(theirs), y), [LogCurve(np.zeros(1), np.array([v])) for v in x], shared=shared)
        false += found.p < 0.05
    slack = 4 * math.sqrt(0.05 * 0.95 / panels)
    assert (0.05 - slack if shared == min(ours, theirs) else 0.01) < false / panels < 0.05 + slack


def test_seeds_without_a_common_budget():
    with pytest.raises(ValueError, match="no budget in common"):
        infer(ends([8.0, 8.0]), [*curves([[3.0, 2.0, 1.0]]), *curves([[3.0, 2.0, 1.0]], BUDGETS + 9)], shared=2)


def test_worse_checkpoints_after_the_crossing_are_not_hidden():
    """FID at half the budget is better, at equal budget worse: no verdict in favour."""
    rows = [[9.0, 6.0 * f, 12.0 * f] for f in (1.0, 1.01, 0.99)]
    found = infer(ends([8.0, 8.1, 7.9]), curves(rows), shared=3)
    assert found.interval[0] == 1.0  # it was there sooner, and at equal budget it is not there
    assert found.p < 0.05
    assert not found.ahead
    assert verdict(found.interval, found.p, found.ahead) == "inconclusive"


def test_the_verdict_has_the_error_of_its_own_budget():
    """Seeds agree where the curves cross and not at the end, where FID is compared: no verdict."""
    base = ends([10.71, 10.49, 10.19])
    rows = [[12.0, 9.50, 10.89], [12.0, 9.51, 10.37], [12.0, 9.49, 9.57]]
    found = infer(base, curves(rows), shared=3)
    assert found.p == pytest.approx(stats.ttest_rel(np.log([r[-1] for r in rows]), base.fids).pvalue)
    assert found.interval[0] is None or found.interval[0] <= 1
    assert verdict(found.interval, found.p, found.ahead) == "inconclusive"


def test_two_seeds_against_more_keep_their_level():
    """Scheffé's differences: exact, also where the two seeds are the noisier ones, in which Welch's test is not."""
    rng, false, panels = np.random.default_rng(1), 0, 4000
    for _ in range(panels):
        base = baseline(np.zeros(5), rng.normal(0, 0.01, 5))
        few = [LogCurve(np.array([0.0]), rng.normal(0, 0.1, 1)) for _ in range(2)]
        found = infer(base, few, shared=0)
        assert found.method == "Scheffé's t"
        false += found.p < 0.05
    assert abs(false / panels - 0.05) < 4 * math.sqrt(0.05 * 0.95 / panels)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_lies_between_none_and_bonferroni(p):
    for corrected, alone in zip(holm(p), p, strict=True):
        assert alone - 1e-12 <= corrected <= min(1.0, len(p) * alone) + 1e-12


def test_a_mean_of_values():
    found = t_test([1.0, 2.0, 3.0])
    low, high = found.interval
    assert (low + high) / 2 == pytest.approx(2)
    assert high - 2 == pytest.approx(4.3026527 / math.sqrt(3))
    assert found.p == pytest.approx(stats.ttest_1samp([1.0, 2.0, 3.0], 0).pvalue)
    assert t_test([1.0]) is None


NOISE = SeedNoise(cv=0.04, freedom=6, slope=0.5, source="test")


@pytest.mark.parametrize(("factor", "seeds", "recipes"), [(1.2, 3, 1), (1.5, 3, 2), (1.3, 8, 1), (2.0, 2, 4)])
def test_power_against_simulation(factor, seeds, recipes):
    rng, panels = np.random.default_rng(0), 4000
    d = -NOISE.slope * math.log(factor) + rng.normal(0, math.sqrt(2) * NOISE.cv, (panels, seeds))
    t = d.mean(1) / (d.std(1, ddof=1) / math.sqrt(seeds))
    shown = (t < stats.t.ppf(0.025 / recipes, seeds - 1)).mean()
    assert power(factor, seeds, NOISE, recipes) == pytest.approx(shown, abs=4 * math.sqrt(0.25 / panels))


def test_what_seeds_can_show():
    n = seeds_to_detect(1.2, NOISE)
    assert power(1.2, n, NOISE) >= 0.8 > power(1.2, n - 1, NOISE)
    least = detectable(n, NOISE)
    assert power(least, n, NOISE) == pytest.approx(0.8, abs=1e-6)
    assert 1 < least <= 1.2
    assert detectable(1, NOISE) is None
    assert power(2.0, 1, NOISE) == 0.0
    assert seeds_to_detect(1.2, NOISE, recipes=3) > n


def test_a_spread_that_was_measured_with_few_seeds_counts_for_less():
    sure = SeedNoise(cv=0.04, freedom=0, slope=0.5, source="test")
    assert sure.half(1, 1) == pytest.approx(1.95996 * math.sqrt(2) * 0.04, rel=1e-4)
    assert NOISE.half(1, 1) / sure.half(1, 1) == pytest.approx(stats.t.ppf(0.975, 6) / 1.95996, rel=1e-4)
    assert sure.half(1, 4) < sure.half(1, 1)
