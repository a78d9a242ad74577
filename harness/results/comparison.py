"""Builds a Comparison from records: curves, final scores, speedups. Reports only format it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from statistics import fmean

from harness.records.file import FILE, left_out
from harness.records.schema import AlignmentRecord, AnyRecord, FloorRecord, ScoreRecord, StageRecord, TokenizerRecord
from harness.results import merging
from harness.results.curves import CURRENCIES, WITH_TOKENIZER, Observation, Selection, Speedups, compare, refuse_lost
from harness.results.noise import NOISE
from harness.results.seed_notes import TO_THE_END
from harness.results.speedup import Spread, spread
from harness.results.step_times import disturbances, odd_paces, steady
from harness.sampling.protocol import Protocol
from harness.suites import SUITES, AnySuite
from recipes.core.errors import UserError, nearest, visible

BASELINE = "vanilla"
#: The stage in which a suite trains its tokenizer.
PRETRAINING = "prepare tokenizer"


@lru_cache
def built_in(suite: str) -> AnySuite | None:
    """A built-in suite with default settings (cached: construction takes a second)."""
    return SUITES[suite]() if suite in SUITES else None


@dataclass(frozen=True)
class GuidanceChoice:
    """What a guidance sweep tried on a variant, and what its choice gave."""

    variant: str
    label: str
    tried: tuple[tuple[Protocol, Spread], ...]
    """Every setting with its FID, over training seeds and the generation seeds to choose by; no guidance first."""
    chosen: Protocol
    """The setting with the lowest FID."""
    reported: Spread | None
    """FID of the chosen setting under fresh generation seeds."""
    unguided: Spread | None
    """FID without guidance under the same."""
    runs: tuple[str, ...]
    """The runs that were sampled, by the first eight digits of their digests."""

    @property
    def at_the_edge(self) -> bool:
        """Whether the best scale is the largest that was tried: a better one may lie beyond."""
        largest = max(p.guidance_scale for p, _ in self.tried)
        return self.chosen.guidance_scale == largest

    @property
    def best(self) -> Spread:
        """FID of the chosen setting under the search seeds (biased low)."""
        return next(fid for p, fid in self.tried if p == self.chosen)


@dataclass(frozen=True)
class Comparison:
    """Records of one or more results folders, merged and indexed."""

    folders: tuple[Path, ...]
    scores: tuple[ScoreRecord, ...]
    tokenizers: tuple[TokenizerRecord, ...]
    floors: tuple[FloorRecord, ...]
    stages: tuple[StageRecord, ...]
    searches: tuple[ScoreRecord, ...]
    """Settings that were tried to choose one by: never results."""
    alignments: tuple[AlignmentRecord, ...]
    roots: dict[str, Path]
    """Folder of each picture that a record names."""
    trainings: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(run, weights hash) -> training id, for specifications that were trained more than once."""
    baseline: str = BASELINE
    others: tuple[Observation, ...] = ()
    """Curves that are not ours, from a table."""
    contradictions: tuple[str, ...] = ()
    """Contradictions between folders, as sentences."""

    @cached_property
    def variants(self) -> dict[str, str]:
        """variant -> label, ordered: baseline, suite order, order of appearance (the last is arbitrary for parallel
        runs).
        """
        seen = {r.variant: r.label for r in self.scores}
        suite = built_in(self.scores[0].suite)
        order = [self.baseline, *(suite.variants if suite else ()), *seen]
        return {variant: seen[variant] for variant in dict.fromkeys(order) if variant in seen}

    @cached_property
    def on_curve(self) -> frozenset[str]:
        """The variants with a score under the protocol of the curves: others were only sampled with guidance, say."""
        return frozenset(r.variant for r in self.scores if r.protocol_digest == self.curve_digest)

    @property
    def labels(self) -> dict[str, str]:
        """What every variant, and every curve that is not ours, is called."""
        return self.variants | {o.recipe: o.recipe for o in self.others}

    @cached_property
    def curve_digest(self) -> str:
        """Digest of the curve protocol: the one with scores at the most checkpoints."""
        checkpoints: dict[str, set[tuple[str, int]]] = {}
        for r in self.scores:
            checkpoints.setdefault(r.protocol_digest, set()).add((self.training(r), r.step))
        return max(checkpoints, key=lambda digest: len(checkpoints[digest]))

    @cached_property
    def finals(self) -> tuple[str, ...]:
        """Digests of the other protocols."""
        return tuple(dict.fromkeys(r.protocol_digest for r in self.scores if r.protocol_digest != self.curve_digest))

    def protocol(self, digest: str) -> ScoreRecord:
        """A record that was made under the protocol of that digest."""
        return next(r for r in self.scores if r.protocol_digest == digest)

    def curve(self, variant: str, seed: int) -> list[ScoreRecord]:
        """The checkpoints of one seed under the curve protocol, generation seed 0, by step."""
        return self._curves.get((variant, seed), [])

    @cached_property
    def _curves(self) -> dict[tuple[str, int], list[ScoreRecord]]:
        found: dict[tuple[str, int], list[ScoreRecord]] = {}
        for r in sorted(self.scores, key=lambda r: r.step):
            if (r.protocol_digest, r.generation_seed) == (self.curve_digest, 0):
                found.setdefault((r.variant, r.seed), []).append(r)
        return found

    def seeds(self, variant: str) -> list[int]:
        """The training seeds of a variant."""
        return self._seeds.get(variant, [])

    @cached_property
    def _seeds(self) -> dict[str, list[int]]:
        found: dict[str, set[int]] = {}
        for r in self.scores:
            found.setdefault(r.variant, set()).add(r.seed)
        return {variant: sorted(seeds) for variant, seeds in found.items()}

    def runs(self, *variants: str) -> tuple[str, ...]:
        """The first eight digits of the digests of some variants' runs, by training seed."""
        found = sorted(
            (r for r in self.scores if r.variant in variants), key=lambda r: (variants.index(r.variant), r.seed)
        )
        return tuple(dict.fromkeys(r.run[:8] for r in found))

    def steps(self) -> list[int]:
        """Every scored step of the curves."""
        return sorted({r.step for r in self.scores if r.protocol_digest == self.curve_digest})

    def fids(self, variant: str, step: int) -> dict[int, float]:
        """FID of a variant at a step by training seed; the geometric mean of several trainings of one."""
        by = {
            s: [math.log(r.metrics.fid) for r in self.curve(variant, s) if r.step == step] for s in self.seeds(variant)
        }
        return {seed: math.exp(fmean(logs)) for seed, logs in by.items() if logs}

    def fid_at(self, variant: str, step: int) -> Spread | None:
        """FID of a variant at a step over its seeds."""
        values = list(self.fids(variant, step).values())
        return spread(values) if values else None

    def complete(self, variant: str) -> tuple[list[int], list[int]]:
        """The training seeds of a variant that got to its end, by the curve protocol, and those that did not."""
        ends = {seed: curve[-1].step for seed in self.seeds(variant) if (curve := self.curve(variant, seed))}
        whole = [seed for seed, end in ends.items() if end >= TO_THE_END * max(ends.values())]
        return whole, [seed for seed in ends if seed not in whole]

    def last(self, variant: str, digest: str, generation_seed: int = 0) -> list[ScoreRecord]:
        """Records of the variant's last scored step under a protocol, one per training."""
        found = [
            r
            for r in self.scores
            if (r.variant, r.protocol_digest, r.generation_seed) == (variant, digest, generation_seed)
        ]
        end = max((r.step for r in found), default=0)
        return sorted((r for r in found if r.step == end), key=lambda r: r.seed)

    def alignment_steps(self) -> list[int]:
        """Every step at which alignment was measured."""
        return sorted({r.step for r in self.alignments})

    def generation_noise(self) -> Spread | None:
        """|difference of FID| between two generation seeds of one checkpoint."""
        pairs = [
            abs(a.metrics.fid - b.metrics.fid)
            for variant in self.variants
            for a in self.last(variant, self.curve_digest, 0)
            for b in self.last(variant, self.curve_digest, 1)
            if (self.training(a), a.step) == (self.training(b), b.step)
        ]
        return spread(pairs) if pairs else None

    def guidance(self) -> list[GuidanceChoice]:
        """The sweeps of every variant, by the base protocol; see `harness.pipeline.guidance_sweep`."""
        groups: dict[tuple[str, str], list[ScoreRecord]] = {}
        for r in self.searches:
            groups.setdefault((r.variant, r.protocol.base_digest), []).append(r)
        order = list(self.variants)
        return [
            self._choice(variant, self.variants[variant], found)
            for (variant, _), found in sorted(groups.items(), key=lambda group: order.index(group[0][0]))
        ]

    def _choice(self, variant: str, label: str, searches: Sequence[ScoreRecord]) -> GuidanceChoice:
        by: dict[Protocol, list[float]] = {}
        for r in searches:
            by.setdefault(r.protocol, []).append(r.metrics.fid)
        tried = sorted(((p, spread(fids)) for p, fids in by.items()), key=lambda pair: _guidance_order(pair[0]))
        chosen = min(tried, key=lambda pair: pair[1].mean)[0]
        seen, trained = {r.generation_seed for r in searches}, {r.seed for r in searches}
        step = max(r.step for r in searches)

        def reported(setting: Protocol) -> Spread | None:
            fids = [
                r.metrics.fid
                for r in self.scores
                if (r.variant == variant and r.seed in trained and r.generation_seed not in seen and r.step == step)
                and _same_setting(r.protocol, setting)
            ]
            return spread(fids) if fids else None

        runs = tuple(dict.fromkeys(r.run[:8] for r in self.searches if r.variant == variant))
        return GuidanceChoice(variant, label, tuple(tried), chosen, reported(chosen), reported(tried[0][0]), runs)

    def training(self, r: ScoreRecord) -> str:
        """Id of the training that a score belongs to."""
        return self.trainings.get((r.run, r.weights_hash), r.run)

    @cached_property
    def paces(self) -> dict[str, tuple[float, list[str]]]:
        """Device-seconds of a step of each training, contention left out, and where its clock was disturbed."""
        runs: dict[str, list[ScoreRecord]] = {}
        for r in self.scores:
            runs.setdefault(self.training(r), []).append(r)
        return {run: _pace(found) for run, found in runs.items()}

    def budget(self, r: ScoreRecord, currency: str) -> float:
        """What a checkpoint cost; device-seconds by the pace of its run."""
        if currency == "device_seconds":
            # Where the cost of a step changes, each checkpoint has a mean of its own.
            return r.step * (_pace([r])[0] if r.changes else self.paces[self.training(r)][0])
        return float({"iterations": r.step, "images": r.images, "flops": r.flops}[currency])

    @cached_property
    def _pretraining(self) -> list[float]:
        """Seconds that the tokenizer took, each time that it was made; empty where it was found in the cache."""
        return [s.seconds for s in self.stages if s.stage == PRETRAINING]

    @property
    def trained_again(self) -> list[str]:
        """Training seeds that were trained more than once, a sentence each."""
        runs: dict[tuple[str, int], set[str]] = {}
        for r in self.scores:
            runs.setdefault((r.variant, r.seed), set()).add(self.training(r))
        return [
            f"{self.variants[variant]}, seed {seed}, was trained {len(found)} times, "
            "which counts as one seed, by their mean"
            for (variant, seed), found in runs.items()
            if len(found) > 1
        ]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the numbers."""
        made = self._pretraining
        if len(made) < 2:
            return self.contradictions
        told = f"the tokenizer was made {len(made)} times, in {min(made):.1f} to {max(made):.1f} s: the mean counts"
        return (*self.contradictions, told)

    def observations(self) -> list[Observation]:
        """The curves' points, for every variant, training seed and generation seed."""
        pretraining = fmean(self._pretraining or [0.0])
        order = {variant: k for k, variant in enumerate(self.variants)}
        out = []
        for r in sorted(self.scores, key=lambda r: order[r.variant]):
            if r.protocol_digest != self.curve_digest:
                continue
            budgets = {currency: self.budget(r, currency) for currency in CURRENCIES}
            if pretraining:  # unknown where the tokenizer was found in the cache
                budgets[WITH_TOKENIZER["device_seconds"]] = budgets["device_seconds"] + pretraining
            out.append(
                Observation(r.variant, r.seed, r.generation_seed, r.step, r.metrics.fid, budgets, self.training(r))
            )
        return out

    def against(self, baseline: str, target: float | None = None, variants: Sequence[str] = ()) -> Speedups:
        """Every other variant, or some, against one, in every currency.

        Raises:
            UserError: see `harness.results.curves.compare`.
        """
        under = f"no score under {self.protocol(self.curve_digest).protocol.label}, under which the curves are"
        if baseline in self.variants and baseline not in self.on_curve:
            raise UserError(f"--baseline {baseline}: it has {under}; score it, or name another.")
        absent = [
            f"{label}: it has {under}" for variant, label in self.variants.items() if variant not in self.on_curve
        ]
        observations = [o for o in self.observations() if not variants or o.recipe in (*variants, baseline)]
        found = compare(
            [*observations, *self.others],
            baseline,
            target=target,
            noise=NOISE.get(self.scores[0].suite),
            unjudged={o.recipe for o in self.others},
            labels=self.labels,
        )
        notes = (*found.notes, *([] if variants else absent), *self._disturbed({o.recipe for o in observations}))
        return replace(found, notes=notes, warnings=(*self.warnings, *found.warnings))

    def _disturbed(self, variants: Collection[str]) -> list[str]:
        """Notes on runs that shared the machine."""
        runs = {self.training(r): r for r in self.scores if r.variant in variants}
        found = [
            f"{self.variants[r.variant]}, seed {r.seed}: {told}; the median counts"
            for name, r in runs.items()
            for told in self.paces[name][1]
        ]
        for variant in sorted(variants):
            paces = {r.seed: self.paces[name][0] for name, r in runs.items() if r.variant == variant}
            found += [f"{self.variants[variant]}, {told}" for told in odd_paces(paces)]
        return found

    @cached_property
    def speedups(self) -> Speedups | None:
        """Speedups of all variants; None without the baseline or without another recipe."""
        others = self.on_curve | {o.recipe for o in self.others}
        return self.against(self.baseline) if self.baseline in self.on_curve and len(others) > 1 else None


