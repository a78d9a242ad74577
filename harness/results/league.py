"""The league: a row for each recipe of any number of results folders, by the rules of docs/league.md."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, variance

from scipy.special import stdtrit

from baselines.parity import Parity, parity
from harness.records.schema import ScoreRecord
from harness.results.comparison import Comparison
from harness.results.curves import panel
from harness.results.estimate import Estimate
from harness.results.rows import cost_rows
from harness.results.speedup import Spread, crossing
from harness.suites import SUITES, suite
from recipes.core.errors import UserError
from recipes.recipe_files import outside_recipes
from recipes.registry import RECIPES

#: Required training seeds for the baseline / for entries.
BASELINE_SEEDS, ENTRY_SEEDS = 5, 3
#: One-sided significance level for flagging suspiciously fast results.
SUSPICION = 0.001


@dataclass(frozen=True)
class Entry:
    """A recipe of the league."""

    variant: str
    label: str
    recipe: str
    about: str
    seeds: int
    fid: Spread | None
    """At the target's step."""
    estimates: Mapping[str, Estimate]
    """By currency; empty for the baseline."""
    step_milliseconds: Spread | None
    parity: Parity | None
    lines: int | None
    """Lines of its file without blank ones; None where the file is not here."""
    source: str
    """Where the recipe is: a path of this tree, or the SHA-256 of a file."""
    remarks: tuple[str, ...] = ()

    @property
    def rank(self) -> tuple[bool, float]:
        """By the speedup in iterations; what does not reach the target comes last."""
        point = self.estimates["iterations"].point if "iterations" in self.estimates else None
        if point is None:  # the baseline
            return (False, -1.0)
        return (
            point.loglog is None and point.bound is not None and point.bound <= 1,
            -(point.loglog or point.low or 0.0),
        )


@dataclass(frozen=True)
class League:
    """All entries, the best first."""

    suite: str
    notice: str
    target: float
    step: float
    entries: tuple[Entry, ...]
    remarks: tuple[str, ...] = field(default=())


def league(comparison: Comparison, reference: Comparison | None = None) -> League:
    """The entries of a comparison.

    Args:
        comparison: of all folders; its baseline sets the target.
        reference: reruns that nobody doubts, to hold results against.
    """
    found = comparison.speedups
    assert found is not None
    first = comparison.scores[0]
    baseline = len(comparison.seeds(comparison.baseline))
    remarks = [*found.warnings]
    if baseline < BASELINE_SEEDS:
        remarks.append(f"provisional: {baseline} training seed(s) of the baseline, the rules want {BASELINE_SEEDS}")
    remarks += _changed(first)
    if first.suite in SUITES and suite(first.suite).encoder_is_cached:
        remarks.append("the encoder's pass over the training images is cached, and free for every recipe")
    doubts: dict[str, str] = {}
    if reference is not None:
        doubts = suspicions(comparison, reference, found.target)
        remarks.append(_held(comparison, reference))
    entries = [_entry(comparison, variant, doubts.get(variant)) for variant in comparison.variants]
    entries.sort(key=lambda entry: entry.rank)
    return League(first.suite, first.notice, found.target, found.step, tuple(entries), tuple(remarks))


def _changed(record: ScoreRecord) -> list[str]:
    """Whether the suite is as this tree has it."""
    if record.suite in SUITES and suite(record.suite).identity() == record.suite_digest:
        return []
    return [
        f"the suite was changed (--set) or is of another version: its digest is {record.suite_digest[:8]}, not that "
        f"of {record.suite} here; entries of the two do not compare"
    ]


