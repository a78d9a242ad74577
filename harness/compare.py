"""From records to a comparison: curves, finals and speedups over seeds. Reports only lay it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness import records
from harness.curves import WITH_TOKENIZER, Observation, compare
from harness.protocol import Protocol, difference
from harness.records import AlignmentRecord, FloorRecord, ScoreRecord, StageRecord, TokenizerRecord
from harness.speedup import Estimate, Spread, spread
from recipes.core.errors import UserError

BASELINE = "vanilla"
#: What a budget is counted in.
CURRENCIES: dict[str, Callable[[ScoreRecord], float]] = {
    "iterations": lambda r: float(r.step),
    "images": lambda r: float(r.images),
    "flops": lambda r: float(r.flops),
    "device_seconds": lambda r: r.device_seconds,
}


@dataclass(frozen=True)
class ArmSpeedup:
    """One arm against the baseline in one currency."""

    arm: str
    label: str
    currency: str
    estimate: Estimate


@dataclass(frozen=True)
class GuidanceChoice:
    """What a guidance sweep tried on an arm, and what its choice gave."""

    arm: str
    label: str
    tried: tuple[tuple[Protocol, Spread], ...]
    """Every setting with its FID, over training seeds and the generation seeds to choose by; no guidance first."""
    chosen: Protocol
    """The setting with the lowest."""
    reported: Spread | None
    """FID of the choice under generation seeds that it was not made by."""
    unguided: Spread | None
    """FID without guidance under the same."""

    @property
    def at_the_edge(self) -> bool:
        """Whether the best scale is the largest that was tried: a better one may lie beyond."""
        largest = max(p.guidance_scale for p, _ in self.tried)
        return self.chosen.guidance_scale == largest

    @property
    def best(self) -> Spread:
        """FID of the choice under the seeds that it was made by: too low."""
        return next(fid for p, fid in self.tried if p == self.chosen)


@dataclass(frozen=True)
class Comparison:
    """All that the records of some results folders say."""

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

    @cached_property
    def arms(self) -> dict[str, str]:
        """Arm to label, the baseline first, then in the order of appearance."""
        seen = {r.arm: r.label for r in self.scores}
        return {arm: seen[arm] for arm in sorted(seen, key=lambda arm: arm != BASELINE)}

    @cached_property
    def curve_digest(self) -> str:
        """The protocol that the curves are drawn under: the one scored at the most checkpoints."""
        counts: dict[str, int] = {}
        for r in self.scores:
            counts[r.protocol_digest] = counts.get(r.protocol_digest, 0) + 1
        return max(counts, key=lambda digest: counts[digest])

    @cached_property
    def finals(self) -> tuple[str, ...]:
        """Digests of the other protocols."""
        return tuple(dict.fromkeys(r.protocol_digest for r in self.scores if r.protocol_digest != self.curve_digest))

    def protocol(self, digest: str) -> ScoreRecord:
        """A record that was made under the protocol of that digest."""
        return next(r for r in self.scores if r.protocol_digest == digest)

    def curve(self, arm: str, seed: int) -> list[ScoreRecord]:
        """The checkpoints of one run under the curve protocol, generation seed 0, by step."""
        return sorted(
            (
                r
                for r in self.scores
                if (r.arm, r.seed, r.protocol_digest, r.generation_seed) == (arm, seed, self.curve_digest, 0)
            ),
            key=lambda r: r.step,
        )

    def seeds(self, arm: str) -> list[int]:
        """The training seeds of an arm."""
        return sorted({r.seed for r in self.scores if r.arm == arm})

    def runs(self, *arms: str) -> tuple[str, ...]:
        """The first eight digits of the digests of some arms' runs, by training seed."""
        found = sorted((r for r in self.scores if r.arm in arms), key=lambda r: (arms.index(r.arm), r.seed))
        return tuple(dict.fromkeys(r.run[:8] for r in found))

    def steps(self) -> list[int]:
        """Every scored step of the curves."""
        return sorted({r.step for r in self.scores if r.protocol_digest == self.curve_digest})

    def fid_at(self, arm: str, step: int) -> Spread | None:
        """FID of an arm at a step over its seeds."""
        values = [r.metrics.fid for s in self.seeds(arm) for r in self.curve(arm, s) if r.step == step]
        return spread(values) if values else None

    def last(self, arm: str, digest: str, generation_seed: int = 0) -> list[ScoreRecord]:
        """The last checkpoint of each seed under a protocol."""
        chosen: dict[int, ScoreRecord] = {}
        for r in self.scores:
            if (r.arm, r.protocol_digest, r.generation_seed) == (arm, digest, generation_seed) and (
                r.seed not in chosen or r.step > chosen[r.seed].step
            ):
                chosen[r.seed] = r
        return [chosen[seed] for seed in sorted(chosen)]

    def generation_noise(self) -> Spread | None:
        """|difference of FID| between two generation seeds of one checkpoint."""
        pairs = [
            abs(a.metrics.fid - b.metrics.fid)
            for arm in self.arms
            for a in self.last(arm, self.curve_digest, 0)
            for b in self.last(arm, self.curve_digest, 1)
            if (a.run, a.step) == (b.run, b.step)
        ]
        return spread(pairs) if pairs else None

    def guidance(self) -> list[GuidanceChoice]:
        """The sweeps of every arm, by the base protocol; see `harness.guidance`."""
        groups: dict[tuple[str, str], list[ScoreRecord]] = {}
        for r in self.searches:
            groups.setdefault((r.arm, r.protocol.name.split("+")[0]), []).append(r)
        order = list(self.arms)
        return [
            self._choice(arm, self.arms[arm], found)
            for (arm, _), found in sorted(groups.items(), key=lambda group: order.index(group[0][0]))
        ]

    def _choice(self, arm: str, label: str, searches: Sequence[ScoreRecord]) -> GuidanceChoice:
        by: dict[Protocol, list[float]] = {}
        for r in searches:
            by.setdefault(r.protocol, []).append(r.metrics.fid)
        tried = sorted(((p, spread(fids)) for p, fids in by.items()), key=lambda pair: _guidance_order(pair[0]))
        chosen = min(tried, key=lambda pair: pair[1].mean)[0]
        seen, trained = {r.generation_seed for r in searches}, {r.seed for r in searches}

        def reported(setting: Protocol) -> Spread | None:
            fids = [
                r.metrics.fid
                for r in self.scores
                if (r.arm == arm and r.seed in trained and r.generation_seed not in seen)
                and _same_setting(r.protocol, setting)
            ]
            return spread(fids) if fids else None

        return GuidanceChoice(arm, label, tuple(tried), chosen, reported(chosen), reported(tried[0][0]))

    def observations(self) -> list[Observation]:
        """The curves' points, for every arm, training seed and generation seed."""
        pretraining = sum(s.seconds for s in self.stages if s.stage == "prepare tokenizer")
        out = []
        for r in self.scores:
            if r.protocol_digest != self.curve_digest:
                continue
            budgets = {currency: budget(r) for currency, budget in CURRENCIES.items()}
            if pretraining:  # unknown where the tokenizer was found in the cache
                budgets["device_seconds" + WITH_TOKENIZER] = r.device_seconds + pretraining
            out.append(Observation(r.arm, r.seed, r.generation_seed, r.step, r.metrics.fid, budgets))
        return out

    def speedups(self, baseline: str = BASELINE) -> list[ArmSpeedup]:
        """Every other arm against the baseline, in every currency."""
        if baseline not in self.arms:
            return []
        found = compare(sorted(self.observations(), key=lambda o: list(self.arms).index(o.recipe)), baseline)
        return [ArmSpeedup(s.recipe, self.arms[s.recipe], s.currency, s.estimate) for s in found]