def _pace(scores: Sequence[ScoreRecord]) -> tuple[float, list[str]]:
    """Device-seconds of a step of one training; of records that do not say it, by the clock at scored checkpoints."""
    last = max(scores, key=lambda r: r.step)
    if last.step_seconds is not None:
        return last.step_seconds * last.device_seconds / last.train_seconds, []
    clock = dict(sorted((r.step, r.device_seconds) for r in scores))
    each = steady(list(clock), list(clock.values()))
    assert each is not None
    return each, disturbances(list(clock), list(clock.values()))


def _guidance_order(p: Protocol) -> tuple[bool, float, float, float]:
    return (p.guidance_scale > 1, p.guidance_low, p.guidance_high, p.guidance_scale)


def _same_setting(result: Protocol, tried: Protocol) -> bool:
    """Whether a result is under the setting that was tried, with its own number of samples."""
    free = {"name": "", "samples": 0, "manifold_size": 0}
    if tried.guidance_scale <= 1 and result.guidance_scale <= 1:
        free |= {"guidance_scale": 1.0, "guidance_low": 0.0, "guidance_high": 1.0}
    return result.model_copy(update=free) == tried.model_copy(update=free)


def _selected(
    found: Sequence[tuple[Path, AnyRecord]], selection: Selection, baseline: str
) -> list[tuple[Path, AnyRecord]]:
    """Filter and validate the records.

    Raises:
        UserError: see `load`.
    """
    scored = [(folder, r) for folder, r in found if isinstance(r, ScoreRecord) and not r.search]
    merging.refuse_mixtures([r for _, r in scored])
    selection.refuse_absent(*zip(*((r.variant, r.seed, r.step) for _, r in scored), strict=True))

    def holds(r: AnyRecord) -> bool:
        variant, seed, step = (getattr(r, name, None) for name in ("variant", "seed", "step"))
        return variant is None or selection.holds(variant, seed or 0, step or 0, baseline)

    every = {r.variant for _, r in scored}
    if baseline != BASELINE and baseline not in every:
        raise UserError(f"--baseline: there is no recipe '{baseline}'.{nearest(baseline, every)}")
    held = [(folder, r) for folder, r in found if holds(r)]
    kept = [(folder, r) for folder, r in held if isinstance(r, ScoreRecord) and not r.search]
    refuse_lost(baseline, every, {r.variant for _, r in kept})
    if not kept:
        raise UserError("--recipes, --seeds and --until leave no score; name others.")
    for folder, r in kept:
        if r.metrics.fid <= 0:
            raise UserError(
                f"{folder}: {r.variant}, seed {r.seed}, step {r.step} has an FID of {r.metrics.fid:g}, and curves are "
                "compared by its logarithm; `repa-bench runs remove` takes the run away."
            )
    return held


