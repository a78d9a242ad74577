"""Figures of a comparison. Colour-blind-safe (Okabe-Ito), and told apart without colour by marker and dash."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from baselines.published import curve
from harness.results.comparison import Comparison
from harness.results.curves import currencies
from harness.results.lines import FidLine, alignment_lines, fid_lines, other_lines
from reports.table import one_line

STYLES = [
    ("#555555", "o", "-"),
    ("#0072B2", "s", "--"),
    ("#D55E00", "^", "-"),
    ("#009E73", "D", ":"),
    ("#CC79A7", "v", "-."),
    ("#E69F00", "P", "-"),
    ("#56B4E9", "X", "--"),
    ("#882255", "<", ":"),
    ("#117733", "h", "-."),
    ("#332288", ">", "-"),
    ("#999933", "p", "--"),
    ("#AA4499", "*", ":"),
]
RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "svg.fonttype": "none",
    # a label is text, whatever dollars are in it
    "text.parse_math": False,
    "figure.dpi": 100,
}


def short(text: str, most: int = 40) -> str:
    """One line that leaves room for the figure."""
    line = one_line(text)
    return line if len(line) <= most else line[: most - 1] + "…"


def style_of(number: int) -> tuple[str, str, str]:
    """Colour, marker and dash of the curve with that number, no two alike among the first 144."""
    turn, k = divmod(number, len(STYLES))
    return STYLES[k][0], STYLES[(k + turn) % len(STYLES)][1], STYLES[k][2]


def style(comparison: Comparison, variant: str) -> tuple[str, str, str]:
    """Colour, marker and dash of a variant."""
    return style_of(list(comparison.variants).index(variant))


#: Minimum ratio of neighbouring end labels, to avoid overlap.
APART = 1.06


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str]]) -> None:
    """Label curve ends without overlaps."""
    lowest = 0.0
    for x, y, colour in sorted(ends, key=lambda end: end[1]):
        at = max(y, lowest * APART)
        axes.annotate(f"{y:.2f}", (x, at), xytext=(7, 0), textcoords="offset points", va="center", color=colour)
        lowest = at


def _format_fids(axes: Axes) -> None:
    """FID is on a logarithmic axis, labelled in plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda v, _: f"{v:g}" if f"{v:g}"[0] in "235" else ""))


