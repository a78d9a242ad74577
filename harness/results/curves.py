"""Speedups over training seeds from FID curves (ours or external)."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from harness.results.confidence import SeedNoise, holm, verdict
from harness.results.estimate import Estimate, estimate
from harness.results.seed_notes import TO_THE_END, seed_notes, verdict_notes
from harness.results.speedup import Curve, Panel, Point, at_steps, average, crossing
from harness.suites.base import IMAGENET_TRAIN
from recipes.core.errors import UserError, nearest

#: Columns of a table that count a budget, and the currency that each is.
BUDGETS = {"step": "iterations", "images": "images", "flops": "flops", "device_seconds": "device_seconds"}
CURRENCIES = tuple(BUDGETS.values())
#: Display names of currencies.
TITLES = {
    "iterations": "iterations",
    "images": "images",
    "flops": "FLOPs",
    "device_seconds": "device-seconds",
}
#: What each is called, and its column, where pre-training of the tokenizer is counted.
WITH_TOKENIZER = {currency: f"{currency}+tokenizer" for currency in CURRENCIES}
_PLAIN = {counted: currency for currency, counted in WITH_TOKENIZER.items()}
#: Warn if the baseline's last FID exceeds its lowest by this factor.
RISES = 1.05


def title(currency: str) -> str:
    """What a currency is called, with or without tokenizer pre-training."""
    return TITLES[_PLAIN.get(currency, currency)] + (", tokenizer counted" if currency in _PLAIN else "")


@dataclass(frozen=True)
class Observation:
    """FID of one sample set of one checkpoint."""

    recipe: str
    seed: int
    """Training seed."""
    generation_seed: int
    step: int
    fid: float
    budgets: dict[str, float] = field(default_factory=dict)
    """What training has cost up to here, by currency."""
    training: str = ""
    """Which of several trainings under one seed number."""


@dataclass(frozen=True)
class Selection:
    """Filter on recipes, seeds and steps."""

    recipes: tuple[str, ...] = ()
    """Empty: all. The baseline is always included."""
    seeds: tuple[int, ...] = ()
    until: int | None = None
    """The last step that counts."""

    def holds(self, recipe: str, seed: int, step: int, baseline: str) -> bool:
        """Whether a checkpoint is in it."""
        return (
            (not self.recipes or recipe in (*self.recipes, baseline))
            and (not self.seeds or seed in self.seeds)
            and (self.until is None or step <= self.until)
        )

    def refuse_absent(self, recipes: Iterable[str], seeds: Iterable[int], steps: Iterable[int]) -> None:
        """Refuse names that match nothing.

        Raises:
            UserError: it names what is not there.
        """
        known, have, first = sorted(set(recipes)), sorted(set(seeds)), min(steps)
        for recipe in self.recipes:
            if recipe not in known:
                raise UserError(f"--recipes: there is no recipe '{recipe}'.{nearest(recipe, known)}")
        for seed in self.seeds:
            if seed not in have:
                raise UserError(f"--seeds: there is no training seed {seed}; there are {', '.join(map(str, have))}.")
        if self.until is not None and self.until < first:
            raise UserError(f"--until {self.until}: the first scored step is {first}.")


def select(observations: Sequence[Observation], selection: Selection, baseline: str) -> list[Observation]:
    """Those that are in the selection.

    Raises:
        UserError: it names what is not there.
    """
    fields = zip(*((o.recipe, o.seed, o.step) for o in observations), strict=True)
    selection.refuse_absent(*fields)
    kept = [o for o in observations if selection.holds(o.recipe, o.seed, o.step, baseline)]
    refuse_lost(baseline, {o.recipe for o in observations}, {o.recipe for o in kept})
    return kept


def refuse_lost(baseline: str, before: Collection[str], after: Collection[str]) -> None:
    """A selection that leaves nothing of the baseline leaves nothing to compare with.

    Raises:
        UserError: the selection leaves no checkpoint of the baseline.
    """
    if baseline in before and baseline not in after:
        raise UserError(f"--seeds and --until leave no checkpoint of the baseline '{baseline}'; choose others.")


@dataclass(frozen=True)
class RecipeSpeedup:
    """One recipe against the baseline in one currency."""

    recipe: str
    currency: str
    estimate: Estimate
    family: int
    """Recipes whose verdicts are corrected together."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: a number where there is one, a bound where there is only that."""
        e, p = self.estimate, self.estimate.point
        return {
            "target_fid": p.target,
            "first_checkpoint": p.low,
            "bracket": None if p.low is None else [p.low, p.high],
            "linear": p.linear,
            "loglog": p.loglog,
            "interval": list(e.interval),
            "censored": p.censored,
            "bound": p.bound_text,
            "sustained": p.sustained,
            "verdict": e.verdict,
            "p": e.p,
            "p_family": e.p_family,
            "family": self.family,
            "seeds": e.seeds,
            "baseline_seeds": e.baseline_seeds,
            "evidence": e.evidence,
            "by_seed": {str(seed): asdict(s) for seed, s in e.by_seed.items()},
        }