def load(
    folders: Sequence[Path],
    selection: Selection | None = None,
    *,
    baseline: str = BASELINE,
    others: Sequence[Observation] = (),
) -> Comparison:
    """Read the records of some results folders, and compare them.

    Raises:
        UserError: a folder without scores; see `compared`.
    """
    return compared(merging.read(folders), selection, baseline=baseline, others=others)


def compared(
    placed: Sequence[tuple[Path, AnyRecord]],
    selection: Selection | None = None,
    *,
    baseline: str = BASELINE,
    others: Sequence[Observation] = (),
) -> Comparison:
    """Merge the records of some folders (of `merging.read`): a selection of them, all by default, to be held against a
    baseline, beside curves that are not ours.

    Raises:
        UserError: folders whose numbers must not stand in one table, or a selection of what is not there.
    """
    found, edited = merging.of_latest_sources(placed)
    selection = selection or Selection()
    held = _selected(found, selection, baseline)
    kept = [(folder, r) for folder, r in held if isinstance(r, ScoreRecord) and not r.search]
    merging.refuse_two_specifications(kept)
    variants = {r.variant for _, r in kept}
    scores, odd_scores = merging.unique_scores(kept)
    searches, odd_searches = merging.unique_scores([(f, r) for f, r in held if isinstance(r, ScoreRecord) and r.search])
    tokenizers, odd_tokenizers = merging.unique([(f, r) for f, r in held if isinstance(r, TokenizerRecord)])
    floors, odd_floors = merging.unique([(f, r) for f, r in held if isinstance(r, FloorRecord)])
    alignments, odd_alignments = merging.unique(
        [(f, r) for f, r in held if isinstance(r, AlignmentRecord) and r.variant in variants]
    )
    folders = tuple(dict.fromkeys(folder for folder, _ in placed))
    cut = [told for folder in folders for told in left_out(folder / FILE)]
    return Comparison(
        folders,
        scores,
        tokenizers,
        floors,
        merging.unique_stages(found),
        searches,
        alignments,
        merging.pictures(found),
        merging.trainings(kept),
        baseline,
        tuple(o for o in others if selection.until is None or o.step <= selection.until),
        tuple(map(visible, (*cut, *edited, *odd_scores, *odd_searches, *odd_tokenizers, *odd_floors, *odd_alignments))),
    )
