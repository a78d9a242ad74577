"""Write a report: index.html (one file, no network), report.md, tables.tex, results.csv and the figures."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from matplotlib.figure import Figure

from baselines.claims import ledger
from harness.results.claims import judge
from harness.results.comparison import BASELINE, Comparison, load
from harness.results.curves import Observation, Selection, title
from harness.results.rows import SCORE_COLUMNS, score_rows
from recipes.core.atomic import write_bytes
from recipes.core.errors import UserError, visible
from reports import figures, tables
from reports import table as reports_table
from reports.pictures import Pictures
from reports.speedup_tables import headline, interval, speedup_table

#: Currencies used in the summary sentences.
SHOWN = ("iterations", "flops", "device_seconds")
#: Folder of the figures.
FIGURES = "figures"
#: Sample-grid rows shown per checkpoint.
SHOWN_ROWS = 3
#: Prefixes that spreadsheets interpret as formulas.
FORMULAS = tuple("=+-@＝＋－＠")


def _sample_rows(comparison: Comparison, pictures: Pictures) -> list[dict[str, Any]]:
    """For the first seed that every variant brought to its end: samples at a third of the budget and at its end."""
    shared = set.intersection(*(set(comparison.complete(variant)[0]) for variant in comparison.on_curve))
    if not shared:
        return []
    seed, steps = min(shared), comparison.steps()
    rows = []
    for step in dict.fromkeys((steps[max(0, len(steps) // 3 - 1)], steps[-1])):
        first = {
            variant: next((r for r in comparison.curve(variant, seed) if r.step == step), None)
            for variant in comparison.variants
        }
        shown = [
            {"label": comparison.variants[variant], "fid": f"{r.metrics.fid:.2f}", "url": url}
            for variant, r in first.items()
            if r is not None and (url := pictures.url(r.grid, SHOWN_ROWS))
        ]
        rows.append({"step": f"{step:,}", "seed": seed, "pictures": shown})
    return rows


def _reconstructions(comparison: Comparison, pictures: Pictures) -> list[dict[str, Any]]:
    out = []
    seen: set[tuple[str | None, str | None]] = set()
    for t in sorted(comparison.tokenizers, key=lambda t: (t.variant is not None, -(t.step or 0), t.seed or 0)):
        key = (t.variant, t.name if t.variant is None else None)
        if key in seen or (url := pictures.url(t.grid)) is None:
            continue
        seen.add(key)
        several = len({other.name for other in comparison.tokenizers if other.variant is None}) > 1
        before = f"before, {t.name}" if several else "before"
        label = (
            before if t.variant is None else f"after {comparison.variants[t.variant]}, step {t.step:,}, seed {t.seed}"
        )
        latents = None if t.components is None else pictures.url(t.components)
        out.append({"label": label, "psnr": f"{t.psnr:.2f}", "rfid": f"{t.rfid:.3f}", "url": url, "latents": latents})
    return out


def _answer(comparison: Comparison) -> list[str]:
    """One sentence for each variant against the baseline, in every currency."""
    found, labels = comparison.speedups, comparison.labels
    if found is None:
        return []
    sentences = []
    for variant in dict.fromkeys(s.recipe for s in found):
        by = {s.currency: s.estimate for s in found if s.recipe == variant}
        steps = by["iterations"]
        parts = [f"{headline(by[c])} in {title(c)}" for c in SHOWN if c in by]
        judged = f": {steps.verdict}" if steps.verdict else ", no verdict"
        sentences.append(
            f"{labels[variant]} to the FID of {labels[found.baseline]} at step {found.step:,.0f}: {', '.join(parts)} "
            f"of training (below 1 is slower); in iterations 95 % {interval(steps)}, {tables.seeds_text(steps.seeds)}"
            f"{judged}."
        )
    return sentences


def _provenance(comparison: Comparison) -> list[tuple[str, str]]:
    made = [r.provenance for r in comparison.scores]
    created = sorted(p.created[:19] for p in made)
    versions = {name: dict.fromkeys(p.versions.get(name, "absent") for p in made) for p in made for name in p.versions}
    score = comparison.protocol(comparison.curve_digest)
    commits = sorted(
        {f"{r.provenance.commit or 'unknown'}{' (dirty)' if r.provenance.dirty else ''}" for r in comparison.scores}
    )
    return [
        ("measured", f"{created[0]} to {created[-1]} UTC"),
        ("commit", ", ".join(commits)),
        ("suite digest", score.suite_digest),
        ("curve protocol", f"{score.protocol.label}, digest {score.protocol_digest}"),
        ("feature network, reference", ", ".join(f"{k} {v[:16]}" for k, v in sorted(score.assets.items()))),
        ("hardware", _each(f"{p.device}; {p.processor}, {p.cores} cores, {p.threads} threads" for p in made)),
        ("system", _each(p.system for p in made)),
        ("versions", ", ".join(f"{name} {' and '.join(found)}" for name, found in sorted(versions.items()))),
    ]


def _each(values: Iterable[str]) -> str:
    """Join distinct values."""
    return "; and ".join(dict.fromkeys(values))


def _csv_cell(value: object) -> object:
    """One-line cell, escaped against spreadsheet formulas."""
    if not isinstance(value, str):
        return value
    line = reports_table.one_line(value)
    return f"'{line}" if line.startswith(FORMULAS) else line


def results_csv(comparison: Comparison) -> str:
    """Every score, a line each."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(SCORE_COLUMNS)
    for row in score_rows(comparison):
        writer.writerow([_csv_cell(value) for value in row.values()])
    return buffer.getvalue()


