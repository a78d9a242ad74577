"""Tables as data: the same cells go to the terminal, to Markdown and to HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, geometric_mean

from harness.records.schema import NOTE, AlignmentRecord, ScoreRecord, TokenizerRecord
from harness.results.claims import Judgement
from harness.results.comparison import Comparison
from harness.results.curves import panel
from harness.results.paired_folders import Pair
from harness.results.run_folders import Entry
from harness.results.speedup import Spread, spread
from reports.table import Table


def number(value: Spread | None, digits: int = 2) -> str:
    """Mean, with the standard deviation where there are two seeds or more."""
    if value is None:
        return "–"
    deviation = f" ± {value.sd:.{digits}f}" if value.sd is not None else ""
    return f"{value.mean:.{digits}f}{deviation}"


def seeds_text(count: int) -> str:
    """``single seed`` or ``3 seeds``."""
    return "single seed" if count == 1 else f"{count} seeds"


def _floor(comparison: Comparison, like: ScoreRecord) -> str | None:
    """FID of as many real images as a score's samples, against as many; nothing where it was not measured."""
    found = (f.fid for f in comparison.floors if (f.n_fake, f.n_real) == (like.n_fake, like.n_real))
    return next((f"{fid:.3f}" for fid in found), None)


def fid_table(comparison: Comparison) -> Table:
    """FID of every variant at every scored step, and of the curves that are not ours."""
    steps, first = comparison.steps(), comparison.protocol(comparison.curve_digest)
    protocol, floor = first.protocol, _floor(comparison, first)
    rows = [
        (label, *(_fid_cell(comparison.fids(variant, step), len(comparison.seeds(variant))) for step in steps))
        for variant, label in comparison.variants.items()
    ]
    for recipe in dict.fromkeys(o.recipe for o in comparison.others):
        curves = panel(comparison.others, recipe, "iterations")
        at = [{seed: p.fid for seed, curve in curves.items() for p in curve if p.step == step} for step in steps]
        rows.append((recipe, *(_fid_cell(fids, len(curves)) for fids in at)))
    return Table(
        f"FID by iterations ({protocol.label})",
        ("recipe", *(f"{step:,}" for step in steps)),
        tuple(rows),
        f"{protocol.samples:,} samples, {protocol.weights} weights, {protocol.nfe} NFE, {protocol.labels} labels, "
        f"guidance {protocol.guidance_scale:g}. Mean ± sd over training seeds. Lower is better"
        + (f"; as many real images have {floor}." if floor else ".")
        + " Rows that are not ours may be under any protocol." * bool(comparison.others)
        + "".join(f" {told}." for told in (*comparison.warnings, *comparison.trained_again)),
        tuple(comparison.runs(variant) for variant in comparison.variants),
    )


def _fid_cell(fids: Mapping[int, float], seeds: int) -> str:
    """Mean and sd over training seeds; how many, where some have no score at this step."""
    if not fids:
        return "–"
    return number(spread(list(fids.values()))) + (f" ({seeds_text(len(fids))})" if len(fids) < seeds else "")


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


def _count(records: Sequence[ScoreRecord]) -> int:
    return len({r.seed for r in records})


def _runs(records: Sequence[ScoreRecord] | Sequence[AlignmentRecord] | Sequence[TokenizerRecord]) -> tuple[str, ...]:
    """The runs that records belong to, each once."""
    return tuple(dict.fromkeys(r.run[:8] for r in records if r.run is not None))


