"""The time of a step, whatever else the machine did."""

from __future__ import annotations

import json
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_run import make_spec

from harness.pipeline.pace import FILE, pace_of, quiet
from harness.results.step_times import disturbances, steady
from recipes.training.run_folder import Run

EVERY = 25


def logged(paces: list[float]) -> tuple[list[int], list[float]]:
    """Logged steps and cumulative seconds of stretches of `EVERY` steps with these seconds a step."""
    return [EVERY * k for k in range(1, len(paces) + 1)], list(accumulate(EVERY * p for p in paces))


PACES = st.floats(1e-4, 1e3)


@given(PACES, st.lists(st.integers(1, 500), min_size=1, max_size=30, unique=True))
def test_a_constant_pace_is_found_from_any_steps(pace, steps):
    steps = sorted(steps)
    assert steady(steps, [pace * s for s in steps]) == pytest.approx(pace, rel=1e-9)


@given(st.lists(PACES, min_size=1, max_size=40), st.floats(1e-3, 1e3))
def test_it_scales_with_the_clock(paces, factor):
    steps, seconds = logged(paces)
    found = steady(steps, seconds)
    assert found is not None
    assert steady(steps, [factor * s for s in seconds]) == pytest.approx(factor * found, rel=1e-9)


@given(PACES, st.integers(3, 60), st.floats(0, 1), st.floats(0, 1), st.floats(1, 1e4))
def test_a_disturbed_third_of_the_run_does_not_move_it(pace, count, size, where, factor):
    slow = int(size * count / 3)
    first = int(where * (count - slow))
    paces = [pace * (factor if first <= k < first + slow else 1) for k in range(count)]
    assert steady(*logged(paces)) == pytest.approx(pace, rel=1e-6)


def test_the_first_stretch_counts_only_alone():
    assert steady([1], [9.0]) == 9.0
    assert steady([1, 25], [9.0, 9.0 + 24 * 0.5]) == 0.5
    assert steady([], []) is None


def test_steps_count_and_not_stretches():
    """A run that was often interrupted logs many short stretches."""
    steps = [1, 101, *range(102, 122)]
    seconds = [0.1, 10.1, *(10.1 + 3 * k for k in range(1, 21))]
    assert steady(steps, seconds) == pytest.approx(0.1)


def test_disturbed_neighbours_are_told_as_one():
    paces = [0.1] * 40
    paces[20:30] = [0.21] * 10
    paces[35] = 0.4
    steps, seconds = logged(paces)
    assert disturbances(steps, seconds) == [
        "steps 500 to 750 took 2.1 times the median step",
        "steps 875 to 900 took 4.0 times the median step",
    ]


def test_a_warm_up_and_a_short_stall_are_no_disturbance():
    assert disturbances(*logged([5.0] + [0.1] * 9)) == []
    assert disturbances(*logged([0.01] * 5 + [0.03] + [0.01] * 5)) == []  # half a second
    assert disturbances([], []) == []


def test_the_quiet_stretch_comes_before_the_log(tmp_path):
    run = Run.__new__(Run)
    object.__setattr__(run, "folder", tmp_path)
    object.__setattr__(run, "spec", make_spec("vanilla"))
    assert pace_of(run, 50).step_seconds is None
    steps, seconds = logged([0.1] * 3 + [0.9])
    rows = [json.dumps({"step": step, "seconds": s}) for step, s in zip(steps, seconds, strict=True)]
    run.log_path.write_text("\n".join([*rows, rows[0][:5]]))
    assert pace_of(run, 75).step_seconds == pytest.approx(0.1)
    assert pace_of(run, 75).notes == []
    assert pace_of(run, 100).source == "median of the log"
    assert pace_of(run, 100).notes == ["steps 75 to 100 took 9.0 times the median step"]
    (tmp_path / FILE).write_text('{"step_se')  # damaged: as if it had not been measured
    assert quiet(run) is None
    (tmp_path / FILE).write_text('{"step_seconds": 0.08, "steps": 25}\n')
    assert pace_of(run, 100).step_seconds == 0.08
    assert pace_of(run, 100).source == "quiet stretch"
    assert pace_of(run, 100).notes == []


def test_a_first_stretch_that_is_most_of_the_run_counts():
    assert steady([1400, 1500], [28.0, 60.0]) == pytest.approx(0.02)
