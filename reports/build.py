"""Write a report: index.html (one file, no network), report.md, results.csv and the figure."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from PIL import Image

from harness.compare import Comparison, load
from harness.curves import title
from harness.records import Provenance, ScoreRecord
from recipes.core.checkpoint import write_text
from reports import figures, tables

GRID_SIDE_IMAGES = 10
#: Currencies of the first sentences.
SHOWN = ("iterations", "flops", "device_seconds")
#: Rows of ten samples that a report shows of each checkpoint.
SHOWN_ROWS = 3
RESULT_COLUMNS = (
    "suite", "arm", "seed", "step", "images", "flops", "train_seconds", "protocol", "generation_seed",
    "fid", "sfid", "inception_score", "precision", "recall", "accuracy", "n_fake", "n_real", "nfe", "run",
    "protocol_digest", "commit",
)  # fmt: skip


def _picture(comparison: Comparison, grid: str, rows: int | None = None) -> str | None:
    """A stored grid, its first rows, as a data URL; nothing if the file is gone."""
    path = comparison.roots[grid] / grid
    if not path.exists():
        return None
    with Image.open(path) as image:
        tile = image.width // GRID_SIDE_IMAGES
        cropped = image.crop((0, 0, image.width, min(image.height, tile * rows))) if rows else image
        buffer = io.BytesIO()
        cropped.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _sample_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """For the first shared seed: samples of every arm at a third of the budget and at its end."""
    shared = set.intersection(*(set(comparison.seeds(arm)) for arm in comparison.arms))
    if not shared:
        return []
    seed, steps = min(shared), comparison.steps()
    rows = []
    for step in dict.fromkeys((steps[max(0, len(steps) // 3 - 1)], steps[-1])):
        pictures = [
            {"label": label, "fid": f"{r.metrics.fid:.2f}", "url": url}
            for arm, label in comparison.arms.items()
            for r in comparison.curve(arm, seed)
            if r.step == step and (url := _picture(comparison, r.grid, SHOWN_ROWS))
        ]
        rows.append({"step": f"{step:,}", "seed": seed, "pictures": pictures})
    return rows


def _reconstructions(comparison: Comparison) -> list[dict[str, Any]]:
    out = []
    seen: set[tuple[str | None, str | None]] = set()
    for t in sorted(comparison.tokenizers, key=lambda t: (t.arm is not None, -(t.step or 0), t.seed or 0)):
        key = (t.arm, t.name if t.arm is None else None)
        if key in seen or (url := _picture(comparison, t.grid)) is None:
            continue
        seen.add(key)
        several = len({other.name for other in comparison.tokenizers if other.arm is None}) > 1
        before = f"before, {t.name}" if several else "before"
        label = before if t.arm is None else f"after {comparison.arms[t.arm]}, step {t.step:,}, seed {t.seed}"
        out.append({"label": label, "psnr": f"{t.psnr:.2f}", "rfid": f"{t.rfid:.3f}", "url": url})
    return out


def _answer(comparison: Comparison) -> list[str]:
    """One sentence for each arm against the baseline, in every currency."""
    found = comparison.speedups()
    sentences = []
    for arm in dict.fromkeys(s.arm for s in found):
        by = {s.currency: s for s in found if s.arm == arm}
        steps = by["iterations"].estimate
        parts = [f"{tables.headline(by[c].estimate)} in {title(c)}" for c in SHOWN if c in by]
        sentences.append(
            f"{by['iterations'].label} to vanilla's last FID: {', '.join(parts)} of training (below 1 is slower); in "
            f"iterations 95 % {tables.interval(steps)}, {tables.seeds_text(steps.seeds)}: {steps.verdict}."
        )
    return sentences


def _provenance(comparison: Comparison) -> list[tuple[str, str]]:
    first: Provenance = comparison.scores[0].provenance
    last: Provenance = comparison.scores[-1].provenance
    score = comparison.protocol(comparison.curve_digest)
    commits = sorted(
        {f"{r.provenance.commit or 'unknown'}{' (dirty)' if r.provenance.dirty else ''}" for r in comparison.scores}
    )
    return [
        ("measured", f"{first.created[:19]} to {last.created[:19]} UTC"),
        ("commit", ", ".join(commits)),
        ("suite digest", score.suite_digest),
        ("curve protocol", f"{score.protocol.label}, digest {score.protocol_digest}"),
        ("feature network, reference", ", ".join(f"{k} {v[:16]}" for k, v in sorted(score.assets.items()))),
        ("hardware", f"{first.device}; {first.processor}, {first.cores} cores, {first.threads} threads"),
        ("system", first.system),
        ("versions", ", ".join(f"{k} {v}" for k, v in sorted(first.versions.items()))),
    ]


def results_csv(comparison: Comparison) -> str:
    """Every score, a line each."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(RESULT_COLUMNS)
    for r in sorted(comparison.scores, key=_csv_order):
        flat: dict[str, Any] = r.model_dump() | r.metrics.model_dump()
        flat |= {"protocol": r.protocol.label, "commit": r.provenance.commit or ""}
        writer.writerow([flat[column] for column in RESULT_COLUMNS])
    return buffer.getvalue()


