"""Two results folders side by side, paired by recipe and training seed: did a change of code or settings move FID?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.special import stdtrit

from harness.compare import Comparison, load
from harness.protocol import difference
from harness.speedup import LEVEL, PRIOR_CV, Verdict
from recipes.core.errors import UserError


@dataclass(frozen=True)
class Pair:
    """One recipe at one step in both folders."""

    arm: str
    label: str
    step: int
    first: float
    """FID in the first folder: geometric mean over the training seeds that both have."""
    second: float
    ratio: float
    """Second over first; below 1 is better."""
    interval: tuple[float, float]
    """95 %, of the ratio: Student's t over training seeds, or, of a single seed, the literature's prior."""
    seeds: int
    verdict: Verdict
    """Of the second folder; a single seed is inconclusive."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.__dict__, "interval": list(self.interval)}


def compare_folders(first: Path, second: Path) -> list[Pair]:
    """Every recipe and step that both folders have, under the curve protocol.

    Raises:
        UserError: a folder without scores, folders scored under different protocols, or nothing in common.
    """
    a, b = load([first]), load([second])
    ours, theirs = (c.protocol(c.curve_digest) for c in (a, b))
    if ours.protocol != theirs.protocol or ours.assets != theirs.assets:
        told = difference(ours.protocol, theirs.protocol) or "another feature network or reference"
        raise UserError(
            f"{first} and {second} are scored under different protocols ({told}): their FIDs do not compare."
        )
    out = [
        pair
        for arm, label in a.arms.items()
        if arm in b.arms
        for step in a.steps()
        if (pair := _pair(a, b, arm, label, step)) is not None
    ]
    if not out:
        raise UserError(f"{first} and {second} have no recipe, training seed and step in common.")
    return out


def _fids(comparison: Comparison, arm: str, step: int) -> dict[int, float]:
    return {s: r.metrics.fid for s in comparison.seeds(arm) for r in comparison.curve(arm, s) if r.step == step}


def _pair(a: Comparison, b: Comparison, arm: str, label: str, step: int) -> Pair | None:
    ours, theirs = _fids(a, arm, step), _fids(b, arm, step)
    shared = sorted(set(ours) & set(theirs))
    if not shared:
        return None
    logs = [math.log(theirs[s] / ours[s]) for s in shared]
    centre, n = fmean(logs), len(logs)
    if n == 1:
        half = float(stdtrit(1e6, (1 + LEVEL) / 2)) * math.sqrt(2) * PRIOR_CV
    else:
        half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * stdev(logs) / math.sqrt(n)
    low, high = math.exp(centre - half), math.exp(centre + half)
    verdict: Verdict = "inconclusive"
    if n > 1 and high < 1:
        verdict = "better"
    elif n > 1 and low > 1:
        verdict = "worse"
    means = (math.exp(fmean(math.log(x[s]) for s in shared)) for x in (ours, theirs))
    first, second = means
    return Pair(arm, label, step, first, second, math.exp(centre), (low, high), n, verdict)