def metrics_table(comparison: Comparison) -> Table:
    """Every metric at the last checkpoint, a row for each variant and protocol."""
    rows, runs = [], []
    for variant, label in comparison.variants.items():
        for digest in (comparison.curve_digest, *comparison.finals):
            last = comparison.last(variant, digest)
            if not last:
                continue
            runs.append(_runs(last))
            error = _over(last, "inception_score_se")
            rows.append(
                (
                    label,
                    last[0].protocol.label,
                    f"{last[0].step:,}"
                    + f" ({seeds_text(_count(last))})" * (_count(last) < len(comparison.seeds(variant))),
                    number(_over(last, "fid")),
                    _floor(comparison, last[0]) or "–",
                    number(_over(last, "sfid")),
                    number(_over(last, "inception_score")) + (f" (se {error.mean:.2f})" if error else ""),
                    number(_over(last, "precision"), 3),
                    number(_over(last, "recall"), 3),
                    number(_over(last, "accuracy"), 3),
                )
            )
    return Table(
        "Metrics at the last checkpoint",
        ("recipe", "protocol", "step", "FID", "floor", "sFID", "IS", "precision", "recall", "accuracy"),
        tuple(rows),
        "Compare FID only within one protocol. ±: sd over training seeds. Floor: FID of as many real images. se: the "
        "standard error of one set's IS. sFID: on a layer that keeps places. Accuracy: share of the samples that the "
        "feature network gives the class they were asked for.",
        tuple(runs),
    )


def guidance_table(comparison: Comparison) -> Table:
    """What every variant's sweep chose, and what that gives under seeds that the choice never saw."""
    choices = comparison.guidance()
    bases = list(dict.fromkeys(choice.chosen.base_name for choice in choices))
    rows = []
    for choice in choices:
        p = choice.chosen
        setting = f"{p.guidance_scale:g} in [{p.guidance_low:g}, {p.guidance_high:g}]"
        rows.append(
            (
                choice.label if len(bases) == 1 else f"{choice.label}, {p.base_name}",
                f"{len(choice.tried)} × {len(choice.best.values)} × {p.samples:,}",
                (setting + " (largest tried)" * choice.at_the_edge) if p.guidance_scale > 1 else "none",
                number(choice.best),
                number(choice.reported),
                number(choice.unguided),
            )
        )
    return Table(
        f"Guidance, chosen on other seeds ({', '.join(bases)})",
        ("recipe", "settings × sets × N", "chosen", "FID when chosen", "FID reported", "unguided"),
        tuple(rows),
        "Every variant was tried at the same settings, seeds and number of samples. The lowest of many noisy numbers "
        "is too low, so the chosen setting was drawn again under generation seeds that the choice never saw: that is "
        "the number to quote. FIDs of different N do not compare.",
        tuple(_runs([r for r in comparison.searches if r.variant == choice.variant]) for choice in choices),
    )


def alignment_table(comparison: Comparison) -> Table:
    """CKNNA with the encoder at the aligned block, by step, and at every depth of the last checkpoint."""
    steps = sorted({r.step for r in comparison.alignments})
    rows, runs = [], []
    for variant, label in comparison.variants.items():
        found = [r for r in comparison.alignments if r.variant == variant]
        if not found:
            continue
        runs.append(_runs(found))
        by_step = [[r for r in found if r.step == step] for step in steps]
        depths = range(len(found[0].cknna)) if by_step[-1] else []
        at_end = [number(over_seeds((r.seed, r.cknna[d]) for r in by_step[-1]), 3) for d in depths]
        aligned = [number(over_seeds((r.seed, r.cknna[r.aligned_depth - 1]) for r in group), 3) for group in by_step]
        rows.append((label, *aligned, ", ".join(at_end)))
    block = comparison.alignments[0].aligned_depth if comparison.alignments else 0
    return Table(
        f"Alignment with the encoder after block {block} (CKNNA)",
        ("recipe", *(f"{step:,}" for step in steps), "by depth, last step"),
        tuple(rows),
        "Centred kernel nearest-neighbour alignment (arXiv 2405.07987, k = 10) of the SiT's tokens, averaged over "
        "positions, with the encoder's, on training images at noise level t = 0.5 without labels. 1: equal neighbours.",
        tuple(runs),
    )


