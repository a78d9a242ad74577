"""Commands that draw and judge: score, sample, guidance, analyse."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.options import (
    Chosen,
    Sampled,
    Scored,
    Swept,
    refuse_idle,
    refuse_idle_to_score,
    refuse_unwritable,
    shared,
)
from harness.cli.printing import print_summary, print_tables, say
from harness.cli.session import open_session
from harness.pipeline.opening import store_of, work_of
from recipes.core.errors import UserError

if TYPE_CHECKING:
    from harness.pipeline.session import Session
    from harness.scoring.sample_set import Evaluation


commands = typer.Typer()


@commands.command()
@shared(Scored)
def score(choices: Scored) -> None:
    """Score samples against a reference, a tokenizer, a run's folder, or the checkpoints of a suite (training what is
    missing).

    Example: `repa-bench score --samples samples.npz --reference VIRTUAL_imagenet256_labeled.npz --json`
    """
    from harness.metrics import evaluate
    from harness.pipeline.run_suite import run_suite
    from harness.pipeline.score import score_imported
    from harness.sampling.protocol import find_protocol

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
        variants = session.variants
        run_suite(session, variants, session.seeds, work_of(session, choices.jobs, len(variants) * len(session.seeds)))
        if session.world.main:
            print_summary([session.folder])


def _score_files(choices: Scored) -> None:
    from harness.assets.tokenizers import open_tokenizer
    from harness.checks import adm_evaluator
    from harness.pipeline.score_files import opened_job
    from harness.scoring import score_images
    from harness.scoring.image_sets import open_samples

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
        adm_evaluator.refuse_absent(python, choices.adm_evaluator, reference)
    notes: tuple[str, ...] = ()
    store = store_of(choices.cache)
    with opened_job(
        store,
        features=choices.features,
        weights=choices.weights,
        metrics=choices.metrics,
        device=choices.device,
        of_tokenizer=samples is None,
    ) as job:
        if samples is not None:
            found = score_images.score(open_samples(samples, flag="--samples"), reference, job)
        else:
            network, content = open_tokenizer(store, choices.tokenizer or "")
            found = score_images.score_tokenizer(reference, network, content, job)
            notes = network.notes
        if found is None:  # another process tells
            return
        found["warnings"] = [*notes, *found["warnings"]]
    if samples is not None and choices.adm_evaluator is not None:
        theirs = adm_evaluator.run_evaluator(python, choices.adm_evaluator, samples, reference)
        found |= {"adm": theirs, "adm_difference": {k: found[k] - v for k, v in theirs.items() if k in found}}
    _tell(choices, found)


def _tell(choices: Scored, found: dict[str, Any]) -> None:
    """Print a result, and write it to --out."""
    from recipes.core.atomic import write_text

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


@commands.command()
@shared(Sampled)
def sample(choices: Sampled) -> None:
    """Draw samples from a checkpoint: an .npz with arr_0 (uint8, N H W 3) and labels, and a PNG grid of its first 100,
    row by row.

    Example: `repa-bench sample --recipe repa_e --images digits.png --count 100`
    """
    import torch

    from harness.pipeline import checkpoints
    from harness.pipeline import session as pipeline_session
    from harness.scoring import image_files, sample_set
    from harness.scoring.feature_shards import Shards

    if (choices.recipe is None) == (choices.run_folder is None):
        raise UserError("name what to sample from: either --recipe NAME or --run FOLDER.")
    if choices.run_folder is None:
        refuse_idle({"--tokenizer": choices.tokenizer is not None}, "--run")
    else:
        refuse_idle({"--seed": choices.seed is not None}, "--recipe")
    if choices.images.suffix != ".png":
        raise UserError(f"--images {choices.images}: name a .png; the .npz is written beside it.")
    refuse_unwritable("--images", choices.images, folder=False)
    npz, count = choices.images.with_suffix(".npz"), choices.count
    with open_session(choices) as session:
        evaluation, chunk = _evaluation(session, choices), session.suite.chunk
        for note in checkpoints.notes_of(evaluation):
            session.reporter.note(note, "yellow")
        shards = Shards(npz.with_name(f".{npz.stem}-{evaluation.key[:12]}-{count}.shards"), count, chunk)
        with pipeline_session.threads_of(session), session.reporter.stage("sample", count) as on_sample:
            drawn = sample_set.draw(
                evaluation, shards, None, world=session.world, chunk=chunk, keep=True, on_sample=on_sample
            )
        if drawn is None:
            return
        first = next(shards.images())[: image_files.GRID_COLUMNS * image_files.GRID_ROWS]
        image_files.save_grid(choices.images, first, image_files.GRID_COLUMNS)
        image_files.write_npz(npz, shards.images(), count, torch.as_tensor(drawn.points(sample_set.LABELS)))
        shards.clear()
    say(f"{choices.images} and {npz} ({evaluation.protocol.label})")


def _evaluation(session: Session, choices: Sampled) -> Evaluation:
    from harness.pipeline import checkpoints
    from harness.sampling.protocol import find_protocol

    name, seed, step = choices.protocol, choices.generation_seed, choices.step
    protocol = find_protocol(name) if name else session.suite.curve_protocol
    if choices.run_folder is not None:
        return checkpoints.open_imported(session, choices.run_folder, choices.tokenizer, step, protocol, seed)
    variant, *others = session.variants
    if others:
        raise UserError(
            f"--recipe {choices.recipe}: --grid makes several of it; name one: {', '.join(session.variants)}."
        )
    trained = session.suite.default_seeds[0] if choices.seed is None else choices.seed
    return checkpoints.open_trained(session, variant, trained, step, protocol, seed)


@commands.command()
@shared(Swept)
def guidance(choices: Swept) -> None:
    """Find each recipe's best guidance with the same effort, on other seeds than those reported, then score it.

    Example: `repa-bench guidance --suite digits --scales 1.25 1.5 2 --intervals 0:1 0:0.7`
    """
    from harness.pipeline import checkpoints
    from harness.pipeline import session as pipeline_session
    from harness.pipeline.guidance_sweep import Sweep, parse_interval, sweep_variant
    from harness.sampling.protocol import find_protocol
    from reports.build import Wanted, build
    from reports.summary import summarize

    with open_session(choices) as session:
        suite = session.suite
        last = (suite.final_protocols or (suite.curve_protocol,))[-1]
        base = find_protocol(choices.protocol) if choices.protocol else last
        sweep = Sweep(
            base,
            tuple(dict.fromkeys(choices.scales or (1.25, 1.5, 1.75, 2.0))),
            tuple(dict.fromkeys(parse_interval(text) for text in choices.intervals or ("0:1",))),
            tuple(dict.fromkeys(choices.search_seeds or (1000,))),
            tuple(dict.fromkeys(choices.generation_seeds or (0,))),
            choices.samples or max(2, base.samples // 5),
        )
        variants, step = session.variants, session.budget.milestones()[-1]
        prepared = pipeline_session.prepare(session, variants)
        for variant in variants:
            runs = [checkpoints.open_run(session, prepared, variant, seed) for seed in session.seeds]
            for run in runs:
                checkpoints.checkpoint_of(run, step)
            sweep_variant(session, prepared, runs, sweep, step)
        if session.world.main:
            print_tables(summarize([session.folder]).guidance_tables())
            session.reporter.note(f"report: {build(Wanted([session.folder]), session.folder / 'report')}")


@commands.command()
@shared(Chosen)
def analyse(
    choices: Chosen,
    count: Annotated[int, typer.Option("--count", min=20, help="Training images that are looked at.")] = 1024,
) -> None:
    """Measure how far each checkpoint's features agree with the encoder's (CKNNA), at every depth, for the report.

    Example: `repa-bench analyse --suite digits --recipes vanilla repa repa_e`
    """
    from harness.pipeline import alignment, checkpoints
    from harness.pipeline import session as pipeline_session
    from reports.build import Wanted, build
    from reports.summary import summarize

    with open_session(choices) as session:
        variants = session.variants
        reference = alignment.aligned_variant(session, variants)
        prepared = pipeline_session.prepare(session, variants)
        runs = [
            checkpoints.open_run(session, prepared, variant, seed) for variant in variants for seed in session.seeds
        ]
        for run in runs:
            checkpoints.checkpoint_of(run, None)
        if session.world.main:
            alignment.analyse(session, prepared, runs, reference, count)
            print_tables(summarize([session.folder]).alignment_tables())
            session.reporter.note(f"report: {build(Wanted([session.folder]), session.folder / 'report')}")
