"""The league's page: index.html and league.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.results.comparison import Comparison
from harness.results.curves import title
from harness.results.league import BASELINE_SEEDS, ENTRY_SEEDS, Entry, League, league
from recipes.core.atomic import write_bytes
from reports import figures
from reports.build import environment, inline
from reports.speedup_tables import headline, interval
from reports.table import Table, plain
from reports.tables import number, seeds_note

CURRENCIES = ("iterations", "flops", "device_seconds")
RULES = (
    f"Target: the baseline's FID at its last checkpoint, over {BASELINE_SEEDS} training seeds or more; entries have "
    f"{ENTRY_SEEDS} or more.",
    "Speedup: the baseline's budget over the budget at which the recipe reaches that FID; 95 % interval of the row "
    "alone. Verdict: FID at equal budget, with the chance of any false one in a column held at 5 %.",
    "Entries of this tree have the options of their paper or release; what depends on depth or budget is carried over "
    "as a fraction. What else was tuned, and on which training seeds, its author declares: records do not show it.",
    "What is known of a row's specification and not the suite's own stands in its remarks.",
    "Parity: quantities recorded from the released code (losses, outputs, gradients, updates, samples) that ours gives "
    "too.",
    "The whole rules stand in docs/league.md of the repository.",
)


def _standing(found: League) -> Table:
    """The row of each recipe."""
    rows = []
    for entry in found.entries:
        cells = [_cell(entry, currency) for currency in CURRENCIES]
        seeds = str(entry.seeds) if entry.seeds == entry.of else f"{entry.seeds} of {entry.of}"
        rows.append((entry.label, seeds, number(entry.fid), *cells, "; ".join(entry.remarks) or "–"))
    columns = ("recipe", "seeds", f"FID at {found.step:,.0f}", *(title(c) for c in CURRENCIES), "remarks")
    note = (
        f"Speedup to the FID {found.target:.2f} of the baseline at step {found.step:,.0f}, 95 % interval, verdict. "
        f"FID ({found.protocol}): geometric mean ± sd over the training seeds that count. `repa-bench speedup` prints "
        "the p-values." + "".join(f" {told}." for told in found.notes)
    )
    return Table("Standing", columns, tuple(rows), note)


def _cell(entry: Entry, currency: str) -> str:
    e = entry.estimates.get(currency)
    if e is None:
        return "1 (baseline)" if not entry.estimates else "–"
    judged = e.verdict or "no verdict"
    return f"not reached, {judged}" if e.point.bound is not None else f"{headline(e)} ({interval(e)}), {judged}"


def _entries(found: League) -> Table:
    """Description, cost, source and parity of each recipe."""
    rows = []
    for entry in found.entries:
        p = entry.parity
        proved = "none" if p is None else f"{p.passed} of {p.quantities}, {p.released}"
        lines = "–" if entry.lines is None else str(entry.lines)
        cost = entry.step_milliseconds
        told = number(cost, 1) + (seeds_note(len(cost.values), entry.of) if cost else "")
        rows.append((entry.label, entry.about, told, lines, entry.source, proved))
    columns = (
        "recipe",
        "what it is",
        "device-ms a step",
        "lines",
        "source",
        "parity of its recipe with the released code",
    )
    note = "Lines: of the recipe's file, which several rows may share, without blank ones."
    return Table("Entries", columns, tuple(rows), note)


def _answer(found: League) -> list[str]:
    judged = {"better": 0, "worse": 0, "inconclusive": 0}
    for entry in found.entries:
        if (e := entry.estimates.get("iterations")) is not None and e.verdict is not None:
            judged[e.verdict] += 1
    told = ", ".join(f"{n} {verdict}" for verdict, n in judged.items())
    best = next((e for e in found.entries if e.estimates), None)
    count = sum(judged.values())
    out = [f"{count} recipe{'s' * (count != 1)} judged in iterations against the baseline: {told}."]
    if best is not None:
        e = best.estimates["iterations"]
        out.append(f"First in iterations: {best.label}, {headline(e)} ({interval(e)}).")
    return out + [f"{remark}." for remark in found.remarks]


def build_league(comparison: Comparison, out: Path, reference: Comparison | None = None) -> Path:
    """Write the page.

    Args:
        comparison: of all folders, with a baseline.
        out: where index.html, league.md and the figure go.
        reference: reruns to hold results against.

    Returns:
        The path of index.html.
    """
    found = league(comparison, reference)
    made = [_standing(found), _entries(found)]
    figure = figures.fid_figure(comparison, ["iterations"])
    page = (
        environment()
        .get_template("league.html")
        .render(
            suite=found.suite,
            notice=found.notice,
            answer=_answer(found),
            tables=made,
            figure=inline(figure, "league"),
            rules=RULES,
        )
    )
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(out / "index.html", page.encode())
    write_bytes(out / "league.md", _markdown(found, made).encode())
    write_bytes(out / "fid.png", figures.drawn(figures.fid_figure(comparison, ["iterations"]), "png", "league"))
    return out / "index.html"


def _markdown(found: League, made: Sequence[Table]) -> str:
    parts = [f"# {plain(found.suite)}: the league", "", f"**{plain(found.notice)}**", ""]
    parts += [f"- {plain(sentence)}" for sentence in _answer(found)]
    parts += ["", "![FID against iterations](fid.png)", "", *(table.markdown() for table in made), "### Rules", ""]
    return "\n".join([*parts, *(f"- {rule}" for rule in RULES), ""])