def _held(comparison: Comparison, reference: Comparison) -> str:
    """What was held against reruns.

    Raises:
        UserError: the reruns are of another suite.
    """
    ours, theirs = comparison.scores[0], reference.scores[0]
    if ours.suite_digest != theirs.suite_digest:
        raise UserError(
            f"--reference: its results are of suite {theirs.suite} (digest {theirs.suite_digest[:8]}), those of the "
            f"league of {ours.suite} ({ours.suite_digest[:8]}); name reruns of the same suite."
        )
    held = [v for v in comparison.variants if len(reference.seeds(v) if v in reference.variants else ()) > 1]
    left = [label for v, label in comparison.variants.items() if v not in held]
    told = f"held against reruns (--reference): {', '.join(comparison.variants[v] for v in held) or 'none'}"
    return told + (f"; without reruns of two training seeds or more: {', '.join(left)}" if left else "")


def _entry(comparison: Comparison, variant: str, doubt: str | None) -> Entry:
    found = comparison.speedups
    assert found is not None
    record = next(r for r in comparison.scores if r.variant == variant)
    label, seeds = comparison.variants[variant], len(comparison.seeds(variant))
    fid = comparison.fid_at(variant, int(found.step))
    reached = 0 if fid is None else len(fid.values)
    estimates = {s.currency: s.estimate for s in found if s.recipe == variant}
    cost = next(row for row in cost_rows(comparison) if row.label == label)
    lines, source = _source(record.recipe, record.source)
    remarks = []
    if seeds < ENTRY_SEEDS:
        remarks.append(f"{seeds} training seed(s), the rules want {ENTRY_SEEDS}")
    if reached < seeds:
        remarks.append(f"{reached} of its {seeds} training seeds reached step {found.step:,.0f}")
    if doubt is not None:
        remarks.append(doubt)
    return Entry(
        variant, label, record.recipe, record.about, seeds, fid, estimates,
        cost.step_milliseconds, parity().get(record.recipe), lines, source, tuple(remarks),
    )  # fmt: skip


def _source(recipe: str, source: str | None) -> tuple[int | None, str]:
    """Lines and place of a recipe's file."""
    outside = outside_recipes().get(recipe)
    if outside is not None and outside.source == source:
        return _lines(outside.path), f"{outside.path.name}, SHA-256 {outside.source[:12]}"
    if source is not None or recipe not in RECIPES:
        return None, f"SHA-256 {source[:12]}" if source else "unknown"
    path = Path(inspect.getfile(RECIPES[recipe]))
    return _lines(path), f"recipes/{path.name}"


def _lines(path: Path) -> int:
    return sum(bool(line.strip()) for line in path.read_text().splitlines())


def suspicions(comparison: Comparison, reference: Comparison, target: float) -> dict[str, str]:
    """Recipes that reach the target faster than every rerun of their reference allows, a sentence each."""
    out = {}
    for variant in comparison.variants:
        ours, theirs = (_logs_to(c, variant, target) for c in (comparison, reference))
        if ours and len(theirs) > 1 and is_suspicious(ours, theirs):
            out[variant] = (
                f"suspicious: it reaches the target after {math.exp(fmean(ours)):,.0f} steps, every rerun of its "
                f"reference ({len(theirs)}) needs {math.exp(min(theirs)):,.0f} or more"
            )
    return out


def is_suspicious(ours: list[float], theirs: list[float]) -> bool:
    """Whether log steps to the target lie below those of reruns of the reference, by more than chance.

    Args:
        ours: one for each training seed.
        theirs: two or more.
    """
    n, m = len(ours), len(theirs)
    freedom = n + m - 2
    pooled = ((n - 1) * (variance(ours) if n > 1 else 0.0) + (m - 1) * variance(theirs)) / freedom
    t = float(stdtrit(freedom, 1 - SUSPICION))
    limit = fmean(theirs) - t * math.sqrt(pooled * (1 / n + 1 / m))
    return fmean(ours) < min(limit, min(theirs))


def _logs_to(comparison: Comparison, variant: str, target: float) -> list[float]:
    """Log steps to the target of each training seed that reaches it."""
    if variant not in comparison.on_curve:
        return []
    curves = panel(comparison.observations(), variant, "iterations").values()
    found = [crossing([(p.step, p.fid) for p in curve], target) for curve in curves]
    return [math.log(one.loglog or one.at) for one in found if one is not None]
