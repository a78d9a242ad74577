"""The command line: the composition root. It may import everything; nothing imports it."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli_cache import cache_app
from harness.cli_machine import machine
from harness.cli_printing import print_tables, say
from harness.cli_results import results
from harness.cli_session import arms_of, jobs_of, open_session, store_of
from harness.options import (
    HELP,
    MAX_SEED,
    CacheOption,
    Chosen,
    ImportedWeights,
    Place,
    Scored,
    Several,
    expand_lists,
    refuse_idle,
    refuse_idle_to_score,
    refuse_unwritable,
    shared,
)
from harness.signals import TERMINATED, requeued
from recipes.core.errors import Diverged, Stopped, UserError

if TYPE_CHECKING:
    from harness.pipeline import Session, Work
    from harness.replay import Comparison
    from harness.scoring import Job

# Heavy imports (torch, diffusers, matplotlib) stay inside the commands, so that --help and a mistyped option answer
# at once.

app = typer.Typer(
    name="repa-bench",
    help="Reproduce and compare training of latent diffusion transformers: vanilla SiT, REPA, REPA-E.",
    no_args_is_help=True,
    context_settings={"help_option_names": HELP},
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(machine)
app.add_typer(results)
app.add_typer(cache_app, name="cache")

INTERRUPTED = 130
DIVERGED = 3
# What the parser raises for a mistyped option. Typer exports its leaves but not their base, which is Click's own in
# some versions of Typer and a copy in others.
PARSER_ERROR: Any = typer.BadParameter.__mro__[2]


def _work(session: Session, jobs: int | None, runs: int) -> Work:
    """How the runs of a grid are worked on: one after the other, or several at a time."""
    from harness.parallel import at_once
    from harness.pipeline import in_turn

    most = jobs_of(session, jobs)
    return at_once(most) if min(most, runs) > 1 else in_turn


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
@shared(Several)
def run(choices: Several) -> None:
    """Prepare, train, score, compare: everything. The same command continues an interrupted run.

    Example: `repa-bench run --suite digits --recipes vanilla repa repa_e --seeds 0 1 2`
    """
    from harness.pipeline import run_suite
    from reports.build import Wanted, build

    with open_session(choices) as session:
        arms, seeds = arms_of(session.suite, choices.recipes), session.seeds
        work = _work(session, choices.jobs, len(arms) * len(seeds))
        session.reporter.say(
            f"{session.suite.name} ({session.suite.notice}): {', '.join(arms)}; seeds "
            f"{', '.join(map(str, seeds))}; {session.budget.steps} steps -> {session.folder}"
        )
        run_suite(session, arms, seeds, work)
        if session.world.main:
            _print_summary([session.folder])
            session.reporter.say(f"report: {build(Wanted([session.folder]), session.folder / 'report')}")


@app.command()
@shared(Chosen)
def prepare(choices: Chosen) -> None:
    """Make the suite's assets (data, cached latents, networks) and measure the noise floor.

    Example: `repa-bench prepare --suite imagenet256 --data /data/ILSVRC2012/train`
    """
    from harness import pipeline

    with open_session(choices) as session:
        arms = arms_of(session.suite, choices.recipes)
        prepared = pipeline.prepare(session, arms)
        pipeline.examine(session, prepared, arms)
        if session.world.main:
            for name, content in sorted(prepared.hashes.items()):
                say(f"{name:20s} {content[:16]}")
            for name, value in sorted(prepared.facts.items()):
                say(f"{name:20s} {value:,.4g}")


@app.command()
@shared(Several)
def train(choices: Several) -> None:
    """Train, and keep the checkpoints that will be scored. The same command resumes.

    Example: `torchrun --nproc-per-node 8 -m harness.cli train --suite imagenet256 --recipes repa_e`
    """
    from harness import pipeline

    with open_session(choices) as session:
        grid = pipeline.grid_of(arms_of(session.suite, choices.recipes), session.seeds)
        work = _work(session, choices.jobs, len(grid))
        prepared = pipeline.prepare(session, [arm for arm, _ in grid])
        work(session, prepared, grid, False)
        if session.world.main:
            for arm, seed in grid:
                folder = pipeline.open_run(session, prepared, arm, seed).folder
                say(folder)


@app.command()
@shared(Scored)
def score(choices: Scored) -> None:
    """Score samples against a reference, a tokenizer, a run's folder, or the checkpoints of a suite (training what is
    missing).

    Example: `repa-bench score --samples samples.npz --reference VIRTUAL_imagenet256_labeled.npz --json`
    """
    from harness import evaluate
    from harness.pipeline import run_suite, score_imported
    from harness.protocol import find_protocol

    refuse_idle_to_score(choices)
    if choices.samples is not None or choices.reference is not None:
        _score_files(choices)
        return
    with open_session(choices) as session:
        if choices.run_folder is not None:
            protocols = [find_protocol(choices.protocol)] if choices.protocol else session.suite.final_protocols
            more = evaluate.parse(choices.metrics, ())
            told = score_imported(session, choices.run_folder, choices.tokenizer, choices.step, protocols, more)
            if session.world.main:
                print(json.dumps(told, indent=1))
            return
        arms = arms_of(session.suite, choices.recipes)
        run_suite(session, arms, session.seeds, _work(session, choices.jobs, len(arms) * len(session.seeds)))
        if session.world.main:
            _print_summary([session.folder])


def _score_files(choices: Scored) -> None:
    from harness import adm, scoring
    from harness.samples import open_samples
    from harness.tokenizers import open_tokenizer

    samples, reference = choices.samples, choices.reference
    if reference is None or (samples is None) == (choices.tokenizer is None):
        raise UserError(
            "--samples and --reference go together, or --tokenizer and --reference for what a tokenizer reconstructs: "
            "give both, or neither to score a suite."
        )
    if choices.out is not None:
        refuse_unwritable("--out", choices.out, folder=False)
    python = choices.adm_python or Path(sys.executable)
    if choices.adm_evaluator is not None:
        adm.refuse_absent(python, choices.adm_evaluator, reference)
    notes: tuple[str, ...] = ()
    with _job(choices) as job:
        if samples is not None:
            found = scoring.score(open_samples(samples, flag="--samples"), reference, job)
        else:
            network, content = open_tokenizer(store_of(choices.cache), choices.tokenizer or "")
            found = scoring.score_tokenizer(reference, network, content, job)
            notes = network.notes
        if found is None:  # another process tells
            return
        found["warnings"] = [*notes, *found["warnings"]]
    if samples is not None and choices.adm_evaluator is not None:
        theirs = adm.run_evaluator(python, choices.adm_evaluator, samples, reference)
        found |= {"adm": theirs, "adm_difference": {k: found[k] - v for k, v in theirs.items() if k in found}}
    _tell(choices, found)


@contextmanager
def _job(choices: Scored) -> Iterator[Job]:
    """How files are scored; joins the other processes under torchrun."""
    from harness import catalogue, evaluate, features, scoring
    from harness.pairs import on_unit_images
    from harness.progress import Reporter
    from recipes.core.distributed import world
    from recipes.models.perceptual import load_perceptual

    store, name = store_of(choices.cache), features.network_name(choices.features)
    default: tuple[str, ...] = evaluate.DEFAULT if name == "inception" else evaluate.DEFAULT_ELSEWHERE
    if choices.samples is None:
        has_lpips = catalogue.find(store, "vgg16") is not None
        default = tuple(m for m in scoring.OF_A_TOKENIZER if m != "lpips" or has_lpips)
    text = choices.metrics.replace("rfid", "fid") if choices.metrics and choices.samples is None else choices.metrics
    wanted = evaluate.parse(text, default)
    with world(choices.device) as here:
        first = features.load_network(name, store, here.device, choices.weights)
        outputs = [evaluate.METRICS[m].output for m in wanted]
        others = features.extra_networks(outputs, first, store, here.device)
        lpips = None
        if "lpips" in wanted:
            vgg = load_perceptual(catalogue.require(store, "vgg16").path, input_range="unit")
            lpips = on_unit_images(vgg.to(here.device), here.device)
        yield scoring.Job(
            network=features.Several(first, others) if others else first,
            features=name,
            wanted=wanted,
            cache=store.root,
            world=here,
            reporter=Reporter(quiet=not here.main),
            lpips=lpips,
        )


def _tell(choices: Scored, found: dict[str, Any]) -> None:
    """Print a result, and write it to --out."""
    from recipes.core.checkpoint import write_text

    text = json.dumps(found, indent=1)
    if choices.out is not None:
        write_text(choices.out, text + "\n")
    if choices.as_json:
        print(text)
        return
    for name, value in found.items():
        if isinstance(value, float) and not name.endswith(("_se", "_floor")):
            error, floor, theirs = found.get(f"{name}_se"), found.get(f"{name}_floor"), found.get("adm", {}).get(name)
            beside = f" ± {error:.2g}" if error is not None else ""
            beside += f"   floor {floor:.4g}" if floor is not None else ""
            beside += f"   ADM's evaluator {theirs:.6g} ({value - theirs:+.2g})" if theirs is not None else ""
            say(f"{name:12s} {value:.6g}{beside}")
    say(f"{found['n_fake']:,} samples, protocol {found['protocol']}")
    if any(name.endswith("_floor") for name in found):
        say("±: standard error; floor: of as many perfect samples, were features Gaussian")
    for warning in found["warnings"]:
        say(warning, style="yellow")


@app.command()
@shared(Place)
def sample(
    place: Place,
    images: Annotated[Path, typer.Option("--images", help="Where the PNG grid goes; an .npz lies beside it.")],
    recipe: Annotated[str | None, typer.Option("--recipe", help="Which arm of the suite.")] = None,
    run_folder: Annotated[
        Path | None, typer.Option("--run", help="Instead: a run's folder; imported ones too.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="With --run: the tokenizer's asset, if the run holds none.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=MAX_SEED, help="Training seed. Default: the suite's first.")
    ] = None,
    step: Annotated[int | None, typer.Option("--step", min=0, help="Which checkpoint. Default: the last.")] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="How many samples.")] = 100,
    generation_seed: Annotated[
        int, typer.Option("--generation-seed", min=0, max=MAX_SEED, help="Seed of labels and noise.")
    ] = 0,
    protocol_name: Annotated[
        str | None, typer.Option("--protocol", help="Which, see `repa-bench list`. Default: the suite's for curves.")
    ] = None,
) -> None:
    """Draw samples from a checkpoint: an .npz with arr_0 (uint8, N H W 3) and labels, and a PNG grid of its first 100,
    row by row.

    Example: `repa-bench sample --recipe repa_e --images digits.png --count 100`
    """
    import torch

    from harness import drawing, pipeline
    from harness.measured import Shards
    from harness.protocol import find_protocol

    if (recipe is None) == (run_folder is None):
        raise UserError("name what to sample from: either --recipe ARM or --run FOLDER.")
    if run_folder is None:
        refuse_idle({"--tokenizer": tokenizer is not None}, "--run")
    else:
        refuse_idle({"--seed": seed is not None}, "--recipe")
    if images.suffix != ".png":
        raise UserError(f"--images {images}: name a .png; the .npz is written beside it.")
    refuse_unwritable("--images", images, folder=False)
    npz = images.with_suffix(".npz")
    with open_session(place) as session:
        protocol = find_protocol(protocol_name) if protocol_name else session.suite.curve_protocol
        if run_folder is not None:
            cell = pipeline.open_imported(session, run_folder, tokenizer, step, protocol, generation_seed)
        else:
            seed = session.suite.default_seeds[0] if seed is None else seed
            run, start = pipeline.open_trained(session, arms_of(session.suite, [recipe or ""])[0], seed)
            cell = drawing.Cell(run, pipeline.checkpoint_of(run, step), protocol, generation_seed, start)
        for note in pipeline.notes_of(cell):
            session.reporter.say(note, "yellow")
        shards = Shards(images.with_name(f".{images.stem}-{cell.key[:12]}-{count}.shards"), count)
        with pipeline.threads_of(session), session.reporter.stage("sample", count) as on_sample:
            drawn = drawing.draw(
                cell, shards, None, world=session.world, chunk=session.suite.chunk, keep=True, on_sample=on_sample
            )
        if drawn is None:
            return
        first = next(shards.images())[: drawing.GRID_COLUMNS * drawing.GRID_ROWS]
        drawing.save_grid(images, first, drawing.GRID_COLUMNS)
        drawing.write_npz(npz, shards.images(), count, torch.as_tensor(drawn.points(drawing.LABELS)))
        shards.clear()
    say(f"{images} and {npz} ({protocol.label})")


@app.command()
@shared(Chosen)
def guidance(
    choices: Chosen,
    scales: Annotated[
        list[float] | None, typer.Option("--scales", help="Guidance scales to try, with spaces or commas between.")
    ] = None,
    intervals: Annotated[
        list[str] | None, typer.Option("--intervals", help="LOW:HIGH in time; t = 1 is noise. Default: 0:1.")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=2, help="Samples of each setting tried. Default: a fifth of the protocol's."),
    ] = None,
    search_seeds: Annotated[
        list[int] | None,
        typer.Option("--search-seeds", min=0, max=MAX_SEED, help="Generation seeds to choose by. Default: 1000."),
    ] = None,
    generation_seeds: Annotated[
        list[int] | None,
        typer.Option("--generation-seeds", min=0, max=MAX_SEED, help="Generation seeds of the result. Default: 0."),
    ] = None,
    protocol_name: Annotated[
        str | None, typer.Option("--protocol", help="Which, see `repa-bench list`. Default: the suite's last.")
    ] = None,
) -> None:
    """Find each recipe's best guidance with the same effort, on other seeds than those reported, then score it.

    Example: `repa-bench guidance --suite digits --scales 1.25 1.5 2 --intervals 0:1 0:0.7`
    """
    from harness import pipeline
    from harness.guidance import Sweep, parse_interval, sweep_arm
    from harness.protocol import find_protocol
    from reports.build import Wanted, build
    from reports.summary import summarize

    with open_session(choices) as session:
        suite = session.suite
        base = find_protocol(protocol_name) if protocol_name else (suite.final_protocols or (suite.curve_protocol,))[-1]
        sweep = Sweep(
            base,
            tuple(dict.fromkeys(scales or (1.25, 1.5, 1.75, 2.0))),
            tuple(dict.fromkeys(parse_interval(text) for text in intervals or ("0:1",))),
            tuple(dict.fromkeys(search_seeds or (1000,))),
            tuple(dict.fromkeys(generation_seeds or (0,))),
            samples or max(2, base.samples // 5),
        )
        arms, step = arms_of(suite, choices.recipes), session.budget.milestones()[-1]
        prepared = pipeline.prepare(session, arms)
        for arm in arms:
            runs = [pipeline.open_run(session, prepared, arm, seed) for seed in session.seeds]
            for run in runs:
                pipeline.checkpoint_of(run, step)
            sweep_arm(session, prepared, runs, sweep, step)
        if session.world.main:
            print_tables(summarize([session.folder]).guidance_tables())
            session.reporter.say(f"report: {build(Wanted([session.folder]), session.folder / 'report')}")


@app.command()
@shared(Chosen)
def analyse(
    choices: Chosen,
    count: Annotated[int, typer.Option("--count", min=20, help="Training images that are looked at.")] = 1024,
) -> None:
    """Measure how far each checkpoint's features agree with the encoder's (CKNNA), at every depth, for the report.

    Example: `repa-bench analyse --suite digits --recipes vanilla repa repa_e`
    """
    from harness import alignment, pipeline
    from reports.build import Wanted, build
    from reports.summary import summarize

    with open_session(choices) as session:
        arms = arms_of(session.suite, choices.recipes)
        reference = alignment.aligned_arm(session, arms)
        prepared = pipeline.prepare(session, arms)
        runs = [pipeline.open_run(session, prepared, arm, seed) for arm in arms for seed in session.seeds]
        for run in runs:
            pipeline.checkpoint_of(run, None)
        if session.world.main:
            alignment.analyse(session, prepared, runs, reference, count)
            print_tables(summarize([session.folder]).alignment_tables())
            session.reporter.say(f"report: {build(Wanted([session.folder]), session.folder / 'report')}")


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


@app.command("import")
def import_(
    path: Annotated[
        Path,
        typer.Argument(help="A fetched asset, a folder of REPA-E (args.json, checkpoints), or a .pt of REPA or SiT."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Where the run's folder goes.")],
    step: Annotated[
        int | None, typer.Option("--step", min=0, help="Which checkpoint of a folder. Default: the last.")
    ] = None,
    encoder_depth: Annotated[
        int | None, typer.Option("--encoder-depth", min=1, help="The aligned block, where the file does not say it.")
    ] = None,
    heads: Annotated[int | None, typer.Option("--heads", min=1, help="For sizes that are none of the papers'.")] = None,
    classes: Annotated[
        int | None, typer.Option("--classes", min=1, help="Without the null class, where the file does not say it.")
    ] = None,
    weights: Annotated[
        ImportedWeights | None, typer.Option("--weights", help="What the weights are, where the file names no average.")
    ] = None,
    cache: CacheOption = None,
) -> None:
    """Turn a released checkpoint into a run's folder, which sample and export-vae take. Never runs code from it.

    Example: `repa-bench import sit-repae-sdvae --out runs/imported/sit-repae-sdvae`
    """
    from harness import catalogue
    from recipes.imports import import_checkpoint

    refuse_unwritable("--out", out)
    if not path.exists() and str(path) in catalogue.CATALOGUE:
        path = catalogue.require(store_of(cache), str(path)).path
    run = import_checkpoint(
        path,
        out,
        step=step,
        encoder_depth=encoder_depth,
        heads=heads,
        classes=classes,
        weights=weights.value if weights else None,
        on_note=lambda note: say(note, style="yellow"),
    )
    say(f"{run.folder}: {run.spec.recipe}, step {run.steps()[-1]:,}")


@app.command("export-vae")
def export_vae(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run of REPA-E, trained here or imported.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for NAME-hf/ (diffusers) and NAME.pt (released form).")],
    name: Annotated[str, typer.Option("--name", help="Of the files.")] = "tuned-vae",
    step: Annotated[int | None, typer.Option("--step", min=0, help="Which checkpoint. Default: the last.")] = None,
) -> None:
    """Write the tuned tokenizer of a run with the statistics of its latents, for diffusers and for the released code.

    Example: `repa-bench export-vae runs/imagenet256/runs/repa_e-seed0-1a2b3c4d --out exported`
    """
    from recipes.exports import export_autoencoder

    refuse_unwritable("--out", out)
    if Path(name).name != name:
        raise UserError(f"--name {name}: a file's name is meant, without folders.")
    written = export_autoencoder(run_folder, out, name, step)
    say(f"{written}, and {out / f'{name}-hf'} for diffusers")
    say(f"next: repa-bench fetch tuned-vae --from {written}")


def _print_summary(runs: Sequence[Path]) -> None:
    from reports.summary import summarize

    print_tables(summarize(runs).text_tables())


def _quiet_libraries() -> None:
    """Keep other people's start-up chatter off the terminal, and their downloads off the network."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    for library in ("diffusers", "transformers"):
        warnings.filterwarnings("ignore", module=f"{library}.*")


