"""Build the `Session` (suite, results folder, cache, process group) from CLI options."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.options import Chosen, Laid, Place, Scored, overrides, refuse_idle, refuse_unwritable
from recipes.core.errors import UserError, nearest

if TYPE_CHECKING:
    from harness.assets.cache import Store
    from harness.pipeline.run_suite import Work
    from harness.pipeline.session import Session
    from harness.suites.base import Budget, Suite
    from recipes.core.spec import Execution


def chosen_of(place: Place) -> tuple[Suite, Path, Budget]:
    """The suite with its changes, the results folder, and how long to train.

    Raises:
        UserError: an option does not fit the suite.
    """
    from harness.suites import suite
    from harness.suites.base import Budget
    from recipes.recipe_files import use_files

    use_files(place.recipe_file or ())
    chosen = suite(place.suite, overrides(place.set_ or ()))
    changed = chosen.identity() != suite(place.suite).identity()
    folder = place.out or Path("runs") / (f"{chosen.name}-{chosen.identity()[:8]}" if changed else chosen.name)
    if place.data is not None and not chosen.reads_data:
        raise UserError(f"--data: suite {chosen.name} makes its own data and reads none of yours; leave it out.")
    steps = place.steps if isinstance(place, Chosen) else None
    every = place.score_every if isinstance(place, Chosen) else None
    budget = Budget(
        steps=steps or chosen.budget.steps,
        score_every=every or min(chosen.budget.score_every, steps or 10**9),
    )
    return chosen, folder, budget


@contextmanager
def open_session(place: Place, *, writes: bool = True) -> Iterator[Session]:
    """Open a `Session`; joins the process group under torchrun."""
    from harness.pipeline.session import Session
    from harness.runtime.progress import Reporter
    from recipes.core.distributed import world

    chosen, folder, budget = chosen_of(place)
    if writes:
        refuse_unwritable("--out", folder)
    device = "cpu" if place.device == "auto" and not chosen.wants_gpu else place.device
    with world(device) as here:
        yield Session(
            chosen,
            budget,
            folder,
            store_of(place.cache),
            Reporter(quiet=not here.main),
            world=here,
            execution=_execution(place, here.device.type),
            data=place.data,
            keep_samples=isinstance(place, Scored) and place.keep_samples,
            seeds=tuple(dict.fromkeys((isinstance(place, Chosen) and place.seeds) or chosen.default_seeds)),
        )


def _execution(place: Place, device: str) -> Execution:
    """The `Execution` settings from the options."""
    from recipes.core.spec import Execution

    if not isinstance(place, Laid):
        return Execution(device=device)
    return Execution(
        device=device,
        micro_batch=place.micro_batch,
        compile=device == "cuda" if place.compile is None else place.compile,
        checkpointing=place.checkpointing,
        threads=place.threads,
        save_every=place.save_every,
        save_minutes=place.save_minutes,
        keep=place.keep,
        on_nan=place.on_nan.value,
    )


def variants_of(suite: Suite, chosen: Sequence[str] | None) -> list[str]:
    """The suite's recipes that were asked for, each once.

    Raises:
        UserError: it has no such recipe.
    """
    for variant in chosen or ():
        if variant not in suite.variants:
            raise UserError(
                f"--recipes: suite {suite.name} has no recipe '{variant}'.{nearest(variant, suite.variants)}"
            )
    return list(dict.fromkeys(chosen or suite.default_variants))


def store_of(cache: Path | None) -> Store:
    """The cache that was named, or the user's.

    Raises:
        UserError: it is not there and cannot be made.
    """
    from harness.assets.cache import Store
    from recipes.core.content import CACHE_VARIABLE, default_cache

    root = (cache or default_cache()).absolute()  # what is registered in it is named by its whole path
    os.environ[CACHE_VARIABLE] = str(root)  # hashes of what was read, and the worker processes', lie there too
    if not root.is_dir():  # one that is there may be shared and not ours to write to
        refuse_unwritable("--cache", root)
    return Store(root)


def jobs_of(session: Session, jobs: int | None) -> int:
    """Number of parallel runs: --jobs, else min(cores, suite.jobs); 1 where a run needs the whole machine.

    Raises:
        UserError: several are wanted where one has the whole machine.
    """
    from harness.pipeline.parallel import cores

    here = session.world
    if here.device.type != "cpu" or here.size > 1 or session.suite.threads is None:
        small = "a suite whose runs have one thread each (digits, smoke), on the CPU and without torchrun"
        refuse_idle({"--jobs": jobs is not None}, small)
        return 1
    return min(session.suite.jobs, cores()) if jobs is None else jobs


def work_of(session: Session, jobs: int | None, runs: int) -> Work:
    """How the runs of a grid are worked on: one after the other, or several at a time."""
    from harness.pipeline.parallel import at_once
    from harness.pipeline.run_suite import in_turn

    most = jobs_of(session, jobs)
    return at_once(most) if min(most, runs) > 1 else in_turn
