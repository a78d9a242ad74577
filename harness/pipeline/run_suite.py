"""prepare, train, score: in this order; what has been done on equal inputs is not done again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.pipeline.score import score
from harness.pipeline.session import Session, prepare
from harness.pipeline.tokenizers import examine
from harness.pipeline.train import train
from harness.preparation.base import Prepared

#: (arm, training seed) of each run.
Grid = Sequence[tuple[str, int]]

#: How the runs of a grid are trained, and scored if that is wanted: see `in_turn` and `harness.parallel`.
Work = Callable[[Session, Prepared, Grid, bool], None]


def in_turn(session: Session, prepared: Prepared, grid: Grid, scored: bool) -> None:
    """One run after the other, in this process; under torchrun, all processes share each."""
    for arm, seed in grid:
        run = train(session, prepared, arm, seed)
        if scored:
            score(session, prepared, run)


def grid_of(arms: Sequence[str], seeds: Sequence[int]) -> Grid:
    """Every arm with every seed, seed by seed."""
    return [(arm, seed) for seed in seeds for arm in arms]


def run_suite(session: Session, arms: Sequence[str], seeds: Sequence[int], work: Work = in_turn) -> None:
    """Prepare, then train and score every arm with every seed."""
    prepared = prepare(session, arms)
    prepared.require_judge()
    examine(session, prepared, arms)
    work(session, prepared, grid_of(arms, seeds), True)
