"""The lines of a report's figures, finished: FID against budget, and alignment against depth and FID."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.records.schema import ScoreRecord
from harness.results.comparison import Comparison
from harness.results.curves import panel
from harness.results.speedup import average, spread

Point = tuple[float, float]


@dataclass(frozen=True)
class FidLine:
    """FID of one variant against a budget."""

    variant: str
    label: str
    mean: tuple[Point, ...]
    """Mean over the training seeds that got to the end, where all of them were scored."""
    band: tuple[Point, ...]
    """Least and greatest FID over these at each of the points; empty of a single training seed."""
    unfinished: tuple[tuple[Point, ...], ...]
    """A line for each training seed that did not get to the end."""


def fid_lines(comparison: Comparison, currency: str) -> list[FidLine]:
    """One for each variant that has a curve."""
    return [
        _fid_line(comparison, variant, currency) for variant in comparison.variants if variant in comparison.on_curve
    ]


def _fid_line(comparison: Comparison, variant: str, currency: str) -> FidLine:
    whole, others = comparison.complete(variant)
    groups: dict[int, list[ScoreRecord]] = {}
    for r in (r for seed in whole for r in comparison.curve(variant, seed)):
        groups.setdefault(r.step, []).append(r)
    mean, band = [], []
    for step, group in sorted(groups.items()):
        if {r.seed for r in group} == set(whole):
            fids = [comparison.fids(variant, step)[seed] for seed in whole]
            mean.append((spread([comparison.budget(r, currency) for r in group]).mean, spread(fids).mean))
            band.append((min(fids), max(fids)))
    unfinished = tuple(
        tuple((comparison.budget(r, currency), r.metrics.fid) for r in comparison.curve(variant, seed))
        for seed in others
    )
    label = comparison.variants[variant]
    return FidLine(variant, label, tuple(mean), tuple(band) if len(whole) > 1 else (), unfinished)


def other_lines(comparison: Comparison, currency: str) -> dict[str, Sequence[Point]]:
    """Mean over training seeds of curves that are not ours, by recipe."""
    recipes = dict.fromkeys(o.recipe for o in comparison.others)
    return {recipe: average(list(panel(comparison.others, recipe, currency).values())) for recipe in recipes}


@dataclass(frozen=True)
class AlignmentLine:
    """CKNNA of one variant with the encoder."""

    variant: str
    label: str
    by_depth: tuple[tuple[float, ...], ...]
    """After each block at the last step that was measured of any variant, a line for each training."""
    fid_by_cknna: tuple[tuple[Point, ...], ...]
    """CKNNA after the aligned block and FID, by step, a line for each training seed."""


def alignment_lines(comparison: Comparison) -> list[AlignmentLine]:
    """The lines of a figure of alignment, one for each variant."""
    last, lines = comparison.alignment_steps()[-1], []
    for variant, label in comparison.variants.items():
        found = sorted((r for r in comparison.alignments if r.variant == variant), key=lambda r: r.step)
        by_fid = []
        for seed in comparison.seeds(variant):
            fids = {r.step: r.metrics.fid for r in comparison.curve(variant, seed)}
            of_seed = (r for r in found if r.seed == seed and r.step in fids)
            by_fid.append(tuple((r.cknna[r.aligned_depth - 1], fids[r.step]) for r in of_seed))
        by_depth = tuple(tuple(r.cknna) for r in found if r.step == last)
        lines.append(AlignmentLine(variant, label, by_depth, tuple(by_fid)))
    return lines
