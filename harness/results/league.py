"""The league: a row for each recipe of any number of results folders, by the rules of docs/league.md."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any

from scipy.special import stdtrit

from baselines.parity import Parity, parity
from harness.records.schema import ScoreRecord
from harness.results import merging
from harness.results.comparison import Comparison
from harness.results.curves import panel
from harness.results.estimate import Estimate
from harness.results.rows import cost_rows
from harness.results.run_folders import name_of
from harness.results.seed_notes import TO_THE_END
from harness.results.speedup import Panel, Spread, at_steps, crossing
from harness.suites import SUITES, AnySuite, suite
from harness.suites.grid import MARK
from recipes.core.errors import UserError
from recipes.recipe_files import outside_recipes
from recipes.registry import RECIPES
from recipes.training.run_folder import Run

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
    """Training seeds that count."""
    of: int
    """Training seeds with scores."""
    fid: Spread | None
    """At the target's step, over the seeds that count: geometric mean, standard deviation, each."""
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
    protocol: str
    target: float
    step: float
    entries: tuple[Entry, ...]
    remarks: tuple[str, ...] = field(default=())
    """What makes the numbers dubious, or keeps them from being a league's."""
    notes: tuple[str, ...] = field(default=())
    """On training seeds and budgets, as `repa-bench speedup` says them."""


def league(comparison: Comparison, reference: Comparison | None = None) -> League:
    """The entries of a comparison.

    Args:
        comparison: of all folders; its baseline sets the target.
        reference: reruns that nobody doubts, to hold results against.

    Raises:
        UserError: the reference is of another suite or protocol.
    """
    found = comparison.speedups
    assert found is not None
    first = comparison.scores[0]
    own = suite(first.suite) if first.suite in SUITES else None
    baseline = len(found.kept[comparison.baseline])
    remarks = [*found.warnings]
    if baseline < BASELINE_SEEDS:
        remarks.append(f"provisional: {baseline} training seed(s) of the baseline, the rules want {BASELINE_SEEDS}")
    remarks += _changed(first)
    if own is not None and found.step != own.budget.steps:
        remarks.append(f"the target is at step {found.step:,.0f}, the suite's budget is {own.budget.steps:,} steps")
    if own is not None and own.encoder_is_cached:
        remarks.append("the encoder's pass over the training images is cached, and free for every recipe")
    doubts: dict[str, str] = {}
    if reference is not None:
        doubts, told = suspicions(comparison, reference)
        remarks += told
    costs = dict(zip(comparison.variants, cost_rows(comparison), strict=True))
    entries = [
        _entry(comparison, variant, cost.step_milliseconds, own, doubts.get(variant))
        for variant, cost in costs.items()
        if variant in comparison.on_curve
    ]
    entries.sort(key=lambda entry: entry.rank)
    protocol = comparison.protocol(comparison.curve_digest).protocol.label
    return League(
        first.suite, first.notice, protocol, found.target, found.step, tuple(entries), tuple(remarks), found.notes
    )  # fmt: skip


def _changed(record: ScoreRecord) -> list[str]:
    """Whether the suite is as this tree has it."""
    if record.suite in SUITES and suite(record.suite).identity() == record.suite_digest:
        return []
    return [
        f"the suite was changed (--set) or is of another version: its digest is {record.suite_digest[:8]}, not that "
        f"of {record.suite} here; entries of the two do not compare"
    ]


def _entry(
    comparison: Comparison, variant: str, step_milliseconds: Spread | None, own: AnySuite | None, doubt: str | None
) -> Entry:
    found = comparison.speedups
    assert found is not None
    record = next(r for r in comparison.scores if r.variant == variant)
    label, kept = comparison.variants[variant], found.kept[variant]
    estimates = {s.currency: s.estimate for s in found if s.recipe == variant}
    lines, source = _source(record.recipe, record.source)
    remarks = [] if own is None else _departures(comparison, variant, own)
    if len(kept) < ENTRY_SEEDS:
        remarks.append(f"{len(kept)} training seed(s) that count, the rules want {ENTRY_SEEDS}")
    if doubt is not None:
        remarks.append(doubt)
    return Entry(
        variant, label, record.recipe, record.about, len(kept), len(comparison.seeds(variant)),
        _fid(kept, found.step), estimates, step_milliseconds, parity().get(record.recipe), lines, source,
        tuple(remarks),
    )  # fmt: skip


