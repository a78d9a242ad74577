"""Speedups against hand-computed curves."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from harness.speedup import crossing, speedup, spread

BASELINE = [(100.0, 20.0), (200.0, 10.0), (400.0, 8.0)]


def test_by_hand():
    # FID 8 lies between (100, 16) and (200, 4): half way down in log FID, so at 100 sqrt 2.
    found = speedup(BASELINE, [(100.0, 16.0), (200.0, 4.0), (400.0, 2.0)])
    assert found.target == 8.0
    assert (found.low, found.high) == (2.0, 4.0)
    assert found.loglog == pytest.approx(400 / (100 * math.sqrt(2)))
    assert found.bound is None


def test_a_curve_against_itself_is_one():
    found = speedup(BASELINE, BASELINE)
    assert (found.low, found.loglog) == pytest.approx((1.0, 1.0))


def test_not_reached_is_a_bound():
    found = speedup(BASELINE, [(100.0, 30.0), (800.0, 9.0)])
    assert found.low is None
    assert found.loglog is None
    assert found.bound == 0.5


def test_already_there_at_the_first_checkpoint():
    found = speedup(BASELINE, [(100.0, 5.0)])
    assert (found.low, found.high, found.loglog) == (4.0, None, None)


def test_the_first_crossing_counts():
    assert crossing([(1.0, 9.0), (2.0, 7.0), (3.0, 9.0), (4.0, 6.0)], 8.0).at == 2.0


fids = st.lists(st.floats(1, 100), min_size=2, max_size=8)


@given(base=fids, other=fids, factor=st.floats(0.1, 10))
def test_a_budget_scaled_by_c_scales_the_speedup_by_c(base, other, factor):
    baseline = [(float(k + 1), f) for k, f in enumerate(base)]
    curve = [(float(k + 1), f) for k, f in enumerate(other)]
    scaled = [(b * factor, f) for b, f in curve]
    one, two = speedup(baseline, curve), speedup(baseline, scaled)
    for name in ("low", "high", "loglog", "bound"):
        a, b = getattr(one, name), getattr(two, name)
        assert (a is None) == (b is None)
        assert a is None or a == pytest.approx(b * factor, rel=1e-9)


@given(base=fids, other=fids)
def test_interpolation_lies_in_the_bracket(base, other):
    baseline = [(float(k + 1), f) for k, f in enumerate(base)]
    curve = [(float(k + 1), f) for k, f in enumerate(other)]
    found = speedup(baseline, curve)
    assume(found.loglog is not None)
    assert found.low * (1 - 1e-9) <= found.loglog <= found.high * (1 + 1e-9)


def test_empty_curve():
    with pytest.raises(ValueError, match="at least one"):
        speedup([], BASELINE)


def test_spread():
    assert spread([2.0]).sd is None
    assert (spread([1.0, 3.0]).mean, spread([1.0, 3.0]).sd) == (2.0, pytest.approx(math.sqrt(2)))
