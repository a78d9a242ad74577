"""Commands that train and score a suite: run, prepare, train, plan, list."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING

import typer

from harness.cli.grid import Spread, grid_of_options, submit
from harness.cli.options import Chosen, Planned, shared
from harness.cli.printing import print_summary, print_table, say
from harness.cli.session import open_session
from harness.pipeline.opening import jobs_of, run_grid, work_of
from recipes.core.errors import UserError

if TYPE_CHECKING:
    from harness.pipeline.session import Session
    from harness.pipeline.stages import Rates
    from recipes.core.precision import Precision

commands = typer.Typer()
#: Of a GPU of which nothing is known, in training's number format.
ASSUMED_TFLOPS = 200.0


@commands.command()
@shared(Spread)
def run(choices: Spread) -> None:
    """Prepare, train, score, compare: everything. The same command continues an interrupted run.

    Example: `repa-bench run --suite digits --recipes vanilla repa repa_e --seeds 0 1 2`, or on a cluster
    `repa-bench run --suite imagenet256 --seeds 0 1 2 --on slurm --gpus 8 --partition long`
    """
    if submit(choices, "run"):
        return
    from reports.build import Wanted, build

    with open_session(choices) as session:
        run_grid(session, *grid_of_options(session, choices), choices.jobs)
        if session.world.main and choices.cell is None:
            print_summary([session.folder])
            session.reporter.note(f"report: {build(Wanted([session.folder]), session.folder / 'report')}")


@commands.command()
@shared(Chosen)
def prepare(choices: Chosen) -> None:
    """Make the suite's assets (data, cached latents, networks) and measure the noise floor.

    Example: `repa-bench prepare --suite imagenet256 --data /data/ILSVRC2012/train`
    """
    from harness.pipeline import session as pipeline_session
    from harness.pipeline import tokenizers

    with open_session(choices) as session:
        variants = session.variants
        prepared = pipeline_session.prepare(session, variants)
        tokenizers.examine(session, prepared, variants)
        if session.world.main:
            for name, content in sorted(prepared.hashes.items()):
                say(f"{name:20s} {content[:16]}")
            for name, value in sorted(prepared.facts.items()):
                say(f"{name:20s} {value:,.4g}")


@commands.command()
@shared(Spread)
def train(choices: Spread) -> None:
    """Train, and keep the checkpoints that will be scored. The same command resumes.

    Example: `torchrun --nproc-per-node 8 -m harness.cli train --suite imagenet256 --recipes repa_e`
    """
    if submit(choices, "train"):
        return
    from harness.pipeline import checkpoints
    from harness.pipeline import run_suite as pipeline_run_suite
    from harness.pipeline import session as pipeline_session
    from harness.pipeline.status import expect

    with open_session(choices) as session:
        grid = pipeline_run_suite.grid_of(*grid_of_options(session, choices))
        work = work_of(session, choices.jobs, len(grid))
        prepared = pipeline_session.prepare(session, [variant for variant, _ in grid])
        pipeline_run_suite.refuse_second_specifications(session, prepared, grid)
        if session.world.main:
            expect(session.folder, session.suite, session.budget, grid)
        work(session, prepared, grid, False)
        if session.world.main:
            for variant, seed in grid:
                folder = checkpoints.open_run(session, prepared, variant, seed).folder
                say(folder)


@commands.command("list")
def list_() -> None:
    """Name the suites, with their recipes, protocols and budget.

    Example: `repa-bench list`
    """
    from harness.sampling.protocol import PROTOCOLS
    from harness.suites import SUITES, suite

    for name in SUITES:
        chosen = suite(name)
        rows = [
            (variant + ("" if variant in chosen.default_variants else " *"), spec.label, spec.about)
            for variant, spec in chosen.variants.items()
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


@commands.command()
@shared(Planned)
def plan(choices: Planned) -> None:
    """Say what a comparison will cost (time, images, FLOPs, memory, disk), what is missing, and which speedup its seeds
    can show. Of digits, every stage is rehearsed here for half a minute, and the whole run's time follows.

    Example: `repa-bench plan --suite imagenet256 --devices 8 --probe 60`, or `repa-bench plan --detect 1.2`
    """
    if choices.detect is not None and not 1 < choices.detect < 1000:
        raise UserError(f"--detect {choices.detect:g}: a speedup above 1 is meant, as 1.2.")
    began = time.process_time()
    from harness.cli.plan_printing import as_dict, plan_lines, plan_table, stage_rows
    from harness.pipeline.plan import Rehearsal, make_plan
    from harness.pipeline.session import threads_of
    from reports.build import Wanted, build

    with open_session(choices, writes=False) as session:
        chosen, jobs = session.suite, jobs_of(session, choices.jobs)
        start = time.process_time() - began
        seconds = choices.seconds
        if choices.tflops is None and seconds is None and not chosen.wants_gpu:
            seconds = 2.0
        rehearsal = None
        if seconds and session.world.device.type == "cpu" and session.world.size == 1:
            rehearsal = Rehearsal(lambda folder: build(Wanted([folder]), folder / "report"), jobs, start)
        with threads_of(session):
            made = make_plan(
                chosen,
                session.budget,
                session.variants,
                len(session.seeds),
                store=session.assets,
                execution=session.execution,
                world=session.world,
                devices=choices.devices,
                rates=rates_of(choices, session),
                seconds=seconds,
                detect=choices.detect,
                rehearsal=rehearsal,
            )
    if choices.as_json:
        print(json.dumps(as_dict(made), indent=1))
    else:
        print_table(f"{chosen.name} ({chosen.notice})", *plan_table(made))
        if made.stages:
            where = f"stages, on {choices.devices} device{'s' * (choices.devices > 1)}"
            print_table(where, ["stage", "amount", "rate of one device", "time"], stage_rows(made), justify="left")
        for line in plan_lines(made):
            say(f"  {line}")


def rates_of(choices: Planned, session: Session) -> Rates:
    """The rates that ``--tflops`` and ``--prepare-rate`` give, or what is assumed.

    Raises:
        UserError: a rate that is no number above 0, or of a number format that there is not.
    """
    from harness.pipeline.stages import PEAKS, Rates

    precision = session.suite.run_spec(session.variants[0], 0, {}).train.precision
    flops: dict[Precision, float] = {}
    for text in choices.tflops or ():
        form, _, rate = text.rpartition("=")
        named = next((name for name in PEAKS if name == (form or precision)), None)
        try:
            value = float(rate)
        except ValueError:
            value = 0.0
        if named is None or not 0 < value < math.inf:
            raise UserError(f"--tflops {text}: write a rate above 0, or one by format, as {'=400, '.join(PEAKS)}=400.")
        flops[named] = 1e12 * value
    source = "given" if flops else "assumed"
    cpu = session.world.device.type == "cpu" and not session.suite.wants_gpu
    known = flops or {precision: 1e12 * ASSUMED_TFLOPS}
    return Rates(known, source, cpu, choices.prepare_rate, session.execution.threads)


@commands.command()
@shared(Chosen)
def verify(choices: Chosen) -> None:
    """Train runs again, from nothing to their first scored checkpoint, and compare the weights with those that were
    scored, bit by bit; exit 1 if they differ.

    Example: `repa-bench verify --out runs/digits --recipes repa --seeds 10`
    """
    from harness.pipeline.verify import verify as again
    from harness.records.file import FILE as RECORDS

    failed = 0
    with open_session(choices, writes=False) as session:
        variants = session.variants
        if not (session.folder / RECORDS).is_file():
            raise UserError(f"--out {session.folder} holds no records to verify; name the results folder of a run.")
        for variant in variants:
            for found in again(session, variant):
                failed += not found.equal
                verdict = "the same weights, bit by bit" if found.equal else f"other weights: {found.differs}"
                say(f"{found.variant}, seed {found.seed}, step {found.step:,}: {verdict}")
    if failed:
        raise typer.Exit(1)
