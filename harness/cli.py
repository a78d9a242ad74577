"""The command line: the composition root. It may import everything; nothing imports it."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from recipes.core.errors import UserError, nearest

if TYPE_CHECKING:
    from harness.pipeline import Session
    from harness.replay import Comparison
    from harness.suites.base import Suite

# Heavy imports (torch, diffusers, matplotlib) stay inside the commands, so that --help and a mistyped option answer
# at once.

app = typer.Typer(
    name="repa-bench",
    help="Reproduce and compare training of latent diffusion transformers: vanilla SiT, REPA, REPA-E.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
out_console = Console()

#: Options that take several values: `--seeds 0 1 2` is read as `--seeds 0 --seeds 1 --seeds 2`.
SEVERAL = ("--seeds", "--recipes")


INTERRUPTED = 130
# What the parser raises for a mistyped option. Typer exports its leaves but not their base, which is Click's own in
# some versions of Typer and a copy in others.
PARSER_ERROR: Any = typer.BadParameter.__mro__[2]


SuiteOption = Annotated[str, typer.Option("--suite", help="Which suite; `repa-bench list` names them.")]
RecipesOption = Annotated[
    list[str] | None,
    typer.Option("--recipes", help="Which arms, several after one flag. Default: the suite's."),
]
SeedsOption = Annotated[list[int] | None, typer.Option("--seeds", help="Training seeds, several after one flag.")]
StepsOption = Annotated[int | None, typer.Option("--steps", min=1, help="Train to this many effective steps.")]
EveryOption = Annotated[int | None, typer.Option("--score-every", min=1, help="Steps between scored checkpoints.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the suite, e.g. sit.depth=6.")
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Results folder. Default: runs/SUITE.")]
CacheOption = Annotated[
    Path | None,
    typer.Option("--cache", help="Where assets are kept. Default: $REPA_BENCH_CACHE or ~/.cache/repa-bench."),
]


def _overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """``a.b=value`` to a dictionary; a value that is not JSON is a string."""
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--set {pair}: write it as KEY=VALUE, for example --set sit.depth=6.")
        try:
            out[key] = json.loads(text)
        except ValueError:
            out[key] = text
    return out


def _session(
    suite_name: str,
    steps: int | None = None,
    score_every: int | None = None,
    overrides: Sequence[str] | None = None,
    out: Path | None = None,
    cache: Path | None = None,
) -> Session:
    from harness.assets import Store, default_cache
    from harness.pipeline import Session
    from harness.progress import Reporter
    from harness.suites import suite
    from harness.suites.base import Budget

    chosen = suite(suite_name, _overrides(overrides or ()))
    changed = chosen.identity() != suite(suite_name).identity()
    folder = out or Path("runs") / (f"{chosen.name}-{chosen.identity()[:8]}" if changed else chosen.name)
    budget = Budget(
        steps=steps or chosen.budget.steps,
        score_every=score_every or min(chosen.budget.score_every, steps or 10**9),
    )
    return Session(chosen, budget, folder, Store(cache or default_cache()), Reporter())


def _arms(suite: Suite, chosen: Sequence[str] | None) -> list[str]:
    for arm in chosen or ():
        if arm not in suite.arms:
            raise UserError(f"--recipes: suite {suite.name} has no recipe '{arm}'.{nearest(arm, suite.arms)}")
    return list(dict.fromkeys(chosen or suite.default_arms))


def _seeds(chosen: Sequence[int] | None) -> list[int]:
    return list(dict.fromkeys(chosen or [0]))


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"repa-bench {version('repa-bench')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options that stand before the command."""


@app.command()
def run(
    suite: SuiteOption = "digits",
    recipes: RecipesOption = None,
    seeds: SeedsOption = None,
    steps: StepsOption = None,
    score_every: EveryOption = None,
    set_: SetOption = None,
    out: OutOption = None,
    cache: CacheOption = None,
) -> None:
    """Prepare, train, score, compare: everything. The same command continues an interrupted run.

    Example: `repa-bench run --suite digits --recipes vanilla repa repa_e --seeds 0 1 2`
    """
    from harness.pipeline import run_suite
    from reports.build import build

    session = _session(suite, steps, score_every, set_, out, cache)
    arms = _arms(session.suite, recipes)
    session.reporter.say(
        f"[bold]{session.suite.name}[/bold] ({session.suite.notice}): {', '.join(arms)}; seeds "
        f"{', '.join(map(str, _seeds(seeds)))}; {session.budget.steps} steps -> {session.folder}"
    )
    run_suite(session, arms, _seeds(seeds))
    _print_summary([session.folder])
    session.reporter.say(f"report: {build([session.folder], session.folder / 'report')}")


