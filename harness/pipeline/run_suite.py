"""prepare, train, score: in this order; what has been done on equal inputs is not done again."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from harness.pipeline.checkpoints import open_run
from harness.pipeline.score import score
from harness.pipeline.session import Session, prepare
from harness.pipeline.status import expect
from harness.pipeline.tokenizers import examine
from harness.pipeline.train import train
from harness.preparation.base import Prepared
from harness.records.schema import ScoreRecord
from harness.results import merging
from harness.results.run_folders import name_of
from recipes.core.errors import UserError

#: (variant, training seed) of each run.
Grid = Sequence[tuple[str, int]]
#: How the runs of a grid are trained, and scored if that is wanted: see `in_turn` and `harness.pipeline.parallel`.
Work = Callable[[Session, Prepared, Grid, bool], None]


def in_turn(session: Session, prepared: Prepared, grid: Grid, scored: bool) -> None:
    """One run after the other, in this process; under torchrun, all processes share each."""
    steps = session.budget.steps
    with session.reporter.whole(f"all {len(grid)} runs (steps)", steps * len(grid), on=len(grid) > 1) as begin:
        for number, (variant, seed) in enumerate(grid):
            begin(steps * number)
            run = train(session, prepared, variant, seed)
            if scored:
                score(session, prepared, run)


def grid_of(variants: Sequence[str], seeds: Sequence[int]) -> Grid:
    """Every variant with every seed, seed by seed."""
    return [(variant, seed) for seed in seeds for variant in variants]


def refuse_second_specifications(session: Session, prepared: Prepared, grid: Grid) -> None:
    """Fail early if the results folder already has scores of the same (variant, seed) with another specification.

    Raises:
        UserError: it has scores of another, as when its tokenizer was made again.
    """
    specs = {cell: open_run(session, prepared, *cell).spec for cell in grid}
    records = list(session.records.all())
    latest = merging.latest_sources(records, scored=False)
    for variant, source in {spec.variant: spec.source for spec in specs.values()}.items():
        if source is not None and latest.get(variant, source) != source and session.world.main:
            told = f"{variant}: its file has changed (now SHA-256 {source[:8]}): another recipe, with runs of its own"
            session.note(told, variant, source=source)
    for r in records:
        if not isinstance(r, ScoreRecord) or r.search or (r.variant, r.seed) not in specs:
            continue
        if r.source != (spec := specs[r.variant, r.seed]).source and spec.source is not None:
            continue  # of another version of the recipe's file: reports leave it out
        if r.run != spec.digest():
            there = f"{shlex.quote(str(session.folder))} {name_of(r)}"
            raise UserError(
                f"{session.folder} has scores of {name_of(r)}, and {spec.name} would be trained by another "
                "specification, as when its tokenizer was made again: "
                f"`repa-bench runs remove {there}` takes the first away, or choose another --out."
            )


def run_suite(session: Session, variants: Sequence[str], seeds: Sequence[int], work: Work = in_turn) -> None:
    """Prepare, then train and score every variant with every seed."""
    prepared = prepare(session, variants)
    prepared.refuse_unscorable()
    grid = grid_of(variants, seeds)
    refuse_second_specifications(session, prepared, grid)
    if session.world.main:
        expect(session.folder, session.suite, session.budget, grid)
    examine(session, prepared, variants)
    work(session, prepared, grid, True)
