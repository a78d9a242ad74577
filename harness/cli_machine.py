"""Commands that look at this machine and its files: list, plan, fetch, doctor."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli_printing import print_table, say
from harness.cli_session import arms_of, jobs_of, open_session, store_of
from harness.options import CacheOption, Several, refuse_idle, shared
from recipes.core.errors import UserError

if TYPE_CHECKING:
    from harness.assets import Store

machine = typer.Typer()


@machine.command("list")
def list_() -> None:
    """Name the suites, with their recipes, protocols and budget.

    Example: `repa-bench list`
    """
    from harness.protocol import PROTOCOLS
    from harness.suites import SUITES

    for name, make in SUITES.items():
        chosen = make()
        rows = [
            (arm + ("" if arm in chosen.default_arms else " *"), spec.label, spec.about)
            for arm, spec in chosen.arms.items()
        ]
        print_table(f"{name}: {chosen.notice}", ("recipe", "label", "what it is"), rows, justify="left")
        protocols = [chosen.curve_protocol, *chosen.final_protocols]
        text = ", ".join(f"{p.label} (NFE {p.nfe}, N {p.samples:,})" for p in protocols)
        say(
            f"  {chosen.budget.steps:,} steps, scored every {chosen.budget.score_every:,}; training seeds "
            f"{', '.join(map(str, chosen.default_seeds))}; protocols: {text}; "
            "* only if asked for",
        )
    say("protocols (--protocol)", style="bold")
    for protocol in PROTOCOLS.values():
        guided = f"guidance {protocol.guidance_scale:g} in [{protocol.guidance_low:g}, {protocol.guidance_high:g}]"
        if protocol.guidance_scale <= 1:
            guided = "no guidance"
        say(
            f"  {protocol.name:24s} {protocol.solver}, {protocol.steps} steps, {protocol.samples:,} samples, "
            f"{', '.join((f'{protocol.labels} labels', guided, *protocol.as_sit.values(), protocol.to_uint8))}",
        )


@machine.command()
@shared(Several)
def plan(
    choices: Several,
    devices: Annotated[int, typer.Option("--devices", min=1, help="GPUs that training is spread over.")] = 1,
    tflops: Annotated[
        float | None,
        typer.Option("--tflops", min=0.001, help="Sustained TFLOP/s of one. Default: 200; on a CPU, measured."),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--probe", min=0.0, help="Measure each arm here for so many seconds instead. Default on a CPU: 2."
        ),
    ] = None,
    detect: Annotated[
        float | None, typer.Option("--detect", help="A speedup, as 1.2: how many seeds show it, and what they cost.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a comparison will cost (time, images, FLOPs, memory, disk), what is missing, and which speedup its seeds
    can show. Of digits, every stage is rehearsed here for half a minute, and the whole run's time follows.

    Example: `repa-bench plan --suite imagenet256 --devices 8 --probe 60`, or `repa-bench plan --detect 1.2`
    """
    if detect is not None and not 1 < detect < 1000:
        raise UserError(f"--detect {detect:g}: a speedup above 1 is meant, as 1.2.")
    began = time.process_time()
    from harness.pipeline import threads_of
    from harness.plan import Rehearsal, make_plan
    from reports.build import Wanted, build
    from reports.plan import as_dict, plan_lines, plan_table

    with open_session(choices, writes=False) as session:
        chosen, jobs = session.suite, jobs_of(session, choices.jobs)
        start = time.process_time() - began
        if tflops is None and seconds is None and not chosen.wants_gpu:
            seconds = 2.0
        rehearsal = None
        if seconds and session.world.device.type == "cpu" and session.world.size == 1:
            rehearsal = Rehearsal(lambda folder: build(Wanted([folder]), folder / "report"), jobs, start)
        with threads_of(session):
            made = make_plan(
                chosen,
                session.budget,
                arms_of(chosen, choices.recipes),
                len(session.seeds),
                store=chosen.place(session.store),
                execution=session.execution,
                world=session.world,
                devices=devices,
                tflops=tflops or 200.0,
                seconds=seconds,
                detect=detect,
                rehearsal=rehearsal,
            )
    if as_json:
        print(json.dumps(as_dict(made), indent=1))
    else:
        print_table(f"{chosen.name} ({chosen.notice})", *plan_table(made))
        for line in plan_lines(made):
            say(f"  {line}")


