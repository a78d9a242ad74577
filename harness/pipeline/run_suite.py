"""prepare, train, score: in this order; what has been done on equal inputs is not done again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.pipeline.score import score
from harness.pipeline.session import Session, prepare
from harness.pipeline.tokenizers import examine
from harness.pipeline.train import train
from harness.preparation.base import Prepared

#: (variant, training seed) of each run.
Grid = Sequence[tuple[str, int]]
#: How the runs of a grid are trained, and scored if that is wanted: see `in_turn` and `harness.pipeline.parallel`.
Work = Callable[[Session, Prepared, Grid, bool], None]


def in_turn(session: Session, prepared: Prepared, grid: Grid, scored: bool) -> None:
    """One run after the other, in this process; under torchrun, all processes share each."""
    for variant, seed in grid:
        run = train(session, prepared, variant, seed)
        if scored:
            score(session, prepared, run)


def grid_of(variants: Sequence[str], seeds: Sequence[int]) -> Grid:
    """Every variant with every seed, seed by seed."""
    return [(variant, seed) for seed in seeds for variant in variants]


def run_suite(session: Session, variants: Sequence[str], seeds: Sequence[int], work: Work = in_turn) -> None:
    """Prepare, then train and score every variant with every seed."""
    prepared = prepare(session, variants)
    prepared.require_evaluator()
    examine(session, prepared, variants)
    work(session, prepared, grid_of(variants, seeds), True)