def _tables(comparison: Comparison) -> dict[str, reports_table.Table]:
    return {
        "speedup": _speedups(comparison),
        "fid": tables.fid_table(comparison),
        "metrics": tables.metrics_table(comparison),
        "guidance": tables.guidance_table(comparison),
        "alignment": tables.alignment_table(comparison),
        "claims": tables.claims_table(judge(ledger(), [comparison])),
        "tokenizer": tables.tokenizer_table(comparison),
        "floor": tables.floor_table(comparison),
        "cost": tables.cost_table(comparison),
        "stages": tables.stage_table(comparison),
        "runs": tables.runs_table(comparison),
    }


def _speedups(comparison: Comparison) -> reports_table.Table:
    if comparison.speedups is None:
        return reports_table.Table("Speedups", (), ())
    runs = {variant: comparison.runs(comparison.baseline, variant) for variant in comparison.variants}
    return speedup_table(comparison.speedups, comparison.labels, runs)


def _markdown(comparison: Comparison, made: dict[str, reports_table.Table]) -> str:
    first = comparison.scores[0]
    plain = reports_table.plain
    parts = [f"# {plain(first.suite)}: comparison report", "", f"**{plain(first.notice)}**", ""]
    parts += [f"- {plain(sentence)}" for sentence in _answer(comparison)]
    parts += ["", f"![FID against budget]({FIGURES}/fid.png)", ""]
    parts += [table.markdown() for table in made.values() if table.rows]
    parts += ["### Provenance", "", *(f"- {name}: {plain(value)}" for name, value in _provenance(comparison)), ""]
    return "\n".join(parts)


def _rerun(comparison: Comparison) -> str:
    seeds = sorted({r.seed for r in comparison.scores})
    names = [comparison.scores[0].suite, *comparison.variants]
    if any(name.startswith("-") for name in names):
        return "(a name in these records begins with a dash, which is no argument)"
    words = ["--suite", names[0], "--recipes", *names[1:], "--seeds", *map(str, seeds)]
    return shlex.join(
        map(reports_table.one_line, ["repa-bench", "run", *words, "--steps", str(comparison.steps()[-1])])
    )


def _latex(comparison: Comparison, made: dict[str, reports_table.Table]) -> str:
    first = comparison.scores[0]
    head = f"% {first.suite}: {first.notice}. Written by repa-bench; needs \\usepackage{{booktabs}}."
    return "\n\n".join([reports_table.one_line(head), *(table.latex() for table in made.values() if table.rows)]) + "\n"


def inline(figure: Figure, name: str) -> Markup:
    """Inline SVG for the page (labels are escaped by matplotlib)."""
    return Markup(figures.svg(figure, name))  # nosec B704