def _of_the_machine(error: Exception) -> str | None:
    """What the machine lacks, with its mend; nothing if the error is ours."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"no space is left ({error.strerror}: {error.filename or 'a file'}). What was saved before is as it was; "
            "make room and run the same command again, or give --out or --cache on a larger disk."
        )
    if isinstance(error, OSError) and error.filename is not None and error.errno is not None:
        return f"{error.filename}: {error.strerror}. Mend that, or give another path."
    if type(error).__name__ == "ValidationError":  # pydantic's; importing it here would make --help slow
        return f"a value does not fit: {' '.join(str(error).split())[:300]}. Mend the file or option that it is from."
    words = ("out of memory", "can't allocate memory", "alloc_cpu", "bad_alloc")
    if isinstance(error, MemoryError) or any(w in str(error).lower() for w in words):
        return (
            f"out of memory ({(str(error).strip().splitlines() or ['MemoryError'])[0][:160]}). Free some, or use a "
            "larger machine. Training: lower --part (images at once; the rest is accumulated) or add --checkpointing; "
            "the batch and the results stay the same. What was saved before is as it was."
        )
    return None


def main() -> None:
    """Entry point of ``repa-bench``."""
    _quiet_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    command = typer.main.get_command(app)
    try:
        with requeued():
            code = command.main(expand_lists(sys.argv[1:], command), prog_name="repa-bench", standalone_mode=False)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except PARSER_ERROR as error:
        error.show()
        sys.exit(2)
    except Stopped as stopped:
        print(f"{stopped} The same command continues.", file=sys.stderr)
        sys.exit(INTERRUPTED if stopped.number == signal.SIGINT else TERMINATED)
    except Diverged as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(DIVERGED)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if (sentence := _of_the_machine(error)) is None:
            raise
        print(f"Error: {sentence}", file=sys.stderr)
        sys.exit(2)
    if code == INTERRUPTED:  # Typer turns Ctrl-C into this code, in some versions
        print("\ninterrupted; the same command continues from the last checkpoint", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
