"""Two results folders side by side, paired by recipe and training seed: did a change of code or settings move FID?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from harness.results.comparison import load
from harness.results.confidence import SeedNoise, Verdict, holm, t_test, verdict
from harness.results.noise import NOISE
from harness.sampling.protocol import difference
from recipes.core.errors import UserError


@dataclass(frozen=True)
class Pair:
    """One recipe at one step in both folders."""

    variant: str
    label: str
    step: int
    first: float
    """FID in the first folder: geometric mean over the training seeds that both have."""
    second: float
    ratio: float
    """Second over first; below 1 is better."""
    interval: tuple[float, float] | None
    """95 %, of the ratio, of this pair alone: Student's t over training seeds; of a single seed, from the suite's
    spread, where that is known."""
    seeds: int
    p: float | None = None
    """Two-sided, of this pair alone; a single seed has none."""
    verdict: Verdict | None = None
    """Verdict on the second folder, with all pairs counted (Holm)."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.__dict__, "interval": self.interval and list(self.interval)}


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
    noise = NOISE.get(ours.suite)
    out = [
        pair
        for variant, label in a.variants.items()
        if variant in b.variants
        for step in a.steps()
        if (pair := _pair(a.fids(variant, step), b.fids(variant, step), variant, label, step, noise)) is not None
    ]
    if not out:
        raise UserError(f"{first} and {second} have no recipe, training seed and step in common.")
    judged = [pair for pair in out if pair.p is not None]
    corrected = dict(zip(map(id, judged), holm([pair.p or 0.0 for pair in judged]), strict=True))
    return [
        replace(pair, verdict=_verdict(pair, corrected[id(pair)])) if id(pair) in corrected else pair for pair in out
    ]


def _verdict(pair: Pair, p: float) -> Verdict:
    assert pair.interval is not None
    low, high = pair.interval
    return verdict((1 / high, 1 / low), p, pair.ratio < 1)  # less is better


def _pair(
    ours: dict[int, float], theirs: dict[int, float], variant: str, label: str, step: int, noise: SeedNoise | None
) -> Pair | None:
    """One recipe at one step, by its FIDs in both folders, each by training seed."""
    shared = sorted(set(ours) & set(theirs))
    if not shared:
        return None
    logs = [math.log(theirs[seed] / ours[seed]) for seed in shared]
    found, centre = t_test(logs), fmean(logs)
    half = found.half if found else noise.half(1, 1) if noise else None
    first, second = (math.exp(fmean(math.log(x[seed]) for seed in shared)) for x in (ours, theirs))
    interval = None if half is None else (math.exp(centre - half), math.exp(centre + half))
    return Pair(variant, label, step, first, second, math.exp(centre), interval, len(logs), found.p if found else None)