def environment() -> Environment:
    """The environment of the templates of pages."""
    return Environment(
        loader=PackageLoader("reports"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,  # names may hold what a terminal obeys
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _page(comparison: Comparison, made: dict[str, reports_table.Table]) -> str:
    drawn = {name: figures.fid_figure(comparison, [name]) for name in figures.AXES}
    curves, pictures = [(title(name), inline(figure, name)) for name, figure in drawn.items()], Pictures(comparison)
    swept = inline(figures.guidance_figure(comparison), "guidance") if comparison.searches else ""
    against = inline(figures.alignment_figure(comparison), "alignment") if comparison.alignments else ""
    first = comparison.scores[0]
    abouts = {r.variant: r.about for r in comparison.scores}
    return (
        environment()
        .get_template("report.html")
        .render(
            suite=first.suite,
            notice=first.notice,
            answer=_answer(comparison),
            pictures=curves,
            swept=swept,
            against=against,
            tables=made,
            variants=[(label, abouts[variant]) for variant, label in comparison.variants.items()],
            samples=_sample_rows(comparison, pictures),
            reconstructions=_reconstructions(comparison, pictures),
            left_out=pictures.notes,
            provenance=_provenance(comparison),
            rerun=_rerun(comparison),
        )
    )


#: Formats of a report with one file each; the others are those of figures, with a file for each figure.
FILES = {"html": "index.html", "md": "report.md", "tex": "tables.tex", "csv": "results.csv"}
FORMATS = (*FILES, *figures.FORMATS)


@dataclass(frozen=True)
class Wanted:
    """What a report is of."""

    folders: Sequence[Path]
    """Results folders, made here or elsewhere."""
    selection: Selection | None = None
    baseline: str = BASELINE
    others: Sequence[Observation] = ()
    """Curves that are not ours."""

    def load(self) -> Comparison:
        """Load the comparison.

        Raises:
            UserError: see `harness.results.comparison.load`.
        """
        return load(self.folders, self.selection, baseline=self.baseline, others=self.others)


def render(wanted: Wanted, formats: Sequence[str] = tuple(FORMATS)) -> dict[str, bytes]:
    """The files of a report by name. The same records give the same bytes.

    Raises:
        UserError: see `Wanted.load`.
    """
    comparison = wanted.load()
    made = _tables(comparison)
    makers: dict[str, Callable[[], str]] = {
        "html": lambda: _page(comparison, made),
        "md": lambda: _markdown(comparison, made),
        "tex": lambda: _latex(comparison, made),
        "csv": lambda: results_csv(comparison),
    }
    files = {FILES[name]: makers[name]().encode() for name in formats if name in FILES}
    for name, maker in figures.named(comparison).items():
        # the Markdown shows one
        kinds = [e for e in figures.FORMATS if e in formats or ((e, name) == ("png", "fid") and "md" in formats)]
        files |= {f"{FIGURES}/{name}.{e}": figures.drawn(maker(), e, name) for e in kinds}
    return files


def build(wanted: Wanted, out: Path, formats: Sequence[str] = tuple(FORMATS)) -> Path:
    """Write a report.

    Args:
        wanted: what it is of.
        out: where the files go.
        formats: of `FORMATS`.

    Returns:
        The path of index.html, or of the first file.

    Raises:
        UserError: see `Wanted.load`.
    """
    files = render(wanted, formats)
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out / name, content)
    return out / next(iter(files))


def check(wanted: Wanted, committed: Path) -> list[str]:
    """Differences between a committed report and one rebuilt from the records.

    Pictures are compared by their presence: other releases of matplotlib draw the same figure in other bytes.

    Raises:
        UserError: there is no report.
    """
    present = [name for name, file in FILES.items() if (committed / file).exists()]
    present += [e for e in figures.FORMATS if any(committed.glob(f"{FIGURES}/fid-*.{e}"))]
    if not present:
        raise UserError(f"--check {committed}: there is no report ({', '.join(FILES.values())}, {FIGURES}/).")
    out = []
    for name, content in render(wanted, present).items():
        path = committed / name
        if not path.exists():
            out.append(f"{name} is missing")
        elif not name.startswith(FIGURES) and _words(path.read_bytes()) != _words(content):
            out.append(f"{name} differs")
    return out


def _words(content: bytes) -> bytes:
    """Page content with pictures replaced, for comparison."""
    return re.sub(rb"<svg.*?</svg>|data:image/png;base64,[\w+/=]*", b"(picture)", content, flags=re.DOTALL)
