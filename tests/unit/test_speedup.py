"""Speedups against hand-computed curves, and what must not change them."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from harness.speedup import Estimate, Panel, Point, average, crossing, estimate, speedup, spread

BASELINE = [(100.0, 20.0), (200.0, 10.0), (400.0, 8.0)]


def test_by_hand():
    # FID 8 lies between (100, 16) and (200, 4): half way down in log FID, so at 100 sqrt 2; two thirds down linearly.
    found = speedup(BASELINE, [(100.0, 16.0), (200.0, 4.0), (400.0, 2.0)])
    assert found.target == 8.0
    assert (found.low, found.high) == (2.0, 4.0)
    assert found.loglog == pytest.approx(400 / (100 * math.sqrt(2)))
    assert found.linear == pytest.approx(400 / (100 + 100 * 8 / 12))
    assert (found.bound, found.bound_text, found.censored, found.sustained) == (None, None, False, True)


def test_a_curve_against_itself_is_one():
    found = speedup(BASELINE, BASELINE)
    assert (found.low, found.loglog, found.linear) == pytest.approx((1.0, 1.0, 1.0))


def test_not_reached_is_a_bound():
    found = speedup(BASELINE, [(100.0, 30.0), (800.0, 9.0)])
    assert (found.low, found.high, found.loglog, found.linear) == (None, None, None, None)
    assert (found.bound, found.bound_text, found.censored) == (0.5, "< 0.5", True)


def test_already_there_at_the_first_checkpoint():
    found = speedup(BASELINE, [(100.0, 5.0)])
    assert (found.low, found.high, found.loglog) == (4.0, None, None)
    assert (found.bound_text, found.censored) == ("> 4", True)


def test_the_first_sustained_crossing_counts():
    dips = [(1.0, 9.0), (2.0, 7.0), (3.0, 9.0), (4.0, 6.0), (5.0, 7.5)]
    found = crossing(dips, 8.0)
    assert (found.before, found.at, found.sustained) == (3.0, 4.0, True)
    rises = crossing([*dips, (6.0, 8.5)], 8.0)
    assert (rises.before, rises.at, rises.sustained) == (3.0, 4.0, False)


fids = st.lists(st.floats(1, 100), min_size=2, max_size=8)


def as_curve(values: list[float]) -> list[tuple[float, float]]:
    return [(float(k + 1), f) for k, f in enumerate(values)]


@given(base=fids, other=fids, factor=st.floats(0.1, 10))
def test_a_budget_scaled_by_c_scales_the_speedup_by_c(base, other, factor):
    baseline, curve = as_curve(base), as_curve(other)
    scaled = [(b * factor, f) for b, f in curve]
    one, two = speedup(baseline, curve), speedup(baseline, scaled)
    for name in ("low", "high", "loglog", "linear", "bound"):
        a, b = getattr(one, name), getattr(two, name)
        assert (a is None) == (b is None)
        assert a is None or a == pytest.approx(b * factor, rel=1e-9)


@given(base=fids, other=fids)
def test_interpolation_lies_in_the_bracket(base, other):
    found = speedup(as_curve(base), as_curve(other))
    assume(found.loglog is not None)
    for value in (found.loglog, found.linear):
        assert found.low * (1 - 1e-9) <= value <= found.high * (1 + 1e-9)


@given(base=fids, other=fids, worse=st.lists(st.floats(1.001, 10), min_size=1, max_size=3))
def test_worse_checkpoints_after_the_crossing_change_nothing(base, other, worse):
    baseline, curve = as_curve(base), as_curve(other)
    found = speedup(baseline, curve)
    assume(found.bound is None)
    later = [*curve, *((float(len(curve) + 1 + k), found.target * w) for k, w in enumerate(worse))]
    again = speedup(baseline, later)
    for name in ("target", "low", "high", "loglog", "linear"):
        assert getattr(again, name) == getattr(found, name)
    assert not again.sustained


falling = st.lists(st.floats(0.3, 0.95), min_size=3, max_size=7)


@given(a=falling, b=falling, share=st.floats(0.05, 0.95))
def test_exchanged_arms_invert_the_ratio(a, b, share):
    """At a target that both come down through."""

    def curve(steps: list[float]) -> list[tuple[float, float]]:
        fid, out = 100.0, []
        for k, factor in enumerate(steps):
            out.append((float(k + 1), fid))
            fid *= factor
        return out

    one, two = curve(a), curve(b)
    lowest = max(one[-1][1], two[-1][1])
    target = lowest**share * 100.0 ** (1 - share)
    assert speedup(one, two, target).loglog == pytest.approx(1 / speedup(two, one, target).loglog, rel=1e-9)


def test_empty_curve():
    with pytest.raises(ValueError, match="at least one"):
        speedup([], BASELINE)
    with pytest.raises(ValueError, match="does not come down through 5"):
        speedup(BASELINE, BASELINE, 5.0)


def test_spread():
    assert spread([2.0]).sd is None
    assert (spread([1.0, 3.0]).mean, spread([1.0, 3.0]).sd) == (2.0, pytest.approx(math.sqrt(2)))


# --- over seeds -------------------------------------------------------------------------------------------------------


def panel(curve: list[tuple[float, float]], factors: list[float]) -> Panel:
    return {s: [Point(int(b), b, fid * f) for b, fid in curve] for s, f in enumerate(factors)}


FAST = [(50.0, 20.0), (100.0, 10.0), (200.0, 8.0)]


def test_averages_are_of_the_steps_that_all_have():
    curves = [[Point(1, 1, 4.0), Point(2, 2, 2.0)], [Point(1, 3, 9.0), Point(3, 3, 1.0)]]
    assert average(curves) == [(2.0, pytest.approx(6.0))]
    with pytest.raises(ValueError, match="at least one checkpoint"):
        estimate({0: curves[0], 1: curves[0]}, {0: [Point(7, 7, 1.0)], 1: [Point(8, 8, 1.0)]})


def test_seeds_that_agree_are_better_and_swapped_worse():
    base, fast = panel(BASELINE, [1.0, 1.01, 0.99]), panel(FAST, [1.0, 1.01, 0.99])
    found = estimate(base, fast)
    assert found.point.loglog == pytest.approx(2.0)
    assert found.interval == pytest.approx((2.0, 2.0))  # paired: both move together
    assert (found.verdict, found.seeds, found.paired) == ("better", 3, True)
    assert set(found.by_seed) == {0, 1, 2}
    slow = [(200.0, 20.0), (400.0, 10.0), (800.0, 8.0)]
    assert estimate(base, panel(slow, [1.0, 1.01, 0.99])).verdict == "worse"


def test_seeds_that_disagree_are_inconclusive():
    base = panel(BASELINE, [1.0, 1.2, 0.85])
    found = estimate(base, panel([(100.0, 19.0), (200.0, 9.5), (400.0, 7.6)], [0.85, 1.0, 1.2]))
    low, high = found.interval
    assert low is None or low < 1
    assert high is None or high > 1
    assert found.verdict == "inconclusive"


def test_the_bootstrap_by_hand():
    """Two seeds: resamples are (a, a), (a, b), (b, b); the standard error of the log is |d| / sqrt 8 over sqrt 1/2."""
    factor = {0: 1.0, 1: 1.1}
    base = {s: [Point(100, 100.0, 16.0), Point(400, 400.0, 8.0)] for s in factor}
    fast = {s: [Point(100, 100.0, 16.0 * f), Point(400, 400.0, 4.0 * f)] for s, f in factor.items()}
    found = estimate(base, fast)
    # log-log: budget = 100 * 4^share with share = log(16 f / 8) / log 4, so log speedup moves by -log f
    logs = [math.log(found.by_seed[s].loglog) for s in factor]
    assert logs[1] - logs[0] == pytest.approx(-math.log(1.1))
    standard_error = abs(logs[1] - logs[0]) / 2  # s / sqrt n, with s = |d| / sqrt 2 and n = 2
    width = 12.706 * standard_error
    centre = math.log(found.point.loglog)
    assert found.interval == pytest.approx((math.exp(centre - width), math.exp(centre + width)), rel=0.05)


def single(curve: list[tuple[float, float]]) -> Estimate:
    return estimate(panel(BASELINE, [1.0]), panel(curve, [1.0]))


def test_a_single_seed_is_said_and_has_the_priors_interval():
    """+-1.96 sqrt 2 1.3 % of the target, through the curve: FID falls as budget^-2 here, so half of that in budget."""
    found = single([(100.0, 16.0), (200.0, 4.0), (400.0, 2.0)])
    half = 1.96 * math.sqrt(2) * 0.013 / 2
    centre = 400 / (100 * math.sqrt(2))
    assert found.interval == pytest.approx((centre * math.exp(-half), centre * math.exp(half)), rel=1e-4)
    assert found.verdict == "inconclusive"
    assert found.evidence.startswith("single seed")


def test_open_ends():
    assert single([(100.0, 30.0), (800.0, 9.0)]).interval == (None, 0.5)  # not reached
    assert single([(100.0, 5.0)]).interval == (4.0, None)  # there at once
    low, high = single([(100.0, 30.0), (800.0, 7.95)]).interval  # reached, by less than two seeds may differ
    assert low is None
    target = 8.0 * math.exp(1.96 * math.sqrt(2) * 0.013)
    assert high == pytest.approx(4 / 8 ** (math.log(30 / target) / math.log(30 / 7.95)), rel=1e-3)


def test_never_reached_on_an_equal_budget_is_worse():
    base = panel(BASELINE, [1.0, 1.01, 0.99])
    assert estimate(base, panel([(100.0, 30.0), (400.0, 12.0)], [1.0, 1.01, 0.99])).verdict == "worse"
    assert estimate(base, panel([(100.0, 30.0), (200.0, 12.0)], [1.0, 1.01, 0.99])).verdict == "inconclusive"


def test_other_seeds_are_not_paired():
    base, fast = panel(BASELINE, [1.0, 1.01]), panel(FAST, [1.0, 1.01])
    found = estimate(base, {seed + 10: curve for seed, curve in fast.items()})
    assert not found.paired
    assert found.evidence == "bootstrap over 2 training seeds"
    assert found.by_seed == {}


@given(factors=st.lists(st.floats(0.9, 1.1), min_size=2, max_size=4))
def test_an_interval_holds_its_point(factors):
    found = estimate(panel(BASELINE, factors), panel(FAST, list(reversed(factors))))
    low, high = found.interval
    value = found.point.loglog
    assume(value is not None)
    assert low is None or low <= value * (1 + 1e-9)
    assert high is None or high >= value * (1 - 1e-9)
