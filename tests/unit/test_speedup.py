"""Speedups against hand-computed curves, and what must not change them."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from harness.results.speedup import Point, at_steps, average, crossing, speedup, spread

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
def test_exchanged_variant_invert_the_ratio(a, b, share):
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


def curve(*points: tuple[int, float, float]) -> list[Point]:
    return [Point(*point) for point in points]


def test_averages_are_geometric_and_interpolated_where_a_seed_has_no_checkpoint():
    one, two = curve((1, 10, 8.0), (4, 40, 2.0)), curve((1, 10, 2.0), (2, 20, 2.0), (8, 80, 0.5))
    # At step 2 the first seed is half way, in logs, from 8 to 2; at step 4 the second from 2 to 0.5.
    assert average([one, two]) == [
        (pytest.approx(10), pytest.approx(4.0)),
        (pytest.approx(20), pytest.approx(math.sqrt(4 * 2))),
        (pytest.approx(40), pytest.approx(math.sqrt(2 * 1))),
    ]


def test_between_checkpoints_log_fid_is_linear_in_log_step():
    (budgets, fids) = at_steps(curve((100, 3.0, 16.0), (400, 12.0, 4.0)), [100, 200, 400])
    assert [math.exp(b) for b in budgets] == pytest.approx([3, 6, 12])
    assert [math.exp(f) for f in fids] == pytest.approx([16, 8, 4])
