"""Commands that watch a grid of runs: status."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import refuse_idle
from harness.cli.printing import out_console, print_table, say

if TYPE_CHECKING:
    from harness.pipeline.status import Cell, Status

commands = typer.Typer()
#: Between looks at a folder that is followed.
LOOK_SECONDS = 2.0
#: Of the last logged losses, so many are shown; the log has the others.
MOST_LOSSES = 3
COLUMNS = ("run", "state", "where", "since", "step", "s/step", "left", "last losses", "FID at step")


@commands.command()
def status(
    out: Annotated[Path, typer.Argument(help="A results folder, as given to --out.")],
    following: Annotated[bool, typer.Option("--follow", help="Look again every 2 s until all have ended.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show where every run of a results folder stands, on whatever machine it is; exit 1 if one has failed.

    It only reads: files of jobs, logs, locks and records, and the queue of SLURM for jobs that were submitted to it.

    Example: `repa-bench status runs/imagenet256 --follow`
    """
    from harness.pipeline.status import status_of

    refuse_idle({"--json": as_json and following}, "one look, without --follow")
    if following:
        follow(out)
        return
    found = status_of(out)
    if as_json:
        totals = {"device_seconds": found.device_seconds, "seconds_left": found.seconds_left}
        print(json.dumps({**asdict(found), **totals}, indent=1))
    else:
        _show(found)
    if found.failed:
        raise typer.Exit(1)


def follow(out: Path) -> None:
    """Show a results folder until nothing in it is waiting or at work.

    On a terminal the table is drawn again in its place; elsewhere a line is printed when a run's state changes.

    Raises:
        typer.Exit: with code 1, if a run has failed.
        UserError: it is not a results folder.
    """
    from harness.pipeline.status import status_of

    found = _on_terminal(out) if out_console.is_terminal else _line_by_line(out)
    _show(found if found.over else status_of(out))
    if found.failed:
        raise typer.Exit(1)


def _on_terminal(out: Path) -> Status:
    from rich.live import Live
    from rich.text import Text

    from harness.pipeline.status import status_of

    with Live(console=out_console, transient=True, auto_refresh=False, vertical_overflow="visible") as live:
        while not (found := status_of(out)).over:
            with out_console.capture() as shown:
                _show(found)
            live.update(Text.from_ansi(shown.get()), refresh=True)
            time.sleep(LOOK_SECONDS)
    return found


def _line_by_line(out: Path) -> Status:
    from harness.pipeline.status import status_of

    before: dict[str, tuple[str, object]] = {}
    while True:
        found = status_of(out)
        for cell in found.cells:
            news = cell.state, cell.fids
            if before.get(cell.name) != news:
                say("  ".join(part for part in _row(cell) if part))
            before[cell.name] = news
        if found.over:
            return found
        time.sleep(LOOK_SECONDS)


def _show(found: Status) -> None:
    from harness.pipeline.status import age

    done = sum(cell.state == "done" for cell in found.cells)
    left = found.seconds_left
    rest = "" if found.over else f"; about {age(left)} of training left" if left is not None else "; no pace known yet"
    whole = (
        f"{done} of {len(found.cells)} done; {found.device_seconds / 3600:,.2f} device-hours of training so far{rest}"
    )
    print_table(found.title, COLUMNS, [_row(cell) for cell in found.cells], whole, justify="left")
    if found.doubt:
        say(f"{found.doubt} Until then, jobs are shown as they said themselves.", style="yellow")
    for cell in found.cells:
        if cell.why:
            say(f"{cell.name}: {cell.why}" + (f" Its output: {cell.log}" if cell.log else ""), style="red")


def _row(cell: Cell) -> tuple[str, ...]:
    from harness.pipeline.status import age, since

    at_work = cell.state in ("running", "scoring")
    left = cell.seconds_left if at_work else None
    losses = {name: value for name, value in (cell.losses or {}).items() if not name.startswith("grad_norm")}
    return (
        cell.name,
        cell.state,
        cell.where,
        since(cell.since) if cell.state not in ("done", "failed", "lost") else "",
        f"{cell.step:,}/{cell.steps:,}" if cell.steps else "",
        "" if cell.step_seconds is None else f"{cell.step_seconds:.3g}",
        "" if left is None else age(left),
        ", ".join(f"{name} {value:.4g}" for name, value in list(losses.items())[:MOST_LOSSES]),
        ", ".join(f"{fid:.4g} at {step:,}" for step, fid in cell.fids[-2:]),
    )