def cost_table(comparison: Comparison) -> Table:
    """What a step and a run cost."""
    rows = []
    sources = sorted({r.step_seconds_from or "median between scored checkpoints" for r in comparison.scores})
    for variant, label in comparison.variants.items():
        scores = [r for r in comparison.scores if r.variant == variant]  # under whichever protocol
        last = [r for r in scores if r.step == max(r.step for r in scores)]
        rows.append(
            (
                label,
                number(over_seeds((r.seed, 1000 * comparison.budget(r, "device_seconds") / r.step) for r in last), 1),
                number(over_seeds((r.seed, r.train_seconds) for r in last), 1),
                f"{last[0].flops / last[0].step / 1e9:.2f}",
                f"{last[0].images:,}",
            )
        )
    return Table(
        "Cost of training",
        ("recipe", "device-ms a step", "seconds", "GFLOP a step", "images"),
        tuple(rows),
        f"A step: {' or '.join(sources)}. Seconds: wall clock of training alone, whatever else the machine did; it "
        "stops for evaluation, checkpoints and logging. FLOPs: matrix products, convolutions and attention, forward "
        "and backward, counted by PyTorch; a multiply-add is two.",
        tuple(comparison.runs(variant) for variant in comparison.variants),
    )


def tokenizer_table(comparison: Comparison) -> Table:
    """Reconstruction before and after joint training, with the two signs of a collapse."""
    rows, runs = [], []
    names = sorted({t.name for t in comparison.tokenizers if t.variant is None})
    groups: dict[tuple[str | None, str | None], str] = {
        (None, name): "before (shared)" if len(names) == 1 else name for name in names
    }
    groups |= {(variant, None): f"after {label}" for variant, label in comparison.variants.items()}
    for (variant, which), name in groups.items():
        found = [t for t in comparison.tokenizers if t.variant == variant and which in (None, t.name)]
        group = [t for t in found if t.step == max(other.step or 0 for other in found) or t.variant is None]
        if not group:
            continue
        runs.append(_runs(group))
        shown = {"rfid": 3, "psnr": 2, "ssim": 3, "lpips": 3, "latent_variance": 2, "spatial_variance": 2}
        shown |= {"total_variation": 1, "effective_rank": 1}
        rows.append((name, *(number(_over(group, value), digits) for value, digits in shown.items())))
    n = comparison.tokenizers[0].n if comparison.tokenizers else 0
    return Table(
        "Tokenizer before and after joint training",
        (
            "tokenizer",
            "rFID",
            "PSNR (dB)",
            "SSIM",
            "LPIPS",
            "latent variance",
            "spatial variance",
            "TV",
            "effective rank",
        ),
        tuple(rows),
        f"{n:,} reference images rebuilt from their posterior mean; rFID against the whole reference. A collapse shows "
        "as variance near zero, or, under batch norm, as a low effective rank (participation ratio of the covariance).",
        tuple(runs),
    )


def floor_table(comparison: Comparison) -> Table:
    """What differences mean nothing."""
    rows = [(f.name, f"{f.n_fake:,}", f"{f.n_real:,}" if f.n_real else "–", f"{f.fid:.3f}") for f in comparison.floors]
    if (noise := comparison.generation_noise()) is not None:
        label = f"|difference| of two generation seeds, {len(noise.values)} checkpoints"
        rows.append((label, "", "", f"{noise.mean:.3f} (max {max(noise.values):.3f})"))
    return Table(
        "Noise floor",
        ("what", "N", "N reference", "FID"),
        tuple(rows),
        "FID between real images is what no model can be told apart below; a difference under the last row's is noise "
        "of sampling. Another training seed moves FID more: see the ± above.",
    )


def runs_table(comparison: Comparison) -> Table:
    """Every run that a number of the report may come from."""
    groups: dict[str, list[ScoreRecord]] = {}
    for r in comparison.scores:
        groups.setdefault(r.run, []).append(r)
    order = list(comparison.variants)
    rows = []
    for run, scores in sorted(groups.items(), key=lambda g: (order.index(g[1][0].variant), g[1][0].seed)):
        last = max(scores, key=lambda r: r.step)
        commits = sorted({(r.provenance.commit or "unknown")[:8] for r in scores})
        notes = list(dict.fromkeys(note for r in scores for note in r.notes))
        rows.append(
            (
                run[:8],
                last.label,
                str(last.seed),
                f"{last.step:,}",
                str(len(scores)),
                last.weights_hash[:8],
                ", ".join(commits),
                "; ".join(notes) or "–",
            )
        )
    repaired = list(dict.fromkeys(note for s in comparison.stages for note in s.notes))
    return Table(
        "Runs",
        ("run", "recipe", "training seed", "last step", "scores", "weights there", "commit", "notes"),
        tuple(rows),
        "A run is the digest of its specification, weights that of their bytes. results.csv has every score."
        + (f" Mended: {'; '.join(repaired)}." if repaired else ""),
    )