def _csv_order(r: ScoreRecord) -> tuple[str, int, str, int, int]:
    return (r.arm, r.seed, r.protocol.name, r.step, r.generation_seed)


def _tables(comparison: Comparison) -> dict[str, tables.Table]:
    return {
        "speedup": tables.speedup_table(comparison.speedups()),
        "fid": tables.fid_table(comparison),
        "metrics": tables.metrics_table(comparison),
        "guidance": tables.guidance_table(comparison),
        "tokenizer": tables.tokenizer_table(comparison),
        "floor": tables.floor_table(comparison),
        "cost": tables.cost_table(comparison),
        "stages": tables.stage_table(comparison),
    }


def _markdown(comparison: Comparison, made: dict[str, tables.Table]) -> str:
    first = comparison.scores[0]
    parts = [f"# {first.suite}: comparison report", "", f"**{first.notice}**", ""]
    parts += [f"- {sentence}" for sentence in _answer(comparison)]
    parts += ["", "![FID against budget](fid.png)", ""]
    parts += [table.markdown() for table in made.values() if table.rows]
    parts += ["### Provenance", "", *(f"- {name}: {value}" for name, value in _provenance(comparison)), ""]
    return "\n".join(parts)


def _rerun(comparison: Comparison) -> str:
    first = comparison.scores[0]
    seeds = sorted({r.seed for r in comparison.scores})
    return (
        f"repa-bench run --suite {first.suite} --recipes {' '.join(comparison.arms)} "
        f"--seeds {' '.join(map(str, seeds))} --steps {comparison.steps()[-1]}"
    )


def build(folders: Sequence[Path], out: Path) -> Path:
    """Write the report of some results folders.

    Args:
        folders: results folders, made here or elsewhere.
        out: where the files go.

    Returns:
        The path of index.html.

    Raises:
        UserError: see `harness.compare.load`.
    """
    comparison = load(folders)
    made = _tables(comparison)
    drawn = {name: figures.fid_figure(comparison, [name]) for name in figures.AXES}
    both = figures.fid_figure(comparison)
    # matplotlib escapes the labels that it draws
    pictures = [Markup(figures.svg(figure, name)) for name, figure in drawn.items()]
    image = figures.png(both)
    swept = Markup(figures.svg(figures.guidance_figure(comparison), "guidance")) if comparison.searches else ""
    plt.close("all")
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    first = comparison.scores[0]
    abouts = {r.arm: r.about for r in comparison.scores}
    page = environment.get_template("report.html").render(
        suite=first.suite,
        notice=first.notice,
        answer=_answer(comparison),
        pictures=pictures,
        swept=swept,
        tables=made,
        arms=[(label, abouts[arm]) for arm, label in comparison.arms.items()],
        samples=_sample_rows(comparison),
        reconstructions=_reconstructions(comparison),
        provenance=_provenance(comparison),
        rerun=_rerun(comparison),
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "fid.png").write_bytes(image)
    write_text(out / "results.csv", results_csv(comparison))
    write_text(out / "report.md", _markdown(comparison, made))
    write_text(out / "index.html", page)
    return out / "index.html"
