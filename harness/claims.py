"""Verdicts on claims, never in stronger words than their evidence.

- published points: what was printed is ``consistent`` with a claim, ``inconsistent``, or leaves it ``open``. It proves
  nothing: most of it comes from the claim's own authors.
- proxy suite: the effect is ``seen in the proxy``, ``not seen in the proxy``, or ``inconclusive``. A proxy says nothing
  about a number.
- measured at scale: ``confirmed``, ``refuted``, or ``inconclusive``. Needs the claim's protocol and two training seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any, Literal

from scipy.special import stdtrit

from baselines.claims import (
    Claim,
    CollapseRule,
    Evidence,
    KeptRule,
    OrderRule,
    SpeedupRule,
    ValueRule,
)
from baselines.published import PublishedError, Row, curve, load_all
from harness.compare import Comparison
from harness.curves import compare
from harness.speedup import LEVEL, PRIOR_CV, speedup

Level = Literal["published points", "proxy suite", "measured at scale"]
#: A claimed number may be missed by as much as two single training seeds differ, or, of one checkpoint, two generation
#: seeds, which move FID 3.2 times less (arXiv 2606.20536).
TOLERANCE = math.exp(1.96 * math.sqrt(2) * PRIOR_CV) - 1
SAMPLING_TOLERANCE = math.exp(1.96 * math.sqrt(2) * PRIOR_CV / 3.2) - 1
#: Suites that stand for the paper's, and the paper's own. Others, such as the smoke suites, are no evidence.
PROXIES, SCALE = ("digits",), ("imagenet256",)
#: A collapse: latents with less than this share of the variance or of the effective rank that they began with.
COLLAPSED = 0.5
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
    """What the verdict is made of."""
    sources: tuple[str, ...]
    """Published rows, or the digests of runs."""
    accepted: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "claim": self.claim.id,
            "text": self.claim.text,
            "source": self.claim.source.model_dump(),
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
    answer: Literal["yes", "no", "open"]
    numbers: str
    sources: tuple[str, ...]


def judge(claims: Iterable[Claim], comparisons: Sequence[Comparison] = ()) -> list[Judgement]:
    """Every claim by every piece of evidence: published rows, then runs.

    Raises:
        PublishedError: the ledger names a row that is not there, or an accepted verdict that no evidence has.
    """
    out = []
    for claim in claims:
        names = [evidence.name for evidence in claim.published]
        if unknown := sorted(set(claim.accepted) - set(names) - set(PROXIES) - set(SCALE)):
            raise PublishedError(
                f"claim {claim.id} accepts a verdict of '{unknown[0]}', which is none of its evidence."
            )
        out += [_judgement(claim, "published points", e.name, _from_published(claim, e)) for e in claim.published]
        for comparison in comparisons:
            suite = comparison.scores[0].suite
            level: Level = "measured at scale" if suite in SCALE else "proxy suite"
            if suite in (*PROXIES, *SCALE) and (found := _from_runs(claim, comparison, level)) is not None:
                out.append(_judgement(claim, level, suite, found))
    return out


def _judgement(claim: Claim, level: Level, evidence: str, found: _Finding) -> Judgement:
    verdict = WORDS[level][found.answer]
    return Judgement(claim, level, evidence, verdict, found.numbers, found.sources, claim.accepted.get(evidence))


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


def _from_runs(claim: Claim, comparison: Comparison, level: Level) -> _Finding | None:
    """What runs say; nothing where they do not bear on the claim."""
    if level == "proxy suite":
        return None if isinstance(claim.rule, ValueRule) else _finding(claim, comparison, level)
    scored = tuple(r for r in comparison.scores if r.protocol.name == claim.protocol)
    if scored:
        return _finding(claim, replace(comparison, scores=scored), level)
    if isinstance(claim.rule, ValueRule) or (other := _finding(claim, comparison, level)) is None:
        return None
    used = comparison.protocol(comparison.curve_digest).protocol.name
    return replace(other, answer="open", numbers=f"{other.numbers}; scored under {used}, not {claim.protocol}")


def _finding(claim: Claim, comparison: Comparison, level: Level) -> _Finding | None:
    rule = claim.rule
    if isinstance(rule, SpeedupRule):
        return _measured_speedup(rule, comparison, level)
    if isinstance(rule, ValueRule):
        return _measured_value(rule, comparison)
    if isinstance(rule, OrderRule):
        return _order(rule.recipes, comparison)
    if isinstance(rule, CollapseRule):
        return _collapse(rule, comparison)
    return _kept(rule, comparison)


def _measured_speedup(rule: SpeedupRule, comparison: Comparison, level: Level) -> _Finding | None:
    if not {rule.recipe, rule.baseline} <= set(comparison.arms):
        return None
    observations = [o for o in comparison.observations() if o.recipe in (rule.recipe, rule.baseline)]
    found = next(s for s in compare(observations, rule.baseline) if s.currency == rule.currency).estimate
    low, high = found.interval
    shown = "–" if found.point.loglog is None else f"{found.point.loglog:.2f}"
    numbers = f"{found.point.bound_text or shown}, 95 % {_end(low)} to {_end(high)}, {found.seeds} seed(s)"
    runs = comparison.runs(rule.recipe, rule.baseline)
    if level == "proxy suite":
        answers: dict[str, Literal["yes", "no", "open"]] = {"better": "yes", "worse": "no", "inconclusive": "open"}
        return _Finding(answers[found.verdict], numbers, runs)
    if found.seeds == 1:
        return _Finding("open", numbers, runs)
    if low is not None and low >= rule.at_least:
        return _Finding("yes", numbers, runs)
    return _Finding("no" if high is not None and high < rule.at_least else "open", numbers, runs)


def _end(value: float | None) -> str:
    return "open" if value is None else f"{value:.2f}"


def _measured_value(rule: ValueRule, comparison: Comparison) -> _Finding | None:
    found = [r for r in comparison.scores if (r.arm, r.step) == (rule.recipe, rule.step)]
    if not found:
        return None
    values = [float(getattr(r.metrics, rule.metric)) for r in found]
    limit = rule.at_most * (1 + TOLERANCE)
    numbers = f"{fmean(values):.3f} over {len(values)} score(s), for {rule.at_most:g}"
    if len({r.seed for r in found}) == 1:
        return _Finding("open", numbers + ", single seed", comparison.runs(rule.recipe))
    return _Finding("yes" if fmean(values) <= limit else "no", numbers, comparison.runs(rule.recipe))


def _final(comparison: Comparison, arms: Sequence[str]) -> dict[str, dict[int, float]] | None:
    """FID of each arm by training seed at the last step that all have; nothing if an arm is missing."""
    if not set(arms) <= set(comparison.arms):
        return None
    curves = {
        arm: {s: {r.step: r.metrics.fid for r in comparison.curve(arm, s)} for s in comparison.seeds(arm)}
        for arm in arms
    }
    shared = set.intersection(*(set(steps) for by in curves.values() for steps in by.values()))
    if not shared:
        return None
    return {arm: {s: steps[max(shared)] for s, steps in by.items()} for arm, by in curves.items()}


def _order(arms: Sequence[str], comparison: Comparison) -> _Finding | None:
    final = _final(comparison, arms)
    if final is None:
        return None
    means = [fmean(final[arm].values()) for arm in arms]
    numbers = ", ".join(f"{arm} {mean:.2f}" for arm, mean in zip(arms, means, strict=True))
    answers = [_below(final[a], final[b]) for a, b in pairwise(arms)]
    seeds = min(len(by) for by in final.values())
    answer: Literal["yes", "no", "open"] = (
        "no" if "no" in answers else "open" if "open" in answers or seeds == 1 else "yes"
    )
    return _Finding(answer, f"{numbers}; {seeds} seed(s)", comparison.runs(*arms))


def _below(a: dict[int, float], b: dict[int, float]) -> Literal["yes", "no", "open"]:
    """Whether a is below b: by a paired t interval of the log ratio over the training seeds that both have."""
    ratios = [math.log(a[s] / b[s]) for s in sorted(set(a) & set(b))]
    if len(ratios) < 2:
        return "open"
    half = float(stdtrit(len(ratios) - 1, (1 + LEVEL) / 2)) * stdev(ratios) / math.sqrt(len(ratios))
    if fmean(ratios) + half < 0:
        return "yes"
    return "no" if fmean(ratios) - half > 0 else "open"


def _tokenizers(comparison: Comparison, arm: str, of: Callable[[object], float]) -> tuple[list[float], list[float]]:
    """Before any joint training, and after that of an arm, by seed."""
    before = [of(t) for t in comparison.tokenizers if t.arm is None]
    last = {t.seed: t for t in sorted(comparison.tokenizers, key=lambda t: t.step or 0) if t.arm == arm}
    return before, [of(t) for t in last.values()]


def _collapse(rule: CollapseRule, comparison: Comparison) -> _Finding | None:
    arm = next((name for name in rule.recipes if name in comparison.arms), None)
    if arm is None or (order := _order((rule.baseline, arm), comparison)) is None:
        return None
    shares = []
    for name in ("latent_variance", "effective_rank"):
        before, after = _tokenizers(comparison, arm, lambda t, name=name: float(getattr(t, name)))  # type: ignore[misc]
        if not before or not after:
            return None
        shares.append(fmean(after) / fmean(before))
    numbers = f"variance {shares[0]:.0%}, effective rank {shares[1]:.0%} of before; {order.numbers}"
    collapsed = min(shares) < COLLAPSED
    answer = order.answer if collapsed else "no"
    return _Finding(answer, numbers, order.sources)


def _kept(rule: KeptRule, comparison: Comparison) -> _Finding | None:
    before, after = _tokenizers(comparison, rule.recipe, lambda t: float(getattr(t, rule.metric)))
    if not before or not after:
        return None
    ratio = fmean(after) / fmean(before)
    numbers = f"{fmean(before):.3f} before, {fmean(after):.3f} after, {len(after)} seed(s)"
    answer: Literal["yes", "no", "open"] = "yes" if ratio <= 1 + rule.tolerance else "no"
    return _Finding("open" if len(after) == 1 else answer, numbers, comparison.runs(rule.recipe))
