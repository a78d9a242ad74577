"""Options and submission of a grid: its cells as jobs on this machine or on SLURM."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from harness.cli.options import Several, flag_of, overrides, refuse_idle, refuse_unwritable
from harness.cli.printing import say
from harness.cli.session import chosen_of
from recipes.core.errors import UserError

if TYPE_CHECKING:
    from harness.pipeline.engines import Local, Slurm
    from harness.pipeline.session import Session

HERE = "here"
#: Panel of the help.
SLURM = "With --on slurm"


@dataclass(frozen=True)
class Spread(Several):
    """Where the cells of a grid run."""

    on: Annotated[
        str,
        typer.Option(
            "--on",
            help="Where: here; local:N, so many cells at a time in processes of their own that outlive this command; "
            "slurm, a job for each recipe and seed.",
        ),
    ] = HERE
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --on: print what would be submitted.")] = False
    wait: Annotated[bool, typer.Option("--wait", help="With --on: watch the jobs until all have ended.")] = False
    cluster: Annotated[
        Path | None,
        typer.Option(
            "--cluster", help="A TOML file of the following and more: docs/cluster.md.", rich_help_panel=SLURM
        ),
    ] = None
    partition: Annotated[str | None, typer.Option("--partition", help="Its partition.", rich_help_panel=SLURM)] = None
    account: Annotated[str | None, typer.Option("--account", help="Who pays.", rich_help_panel=SLURM)] = None
    constraint: Annotated[
        str | None, typer.Option("--constraint", help="Features that nodes must have.", rich_help_panel=SLURM)
    ] = None
    time: Annotated[
        str | None,
        typer.Option(
            "--time",
            help="Of a job, in minutes or as HH:MM:SS or D-HH:MM:SS; it saves, and begins again. Default: a day.",
            rich_help_panel=SLURM,
        ),
    ] = None
    nodes: Annotated[
        int | None, typer.Option("--nodes", min=1, help="Nodes of a job. Default: 1.", rich_help_panel=SLURM)
    ] = None
    gpus: Annotated[
        int | None,
        typer.Option(
            "--gpus", min=0, help="GPUs of a job on each node, a process for each. Default: 0.", rich_help_panel=SLURM
        ),
    ] = None
    cpus: Annotated[
        int | None,
        typer.Option(
            "--cpus", min=1, help="Cores of a job on each node. Default: 8 a GPU, else 2.", rich_help_panel=SLURM
        ),
    ] = None
    flags: Annotated[
        list[str] | None,
        typer.Option("--flag", metavar="KEY=VALUE", help="Of sbatch, e.g. qos=long; several.", rich_help_panel=SLURM),
    ] = None
    cell: Annotated[
        str | None, typer.Option("--cell", metavar="RECIPE:SEED", help="This one of the grid alone: what a job runs.")
    ] = None


def words_of(choices: Several) -> list[str]:
    """The words of the command line that give a command these options: what is not a default."""
    hints, words = get_type_hints(Several, include_extras=True), list[str]()
    for option in fields(Several):
        value = getattr(choices, option.name)
        if value == option.default or value is None:
            continue
        flag = str(flag_of(hints[option.name]))
        if isinstance(value, bool):
            yes, _, no = flag.partition("/")
            words.append(yes if value else no)
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            words += [flag, str(one.value if isinstance(one, Enum) else one)]
    return words


def cell_of(choices: Spread) -> tuple[str, int] | None:
    """The cell that ``--cell`` names.

    Raises:
        UserError: it is not written as RECIPE:SEED.
    """
    if choices.cell is None:
        return None
    variant, _, seed = choices.cell.rpartition(":")
    if not variant or not seed.isdecimal():
        raise UserError(f"--cell {choices.cell}: write it as RECIPE:SEED, for example repa:0.")
    return variant, int(seed)


def grid_of_options(session: Session, choices: Spread) -> tuple[Sequence[str], Sequence[int]]:
    """The variants and seeds that are worked on: those of the grid, or the one that ``--cell`` names.

    Raises:
        UserError: the grid has no such recipe or seed.
    """
    cell = cell_of(choices)
    if cell is None:
        return session.variants, session.seeds
    known: dict[str, tuple[Any, Sequence[Any]]] = {
        "--recipes": (cell[0], session.variants), "--seeds": (cell[1], session.seeds)
    }  # fmt: skip
    for flag, (wanted, choice) in known.items():
        if wanted not in choice:
            raise UserError(f"--cell {choices.cell}: {wanted} is not one of {flag} {' '.join(map(str, choice))}.")
    return [cell[0]], [cell[1]]


def minutes(text: str) -> int:
    """Minutes of a time as SLURM writes it: ``90``, ``1:30:00``, ``2-12:00:00``.

    Raises:
        UserError: it is written otherwise, or is nothing.
    """
    found = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):(\d{1,2}):(\d{1,2})|(\d+))", text)
    if found is None:
        raise UserError(f"--time {text}: write minutes, HH:MM:SS or D-HH:MM:SS.")
    days, hours, mins, seconds, alone = (int(part or 0) for part in found.groups())
    total = alone or days * 1440 + hours * 60 + mins + (seconds > 0)
    if not total:
        raise UserError(f"--time {text}: give at least a minute.")
    return total


def submit(choices: Spread, command: str) -> bool:
    """Submit what is missing of a grid, if ``--on`` names a place for it.

    Args:
        choices: the options.
        command: ``run`` or ``train``: what each job does with its cell.

    Returns:
        Whether the grid was, or would have been, submitted; otherwise it is to be run here.

    Raises:
        UserError: options that do not go together, an engine that is not here or refuses, or a job of the same cell
            that is at work with other options.
    """
    if choices.on == HERE:
        given = {str(flag_of(h)): getattr(choices, n) for n, h in _engine_hints().items() if n not in ("on", "cell")}
        refuse_idle({flag: bool(value) for flag, value in given.items()}, "--on slurm or --on local:N")
        return False
    refuse_idle({"--cell": choices.cell is not None, "--jobs": choices.jobs is not None}, "--on here")
    from harness.pipeline.jobs import Finished, JobFiles, of_grid, to_submit
    from harness.pipeline.status import expect

    choice = chosen_of(choices)
    suite, folder, budget = choice.suite, choice.folder, choice.budget
    refuse_unwritable("--out", folder)
    seeds = list(dict.fromkeys(choices.seeds or suite.default_seeds))
    engine = _engine(choices, folder, gpu=suite.wants_gpu)
    cells = [(variant, seed) for seed in seeds for variant in choice.variants]
    files = JobFiles(folder)
    jobs = of_grid(files, [command, *words_of(choices)], cells, folder)
    new, told = to_submit(files, jobs, Finished.of(folder, suite, budget, seeds, command))
    for line in told:
        say(f"  {line}")
    if choices.dry_run:
        say(engine.script(new) if new else "nothing to submit")
        return True
    expect(folder, suite, budget, cells)
    for job in engine.submit(new) if new else ():
        say(f"  {job.name}: submitted as job {job.number}")
    say(f"{len(new)} jobs submitted; `repa-bench status {folder} --follow` watches them.")
    if choices.wait:
        from harness.cli.commands_watch import follow

        follow(folder)
    return True


def _engine_hints() -> dict[str, Any]:
    own = {f.name for f in fields(Spread)} - {f.name for f in fields(Several)}
    return {name: hint for name, hint in get_type_hints(Spread, include_extras=True).items() if name in own}


def _engine(choices: Spread, folder: Path, *, gpu: bool) -> Slurm | Local:
    from harness.pipeline.engines import Cluster, Local, Slurm
    from harness.pipeline.parallel import cores

    place, _, count = choices.on.partition(":")
    names = ("partition", "account", "constraint", "nodes", "gpus", "cpus")
    given: dict[str, Any] = {name: getattr(choices, name) for name in names}
    if place == "slurm" and not count:
        if choices.time is not None:
            given["time"] = minutes(choices.time)
        if choices.flags:
            given["flags"] = overrides(choices.flags)
        return Slurm(folder, Cluster.read(choices.cluster, given))
    if place != "local" or (count and not count.isdecimal()) or count == "0":
        raise UserError(f"--on {choices.on}: write here, local:N (N cells at a time) or slurm.")
    flags = {f"--{name}": value is not None for name, value in given.items()}
    refuse_idle(flags | {"--time": bool(choices.time), "--flag": bool(choices.flags)}, "--on slurm")
    refuse_idle({"--cluster": choices.cluster is not None}, "--on slurm")
    return Local(folder, int(count or 1), cores(), _gpus() if gpu and choices.device != "cpu" else ())


def _gpus() -> tuple[int, ...]:
    """The GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(int(one) for one in visible.split(",") if one.strip().isdecimal())
    import torch

    return tuple(range(torch.cuda.device_count()))
