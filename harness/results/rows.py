"""Rows of the report's tables, before number formatting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, geometric_mean
from typing import Any

from harness.records.schema import NOTE, AlignmentRecord, ScoreRecord, TokenizerRecord
from harness.results.comparison import Comparison, built_in
from harness.results.curves import panel
from harness.results.speedup import Spread, spread

METRICS = ("fid", "sfid", "inception_score", "inception_score_se", "precision", "recall", "accuracy")
OF_TOKENIZERS = (
    "rfid", "psnr", "ssim", "lpips", "latent_variance", "spatial_variance", "total_variation", "effective_rank",
)  # fmt: skip

#: Of a score; results.csv has them too.
SCORE_COLUMNS = (
    "suite", "variant", "seed", "step", "images", "flops", "train_seconds", "protocol", "generation_seed",
    "fid", "sfid", "inception_score", "inception_score_se", "precision", "recall", "accuracy", "n_fake", "n_real",
    "nfe", "run", "protocol_digest", "commit",
)  # fmt: skip


def score_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Every score by `SCORE_COLUMNS`; None where something was not measured."""
    rows = []
    for r in sorted(comparison.scores, key=_score_order):
        flat = r.model_dump() | r.metrics.model_dump()
        flat |= {"protocol": r.protocol.label, "commit": r.provenance.commit}
        rows.append({column: flat[column] for column in SCORE_COLUMNS})
    return rows


def _score_order(r: ScoreRecord) -> tuple[str, int, str, int, int]:
    return (r.variant, r.seed, r.protocol.name, r.step, r.generation_seed)


def over_seeds(
    values: Iterable[tuple[int | None, float | None]], mean: Callable[[Sequence[float]], float] = fmean
) -> Spread | None:
    """One number for each training seed: of several trainings of a seed their mean, as speedups have it."""
    by: dict[int | None, list[float]] = {}
    for seed, value in values:
        if value is not None:
            by.setdefault(seed, []).append(value)
    return spread([mean(found) if len(found) > 1 else found[0] for found in by.values()]) if by else None


def _over(records: Sequence[ScoreRecord] | Sequence[TokenizerRecord], name: str) -> Spread | None:
    values = ((r.seed, getattr(r.metrics if isinstance(r, ScoreRecord) else r, name)) for r in records)
    return over_seeds(values, geometric_mean if name == "fid" else fmean)


def runs_of(records: Sequence[ScoreRecord] | Sequence[AlignmentRecord] | Sequence[TokenizerRecord]) -> tuple[str, ...]:
    """The first eight digits of the digests of the runs that records belong to, each once."""
    return tuple(dict.fromkeys(r.run[:8] for r in records if r.run is not None))


@dataclass(frozen=True)
class CurveRow:
    """FID of one recipe at the comparison's steps."""

    label: str
    at: tuple[Spread | None, ...]
    """Over the seeds that were scored there."""
    seeds: int
    """Training seeds of the recipe."""
    runs: tuple[str, ...] = ()


def floor_of(comparison: Comparison, like: ScoreRecord) -> float | None:
    """Noise floor with the same n_fake and n_real as `like`, or None."""
    return next((f.fid for f in comparison.floors if (f.n_fake, f.n_real) == (like.n_fake, like.n_real)), None)


def curve_rows(comparison: Comparison) -> list[CurveRow]:
    """One for each variant, and for each recipe of curves that are not ours."""
    steps = comparison.steps()
    rows = [
        CurveRow(
            label,
            tuple(comparison.fid_at(variant, step) for step in steps),
            len(comparison.seeds(variant)),
            comparison.runs(variant),
        )
        for variant, label in comparison.variants.items()
    ]
    for recipe in dict.fromkeys(o.recipe for o in comparison.others):
        curves = panel(comparison.others, recipe, "iterations").values()
        at = [[p.fid for curve in curves for p in curve if p.step == step] for step in steps]
        rows.append(CurveRow(recipe, tuple(spread(fids) if fids else None for fids in at), len(curves)))
    return rows


@dataclass(frozen=True)
class MetricsRow:
    """Every metric of one variant's last checkpoint under one protocol."""

    label: str
    protocol: str
    step: int
    seeds: int
    """Training seeds that were scored there."""
    of: int
    """Training seeds of the variant."""
    floor: float | None
    values: Mapping[str, Spread | None]
    """By the names of `METRICS`."""
    runs: tuple[str, ...]


def metrics_rows(comparison: Comparison) -> list[MetricsRow]:
    """One for each variant and protocol."""
    rows = []
    for variant, label in comparison.variants.items():
        for digest in (comparison.curve_digest, *comparison.finals):
            if last := comparison.last(variant, digest):
                seeds, of = len({r.seed for r in last}), len(comparison.seeds(variant))
                values = {name: _over(last, name) for name in METRICS}
                protocol, floor = last[0].protocol.label, floor_of(comparison, last[0])
                rows.append(MetricsRow(label, protocol, last[0].step, seeds, of, floor, values, runs_of(last)))
    return rows


@dataclass(frozen=True)
class AlignmentRow:
    """CKNNA of one variant's SiT with the encoder."""

    label: str
    by_step: tuple[Spread | None, ...]
    """After the aligned block, at the steps that were measured of any variant."""
    by_depth: tuple[Spread | None, ...]
    """After each block, at the last of these steps."""
    runs: tuple[str, ...]