@dataclass(frozen=True)
class Speedups:
    """Every recipe against one baseline."""

    baseline: str
    step: float
    """Step of the baseline at which the comparison is made."""
    target: float
    """FID of the baseline there: geometric mean over its training seeds."""
    found: tuple[RecipeSpeedup, ...]
    notes: tuple[str, ...]
    """Notes about seeds, as sentences."""
    warnings: tuple[str, ...] = ()
    """What makes the numbers dubious."""
    kept: Mapping[str, Panel] = field(default_factory=dict)
    """By recipe, the curves in iterations of the training seeds that are compared."""

    def __iter__(self) -> Iterator[RecipeSpeedup]:
        """Over every recipe and currency."""
        return iter(self.found)


def currencies(observations: Iterable[Observation]) -> list[str]:
    """Those that every observation has, in order."""
    have = [set(o.budgets) for o in observations]
    shared = set.intersection(*have) if have else set()
    return [currency for currency in (*CURRENCIES, *WITH_TOKENIZER.values()) if currency in shared]


def panel(observations: Iterable[Observation], recipe: str, currency: str) -> Panel:
    """The curves of a recipe: one for each training seed, over the generation seeds that all steps of all of them have.

    Raises:
        UserError: a budget that does not grow from one step to the next.
    """
    by: dict[int, dict[int, list[Observation]]] = {}
    for o in observations:
        if o.recipe == recipe:
            by.setdefault(o.seed, {}).setdefault(o.step, []).append(o)
    shared = _generation_seeds(group for steps in by.values() for group in steps.values())
    return {seed: _one_curve(steps, currency, shared) for seed, steps in sorted(by.items())}


def _generation_seeds(groups: Iterable[Sequence[Observation]]) -> set[int]:
    """Those that all groups have."""
    found = [{o.generation_seed for o in group} for group in groups]
    return set.intersection(*found) if found else set()


def _one_curve(steps: dict[int, list[Observation]], currency: str, shared: set[int]) -> list[Point]:
    everywhere = shared or _generation_seeds(steps.values())
    points: list[Point] = []
    for step, group in sorted(steps.items()):
        used = [o for o in group if not everywhere or o.generation_seed in everywhere]
        fid = math.exp(sum(math.log(o.fid) for o in used) / len(used))
        points.append(Point(step, sum(o.budgets[currency] for o in used) / len(used), fid))
        if len(points) > 1 and points[-1].budget <= points[-2].budget:
            raise UserError(
                f"{group[0].recipe}, seed {group[0].seed}: {title(currency)} do not grow from step {points[-2].step:,} "
                f"({points[-2].budget:g}) to step {step:,} ({points[-1].budget:g}): a clock that began anew? "
                f"Column '{_PLAIN.get(currency, currency)}' says what training has cost from its beginning on."
            )
    return points