@app.command()
def prepare(
    suite: SuiteOption = "digits", set_: SetOption = None, out: OutOption = None, cache: CacheOption = None
) -> None:
    """Make the suite's assets (data, tokenizer, encoder, feature network) and measure the noise floor.

    Example: `repa-bench prepare --suite digits`
    """
    from harness import pipeline

    session = _session(suite, overrides=set_, out=out, cache=cache)
    prepared = pipeline.prepare(session)
    for name, value in sorted(prepared.hashes.items()):
        out_console.print(f"{name:20s} {value[:16]}", highlight=False)
    for name, value in sorted(prepared.facts.items()):
        out_console.print(f"{name:20s} {value:.1%}", highlight=False)


@app.command()
def train(
    suite: SuiteOption = "digits",
    recipes: RecipesOption = None,
    seeds: SeedsOption = None,
    steps: StepsOption = None,
    score_every: EveryOption = None,
    set_: SetOption = None,
    out: OutOption = None,
    cache: CacheOption = None,
) -> None:
    """Train, and keep the checkpoints that will be scored.

    Example: `repa-bench train --recipes repa_e --seeds 0 --steps 500`
    """
    from harness import pipeline

    session = _session(suite, steps, score_every, set_, out, cache)
    arms = _arms(session.suite, recipes)
    prepared = pipeline.prepare(session)
    for seed in _seeds(seeds):
        for arm in arms:
            out_console.print(pipeline.train(session, prepared, arm, seed).folder, highlight=False, soft_wrap=True)


@app.command()
def score(
    suite: SuiteOption = "digits",
    recipes: RecipesOption = None,
    seeds: SeedsOption = None,
    steps: StepsOption = None,
    score_every: EveryOption = None,
    set_: SetOption = None,
    out: OutOption = None,
    cache: CacheOption = None,
) -> None:
    """Sample and score the checkpoints of a suite, training first what is not trained yet.

    Example: `repa-bench score --recipes vanilla repa --seeds 0`
    """
    from harness.pipeline import run_suite

    session = _session(suite, steps, score_every, set_, out, cache)
    run_suite(session, _arms(session.suite, recipes), _seeds(seeds))
    _print_summary([session.folder])


@app.command()
def sample(
    recipe: Annotated[str, typer.Option("--recipe", help="Which arm.")],
    images: Annotated[Path, typer.Option("--images", help="Where the PNG grid goes; an .npz lies beside it.")],
    suite: SuiteOption = "digits",
    seed: Annotated[int, typer.Option("--seed", help="Training seed.")] = 0,
    step: Annotated[int | None, typer.Option("--step", help="Which checkpoint. Default: the last.")] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="How many samples.")] = 100,
    generation_seed: Annotated[int, typer.Option("--generation-seed", help="Seed of labels and noise.")] = 0,
    set_: SetOption = None,
    out: OutOption = None,
    cache: CacheOption = None,
) -> None:
    """Draw samples from a trained checkpoint: a PNG grid, and an .npz with arr_0 (uint8, N H W 3) and labels.

    Example: `repa-bench sample --recipe repa_e --images digits.png --count 100`
    """
    import numpy as np
    import torch

    from harness import pipeline

    session = _session(suite, overrides=set_, out=out, cache=cache)
    (arm,) = _arms(session.suite, [recipe])
    prepared = pipeline.prepare(session)
    trained = pipeline.open_run(session, prepared, arm, seed)
    kept = trained.steps()
    if not kept:
        raise UserError(
            f"{trained.folder} has no checkpoint; train it: repa-bench train --recipes {arm} --seeds {seed}."
        )
    if step is not None and step not in kept:
        raise UserError(f"--step {step}: {trained.folder} keeps {', '.join(map(str, kept))}.")
    protocol = session.suite.curve_protocol
    sampler = pipeline.open_sampler(trained, prepared, step or kept[-1], protocol)
    with session.reporter.stage("sample", count) as on_step:
        parts = []
        for part in sampler.batches(protocol, generation_seed, count):
            parts.append(part)
            on_step(sum(len(p) for p, _ in parts))
    drawn, labels = torch.cat([p for p, _ in parts]), torch.cat([y for _, y in parts])
    pipeline.save_grid(images, drawn, pipeline.GRID_COLUMNS)
    np.savez(images.with_suffix(".npz"), arr_0=drawn.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())
    out_console.print(f"{images} and {images.with_suffix('.npz')} ({protocol.label})", highlight=False, soft_wrap=True)


RunsArgument = Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Results folders.")]