def _guidance_order(p: Protocol) -> tuple[bool, float, float, float]:
    return (p.guidance_scale > 1, p.guidance_low, p.guidance_high, p.guidance_scale)


def _same_setting(result: Protocol, tried: Protocol) -> bool:
    """Whether a result is under the setting that was tried, with its own number of samples."""
    free = {"name": "", "samples": 0, "manifold_size": 0}
    if tried.guidance_scale <= 1 and result.guidance_scale <= 1:
        free |= {"guidance_scale": 1.0, "guidance_low": 0.0, "guidance_high": 1.0}
    return result.model_copy(update=free) == tried.model_copy(update=free)


def load(folders: Sequence[Path]) -> Comparison:
    """Read the records of some results folders.

    Raises:
        UserError: a folder without scores, or folders whose numbers must not stand in one table.
    """
    scores: list[ScoreRecord] = []
    tokenizers: list[TokenizerRecord] = []
    floors: list[FloorRecord] = []
    alignments: list[AlignmentRecord] = []
    stages: list[StageRecord] = []
    searches: list[ScoreRecord] = []
    roots: dict[str, Path] = {}
    for folder in folders:
        found = list(records.read(folder / records.FILE))
        if not any(isinstance(r, ScoreRecord) and not r.search for r in found):
            raise UserError(f"{folder} holds no scores ({records.FILE}); run `repa-bench run --out {folder}` first.")
        for r in found:
            if isinstance(r, ScoreRecord) and r.search:
                searches.append(r)
            elif isinstance(r, ScoreRecord):
                scores.append(r)
                roots.setdefault(r.grid, folder)
            elif isinstance(r, TokenizerRecord):
                tokenizers.append(r)
                roots.setdefault(r.grid, folder)
                roots.setdefault(r.components or r.grid, folder)
            elif isinstance(r, FloorRecord):
                floors.append(r)
            elif isinstance(r, AlignmentRecord):
                alignments.append(r)
            else:
                stages.append(r)
    _refuse_mixtures(scores)
    unique = {r.key(): r for r in scores}
    return Comparison(
        tuple(folders),
        tuple(unique.values()),
        tuple({r.key(): r for r in tokenizers}.values()),
        tuple({r.key(): r for r in floors}.values()),
        tuple(stages),
        tuple({r.key(): r for r in searches}.values()),
        tuple({r.key(): r for r in alignments if r.arm in {s.arm for s in scores}}.values()),
        roots,
    )


def _refuse_mixtures(scores: Sequence[ScoreRecord]) -> None:
    seen: dict[str, ScoreRecord] = {}
    for r in scores:
        first = seen.setdefault(r.protocol.name, r)
        if (first.suite_digest, first.protocol_digest) != (r.suite_digest, r.protocol_digest):
            told = difference(first.protocol, r.protocol)
            spelled = f" ({told})" if told else ""
            raise UserError(
                f"the folders' numbers under {r.protocol.label} are not comparable{spelled}: their suite or protocol "
                "digests "
                f"differ ({first.suite_digest[:8]}/{first.protocol_digest[:8]} and "
                f"{r.suite_digest[:8]}/{r.protocol_digest[:8]}); report them one by one."
            )