@machine.command()
def fetch(
    name: Annotated[str, typer.Argument(help="An asset; `repa-bench doctor` names them.")],
    source: Annotated[
        str | None,
        typer.Option("--from", help="A file or folder on this machine (not copied), or another hub repository."),
    ] = None,
    suite: Annotated[
        str, typer.Option("--suite", help="For which suite; imagenet-smoke keeps its own files.")
    ] = "imagenet256",
    cache: CacheOption = None,
) -> None:
    """Download an asset, or name its place on this machine. The only command that goes to the network.

    Example: `repa-bench fetch inception`
    """
    from harness import catalogue
    from harness.fetch import fetch as download
    from harness.fetch import is_hub_id
    from harness.suites import suite as find_suite

    store = find_suite(suite).place(store_of(cache))
    if source is None or is_hub_id(source):
        found = download(store, name, hub=source)
    else:
        found = catalogue.register(store, name, Path(source))
    licence = catalogue.source(name).licence
    say(
        f"{name}: {found.path} ({found.size / 2**20:,.1f} MiB, SHA-256 {found.content[:16]}..., licence: {licence})",
    )


CROSSCHECKED = 48


@machine.command()
def doctor(
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte again and compare the hashes.")] = False,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="Instead: score a mini set by us, torch-fidelity and clean-fid.")
    ] = False,
    images: Annotated[int, typer.Option("--images", min=20, help="With --metrics: of each set.")] = CROSSCHECKED,
    known: Annotated[
        bool, typer.Option("--known", help="The same, and ADM's own samples, whose numbers its README prints.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: Annotated[str, typer.Option("--device", help="With --metrics: cpu, cuda or auto.")] = "auto",
    cache: CacheOption = None,
) -> None:
    """Show versions, hardware and every asset, and the mend for each fault; exit 1 if there is one.

    Example: `repa-bench doctor --verify`, or `repa-bench doctor --metrics`
    """
    from harness.doctor import examine
    from reports.plan import health_lines

    store = store_of(cache)
    if metrics or known:
        refuse_idle({"--verify": verify}, "no other examination")
        _crosscheck(store, images, device, known=known, as_json=as_json)
        return
    refuse_idle({"--device": device != "auto", "--images": images != CROSSCHECKED}, "--metrics")
    health = examine(store, verify=verify)
    if as_json:
        print(json.dumps(health.as_dict(), indent=1))
    else:
        for line, style in health_lines(health):
            say(line, style=style)
    if health.faults:
        raise typer.Exit(1)


def _crosscheck(store: Store, images: int, device: str, *, known: bool, as_json: bool) -> None:
    from harness.crosscheck import crosscheck, known_answer
    from harness.progress import Reporter
    from recipes.core.distributed import choose_device

    reporter = Reporter()
    checks, network = crosscheck(store, choose_device(device), images, reporter)
    if known:
        checks += known_answer(store, choose_device(device), reporter)
    if as_json:
        print(json.dumps({"network": network, "images": images, "checks": [c.as_dict() for c in checks]}, indent=1))
    else:
        columns = ("metric", "ours", "theirs", "whose", "difference", "at most", "")
        rows = [
            (c.metric, f"{c.ours:.8g}", f"{c.theirs:.8g}", c.whose, f"{c.difference:.1e}", f"{c.bound:.0e}",
             "ok" if c.passed else "FAIL")
            for c in checks
        ]  # fmt: skip
        print_table(f"{images} + {images} generated images; {network}", columns, rows)
    if not all(c.passed for c in checks):
        raise typer.Exit(1)
