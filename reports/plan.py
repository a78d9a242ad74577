"""Plans and health for a terminal."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.doctor import Health
from harness.inference import CHANCE, MOST
from harness.plan import Plan


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


def print_plan(plan: Plan, suite: str, notice: str, console: Console) -> None:
    """Cells, then totals, then what is missing."""
    table = Table(title=f"{suite} ({notice})", title_justify="left", title_style="bold")
    table.add_column("recipe", overflow="fold")
    for header in (
        "params\nM",
        "GFLOP\n/image",
        "train\nEFLOP",
        "sample\nEFLOP",
        "device\nhours",
        "states\n",
        "peak\nmemory",
    ):
        table.add_column(header, justify="right", no_wrap=True)
    for cell in plan.cells:
        table.add_row(
            cell.arm,
            f"{sum(cell.parameters.values()) / 1e6:,.1f}",
            f"{cell.flops_per_step / cell.batch_size / 1e9:,.1f}",
            f"{cell.training_flops / 1e18:,.3g}",
            f"{cell.sampling_flops / 1e18:,.3g}",
            f"{cell.device_hours:,.1f}" if cell.device_hours >= 0.1 else f"{cell.device_hours:.1g}",
            size(cell.state_bytes),
            size(cell.peak_bytes),
        )
    console.print(table)
    for line in dict.fromkeys(
        f"{cell.seeds} seed{'s' * (cell.seeds > 1)} x {cell.steps:,} steps of {cell.layout} = "
        f"{cell.seeds * cell.steps * cell.batch_size:,} images an arm"
        for cell in plan.cells
    ):
        console.print(f"  {line}", highlight=False)
    hours = sum(cell.device_hours for cell in plan.cells)
    devices = plan.cells[0].devices if plan.cells else 1
    total = f"{hours:,.1f} device-hours, {hours / devices / 24:,.1f} days" if hours >= 0.1 else f"{3600 * hours:.1g} s"
    console.print(f"  {total} on {devices} device{'s' * (devices > 1)}", highlight=False)
    console.print(f"  throughput {plan.throughput}", highlight=False)
    console.print("  states: weights, gradients, moments, averages; activations come on top", highlight=False)
    for line in _shows(plan, plan.cells[0].seeds if plan.cells else 1):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    for what, count in plan.disk.items():
        console.print(f"  disk: {what}: {size(count)}", highlight=False)
    if plan.missing:
        console.print("  missing:", highlight=False)
    for name, mend in plan.missing.items():
        console.print(f"    {name}: {mend}", highlight=False, soft_wrap=True)


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
        lines.append(f"to show {s.factor:g}x: {some}, {_hours(s.device_hours)} ({family})")
    return [
        *lines,
        f"  from a spread of FID over seeds of {noise.cv:.1%} and a slope of {noise.slope:g} at the baseline's end "
        f"({noise.source})",
    ]


def _hours(hours: float) -> str:
    return f"{hours:,.1f} device-hours" if hours >= 0.1 else f"{3600 * hours:.1g} device-seconds"


def print_health(health: Health, console: Console) -> None:
    """Facts, assets, faults."""
    for name, value in health.facts.items():
        console.print(f"{name:16s} {value}", highlight=False, soft_wrap=True)
    console.print("\n[bold]assets[/bold]")
    for asset in health.assets:
        here = (
            f"{size(asset.size)} {(asset.sha256 or '')[:12]}" if asset.size else ("here" if asset.path else "missing")
        )
        line = f"  {asset.name:18s} {here:24s} {asset.about}; licence: {asset.licence}"
        console.print(line, highlight=False, soft_wrap=True)
    console.print("missing ones come with: repa-bench fetch NAME [--from PATH]", highlight=False)
    for name, count in health.made.items():
        console.print(f"  {name:44s} {size(count):>12s}", highlight=False)
    for fault in health.faults:
        console.print(f"[red]fault:[/red] {fault}", highlight=False, soft_wrap=True)
