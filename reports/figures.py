"""Figures of a comparison. Colour-blind-safe (Okabe-Ito), and told apart without colour by marker and dash."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from harness.compare import BASELINE, CURRENCIES, Comparison
from harness.records import ScoreRecord
from harness.speedup import spread

STYLES = [
    ("#555555", "o", "-"),
    ("#0072B2", "s", "--"),
    ("#D55E00", "^", "-"),
    ("#009E73", "D", ":"),
    ("#CC79A7", "v", "-."),
]
RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "svg.hashsalt": "repa-bench",
    "svg.fonttype": "none",
    "figure.dpi": 100,
}


def style(comparison: Comparison, arm: str) -> tuple[str, str, str]:
    """Colour, marker and dash of an arm."""
    return STYLES[list(comparison.arms).index(arm) % len(STYLES)]


def _draw_arm(axes: Axes, comparison: Comparison, arm: str, budget: Callable[[ScoreRecord], float]) -> None:
    colour, marker, dash = style(comparison, arm)
    curves = [comparison.curve(arm, seed) for seed in comparison.seeds(arm)]
    steps = sorted(set.intersection(*({r.step for r in curve} for curve in curves)))
    points = [[r for curve in curves for r in curve if r.step == step] for step in steps]
    x = [spread([budget(r) for r in group]).mean for group in points]
    fids = [[r.metrics.fid for r in group] for group in points]
    mean = [spread(group).mean for group in fids]
    axes.plot(
        x,
        mean,
        color=colour,
        marker=marker,
        linestyle=dash,
        linewidth=2,
        markersize=6,
        label=comparison.arms[arm],
    )
    if len(curves) > 1:
        axes.fill_between(x, [min(g) for g in fids], [max(g) for g in fids], color=colour, alpha=0.15, linewidth=0)
    axes.annotate(
        f"{mean[-1]:.2f}",
        (x[-1], mean[-1]),
        xytext=(7, 0),
        textcoords="offset points",
        va="center",
        color=colour,
    )


def fid_figure(comparison: Comparison) -> Figure:
    """FID against iterations, and against seconds of training; band = least to greatest over training seeds."""
    with plt.rc_context(RC):
        figure, panels = plt.subplots(1, 2, figsize=(10.5, 4.2), sharey=True, layout="constrained")
        for axes, (name, unit) in zip(
            panels, (("iterations", "iterations"), ("seconds", "seconds of training")), strict=True
        ):
            for arm in comparison.arms:
                _draw_arm(axes, comparison, arm, CURRENCIES[name])
            if BASELINE in comparison.arms:
                last = comparison.last(BASELINE, comparison.curve_digest)
                target = spread([r.metrics.fid for r in last]).mean
                axes.axhline(target, color="#555555", linewidth=1, linestyle=(0, (2, 3)))
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.yaxis.set_minor_formatter(FuncFormatter(lambda v, _: f"{v:g}" if f"{v:g}"[0] in "235" else ""))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(unit)
            axes.margins(x=0.08)
        first = comparison.scores[0]
        panels[0].set_ylabel("FID (lower is better)")
        panels[0].legend(frameon=False, loc="upper right")
        figure.suptitle(f"{first.suite}: FID against budget ({first.notice})", fontsize=11)
    return figure


def svg(figure: Figure) -> str:
    """The figure as an SVG element, the same bytes for the same figure."""
    with plt.rc_context(RC):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def png(figure: Figure) -> bytes:
    """The figure as a PNG for a README."""
    with plt.rc_context(RC):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
