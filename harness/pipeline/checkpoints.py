"""Open runs and checkpoints (of the suite, or imported) for sampling."""

from __future__ import annotations

from pathlib import Path

from harness.assets.tokenizers import open_tokenizer
from harness.pipeline.session import Session, prepare
from harness.preparation.base import Prepared
from harness.sampling.protocol import Protocol
from harness.scoring.sample_set import Evaluation
from recipes.core.errors import UserError
from recipes.training.run_folder import Run, import_notes


def open_run(session: Session, prepared: Prepared, variant: str, seed: int) -> Run:
    """The run of a variant and a seed, started or not."""
    spec = session.suite.run_spec(variant, seed, prepared.hashes)
    return Run(spec, session.folder / "runs" / spec.name)


def open_trained(
    session: Session, variant: str, seed: int, step: int | None, protocol: Protocol, generation_seed: int = 0
) -> Evaluation:
    """A checkpoint of a run of the suite.

    Raises:
        UserError: there is none.
    """
    prepared = prepare(session, [variant])
    run = open_run(session, prepared, variant, seed)
    if not run.steps():
        raise UserError(
            f"{run.folder} has no checkpoint; train it: repa-bench train --recipes {variant} --seeds {seed}."
        )
    return prepared.evaluation(run, checkpoint_of(run, step), protocol, generation_seed)


def open_imported(
    session: Session,
    folder: Path,
    tokenizer: str | None,
    step: int | None,
    protocol: Protocol,
    generation_seed: int = 0,
) -> Evaluation:
    """A checkpoint of a run's folder, wherever it was made, with a tokenizer of the catalogue if one is named.

    Raises:
        UserError: the folder is not a run, has no such checkpoint, or the tokenizer is not on this machine.
    """
    run = Run.open(folder)
    chosen = checkpoint_of(run, step)
    if tokenizer is None:
        return Evaluation(run, chosen, protocol, generation_seed)
    network, content = open_tokenizer(session.assets, tokenizer)
    return Evaluation(run, chosen, protocol, generation_seed, network, content)


def notes_of(evaluation: Evaluation) -> list[str]:
    """Warnings about the imported file and its tokenizer."""
    return [
        *import_notes(evaluation.run, evaluation.step),
        *(evaluation.tokenizer.notes if evaluation.tokenizer is not None else ()),
    ]


def checkpoint_of(run: Run, step: int | None) -> int:
    """The step that was asked for, or the last.

    Raises:
        UserError: there is no such checkpoint.
    """
    kept = run.steps()
    if not kept:
        raise UserError(f"{run.folder} has no checkpoint.")
    if step is not None and step not in kept:
        raise UserError(f"--step {step}: {run.folder} keeps {', '.join(map(str, kept))}.")
    return step if step is not None else kept[-1]
