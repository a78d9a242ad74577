"""How often the league calls an honest result suspicious, and how often it sees one that is not."""

from __future__ import annotations

import numpy as np
import pytest

from harness.results.league import is_suspicious


def rate(n: int, m: int, gain: float, spread: float, trials: int = 20_000) -> float:
    """Share of results of n seeds, faster by a factor than the m reruns of their reference, that are suspicious."""
    rng = np.random.default_rng(0)
    ours = rng.normal(-np.log(gain), spread, (trials, n))
    theirs = rng.normal(0.0, spread, (trials, m))
    return sum(is_suspicious(list(a), list(b)) for a, b in zip(ours, theirs, strict=True)) / trials


@pytest.mark.parametrize(("n", "m"), [(3, 3), (3, 5), (1, 5), (5, 5)])
def test_an_honest_result_is_suspicious_one_time_in_a_thousand_at_most(n, m):
    assert rate(n, m, 1.0, 0.03) <= 0.001


@pytest.mark.parametrize(("n", "m", "gain"), [(3, 3, 1.5), (3, 5, 1.25), (5, 5, 1.2)])
def test_a_result_that_cannot_be_is_seen(n, m, gain):
    assert rate(n, m, gain, 0.03, trials=2000) > 0.95


def test_the_same_numbers_are_not_suspicious():
    assert not is_suspicious([1.0, 1.1, 1.2], [1.0, 1.1, 1.2])
    assert not is_suspicious([1.0], [1.0, 1.0])