def stage_table(comparison: Comparison) -> Table:
    """Wall-clock of every stage that ran, summed over sessions."""
    total: dict[str, tuple[float, int]] = {}
    for s in comparison.stages:
        if s.stage == NOTE:
            continue
        name = s.stage if s.variant is None else f"{s.stage} {comparison.variants.get(s.variant, s.variant)}"
        seconds, peak = total.get(name, (0.0, 0))
        total[name] = (seconds + s.seconds, max(peak, s.peak_memory_bytes))
    rows = [(name, f"{seconds:.1f}", f"{peak / 2**30:.2f}") for name, (seconds, peak) in total.items()]
    everything = sum(seconds for seconds, _ in total.values())
    rows.append(("all", f"{everything:.1f}", f"{max((p for _, p in total.values()), default=0) / 2**30:.2f}"))
    return Table(
        "Time and memory of every stage",
        ("stage", "seconds", "peak GiB so far"),
        tuple(rows),
        "Wall clock, all seeds together; a stage whose result was found in the cache is absent.",
    )


def claims_table(judgements: Sequence[Judgement]) -> Table:
    """A row for each claim and piece of evidence."""
    rows = tuple(
        (
            j.claim.text,
            f"{j.level}: {j.evidence}",
            j.verdict,
            j.numbers,
            f"{j.claim.source.place}; {', '.join(j.sources)}",
        )
        for j in judgements
    )
    return Table(
        "Claims",
        ("claim", "evidence", "verdict", "numbers", "where"),
        rows,
        "Published points are consistent with a claim, inconsistent, or leave it open (the last checkpoint before the "
        "target and the first after it lie on both sides); they prove nothing. A proxy suite shows an effect or not, "
        "and says nothing of its size. Only runs at scale, under the claim's protocol and with two training seeds or "
        "more, confirm or refute.",
    )


def pairs_table(pairs: Sequence[Pair], first: str, second: str) -> Table:
    """Two results folders, paired by training seed."""
    rows = tuple(
        (
            p.label,
            f"{p.step:,}",
            f"{p.first:.3f}",
            f"{p.second:.3f}",
            f"{100 * (p.ratio - 1):+.2f} %",
            "–" if p.interval is None else f"{100 * (p.interval[0] - 1):+.2f} to {100 * (p.interval[1] - 1):+.2f} %",
            p.verdict or "none",
        )
        for p in pairs
    )
    return Table(
        f"FID of A = {first} and B = {second}",
        ("recipe", "step", "FID of A", "FID of B", "B against A", "95 % interval", "B is"),
        rows,
        f"Paired by training seed ({', '.join(sorted({seeds_text(p.seeds) for p in pairs}))}); interval by Student's t "
        "over seeds, of each row alone; verdict with the chance of any false one in the table held at 5 % (Holm). A "
        "single seed has none, and its interval is the suite's own spread over seeds, where that is known.",
    )


def run_folders_table(entries: Sequence[Entry], folder: str) -> Table:
    """What a results folder holds."""
    rows = tuple(
        (
            e.name,
            e.label,
            str(e.seed),
            f"{e.step:,}",
            f"{len(e.scored)} steps to {e.scored[-1]:,}" if e.scored else "–",
            f"{e.size / 2**20:,.1f}",
            "; ".join(e.notes) or "–",
        )
        for e in entries
    )
    columns = ("run", "recipe", "training seed", "trained to", "scored at", "MiB", "notes")
    return Table(f"Runs in {folder}", columns, rows, "`repa-bench runs remove FOLDER RUN` takes one away.")