def compare(
    observations: Sequence[Observation],
    baseline: str,
    *,
    target: float | None = None,
    noise: SeedNoise | None = None,
    unjudged: Collection[str] = (),
    labels: Mapping[str, str] | None = None,
) -> Speedups:
    """Every other recipe against the baseline, in every currency.

    Args:
        observations: of all recipes.
        baseline: its FID at the last step that at least half of its training seeds reach is the target; seeds that
            stopped before are left out and named.
        target: another FID, which the baseline's average curve comes down through.
        noise: how far training seeds spread on the suite, if it is known: for recipes with a single one.
        unjudged: recipes that are not ours: no verdict, since it is not known under which protocol they were scored, no
            noise of our suite, and no seeds in common.
        labels: what recipes are called in notes.

    Raises:
        UserError: there is no such recipe or no such target.
    """
    recipes = list(dict.fromkeys(o.recipe for o in observations))

    def called(recipe: str) -> str:
        return (labels or {}).get(recipe, recipe)

    if baseline not in recipes:
        raise UserError(f"--baseline: there is no recipe '{baseline}'.{nearest(baseline, recipes)}")
    by = {recipe: [o for o in observations if o.recipe == recipe] for recipe in recipes}
    base = _Seeds.of(by[baseline])
    end = base.end
    at = end if target is None else _step_of(baseline, list(base.kept.values()), target)
    found, notes = list[RecipeSpeedup](), base.notes(called(baseline), at, noise)
    kept = {baseline: base.kept}
    odd = [] if target else _rises(called(baseline), average(list(base.kept.values())), at)
    for recipe in recipes:
        if recipe != baseline:
            foreign = recipe in unjudged
            against = _against(
                base, by[recipe], recipe, called(recipe), at, None if foreign else noise, foreign=foreign
            )
            found += against[0]
            notes += against[1]
            kept[recipe] = against[2].kept
    fids = [at_steps(curve, [at])[1, 0] for curve in base.kept.values()]
    if len(recipes) == 1:
        raise UserError(
            f"there is nothing but the baseline '{baseline}' to compare; name other recipes or another one."
        )
    return Speedups(
        baseline, at, math.exp(float(np.mean(fids))), tuple(_families(found)), tuple(notes), tuple(odd), kept
    )


def _against(
    base: _Seeds,
    observations: Sequence[Observation],
    recipe: str,
    name: str,
    at: float,
    noise: SeedNoise | None,
    *,
    foreign: bool,
) -> tuple[list[RecipeSpeedup], list[str], _Seeds]:
    """A recipe against the baseline in every currency, what should be known of it, and its seeds; see `compare`."""
    other, found, judged = _Seeds.of(observations, at), [], dict[str, Estimate]()
    notes = other.notes(name, at, noise)
    if len(other.kept) == 1 < len(base.kept):
        notes.append(f"{name}: one training seed, against all {len(base.kept)} of the baseline")
    for currency in currencies([*base.observations, *observations]):
        try:
            one = estimate(base.panel(currency), other.panel(currency), step=at, noise=noise, paired=not foreign)
        except ValueError as error:  # one recipe's clocks take nothing from the others
            notes.append(f"{name}: not compared in {title(currency)}, since {error}")
            continue
        found.append(RecipeSpeedup(recipe, currency, replace(one, p=None) if foreign else one, 0))
        judged[title(currency)] = one
    return found, notes + [f"{name}: {note}" for note in verdict_notes(judged) if not foreign], other