def _draw_line(axes: Axes, comparison: Comparison, line: FidLine) -> tuple[float, float, str]:
    """Draw a curve, and thinly those of training seeds that did not get to its end; where it ends, and its colour."""
    colour, marker, dash = style(comparison, line.variant)
    for unfinished in line.unfinished:
        axes.plot(*zip(*unfinished, strict=True), color=colour, linestyle=dash, linewidth=0.8)
    x, y = zip(*line.mean, strict=True)
    look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": dash, "linewidth": 2, "markersize": 6}
    axes.plot(x, y, label=short(line.label), **look)
    if line.band:
        low, high = zip(*line.band, strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    return x[-1], y[-1], colour


def _draw_others(axes: Axes, comparison: Comparison, currency: str) -> None:
    """Curves that are not ours: grey, without a fill, and called so."""
    for number, (recipe, line) in enumerate(other_lines(comparison, currency).items()):
        x, y = zip(*line, strict=True)
        axes.plot(x, y, color="#999999", marker=OTHERS[number % len(OTHERS)], linewidth=1, label=short(recipe, 60))


#: Markers of curves that are not ours.
OTHERS = "xP*+1234d|_X8h"
#: Currency to the words on its axis.
AXES = {"iterations": "iterations", "flops": "FLOPs", "device_seconds": "device-seconds of training"}
#: Default panels.
BRIEF = ("iterations", "device_seconds")
#: Published curves that stand beside ours, by variant: digitised, in iterations, on ImageNet alone.
PUBLISHED = {"vanilla": "SiT", "repa": "REPA", "repa_e": "REPA-E"}
PUBLISHED_SUITE = "imagenet256"


def _draw_published(axes: Axes, comparison: Comparison) -> None:
    """Markers digitised from REPA-E's Figure 1d (published, own protocol)."""
    for variant, method in PUBLISHED.items():
        if variant in comparison.variants:
            colour, marker, _ = style(comparison, variant)
            x, y = zip(*curve(method, "digitised", group="figure_1d"), strict=True)
            label = f"{method}, published (Figure 1d, digitised)"
            axes.plot(x, y, marker, color=colour, fillstyle="none", markersize=5, alpha=0.7, label=label)


#: More curves than this leave no room for their names among them.
CROWDED = 8


def fid_figure(comparison: Comparison, shown: Sequence[str] = BRIEF) -> Figure:
    """FID against budget, a panel for each currency; band = least to greatest over training seeds."""
    with plt.rc_context(RC):
        size = (5.4 * len(shown), 4.2) if len(comparison.variants) <= CROWDED else (5.4 * len(shown) + 3.6, 5.4)
        figure, panels = plt.subplots(1, len(shown), figsize=size, sharey=True, squeeze=False, layout="constrained")
        for axes, name in zip(panels[0], shown, strict=True):
            _label_ends(axes, [_draw_line(axes, comparison, line) for line in fid_lines(comparison, name)])
            if comparison.others and name in currencies(comparison.others):
                _draw_others(axes, comparison, name)
            if comparison.scores[0].suite == PUBLISHED_SUITE and name == "iterations":
                _draw_published(axes, comparison)
            if comparison.speedups is not None:
                axes.axhline(comparison.speedups.target, color="#555555", linewidth=1, linestyle=(0, (2, 3)))
            _format_fids(axes)
            axes.grid(axis="y", which="both")
            axes.set_xlabel(AXES[name])
            axes.margins(x=0.1)
        panels[0][0].set_ylabel("FID (lower is better)")
        if len(comparison.variants) <= CROWDED:
            panels[0][0].legend(frameon=False, loc="upper right")
        else:
            figure.legend(*panels[0][0].get_legend_handles_labels(), frameon=False, loc="outside right center")
        first = comparison.scores[0]
        figure.suptitle(short(f"{first.suite} ({first.notice})", 90), fontsize=11)
    return figure


def guidance_figure(comparison: Comparison) -> Figure:
    """FID of every setting that a guidance sweep tried: a panel for each variant, a line for each interval."""
    choices = comparison.guidance()
    with plt.rc_context(RC):
        figure, panels = plt.subplots(
            1, len(choices), figsize=(3.6 * len(choices), 3.4), sharey=True, squeeze=False, layout="constrained"
        )
        for axes, choice in zip(panels[0], choices, strict=True):
            none = choice.tried[0]
            lines: dict[tuple[float, float], list[tuple[float, float]]] = {}
            for p, fid in choice.tried[1:]:
                line = lines.setdefault((p.guidance_low, p.guidance_high), [(1.0, none[1].mean)])
                line.append((p.guidance_scale, fid.mean))
            for number, (low, high) in enumerate(lines, start=1):
                colour, marker, dash = style_of(number)
                x, y = zip(*lines[low, high], strict=True)
                axes.plot(x, y, color=colour, marker=marker, linestyle=dash, label=f"t in [{low:g}, {high:g}]")
            axes.plot(
                [choice.chosen.guidance_scale], [choice.best.mean], "o", color="black", fillstyle="none", markersize=13
            )
            axes.set_title(short(choice.label), fontsize=10)
            axes.set_xlabel("guidance scale (1: none)")
        panels[0][0].set_ylabel("FID (lower is better)")
        panels[0][0].legend(frameon=False)
    return figure


def alignment_figure(comparison: Comparison) -> Figure:
    """CKNNA at every depth of the last checkpoint, and FID against CKNNA at the aligned block over the steps."""
    with plt.rc_context(RC):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.2, 3.8), layout="constrained")
        for line in alignment_lines(comparison):
            colour, marker, dash = style(comparison, line.variant)
            look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": dash}
            for cknna in line.by_depth:
                left.plot(range(1, len(cknna) + 1), cknna, **look)
            if line.by_depth:
                right.plot([], [], label=short(line.label), **look)
            for points in line.fid_by_cknna:
                right.plot([x for x, _ in points], [y for _, y in points], **look)
        left.set_xlabel("after block")
        left.set_ylabel(f"CKNNA with the encoder, step {comparison.alignment_steps()[-1]:,}")
        left.xaxis.get_major_locator().set_params(integer=True)
        right.legend(frameon=False, loc="upper right")
        right.set_xlabel("CKNNA after the aligned block")
        right.set_ylabel("FID (lower is better)")
        _format_fids(right)
    return figure


def svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element, the same bytes for the same figure; `name` keeps its ids apart in a page."""
    text = drawn(figure, "svg", name).decode()
    return text[text.index("<svg") :]


#: Formats of a figure as a file, and what would make the same figure other bytes.
FORMATS: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def drawn(figure: Figure, extension: str, name: str) -> bytes:
    """The figure as a file of one of `FORMATS`, the same bytes for the same figure; fonts of a PDF are TrueType."""
    with plt.rc_context({**RC, "svg.hashsalt": name, "pdf.fonttype": 42}):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=extension, dpi=150, metadata=FORMATS[extension])
    plt.close(figure)
    return buffer.getvalue()


def named(comparison: Comparison) -> dict[str, Callable[[], Figure]]:
    """Every figure that the records give, by name."""
    makers: dict[str, Callable[[], Figure]] = {"fid": lambda: fid_figure(comparison)}
    makers |= {f"fid-{c.replace('_', '-')}": lambda c=c: fid_figure(comparison, [c]) for c in AXES}  # type: ignore[misc]
    if comparison.searches:
        makers["guidance"] = lambda: guidance_figure(comparison)
    if comparison.alignments:
        makers["alignment"] = lambda: alignment_figure(comparison)
    return makers
