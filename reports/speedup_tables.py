"""Tables of speedups, and how a speedup is written."""

from __future__ import annotations

from collections.abc import Mapping

from harness.results.curves import Speedups, title
from harness.results.estimate import Estimate
from reports.table import Table


def times(value: float | None) -> str:
    """A speedup."""
    return "–" if value is None else f"{value:.2f}×"


def bracket(e: Estimate) -> str:
    """From the first checkpoint at or below the target to the last above it; needs no interpolation."""
    if e.point.low is None:
        return "–"
    return f"{e.point.low:.2f} to {e.point.high:.2f}" if e.point.high is not None else f"at least {e.point.low:.2f}"


def interval(e: Estimate) -> str:
    """95 %; an end that nothing bounds is open."""
    low, high = e.interval
    if low is None and high is None:
        return "–"
    if low is None:
        return f"below {high:.2f}"
    return f"{low:.2f} to {high:.2f}" if high is not None else f"above {low:.2f}"


def headline(e: Estimate) -> str:
    """The log-log figure, or the bound, never a number made up."""
    if e.point.loglog is not None:
        return times(e.point.loglog)
    return f"{e.point.bound_text}×" + (" (not reached)" if e.point.bound is not None else "")


def verdict(e: Estimate) -> str:
    """With the family counted; a single seed has none."""
    if e.verdict is None or e.p_family is None:
        return "none"
    return f"{e.verdict}, p {'< 0.001' if e.p_family < 0.001 else f'{e.p_family:.3f}'}"


def speedup_table(
    found: Speedups, labels: Mapping[str, str], runs: Mapping[str, tuple[str, ...]] | None = None
) -> Table:
    """How much sooner each variant reaches the baseline's FID, in each currency; `runs` by variant, where there are."""
    images, steps = ([headline(s.estimate) for s in found if s.currency == c] for c in ("images", "iterations"))
    rows, traces = [], []
    for s in found:
        if s.currency == "images" and images == steps:  # equal batches: they say the same
            continue
        e = s.estimate
        traces.append((runs or {}).get(s.recipe, ()))
        cells = (headline(e), interval(e), verdict(e), bracket(e))
        rows.append((labels.get(s.recipe, s.recipe), title(s.currency), *cells))
    baseline = labels.get(found.baseline, found.baseline)
    heading = f"Speedup to {baseline}'s FID of {found.target:.2f} at step {found.step:,.0f}"
    columns = ("recipe", "counted in", "speedup", "95 % interval, alone", "verdict, family", "bracket")
    return Table(heading, columns, tuple(rows), _speedup_note(found, labels), tuple(traces))


def _speedup_note(found: Speedups, labels: Mapping[str, str]) -> str:
    baseline = labels.get(found.baseline, found.baseline)
    family = max((s.family for s in found), default=0)
    points = {labels.get(s.recipe, s.recipe): s.estimate.point for s in found}
    dips = [label for label, point in points.items() if not point.sustained and point.bound is None]
    evidence = "; ".join(dict.fromkeys(s.estimate.evidence for s in found))
    note = (
        f"Budget of {baseline} over the budget at which the recipe reaches the same FID, of curves averaged over "
        "training seeds, by log-log interpolation; the bracket needs none: from the first checkpoint at or below the "
        f"target to the last above it. Interval, of each row alone: {evidence}. "
    )
    if family:
        note += (
            "Verdict: FID at equal budget differs, with the chance of any false verdict among the "
            f"{family} recipe{'s' * (family > 1)} of a currency held at 5 % (Holm, whose p stands beside it). "
        )
    if any(s.estimate.verdict is None for s in found):
        note += "No verdict without two training seeds on both sides: train more (`repa-bench run --seeds`). "
    if dips:
        note += f"Not sustained, worse checkpoints follow: {', '.join(dips)}. "
    return note + " ".join(f"{note}." for note in (*found.warnings, *found.notes))


def epochs_table(epochs: Mapping[str, Mapping[str, float | None]], target: float) -> Table:
    """EP_FID@k of every recipe."""
    rows = [
        (recipe, *("not reached" if value is None else f"{value:.2f}" for value in found.values()))
        for recipe, found in epochs.items()
    ]
    return Table(
        f"Epochs to an unguided FID of {target:g}",
        ("recipe", "first checkpoint", "log-log"),
        tuple(rows),
        "EP_FID@k (arXiv 2605.18324), in epochs of ImageNet's training images; of curves averaged over training seeds.",
    )