@app.command()
def speedup(
    runs: RunsArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """How much sooner each recipe reaches the baseline's last FID, in iterations, FLOPs and seconds.

    Example: `repa-bench speedup runs/digits`
    """
    from reports.summary import summarize

    summary = summarize(runs)
    if as_json:
        print(json.dumps(summary.speedups_json(), indent=1))
        return
    _print_summary(runs)


@app.command()
def report(
    runs: RunsArgument,
    out: Annotated[Path | None, typer.Option("--out", help="Default: report/ in the first folder.")] = None,
) -> None:
    """Write index.html, report.md and results.csv from the records of one or more results folders.

    Example: `repa-bench report runs/digits`
    """
    from reports.build import build

    out_console.print(build(runs, out or runs[0] / "report"), highlight=False, soft_wrap=True)


@app.command()
def replay(
    folder: Annotated[Path, typer.Argument(help="A folder of the golden form, such as tests/golden.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Recompute recorded outputs and training steps of the released code; exit 1 if one is over its bound.

    Example: `repa-bench replay tests/golden`
    """
    from harness.replay import replay as compare

    results: list[Comparison] = []
    for result in compare(folder):
        results.append(result)
        if not as_json:
            verdict = "ok  " if result.passed else "FAIL"
            print(f"{verdict} {result.error:9.2e} <= {result.bound:.0e}  {result.quantity}")
    failed = [r.quantity for r in results if not r.passed]
    if as_json:
        rows = [{"quantity": r.quantity, "error": r.error, "bound": r.bound, "passed": r.passed} for r in results]
        print(json.dumps({"passed": not failed, "quantities": rows}, indent=1))
    else:
        print(f"{len(results) - len(failed)} of {len(results)} quantities within their bounds")
    if failed:
        raise typer.Exit(1)


@app.command("list")
def list_() -> None:
    """Name the suites, with their recipes, protocols and budget.

    Example: `repa-bench list`
    """
    from harness.suites import SUITES

    for name, make in SUITES.items():
        chosen = make()
        table = Table(title=f"{name}: {chosen.notice}", title_justify="left", title_style="bold")
        for column in ("recipe", "label", "what it is"):
            table.add_column(column)
        for arm, spec in chosen.arms.items():
            table.add_row(arm + ("" if arm in chosen.default_arms else " (control)"), spec.label, spec.about)
        out_console.print(table)
        protocols = [chosen.curve_protocol, *chosen.final_protocols]
        text = ", ".join(f"{p.label} (NFE {p.nfe}, N {p.samples:,})" for p in protocols)
        out_console.print(
            f"  {chosen.budget.steps:,} steps, scored every {chosen.budget.score_every}; protocols: {text}\n",
            highlight=False,
        )


@app.command()
def doctor(cache: CacheOption = None) -> None:
    """Show versions, hardware, and the assets in the cache.

    Example: `repa-bench doctor`
    """
    import shutil

    from harness.assets import default_cache
    from harness.records import provenance

    here = provenance()
    for name, value in (
        ("commit", f"{here.commit or 'not a git checkout'}{' (dirty)' if here.dirty else ''}"),
        ("device", here.device),
        ("processor", f"{here.processor}, {here.cores} cores, {here.threads} threads"),
        ("system", here.system),
        *here.versions.items(),
    ):
        out_console.print(f"{name:16s} {value}", highlight=False)
    root = cache or default_cache()
    existing = next((p for p in (root, *root.parents) if p.exists()), Path.cwd())
    free = shutil.disk_usage(existing).free
    out_console.print(f"{'cache':16s} {root} ({free / 2**30:.1f} GiB free)", highlight=False, soft_wrap=True)
    if free < 3 * 2**30:
        out_console.print("  less than 3 GiB free: the digits suite wants that much; set --cache or REPA_BENCH_CACHE")
    for folder in sorted(root.glob("*-*")) if root.exists() else ():
        size = sum(file.stat().st_size for file in folder.rglob("*"))
        out_console.print(f"  {folder.name:44s} {size / 2**20:8.1f} MiB", highlight=False)


def _print_summary(runs: Sequence[Path]) -> None:
    from reports.summary import summarize

    summary = summarize(runs)
    for table in summary.text_tables():
        shown = Table(title=table.title, title_justify="left", caption=table.note, caption_justify="left")
        for number, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if number == 0 else "right")
        for row in table.rows:
            shown.add_row(*row)
        out_console.print(shown)


def expand_several(arguments: Sequence[str]) -> list[str]:
    """Repeat an option of `SEVERAL` before each of its values."""
    out: list[str] = []
    current: str | None = None
    fresh = False
    for argument in arguments:
        if argument in SEVERAL:
            current, fresh = argument, True
            out.append(argument)
        elif argument.startswith("-") and not argument.lstrip("-").isdigit():
            current = None
            out.append(argument)
        elif current is not None and not fresh:
            out += [current, argument]
        else:
            fresh = False
            out.append(argument)
    return out


def _quiet_libraries() -> None:
    """Keep other people's start-up chatter off the terminal, and their downloads off the network."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    for library in ("diffusers", "transformers"):
        warnings.filterwarnings("ignore", module=f"{library}.*")


def main() -> None:
    """Entry point of ``repa-bench``."""
    _quiet_libraries()
    command = typer.main.get_command(app)
    try:
        code = command.main(expand_several(sys.argv[1:]), prog_name="repa-bench", standalone_mode=False)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except PARSER_ERROR as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:  # Typer turns Ctrl-C into this code, in some versions
        print("\ninterrupted; the same command continues from the last checkpoint", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
