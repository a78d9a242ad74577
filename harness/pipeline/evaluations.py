"""Which evaluations a run gets, and the keys of their records."""

from __future__ import annotations

from harness.pipeline.session import Session
from harness.preparation.base import Prepared
from harness.records.schema import ScoreRecord
from harness.sampling.protocol import Protocol
from harness.scoring.sample_set import Evaluation
from harness.suites.base import draws_of
from recipes.training.run_folder import Run


def tokenizer_key(session: Session, prepared: Prepared, run: Run) -> tuple[object, ...] | None:
    """Of the record of the tokenizer that a run ends with, if it trains one."""
    if not run.spec.method.needs.tokenizer:
        return None
    named = prepared.tokenizer_of(run.spec.variant) or "from scratch"
    return ("tokenizer", named, run.spec.digest(), session.budget.milestones()[-1])


def evaluations_of(session: Session, prepared: Prepared, run: Run) -> list[Evaluation]:
    """Every sample set of a run that is scored; see `draws_of`."""
    first = not session.seeds or run.spec.train.seed == session.seeds[0]
    tokenizer = prepared.tokenizer(run.spec.variant)
    draws = draws_of(session.suite, session.budget, first=first)
    return [Evaluation(run, step, protocol, seed, tokenizer) for step, protocol, seed in draws]


def title_of(session: Session, run: Run) -> str:
    """For people: label and training seed."""
    return f"{session.suite.variants[run.spec.variant].label}, seed {run.spec.train.seed}"


def protocol_assets(prepared: Prepared) -> dict[str, str]:
    """Content hashes that belong to a protocol's digest."""
    return {name: prepared.hashes[name] for name in ("features", "reference")}


def protocol_digest(protocol: Protocol, prepared: Prepared) -> str:
    """Digest of a protocol and of what judges by it."""
    return protocol.digest_with(protocol_assets(prepared))


def score_key(evaluation: Evaluation, prepared: Prepared, search: bool) -> tuple[object, ...]:
    """Of the record that an evaluation gets."""
    digest = protocol_digest(evaluation.protocol, prepared)
    return ScoreRecord.key_of(evaluation.run.spec.digest(), evaluation.step, digest, evaluation.generation_seed, search)
