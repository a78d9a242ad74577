"""What `plan` and `doctor` print."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from harness.checks.doctor import Health
from harness.pipeline.plan import Plan
from harness.results.confidence import CHANCE, MOST

#: Mention that the machine is busy if wall time exceeds CPU time by this factor.
BUSY = 1.15


def size(count: int | None) -> str:
    """Bytes for people."""
    if count is None:
        return "–"
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:,.0f} {units[0]}" if value >= 100 or units[0] == "B" else f"{value:.1f} {units[0]}"


def as_dict(plan: Plan) -> dict[str, Any]:
    """For JSON."""
    return asdict(plan) | {
        "cells": [asdict(cell) | {"device_hours": cell.device_hours} for cell in plan.cells],
        "device_hours": sum(cell.device_hours for cell in plan.cells),
    }


def plan_table(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Columns, and a row for each variant."""
    unit, name = (1e18, "EFLOP") if any(cell.training_flops >= 1e16 for cell in plan.cells) else (1e12, "TFLOP")
    rows = [
        [
            cell.variant,
            f"{sum(cell.parameters.values()) / 1e6:,.1f}",
            _amount(cell.flops_per_step / cell.batch_size / 1e9),
            _amount(cell.training_flops / unit),
            _amount(cell.sampling_flops / unit),
            duration(3600 * cell.device_hours),
            size(cell.state_bytes),
            size(cell.peak_bytes),
        ]
        for cell in plan.cells
    ]
    costs = [f"train {name}", f"sample {name}", "device time", "states", "peak memory"]
    return ["recipe", "params M", "GFLOP /image", *costs], rows


def stage_rows(plan: Plan) -> list[list[str]]:
    """A row for each stage."""
    devices = plan.cells[0].devices if plan.cells else 1
    return [
        [stage.name, stage.amount, stage.rate, duration(stage.seconds / (devices if stage.on_device else 1))]
        for stage in plan.stages
    ]


def _amount(value: float) -> str:
    """Three significant digits, or one decimal above 100."""
    return f"{value:,.1f}" if value >= 100 else f"{value:.3g}"


def plan_lines(plan: Plan) -> list[str]:
    """Totals, what seeds can show, and what is missing."""
    lines = [
        f"{cell.seeds} seed{'s' * (cell.seeds > 1)} x {cell.steps:,} steps of {cell.layout} = "
        f"{cell.seeds * cell.steps * cell.batch_size:,} images a variant"
        for cell in plan.cells
    ]
    seconds = 3600 * sum(cell.device_hours for cell in plan.cells)
    devices = plan.cells[0].devices if plan.cells else 1
    spread = f" on one device, {duration(seconds / devices)} on {devices}" if devices > 1 else " on one device"
    return [
        *dict.fromkeys(lines),
        f"training and {'scoring' if plan.whole else 'sampling'} take {duration(seconds)}{spread}",
        *_whole(plan),
        f"throughput {plan.throughput}",
        "states: weights, gradients, moments, averages; activations come on top",
        *_shows(plan, plan.cells[0].seeds if plan.cells else 1),
        f"a process that dies without a word loses {duration(plan.lost_seconds)} of training at most (--save-minutes, "
        "--save-every); a job that is told first loses seconds",
        *(f"disk: {what}: {size(count)}" for what, count in plan.disk.items()),
        f"disk at its peak, one run at a time: {size(sum(plan.disk.values()))}; written beside what is there",
        *["missing:"][: len(plan.missing)],
        *(f"  {name}: {remedy}" for name, remedy in plan.missing.items()),
    ]


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def _whole(plan: Plan) -> list[str]:
    """Lines on the total time of the whole pipeline (`plan.whole`)."""
    if plan.whole is None:
        return ["metrics and preparation are of this machine's cores; the report takes seconds"]
    found = plan.whole
    runs = "one run at a time" if found.jobs == 1 else f"{found.jobs} runs at a time"
    cached = f" ({', '.join(found.cached)} cached)" if found.cached else " (nothing is cached)"
    parts = ", ".join(
        f"{name} {duration(seconds)}{cached if name == 'preparation' else ''}"
        for name, seconds in found.seconds.items()
    )
    total = sum(found.seconds.values())
    busy = f" when it is quiet, {duration(found.busy * total)} while it is as busy as now" if found.busy > BUSY else ""
    return [
        f"start to report: about {duration(total)} on this machine{busy}, {runs}",
        f"  {parts}",
        f"  every stage was rehearsed just now, for {duration(found.rehearsed)}; that runs at a time slow each other "
        "down is not counted, nor what is trained and scored already",
    ]


def _shows(plan: Plan, seeds: int) -> list[str]:
    """Which speedups training seeds can show."""
    if plan.shows is None:
        return ["power: how far FID spreads over training seeds here is not known"]
    s, noise = plan.shows, plan.shows.noise
    family = f"{CHANCE:.0%} power, {s.recipes} recipe{'s' * (s.recipes > 1)} against one baseline"
    if seeds == 1:
        lines = ["power: a single training seed has no verdict"]
    else:
        found = "no speedup" if s.smallest is None else f"a speedup of {s.smallest:.2f}x or more"
        lines = [f"power: {seeds} training seeds show {found} ({family})"]
    if s.factor is not None and s.seeds is not None and s.device_hours is not None:
        some = f"{s.seeds} training seeds" if s.seeds < MOST else f"{MOST} training seeds or more"
        lines.append(f"to show {s.factor:g}x: {some}, {duration(3600 * s.device_hours)} on one device ({family})")
    return [
        *lines,
        f"  from a spread of FID over seeds of {noise.cv:.1%} and a slope of {noise.slope:g} at the baseline's end "
        f"({noise.source})",
    ]


def health_lines(health: Health) -> list[tuple[str, str | None]]:
    """Facts, assets, faults; each with its style."""
    lines: list[tuple[str, str | None]] = [(f"{name:16s} {value}", None) for name, value in health.facts.items()]
    lines += [("", None), ("assets", "bold")]
    for asset in health.assets:
        here = (
            f"{size(asset.size)} {(asset.sha256 or '')[:12]}" if asset.size else ("here" if asset.path else "missing")
        )
        lines.append((f"  {asset.name:18s} {here:24s} {asset.about}; licence: {asset.licence}", None))
    lines.append(("missing ones come with: repa-bench fetch NAME [--from PATH]", None))
    lines += [(f"  {name:44s} {size(count):>12s}", None) for name, count in health.made.items()]
    return lines + [(f"fault: {fault}", "red") for fault in health.faults]