def _fid(kept: Panel, step: float) -> Spread | None:
    """FID at a step, as the target is made of it; none where a seed ends before."""
    if any(curve[0].step > step or curve[-1].step < TO_THE_END * step for curve in kept.values()):
        return None
    logs = [float(at_steps(curve, [step])[1, 0]) for curve in kept.values()]
    values = tuple(map(math.exp, logs))
    return Spread(math.exp(fmean(logs)), stdev(values) if len(values) > 1 else None, values)


def _departures(comparison: Comparison, variant: str, own: AnySuite) -> list[str]:
    """In what an entry's specification is not the suite's own, as far as its records and run folders say."""
    base, _, swept = variant.partition(MARK)
    out = [f"not the suite's own: {swept.replace(MARK, ', ')} (--grid)"] if swept else []
    records = {r.run: r for r in comparison.scores if r.variant == variant}.values()
    if all(r.suite_digest == own.identity() for r in records):
        return out
    keys = [_changed_keys(comparison, r, own, base) for r in records]
    known = list(dict.fromkeys(key for found in keys for key in found or ()))
    if known:
        out.append(f"not the suite's own: {', '.join(known)}")
    if None in keys:
        out.append(
            "whether it is the suite's own is not known: the folder of a run, or its recipe's file (--recipe-file), is "
            "not here"
        )
    return out


def _changed_keys(comparison: Comparison, record: ScoreRecord, own: AnySuite, base: str) -> list[str] | None:
    """Keys of a run's specification with values that are not the suite's own; None where one of both is not here."""
    places = [folder / "runs" / str(name_of(record)) for folder in comparison.folders]
    here = next((place for place in places if (place / "spec.json").is_file()), None)
    if here is None or base not in own.variants or own.method(base).source != record.source:
        return None
    try:
        spec = Run.open(here).spec
    except UserError:  # damaged
        return None
    ours, theirs = (
        _leaves(json.loads(one.model_dump_json())) for one in (spec, own.run_spec(base, record.seed, spec.inputs))
    )
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key) and key != "variant"]
    return [f"{key} {ours.get(key)} (the suite's: {theirs.get(key)})" for key in keys]


def _leaves(node: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {path: node}
    return {k: v for key, child in node.items() for k, v in _leaves(child, f"{path}.{key}".strip(".")).items()}


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


def suspicions(comparison: Comparison, reference: Comparison) -> tuple[dict[str, str], list[str]]:
    """Recipes that reach the target faster than every rerun of their reference allows, a sentence each; and which were
    held against the reference, and which not.

    Raises:
        UserError: the two are of two suites, specifications or protocols.
    """
    try:
        merging.refuse_mixtures([*comparison.scores, *reference.scores])
    except UserError as error:
        raise UserError(f"--reference: {error}") from None
    if comparison.curve_digest != reference.curve_digest:
        names = (c.protocol(c.curve_digest).protocol.label for c in (comparison, reference))
        raise UserError(f"--reference: its curves and the entries' are under two protocols, {' and '.join(names)}.")
    assert comparison.speedups is not None
    target, doubts, held, unheld = comparison.speedups.target, dict[str, str](), list[str](), list[str]()
    for variant, kept in comparison.speedups.kept.items():
        label = comparison.variants[variant]
        ours = _logs_to(kept, target, unreached=math.inf)
        theirs = _logs_to(panel(reference.observations(), variant, "iterations"), target)
        sources = [{r.source for r in c.scores if r.variant == variant} for c in (comparison, reference)]
        if len(theirs) < 2 or sources[0] != sources[1]:
            other = "another version of its file" if theirs and sources[0] != sources[1] else f"{len(theirs)} rerun(s)"
            unheld.append(f"{label} ({other} there)")
            continue
        held.append(f"{label} ({len(theirs)} reruns)")
        if math.inf not in ours and is_suspicious(ours, theirs):
            doubts[variant] = (
                f"suspicious: it reaches the target after {math.exp(fmean(ours)):,.0f} steps, every rerun of its "
                f"reference ({len(theirs)}) needs {math.exp(min(theirs)):,.0f} or more"
            )
    remarks = [f"reference: {told}" for told in reference.warnings]
    told = {
        "held against the reference": held,
        "not held against the reference, which wants two reruns of the same": unheld,
    }
    return doubts, remarks + [f"{what}: {', '.join(names)}" for what, names in told.items() if names]


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


def _logs_to(curves: Panel, target: float, unreached: float | None = None) -> list[float]:
    """Log steps to the target of each training seed; of one that does not reach it `unreached`, or those to its end, of
    which it needs more.
    """
    out = []
    for curve in curves.values():
        found = crossing([(p.step, p.fid) for p in curve], target)
        out.append(math.log(found.loglog or found.at) if found else unreached or math.log(curve[-1].step))
    return out
