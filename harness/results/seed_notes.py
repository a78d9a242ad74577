"""Notes on training seeds: excluded seeds, interpolated steps, unusual noise."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import stdev

from scipy.special import chdtrc

from harness.results.confidence import ALIKE, SeedNoise
from harness.results.estimate import Estimate
from harness.results.speedup import Panel, at_steps

#: Two-sided level at which seed noise counts as unusual.
UNUSUAL = 1e-3
#: A seed counts as finished if its last step is at least this fraction of the median last step.
TO_THE_END = 0.98


def seed_notes(
    kept: Panel,
    left_out: Mapping[int, tuple[int, int]],
    trainings: Mapping[int, int],
    end: float,
    noise: SeedNoise | None,
) -> list[str]:
    """What a reader should know of a recipe's training seeds.

    Args:
        kept: those that are compared.
        left_out: the first and last steps of the others.
        trainings: how many there are under each seed number.
        end: the step at which the comparison is made.
        noise: of the suite.
    """
    first, furthest = max(curve[0].step for curve in kept.values()), min(curve[-1].step for curve in kept.values())
    out = []
    for seed, (begins, ends) in left_out.items():
        if ends < furthest:
            cure = f"--until {ends} compares there"
            out.append(f"seed {seed} ends at step {ends:,}, before {furthest:,}, and is left out ({cure})")
        else:
            out.append(f"seed {seed} begins at step {begins:,}, where others end, and is left out")
    out += [
        f"seed {seed} goes on to step {curve[-1].step:,}, the others end at {furthest:,}, and no further step counts"
        for seed, curve in kept.items()
        if curve[-1].step > furthest / TO_THE_END and furthest <= end
    ]
    if furthest < TO_THE_END * end:
        out.append(f"it ends at step {furthest:,}, before {end:,.0f}")
    within = min(end, furthest)
    grids = [{p.step for p in curve if first <= p.step <= within} for curve in kept.values()]
    if odd := sorted(step for step in set.union(*grids) if not all(step in grid for grid in grids)):
        out.append(
            f"not every seed was scored at step {', '.join(f'{s:,}' for s in odd[:5])}: FID is interpolated there"
        )
    for seed, count in trainings.items():
        if count > 1:
            out.append(f"seed {seed} was trained {count} times, which counts as one seed, by their mean")
    if len(kept) == 2:
        out.append("two training seeds, one degree of freedom: a third narrows the interval most")
    return out + _unusual(kept, end, noise)


def verdict_notes(found: Mapping[str, Estimate]) -> list[str]:
    """Where a recipe's verdicts are not at the whole budget, or why there are none; by currency as people read it."""
    out = []
    for reason in dict.fromkeys(e.untested for e in found.values() if e.untested):
        where = ", ".join(currency for currency, e in found.items() if e.untested == reason)
        out.append(f"no verdict in {where}: {reason}")
    shares = {currency: f"{e.share:.0%}" for currency, e in found.items() if e.share < TO_THE_END}
    for share in dict.fromkeys(shares.values()):
        where = ", ".join(currency for currency, value in shares.items() if value == share)
        out.append(f"in {where} it is judged by FID at {share} of the baseline's budget, which all training seeds have")
    return out


def _unusual(curves: Panel, end: float, noise: SeedNoise | None) -> list[str]:
    """Note if seeds are identical or their spread differs from the suite's known noise."""
    step = min(end, *(float(curve[-1].step) for curve in curves.values()))
    if len(curves) < 2 or step < max(curve[0].step for curve in curves.values()):
        return []
    sd = stdev([float(at_steps(curve, [step])[1, 0]) for curve in curves.values()])
    if sd < ALIKE:
        return [f"its {len(curves)} training seeds have one FID, as copies have: no verdict is made of them"]
    freedom = len(curves) - 1
    more = 0.5 if noise is None else float(chdtrc(freedom, freedom * (sd / noise.cv) ** 2))
    if noise is None or UNUSUAL / 2 <= more <= 1 - UNUSUAL / 2:
        return []
    return [
        f"FID spreads by {sd:.1%} over {len(curves)} training seeds, which is unusual: {noise.cv:.1%} is usual here "
        f"({noise.source})"
    ]