@dataclass(frozen=True)
class _Seeds:
    """The training seeds of one recipe."""

    observations: Sequence[Observation]
    kept: Panel
    """Curves (in iterations) of the seeds that are compared."""
    left_out: Mapping[int, tuple[int, int]]
    """First and last steps of the others."""

    @classmethod
    def of(cls, observations: Sequence[Observation], needed: float = math.inf) -> _Seeds:
        """Keep seeds that reach the common end (or `needed`); if step ranges do not overlap, keep the larger group."""
        curves = panel(observations, observations[0].recipe, "iterations")
        last = sorted(curve[-1].step for curve in curves.values())
        wanted = TO_THE_END * min(last[len(last) // 2], needed)  # that at least half of them reach
        kept = {seed: curve for seed, curve in curves.items() if curve[-1].step >= wanted}
        while (latest := max(c[0].step for c in kept.values())) > (soonest := min(c[-1].step for c in kept.values())):
            late = [seed for seed, curve in kept.items() if curve[0].step > soonest]
            soon = [seed for seed, curve in kept.items() if curve[-1].step < latest]
            del kept[min((late, soon), key=len)[0]]
        ends = {seed: (curve[0].step, curve[-1].step) for seed, curve in curves.items() if seed not in kept}
        return cls(observations, kept, ends)

    @property
    def end(self) -> float:
        """Last step common to the kept seeds."""
        return float(min(curve[-1].step for curve in self.kept.values()))

    def panel(self, currency: str) -> Panel:
        """Their curves in another currency."""
        curves = panel(self.observations, self.observations[0].recipe, currency)
        return {seed: curve for seed, curve in curves.items() if seed in self.kept}

    def notes(self, name: str, end: float, noise: SeedNoise | None) -> list[str]:
        """Notes about these seeds."""
        trainings = {seed: len({o.training for o in self.observations if o.seed == seed}) for seed in self.kept}
        return [f"{name}: {note}" for note in seed_notes(self.kept, self.left_out, trainings, end, noise)]


def _rises(name: str, curve: Curve, end: float) -> list[str]:
    """Warning if the baseline's FID was clearly lower before the target step."""
    at = {step: fid for step, fid in curve if step <= end * (1 + 1e-9)}  # means of logs are not exact
    best = min(at, key=lambda step: at[step])
    if at[max(at)] <= RISES * at[best]:
        return []
    return [f"{name}: FID is {at[max(at)]:.4g} at step {end:,.0f}, the target, and was {at[best]:.4g} at {best:,.0f}"]


def _step_of(baseline: str, curves: Sequence[Sequence[Point]], target: float) -> float:
    mean = average(curves)
    found = crossing(mean, target)
    if found is None or found.loglog is None:
        raise UserError(
            f"--target {target:g}: {baseline} does not come down through it; its FID goes from {mean[0][1]:.4g} at "
            f"step {mean[0][0]:,.0f} to {mean[-1][1]:.4g} at step {mean[-1][0]:,.0f}. Give one between."
        )
    return found.loglog


def _families(found: Sequence[RecipeSpeedup]) -> list[RecipeSpeedup]:
    """Apply Holm's correction per currency over all recipes with at least two seeds."""
    out = []
    for s in found:
        family = [f for f in found if f.currency == s.currency and f.estimate.p is not None]
        corrected = dict(zip((f.recipe for f in family), holm([f.estimate.p or 0.0 for f in family]), strict=True))
        p = corrected.get(s.recipe)
        judged = None if p is None else verdict(s.estimate.interval, p, s.estimate.ahead)
        out.append(replace(s, family=len(family), estimate=replace(s.estimate, p_family=p, verdict=judged)))
    return out


def epochs_to(observations: Sequence[Observation], target: float) -> dict[str, dict[str, float | None]]:
    """EP_FID@k (arXiv 2605.18324) of every recipe: epochs of ImageNet until its average curve reaches an FID.

    The FIDs have to be unguided; that is for the caller to know.

    Returns:
        by recipe, ``first_checkpoint`` and ``loglog`` in epochs; none where it is not reached.

    Raises:
        UserError: the number of images is not known.
    """
    if "images" not in currencies(observations):
        raise UserError("--ep-fid counts epochs: the curves need a column 'images'.")
    out: dict[str, dict[str, float | None]] = {}
    for recipe in dict.fromkeys(o.recipe for o in observations):
        seeds = _Seeds.of([o for o in observations if o.recipe == recipe])
        found = crossing(average(list(seeds.panel("images").values())), target)
        out[recipe] = {
            "first_checkpoint": None if found is None else found.at / IMAGENET_TRAIN,
            "loglog": None if found is None or found.loglog is None else found.loglog / IMAGENET_TRAIN,
        }
    return out


def as_dict(found: Speedups) -> dict[str, Any]:
    """Everything, for JSON: by recipe and currency."""
    speedups: dict[str, dict[str, Any]] = {}
    for s in found.found:
        speedups.setdefault(s.recipe, {})[s.currency] = s.as_dict()
    return {
        "baseline": found.baseline,
        "target_fid": found.target,
        "target_step": found.step,
        "speedups": speedups,
        "notes": list(found.notes),
        "warnings": list(found.warnings),
    }
