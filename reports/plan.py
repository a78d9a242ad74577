"""Plans and health for a terminal."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.doctor import Health
from harness.plan import Plan


def size(count: int | None) -> str:
    """Bytes for people."""
    if count is None:
        return "–"
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count = round(count / 1024)
    return f"{count / 1024:,.1f} GiB" if count >= 1024 else f"{count} MiB"


def as_dict(plan: Plan) -> dict[str, Any]:
    """For JSON."""
    return asdict(plan) | {
        "cells": [asdict(cell) | {"device_hours": cell.device_hours} for cell in plan.cells],
        "device_hours": sum(cell.device_hours for cell in plan.cells),
    }


def print_plan(plan: Plan, suite: str, notice: str, console: Console) -> None:
    """Cells, then totals, then what is missing."""
    table = Table(title=f"{suite} ({notice})", title_justify="left", title_style="bold")
    headers = (
        "recipe",
        "parameters",
        "seeds x steps",
        "batch",
        "GFLOP/image",
        "EFLOP train + sample",
        "device-hours",
    )
    for number, header in enumerate((*headers, "memory: states", "peak")):
        table.add_column(header, justify="left" if number == 0 else "right")
    for cell in plan.cells:
        batch = int(cell.layout.split(" ")[0])
        table.add_row(
            cell.arm,
            " + ".join(f"{count / 1e6:,.1f} M" for count in cell.parameters.values()),
            f"{cell.seeds} x {cell.steps:,}",
            cell.layout,
            f"{cell.flops_per_step / batch / 1e9:,.1f}",
            f"{cell.training_flops / 1e18:,.3g} + {cell.sampling_flops / 1e18:,.3g}",
            f"{cell.device_hours:,.1f}" if cell.device_hours >= 0.1 else f"{cell.device_hours:.2g}",
            size(cell.state_bytes),
            size(cell.peak_bytes),
        )
    console.print(table)
    hours = sum(cell.device_hours for cell in plan.cells)
    devices = plan.cells[0].devices if plan.cells else 1
    console.print(f"  {hours:,.1f} device-hours, {hours / devices / 24:,.2f} days on {devices}", highlight=False)
    console.print(f"  throughput {plan.throughput}", highlight=False)
    console.print("  peak memory is measured by --probe only; activations come on top of the states", highlight=False)
    for what, count in plan.disk.items():
        console.print(f"  disk: {what}: {size(count)}", highlight=False)
    if plan.missing:
        console.print("  missing:", highlight=False)
    for name, mend in plan.missing.items():
        console.print(f"    {name}: {mend}", highlight=False, soft_wrap=True)


def print_health(health: Health, console: Console) -> None:
    """Facts, assets, faults."""
    for name, value in health.facts.items():
        console.print(f"{name:16s} {value}", highlight=False, soft_wrap=True)
    table = Table(title="assets", title_justify="left", title_style="bold")
    for header in ("asset", "what it is", "licence", "here", "SHA-256"):
        table.add_column(header)
    for asset in health.assets:
        here = size(asset.size) if asset.size else ("yes" if asset.path else "no")
        table.add_row(asset.name, asset.about, asset.licence, here, (asset.sha256 or "")[:12])
    console.print(table)
    console.print("missing ones come with: repa-bench fetch NAME [--from PATH]", highlight=False)
    for name, count in health.made.items():
        console.print(f"  {name:44s} {size(count):>12s}", highlight=False)
    for fault in health.faults:
        console.print(f"[red]fault:[/red] {fault}", highlight=False, soft_wrap=True)
