"""Judges claims of the paper by published numbers and by runs; three levels of evidence have different verdict words.

- published points: what was printed is ``consistent`` with a claim, ``inconsistent``, or leaves it ``open``. It proves
  nothing: most of it comes from the claim's own authors.
- proxy suite: the effect is ``seen in the proxy``, ``not seen in the proxy``, or ``inconclusive``. A proxy says nothing
  about a number. Needs the suite as it is here, its own budget, and the seeds that the claim states.
- measured at scale: ``confirmed``, ``refuted``, or ``inconclusive``. Needs the suite, protocol, steps and seeds that
  the claim states.

Suites are matched by digest and protocols field by field, not by name.
Recipes are compared by the rule of `harness.results.confidence`, at 95 %: each claim is a question of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import Any, Literal

from baselines.claims import Claim, CollapseRule, Evidence, KeptRule, OrderRule, SpeedupRule, ValueRule
from baselines.published import PublishedError, Row, curve, load_all
from harness.records.schema import TokenizerRecord
from harness.results.comparison import Comparison, built_in
from harness.results.confidence import t_test
from harness.results.curves import RecipeSpeedup
from harness.results.noise import NOISE
from harness.results.speedup import speedup
from harness.sampling.protocol import difference, find_protocol

Level = Literal["published points", "proxy suite", "measured at scale"]
Answer = Literal["yes", "no", "open"]
#: A claimed number may be missed by as much as two single training seeds differ, or, of one checkpoint, two generation
#: seeds, which move FID 3.2 times less (arXiv 2606.20536).
TOLERANCE = math.expm1(NOISE["imagenet256"].half(1, 1))
SAMPLING_TOLERANCE = math.expm1(NOISE["imagenet256"].half(1, 1) / 3.2)
#: Small suites that count as proxy evidence; smoke suites do not.
PROXIES = ("digits",)
#: Older digests of the same, unchanged suite specification.
UNCHANGED = {"digits": ("63cd5ae0ff13fc8cd40be29ded864cbfb8205a758641c69b849030d03c55792b",)}
#: A collapse: latents with less than this share of the variance or of the effective rank that they began with.
COLLAPSED = 0.5
#: Lower clamp before taking logarithms (a complete collapse measures 0).
LEAST = 1e-9
WORDS: dict[Level, dict[str, str]] = {
    "published points": {"yes": "consistent", "no": "inconsistent", "open": "open"},
    "proxy suite": {"yes": "seen in the proxy", "no": "not seen in the proxy", "open": "inconclusive"},
    "measured at scale": {"yes": "confirmed", "no": "refuted", "open": "inconclusive"},
}


@dataclass(frozen=True)
class Judgement:
    """What one piece of evidence says of a claim."""

    claim: Claim
    level: Level
    evidence: str
    """Its name in the ledger, or the suite."""
    verdict: str
    numbers: str
    """The numbers behind the verdict, as text."""
    sources: tuple[str, ...]
    """Published rows, or the digests of runs."""
    accepted: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "claim": self.claim.id,
            "text": self.claim.text,
            "source": self.claim.source.model_dump(),
            "needs": self.claim.needs.model_dump(),
            "level": self.level,
            "evidence": self.evidence,
            "verdict": self.verdict,
            "accepted": self.accepted,
            "numbers": self.numbers,
            "sources": list(self.sources),
        }

    @property
    def changed(self) -> bool:
        """Whether an accepted verdict is no longer the same."""
        return self.accepted is not None and self.accepted != self.verdict


@dataclass(frozen=True)
class _Finding:
    answer: Answer
    numbers: str
    sources: tuple[str, ...]
    lacks: str = ""
    """What is missing before this can decide the claim: then the answer is open, whatever the numbers are."""


def judge(claims: Iterable[Claim], comparisons: Sequence[Comparison] = ()) -> list[Judgement]:
    """Every claim by every piece of evidence: published rows, then runs.

    Raises:
        PublishedError: the ledger names a row that is not there, or an accepted verdict that no evidence has.
    """
    out = []
    for claim in claims:
        names = [evidence.name for evidence in claim.published]
        if unknown := sorted(set(claim.accepted) - {*names, *PROXIES, claim.needs.suite}):
            raise PublishedError(
                f"claim {claim.id} accepts a verdict of '{unknown[0]}', which is none of its evidence."
            )
        out += [_judgement(claim, "published points", e.name, _from_published(claim, e)) for e in claim.published]
        for comparison in comparisons:
            suite = comparison.scores[0].suite
            if suite == claim.needs.suite and (found := _at_scale(claim, comparison)) is not None:
                out.append(_judgement(claim, "measured at scale", suite, found))
            if suite not in PROXIES or isinstance(claim.rule, ValueRule):  # a proxy says nothing of a number
                continue
            if (shown := _finding(claim, comparison)) is not None:
                out.append(_judgement(claim, "proxy suite", suite, shown))
    return out


def _judgement(claim: Claim, level: Level, evidence: str, found: _Finding) -> Judgement:
    verdict = WORDS[level]["open" if found.lacks else found.answer]
    numbers = found.numbers + found.lacks
    return Judgement(claim, level, evidence, verdict, numbers, found.sources, claim.accepted.get(evidence))


def _row(ref: str) -> Row:
    found = next((row for row in load_all() if row.ref == ref), None)
    if found is None:
        raise PublishedError(f"the claims ledger names the published row {ref}, which is not there.")
    return found


def _value(row: Row, metric: str) -> float:
    value = row.value(metric)
    if value is None:
        raise PublishedError(f"the claims ledger wants {metric} of the published row {row.ref}, which has none.")
    return value


def _from_published(claim: Claim, evidence: Evidence) -> _Finding:
    rule = claim.rule
    if isinstance(rule, SpeedupRule):
        return _published_speedup(rule, evidence)
    if isinstance(rule, ValueRule):
        assert evidence.row is not None
        row = _row(evidence.row)
        tolerance = SAMPLING_TOLERANCE if evidence.same_checkpoint else TOLERANCE
        value, limit = _value(row, evidence.metric), rule.at_most * (1 + tolerance)
        spread = "generation" if evidence.same_checkpoint else "training"
        numbers = f"{value:g} for {rule.at_most:g} (up to {limit:.3g} is within the spread of {spread} seeds)"
        return _Finding("yes" if value <= limit else "no", numbers, (row.ref,))
    rows = [_row(ref) for ref in evidence.rows]
    values = [_value(row, evidence.metric) for row in rows]
    refs = tuple(row.ref for row in rows)
    if isinstance(rule, KeptRule):
        after, before = values
        holds = after <= before * (1 + rule.tolerance)
        return _Finding("yes" if holds else "no", f"{before:g} before, {after:g} after", refs)
    holds = all(a < b for a, b in pairwise(values))
    return _Finding("yes" if holds else "no", " < ".join(f"{v:g}" for v in values) + ("" if holds else ": no"), refs)


def _published_speedup(rule: SpeedupRule, evidence: Evidence) -> _Finding:
    if evidence.method is None or evidence.evidence is None or evidence.group is None or evidence.baseline is None:
        raise PublishedError(f"evidence '{evidence.name}' of a speedup wants method, evidence, group and baseline.")
    base = _row(evidence.baseline)
    budget = evidence.budget or base.iterations
    if budget is None:
        raise PublishedError(f"evidence '{evidence.name}': row {base.ref} says no iterations; give 'budget'.")
    points = curve(evidence.method, evidence.evidence, group=evidence.group)
    found = speedup([(float(budget), _value(base, "gfid"))], points)
    if found.loglog is None:
        return _Finding("open", f"only a bound: {found.bound_text}", (base.ref,))
    span = f"{found.low:.1f} to {found.high:.1f}" if found.high is not None else f"at least {found.low:.1f}"
    numbers = f"{found.loglog:.1f} log-log, {found.linear:.1f} linear, bracket {span}; claimed {rule.at_least:g}"
    if found.loglog >= rule.at_least:
        return _Finding("yes", numbers, (base.ref, f"{evidence.group} of {evidence.method}"))
    inside = found.high is not None and found.high >= rule.at_least
    return _Finding("open" if inside else "no", numbers, (base.ref, f"{evidence.group} of {evidence.method}"))


def _at_scale(claim: Claim, comparison: Comparison) -> _Finding | None:
    """Judge a claim by runs of its own suite up to its step; None if they are irrelevant."""
    needs, wanted = claim.needs, find_protocol(claim.needs.protocol)
    within = replace(
        comparison,
        scores=tuple(r for r in comparison.scores if r.step <= needs.steps),
        tokenizers=tuple(t for t in comparison.tokenizers if (t.step or 0) <= needs.steps),
    )
    scored = replace(within, scores=tuple(r for r in within.scores if r.protocol == wanted))
    if scored.scores:
        return _finding(claim, scored)
    alike = tuple(r for r in within.scores if r.protocol.name == wanted.name)
    if isinstance(claim.rule, ValueRule):  # another protocol decides another claim
        within = replace(within, scores=alike)
    if not within.scores or (other := _finding(claim, within)) is None:
        return None
    used = alike[0].protocol if alike else within.protocol(within.curve_digest).protocol
    told = f"a {used.name} of other settings ({difference(used, wanted)})" if alike else used.name
    return replace(other, lacks=f"{other.lacks}; scored under {told}, not {needs.protocol}")


def _finding(claim: Claim, comparison: Comparison) -> _Finding | None:
    rule = claim.rule
    if isinstance(rule, SpeedupRule):
        return _measured_speedup(rule, claim, comparison)
    if isinstance(rule, ValueRule):
        return _measured_value(rule, claim, comparison)
    if isinstance(rule, OrderRule):
        return _order(rule.recipes, claim, comparison)
    if isinstance(rule, CollapseRule):
        return _collapse(rule, claim, comparison)
    return _kept(rule, claim, comparison)


def _lacking(claim: Claim, comparison: Comparison, steps: float, seeds: int) -> str:
    """What is missing before runs can decide a claim, in words; nothing if they can."""
    used, out = comparison.protocol(comparison.curve_digest), ""
    suite = built_in(used.suite)
    assert suite is not None  # the ledger names none but ours
    if used.suite_digest not in (suite.identity(), *UNCHANGED.get(suite.name, ())):
        out += f"; digest {used.suite_digest[:8]} is not that of the suite {suite.name}: its settings were changed"
    if suite.name == claim.needs.suite:
        needed, whose = claim.needs.steps, "the claim is about"
    else:
        needed, whose = suite.budget.steps, "the proxy's budget is"
        if used.protocol.name != suite.curve_protocol.name:
            out += f"; scored under {used.protocol.name}, not {suite.curve_protocol.name}"
    if steps < needed:
        out += f"; ends at step {steps:,.0f}, {whose} {needed:,}"
    if seeds < claim.needs.seeds:
        out += f"; {seeds} training seed(s), it takes {claim.needs.seeds}"
    return out


def _against(comparison: Comparison, baseline: str, recipe: str, currency: str) -> tuple[RecipeSpeedup, float] | None:
    """One recipe against another in a currency, and the step of the comparison; nothing if one is missing."""
    if not {baseline, recipe} <= comparison.on_curve:
        return None
    found = comparison.against(baseline, variants=[recipe])
    ours = next((s for s in found if s.recipe == recipe and s.currency == currency), None)
    return None if ours is None else (ours, found.step)


def _measured_speedup(rule: SpeedupRule, claim: Claim, comparison: Comparison) -> _Finding | None:
    if (against := _against(comparison, rule.baseline, rule.recipe, rule.currency)) is None:
        return None
    found, (low, high) = against[0].estimate, against[0].estimate.interval
    shown = "–" if found.point.loglog is None else f"{found.point.loglog:.2f}"
    numbers = f"{found.point.bound_text or shown}, 95 % {_end(low)} to {_end(high)}, {found.seeds} seed(s)"
    runs = comparison.runs(rule.recipe, rule.baseline)
    lacks = _lacking(claim, comparison, against[1], min(found.seeds, found.baseline_seeds))
    answer: Answer = "open"
    if comparison.scores[0].suite != claim.needs.suite:
        answer = _answer(found.verdict)
    elif low is not None and low >= rule.at_least:
        answer = "yes"
    elif high is not None and high < rule.at_least:
        answer = "no"
    return _Finding(answer, numbers, runs, lacks)


def _answer(verdict: str | None) -> Answer:
    answers: dict[str | None, Answer] = {"better": "yes", "worse": "no"}
    return answers.get(verdict, "open")


def _end(value: float | None) -> str:
    return "open" if value is None else f"{value:.2f}"


def _at_most(values: Sequence[float], limit: float) -> Answer:
    """Whether the mean of independent values lies at or below a limit, by its 95 % interval."""
    if (found := t_test(values)) is None:
        return "open"
    low, high = found.interval
    return "yes" if high <= limit else "no" if low > limit else "open"


def _measured_value(rule: ValueRule, claim: Claim, comparison: Comparison) -> _Finding | None:
    """Judge a value: of each training seed, the mean over generation seeds."""
    found = [r for r in comparison.scores if (r.variant, r.step) == (rule.recipe, claim.needs.steps)]
    if not found:
        return None
    by: dict[int, list[float]] = {}
    for r in found:
        by.setdefault(r.seed, []).append(math.log(float(getattr(r.metrics, rule.metric))))
    logs = [fmean(values) for values in by.values()]
    numbers = f"{math.exp(fmean(logs)):.3f} over {len(logs)} training seed(s), for {rule.at_most:g}"
    answer = _at_most(logs, math.log(rule.at_most * (1 + TOLERANCE)))
    lacks = _lacking(claim, comparison, claim.needs.steps, len(logs))
    return _Finding(answer, numbers, comparison.runs(rule.recipe), lacks)


def _order(variants: Sequence[str], claim: Claim, comparison: Comparison) -> _Finding | None:
    """Compare consecutive variants by FID at equal steps."""
    answers: list[Answer] = []
    lacks, told = "", [variants[0]]
    for recipe, baseline in pairwise(variants):
        if (against := _against(comparison, baseline, recipe, "iterations")) is None:
            return None
        found = against[0].estimate
        answers.append(_answer(found.verdict))
        lacks = lacks or _lacking(claim, comparison, against[1], min(found.seeds, found.baseline_seeds))
        told.append(f"{baseline} {found.point.target:.2f} (p {found.p:.2g})" if found.p is not None else baseline)
    answer: Answer = "no" if "no" in answers else "open" if "open" in answers else "yes"
    return _Finding(answer, " < ".join(told), comparison.runs(*variants), lacks)


def _tokenizers(comparison: Comparison, variant: str, name: str) -> tuple[list[float], int]:
    """Log of a measure after joint training over that of the tokenizer that it began from, by training seed, and the
    step that all of them reach.
    """
    before: dict[str, list[float]] = {}
    last: dict[int | None, TokenizerRecord] = {}
    for t in sorted(comparison.tokenizers, key=lambda t: t.step or 0):
        if t.variant == variant:
            last[t.seed] = t
        elif t.variant is None:
            before.setdefault(t.name, []).append(max(getattr(t, name), LEAST))
    used = [t for t in last.values() if t.name in before]
    logs = [math.log(max(getattr(t, name), LEAST) / fmean(before[t.name])) for t in used]
    return logs, min((t.step or 0 for t in used), default=0)


def _collapse(rule: CollapseRule, claim: Claim, comparison: Comparison) -> _Finding | None:
    variant = next((name for name in rule.recipes if name in comparison.variants), None)
    if variant is None or (order := _order((rule.baseline, variant), claim, comparison)) is None:
        return None
    logs, steps = zip(
        *(_tokenizers(comparison, variant, name) for name in ("latent_variance", "effective_rank")), strict=True
    )
    if not all(logs):
        return None
    shares = [math.exp(fmean(each)) for each in logs]
    numbers = f"variance {shares[0]:.0%}, effective rank {shares[1]:.0%} of before; {order.numbers}"
    collapsed = [_at_most(each, math.log(COLLAPSED)) for each in logs]
    answer: Answer = order.answer if "yes" in collapsed else "open" if "open" in collapsed else "no"
    lacks = order.lacks or _lacking(claim, comparison, min(steps), min(map(len, logs)))
    return _Finding(answer, numbers, order.sources, lacks)


def _kept(rule: KeptRule, claim: Claim, comparison: Comparison) -> _Finding | None:
    logs, steps = _tokenizers(comparison, rule.recipe, rule.metric)
    if not logs:
        return None
    numbers = f"{math.exp(fmean(logs)):.0%} of before, {len(logs)} seed(s)"
    answer = _at_most(logs, math.log1p(rule.tolerance))
    return _Finding(answer, numbers, comparison.runs(rule.recipe), _lacking(claim, comparison, steps, len(logs)))
