"""Robust estimate of seconds per step from occasionally logged clock times."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import median

#: A stretch is worth a note where its steps took more than this times the median step, and `LOST_SECONDS` were lost.
DISTURBED = 1.5
#: A stall that lost fewer seconds is not worth a note.
LOST_SECONDS = 1.0


@dataclass(frozen=True)
class _Stretch:
    """Steps (first, last] of a run."""

    first: int
    last: int
    seconds: float

    @property
    def each(self) -> float:
        """Seconds of one step."""
        return self.seconds / (self.last - self.first)


def _stretches(steps: Sequence[int], seconds: Sequence[float]) -> list[_Stretch]:
    """Between logged steps. The first stretch (warm-up) is dropped unless it covers more than half of the run."""
    marks = [(0, 0.0), *zip(steps, seconds, strict=True)]
    found = [_Stretch(a, b, until - since) for (a, since), (b, until) in pairwise(marks) if b > a]
    return found if found and 2 * found[0].last > found[-1].last else found[1:]


def steady(steps: Sequence[int], seconds: Sequence[float]) -> float | None:
    """Seconds of one step, as the median over the steps: what disturbs less than half of a run does not move it.

    Args:
        steps: that were logged, ascending.
        seconds: of training until each, from the first step of the run on, restarts and all.

    Returns:
        None if nothing was logged.
    """
    found = sorted(_stretches(steps, seconds), key=lambda s: s.each)
    if not found:
        return None
    until = list(accumulate(s.last - s.first for s in found))
    lower, upper = (found[bisect_right(until, rank)].each for rank in ((until[-1] - 1) // 2, until[-1] // 2))
    return (lower + upper) / 2


def disturbances(steps: Sequence[int], seconds: Sequence[float]) -> list[str]:
    """What took over `DISTURBED` times the median step, as in ``steps 500 to 750 took 2.1 times the median step``."""
    usual = steady(steps, seconds)
    slow: list[_Stretch] = []
    for s in _stretches(steps, seconds):
        if usual is None or s.each <= DISTURBED * usual:
            continue
        if slow and slow[-1].last == s.first:
            before = slow.pop()
            s = _Stretch(before.first, s.last, before.seconds + s.seconds)
        slow.append(s)
    return [
        f"steps {s.first} to {s.last} took {s.each / usual:.1f} times the median step"
        for s in slow
        if usual is not None and s.seconds - usual * (s.last - s.first) >= LOST_SECONDS
    ]


def odd_paces(paces: Mapping[int, float]) -> list[str]:
    """Training seeds of one recipe whose steps took over `DISTURBED` times as long as their median, or were so quick.

    With two seeds it is unclear which is odd, so both are named.

    Args:
        paces: seconds of a step, by training seed.
    """
    if len(paces) < 2:
        return []
    usual = median(paces.values())
    if len(paces) == 2 and max(paces.values()) > DISTURBED * min(paces.values()):
        (a, first), (b, second) = paces.items()
        return [
            f"seeds {a} and {b}: a step took {first:.3g} and {second:.3g} s: did both have the machine to themselves?"
        ]
    return [
        f"seed {seed}: a step took {pace / usual:.1f} times the median of its seeds: had it the machine to itself?"
        for seed, pace in paces.items()
        if not usual / DISTURBED <= pace <= usual * DISTURBED
    ]
