"""Which evaluations a run gets, and what they are called."""

from __future__ import annotations

from harness.pipeline.session import Session
from harness.preparation.base import Prepared
from harness.scoring.sample_set import Evaluation
from harness.suites.base import draws_of
from recipes.training.run_folder import Run


def tokenizer_key(session: Session, prepared: Prepared, run: Run) -> tuple[object, ...] | None:
    """Key of the record of the tokenizer that a run ends with, if it trains one."""
    if not run.spec.method.needs.tokenizer:
        return None
    named = prepared.tokenizer_of(run.spec.variant) or "from scratch"
    return ("tokenizer", named, run.spec.digest(), session.budget.milestones()[-1])


def evaluations_of(session: Session, prepared: Prepared, run: Run) -> list[Evaluation]:
    """Every sample set of a run that is scored; see `draws_of`."""
    first = not session.seeds or run.spec.train.seed == session.seeds[0]
    return [prepared.evaluation(run, *drawn) for drawn in draws_of(session.suite, session.budget, first=first)]


def title_of(session: Session, run: Run) -> str:
    """Display title."""
    return f"{session.suite.variants[run.spec.variant].label}, seed {run.spec.train.seed}"
