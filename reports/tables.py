"""Tables as data: the same cells go to the terminal, to Markdown and to HTML."""

from __future__ import annotations

from collections.abc import Sequence

from harness.results import rows
from harness.results.claims import Judgement
from harness.results.comparison import Comparison, GuidanceChoice
from harness.results.paired_folders import Pair
from harness.results.run_folders import Entry
from harness.results.speedup import Spread
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


def seeds_note(seeds: int, of: int) -> str:
    """Note on the number of seeds if fewer than all."""
    return f" ({seeds_text(seeds)})" if seeds < of else ""


def fid_table(comparison: Comparison) -> Table:
    """FID of every variant at every scored step, and of the curves that are not ours."""
    first, found = comparison.protocol(comparison.curve_digest), rows.curve_rows(comparison)
    protocol, floor = first.protocol, rows.floor_of(comparison, first)
    cells = [
        tuple("–" if at is None else number(at) + seeds_note(len(at.values), row.seeds) for at in row.at)
        for row in found
    ]
    return Table(
        f"FID by iterations ({protocol.label})",
        ("recipe", *(f"{step:,}" for step in comparison.steps())),
        tuple((row.label, *at) for row, at in zip(found, cells, strict=True)),
        f"{protocol.samples:,} samples, {protocol.weights} weights, {protocol.nfe} NFE, {protocol.labels} labels, "
        f"guidance {protocol.guidance_scale:g}. Mean ± sd over training seeds. Lower is better"
        + (f"; as many real images have {floor:.3f}." if floor else ".")
        + " Rows that are not ours may be under any protocol." * bool(comparison.others)
        + "".join(f" {told}." for told in (*comparison.warnings, *comparison.trained_again)),
        tuple(row.runs for row in found if row.runs),
    )


def metrics_table(comparison: Comparison) -> Table:
    """Every metric at the last checkpoint, a row for each variant and protocol."""
    found = rows.metrics_rows(comparison)
    digits = {"precision": 3, "recall": 3, "accuracy": 3}

    def cells(row: rows.MetricsRow) -> tuple[str, ...]:
        shown = {name: number(value, digits.get(name, 2)) for name, value in row.values.items()}
        error = row.values["inception_score_se"]
        shown["inception_score"] += f" (se {error.mean:.2f})" if error else ""
        return (
            row.label,
            row.protocol,
            f"{row.step:,}" + seeds_note(row.seeds, row.of),
            shown["fid"],
            "–" if row.floor is None else f"{row.floor:.3f}",
            *(shown[name] for name in ("sfid", "inception_score", "precision", "recall", "accuracy")),
        )

    return Table(
        "Metrics at the last checkpoint",
        ("recipe", "protocol", "step", "FID", "floor", "sFID", "IS", "precision", "recall", "accuracy"),
        tuple(map(cells, found)),
        "Compare FID only within one protocol. ±: sd over training seeds. Floor: FID of as many real images. se: the "
        "standard error of one set's IS. sFID: on a layer that keeps places. Accuracy: share of the samples that the "
        "feature network gives the class they were asked for.",
        tuple(row.runs for row in found),
    )


def guidance_table(comparison: Comparison) -> Table:
    """Guidance setting chosen for each variant, and its FID under fresh seeds."""
    choices = comparison.guidance()
    bases = list(dict.fromkeys(choice.chosen.base_name for choice in choices))

    def cells(choice: GuidanceChoice) -> tuple[str, ...]:
        p = choice.chosen
        setting = f"{p.guidance_scale:g} in [{p.guidance_low:g}, {p.guidance_high:g}]"
        return (
            choice.label if len(bases) == 1 else f"{choice.label}, {p.base_name}",
            f"{len(choice.tried)} × {len(choice.best.values)} × {p.samples:,}",
            (setting + " (largest tried)" * choice.at_the_edge) if p.guidance_scale > 1 else "none",
            *map(number, (choice.best, choice.reported, choice.unguided)),
        )

    return Table(
        f"Guidance, chosen on other seeds ({', '.join(bases)})",
        ("recipe", "settings × sets × N", "chosen", "FID when chosen", "FID reported", "unguided"),
        tuple(map(cells, choices)),
        "Every variant was tried at the same settings, seeds and number of samples. The lowest of many noisy numbers "
        "is too low, so the chosen setting was drawn again under generation seeds that the choice never saw: that is "
        "the number to quote. FIDs of different N do not compare.",
        tuple(choice.runs for choice in choices),
    )


def alignment_table(comparison: Comparison) -> Table:
    """CKNNA with the encoder at the aligned block, by step, and at every depth of the last checkpoint."""
    found = rows.alignment_rows(comparison)
    cells = [
        (row.label, *(number(at, 3) for at in row.by_step), ", ".join(number(at, 3) for at in row.by_depth))
        for row in found
    ]
    block = comparison.alignments[0].aligned_depth if comparison.alignments else 0
    return Table(
        f"Alignment with the encoder after block {block} (CKNNA)",
        ("recipe", *(f"{step:,}" for step in comparison.alignment_steps()), "by depth, last step"),
        tuple(cells),
        "Centred kernel nearest-neighbour alignment (arXiv 2405.07987, k = 10) of the SiT's tokens, averaged over "
        "positions, with the encoder's, on training images at noise level t = 0.5 without labels. 1: equal neighbours.",
        tuple(row.runs for row in found),
    )