def alignment_rows(comparison: Comparison) -> list[AlignmentRow]:
    """One for each variant that was measured."""
    steps, rows = comparison.alignment_steps(), []
    for variant, label in comparison.variants.items():
        if not (found := [r for r in comparison.alignments if r.variant == variant]):
            continue
        by_step = [[r for r in found if r.step == step] for step in steps]
        aligned = tuple(over_seeds((r.seed, r.cknna[r.aligned_depth - 1]) for r in group) for group in by_step)
        depths = range(len(found[0].cknna)) if by_step[-1] else ()
        at_end = tuple(over_seeds((r.seed, r.cknna[depth]) for r in by_step[-1]) for depth in depths)
        rows.append(AlignmentRow(label, aligned, at_end, runs_of(found)))
    return rows


@dataclass(frozen=True)
class CostRow:
    """What one variant's training cost, under whichever protocol it was scored."""

    label: str
    step_milliseconds: Spread | None
    """Device-milliseconds."""
    seconds: Spread | None
    """Wall clock of the run."""
    step_flops: float
    images: int
    runs: tuple[str, ...]


def cost_notes(comparison: Comparison) -> list[str]:
    """What the cost of training leaves out, a sentence each."""
    suite = built_in(comparison.scores[0].suite)
    cached = suite is not None and suite.encoder_is_cached
    return ["The encoder's pass is not counted: this suite stores what it says of the training images"] * cached


def cost_rows(comparison: Comparison) -> list[CostRow]:
    """One for each variant."""
    rows = []
    for variant, label in comparison.variants.items():
        scores = [r for r in comparison.scores if r.variant == variant]
        last = [r for r in scores if r.step == max(r.step for r in scores)]
        step = over_seeds((r.seed, 1000 * comparison.budget(r, "device_seconds") / r.step) for r in last)
        seconds, first = over_seeds((r.seed, r.train_seconds) for r in last), last[0]
        rows.append(CostRow(label, step, seconds, first.flops / first.step, first.images, comparison.runs(variant)))
    return rows


@dataclass(frozen=True)
class TokenizerRow:
    """A tokenizer's reconstructions and latents."""

    label: str
    values: Mapping[str, Spread | None]
    """By the names of `OF_TOKENIZERS`."""
    runs: tuple[str, ...]


def tokenizer_rows(comparison: Comparison) -> list[TokenizerRow]:
    """Before joint training, one for each tokenizer; after it, one for each variant, at its last step."""
    names = sorted({t.name for t in comparison.tokenizers if t.variant is None})
    groups: dict[tuple[str | None, str | None], str] = {
        (None, name): "before (shared)" if len(names) == 1 else name for name in names
    }
    groups |= {(variant, None): f"after {label}" for variant, label in comparison.variants.items()}
    rows = []
    for (variant, which), label in groups.items():
        found = [t for t in comparison.tokenizers if t.variant == variant and which in (None, t.name)]
        group = [t for t in found if t.step == max(other.step or 0 for other in found) or t.variant is None]
        if group:
            rows.append(TokenizerRow(label, {name: _over(group, name) for name in OF_TOKENIZERS}, runs_of(group)))
    return rows


@dataclass(frozen=True)
class RunRow:
    """One run that a number of the report may come from."""

    run: str
    """The first eight digits of its specification's digest."""
    last: ScoreRecord
    """At its last step."""
    scores: int
    commits: tuple[str, ...]
    notes: tuple[str, ...]


def run_rows(comparison: Comparison) -> list[RunRow]:
    """One for each, by variant and training seed."""
    groups: dict[str, list[ScoreRecord]] = {}
    for r in comparison.scores:
        groups.setdefault(r.run, []).append(r)
    order = list(comparison.variants)
    rows = []
    for run, scores in sorted(groups.items(), key=lambda g: (order.index(g[1][0].variant), g[1][0].seed)):
        commits = tuple(sorted({(r.provenance.commit or "unknown")[:8] for r in scores}))
        notes = tuple(dict.fromkeys(note for r in scores for note in r.notes))
        rows.append(RunRow(run[:8], max(scores, key=lambda r: r.step), len(scores), commits, notes))
    return rows


@dataclass(frozen=True)
class StageRow:
    """Wall clock and memory of a stage, summed over seeds and sessions."""

    name: str
    seconds: float
    peak_memory_bytes: int


def stage_rows(comparison: Comparison) -> list[StageRow]:
    """One for each stage of each variant that ran, then all of them."""
    total: dict[str, StageRow] = {}
    for s in comparison.stages:
        if s.stage != NOTE:
            name = s.stage if s.variant is None else f"{s.stage} {comparison.variants.get(s.variant, s.variant)}"
            so_far = total.get(name, StageRow(name, 0.0, 0))
            peak = max(so_far.peak_memory_bytes, s.peak_memory_bytes)
            total[name] = StageRow(name, so_far.seconds + s.seconds, peak)
    rows = list(total.values())
    peak = max((row.peak_memory_bytes for row in rows), default=0)
    return [*rows, StageRow("all", sum(row.seconds for row in rows), peak)]