def cost_table(comparison: Comparison) -> Table:
    """What a step and a run cost."""
    found = rows.cost_rows(comparison)
    sources = sorted({r.step_seconds_from or "median between scored checkpoints" for r in comparison.scores})
    return Table(
        "Cost of training",
        ("recipe", "device-ms a step", "seconds", "GFLOP a step", "images"),
        tuple(
            (
                row.label,
                number(row.step_milliseconds, 1),
                number(row.seconds, 1),
                f"{row.step_flops / 1e9:.2f}",
                f"{row.images:,}",
            )
            for row in found
        ),
        f"A step: {' or '.join(sources)}. Seconds: wall clock of training alone, whatever else the machine did; it "
        "stops for evaluation, checkpoints and logging. FLOPs: matrix products, convolutions and attention, forward "
        "and backward, counted by PyTorch; a multiply-add is two."
        + "".join(f" {n}." for n in rows.cost_notes(comparison)),
        tuple(row.runs for row in found),
    )


def tokenizer_table(comparison: Comparison) -> Table:
    """Reconstruction before and after joint training, with the two signs of a collapse."""
    found = rows.tokenizer_rows(comparison)
    digits = {"psnr": 2, "latent_variance": 2, "spatial_variance": 2, "total_variation": 1, "effective_rank": 1}
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
        tuple(
            (row.label, *(number(value, digits.get(name, 3)) for name, value in row.values.items())) for row in found
        ),
        f"{n:,} reference images rebuilt from their posterior mean; rFID against the whole reference. A collapse shows "
        "as variance near zero, or, under batch norm, as a low effective rank (participation ratio of the covariance).",
        tuple(row.runs for row in found),
    )


def floor_table(comparison: Comparison) -> Table:
    """Noise floor: differences smaller than these are meaningless."""
    cells = [(f.name, f"{f.n_fake:,}", f"{f.n_real:,}" if f.n_real else "–", f"{f.fid:.3f}") for f in comparison.floors]
    if (noise := comparison.generation_noise()) is not None:
        label = f"|difference| of two generation seeds, {len(noise.values)} checkpoints"
        cells.append((label, "", "", f"{noise.mean:.3f} (max {max(noise.values):.3f})"))
    return Table(
        "Noise floor",
        ("what", "N", "N reference", "FID"),
        tuple(cells),
        "FID between real images is what no model can be told apart below; a difference under the last row's is noise "
        "of sampling. Another training seed moves FID more: see the ± above.",
    )


def runs_table(comparison: Comparison) -> Table:
    """Every run that a number of the report may come from."""
    cells = [
        (
            row.run,
            row.last.label,
            str(row.last.seed),
            f"{row.last.step:,}",
            str(row.scores),
            row.last.weights_hash[:8],
            ", ".join(row.commits),
            "; ".join(row.notes) or "–",
        )
        for row in rows.run_rows(comparison)
    ]
    notes = list(dict.fromkeys(note for s in comparison.stages for note in s.notes))
    return Table(
        "Runs",
        ("run", "recipe", "training seed", "last step", "scores", "weights there", "commit", "notes"),
        tuple(cells),
        "A run is the digest of its specification, weights that of their bytes. results.csv has every score."
        + (f" Noted while running: {'; '.join(notes)}." if notes else ""),
    )


def stage_table(comparison: Comparison) -> Table:
    """Wall-clock of every stage that ran, summed over sessions."""
    cells = [
        (row.name, f"{row.seconds:.1f}", f"{row.peak_memory_bytes / 2**30:.2f}") for row in rows.stage_rows(comparison)
    ]
    return Table(
        "Time and memory of every stage",
        ("stage", "seconds", "peak GiB so far"),
        tuple(cells),
        "Wall clock, all seeds together; a stage whose result was found in the cache is absent.",
    )


def claims_table(judgements: Sequence[Judgement]) -> Table:
    """A row for each claim and piece of evidence."""
    cells = tuple(
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
        cells,
        "Published points are consistent with a claim, inconsistent, or leave it open (the last checkpoint before the "
        "target and the first after it lie on both sides); they prove nothing. A proxy suite shows an effect or not, "
        "and says nothing of its size. Only runs at scale, under the claim's protocol and with two training seeds or "
        "more, confirm or refute.",
    )


def pairs_table(pairs: Sequence[Pair], first: str, second: str) -> Table:
    """Two results folders, paired by training seed."""
    cells = tuple(
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
        cells,
        f"Paired by training seed ({', '.join(sorted({seeds_text(p.seeds) for p in pairs}))}); interval by Student's t "
        "over seeds, of each row alone; verdict with the chance of any false one in the table held at 5 % (Holm). A "
        "single seed has none, and its interval is the suite's own spread over seeds, where that is known.",
    )


def run_folders_table(entries: Sequence[Entry], folder: str) -> Table:
    """What a results folder holds."""
    cells = tuple(
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
    return Table(f"Runs in {folder}", columns, cells, "`repa-bench runs remove FOLDER RUN` takes one away.")
