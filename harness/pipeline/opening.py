"""Open a `Session` (suite, results folder, cache, process group) from what a person named, and work on its grid.

Shared by the commands and the Python functions of `harness.api`. Heavy imports stay inside the functions, so that a
mistyped option answers at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.runtime.refusals import refuse_idle, refuse_unwritable, whole
from recipes.core.errors import UserError, nearest

if TYPE_CHECKING:
    from harness.assets.cache import Store
    from harness.pipeline.run_suite import Work
    from harness.pipeline.session import Session
    from harness.suites.base import Budget, Suite
    from recipes.core.spec import Execution


#: A GPU's images are read by so many.
MOST_THREADS = 8


@dataclass(frozen=True)
class Choice:
    """What is to be compared, where to and for how long."""

    suite: Suite
    variants: tuple[str, ...]
    """Those that are wanted."""
    folder: Path
    """Of the results."""
    budget: Budget


def choose(
    name: str,
    recipes: Sequence[str] | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    axes: Mapping[str, Sequence[Any]] = {},
    recipe_files: Sequence[Path] = (),
    out: Path | None = None,
    steps: int | None = None,
    score_every: int | None = None,
) -> Choice:
    """A suite with what was changed of it. What is None is the suite's own.

    Args:
        name: of a suite.
        recipes: the variants that are wanted.
        overrides: dotted keys of the suite with new values; its results go to a folder of their own.
        axes: by key, values of which each gives a variant; see `harness.suites.grid`.
        recipe_files: Python files with recipes that are not of this tree.
        out: the results folder; by default runs/SUITE.
        steps: the last effective step.
        score_every: steps between scored checkpoints.

    Raises:
        UserError: something that was named does not exist.
    """
    from harness.suites import suite, tried
    from harness.suites.base import Budget
    from harness.suites.grid import with_grid
    from recipes.recipe_files import use_files

    steps = None if steps is None else whole("--steps", steps, 1)
    score_every = None if score_every is None else whole("--score-every", score_every, 1)
    use_files(recipe_files)
    chosen = suite(name, overrides)
    changed = chosen.identity() != suite(name).identity()
    folder = out or Path("runs") / (f"{chosen.name}-{chosen.identity()[:8]}" if changed else chosen.name)
    budget = Budget(
        steps=steps or chosen.budget.steps,
        score_every=score_every or min(chosen.budget.score_every, steps or 10**9),
    )
    varied, variants = with_grid(chosen, _variants_of(chosen, recipes, axes), axes)
    if axes:
        tried(varied, variants, "--grid")
    return Choice(varied, tuple(variants), folder, budget)


@contextmanager
def opened(
    choice: Choice,
    *,
    cache: Path | None = None,
    data: str | None = None,
    device: str = "auto",
    seeds: Sequence[int] | None = None,
    layout: Mapping[str, Any] = {},
    keep_samples: bool = False,
    wandb: str | None = None,
    writes: bool = True,
    quiet: bool = False,
) -> Iterator[Session]:
    """Open a `Session`; joins the process group under torchrun.

    Args:
        choice: see `choose`.
        cache: where assets are kept.
        data: where the images lie, for suites that read them.
        device: cpu, cuda, or auto: a GPU if the suite wants one.
        seeds: training seeds; the suite's own if None.
        layout: fields of `Execution`. What is None is for us to choose: GPUs compile, and the cores are divided among
            the processes of this machine, at most 8 threads for each.
        keep_samples: see `Session`.
        wandb: see `Session`.
        writes: whether anything is written to the results folder.
        quiet: say nothing of the progress.

    Raises:
        UserError: something that was named does not exist, or is not ours to write to.
    """
    from harness.pipeline.session import Session
    from harness.runtime.progress import Reporter
    from recipes.core.distributed import world

    suite = choice.suite
    if writes:
        refuse_unwritable("--out", choice.folder)
    if wandb is not None and find_spec("wandb") is None:
        raise UserError("--wandb: wandb is not installed here; `pip install repa-bench[wandb]` brings it.")
    if wandb is not None and (not wandb or set(wandb) & set("/\\#?%:")):
        raise UserError(f"--wandb {wandb}: the name of a project has none of / \\ # ? % : and is not empty.")
    if data is not None and not suite.reads_data:
        raise UserError(f"--data: suite {suite.name} makes its own data and reads none of yours; leave it out.")
    with world("cpu" if device == "auto" and not suite.wants_gpu else device) as here:
        yield Session(
            suite,
            choice.budget,
            choice.folder,
            store_of(cache),
            Reporter(quiet=quiet or not here.main),
            world=here,
            execution=_execution(here.device.type, layout),
            data=data,
            keep_samples=keep_samples,
            wandb=wandb,
            variants=choice.variants,
            seeds=tuple(dict.fromkeys(whole("--seeds", seed, 0) for seed in seeds or suite.default_seeds)),
        )


def _execution(device: str, layout: Mapping[str, Any]) -> Execution:
    from harness.pipeline.parallel import cores
    from recipes.core.spec import Execution

    here = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    wanted = {"threads": min(here, MOST_THREADS), **{key: value for key, value in layout.items() if value is not None}}
    if layout.get("compile", False) is None:
        wanted["compile"] = device == "cuda"
    return Execution(**wanted, device=device)


def _variants_of(suite: Suite, chosen: Sequence[str] | None, axes: Mapping[str, Any]) -> list[str]:
    """The suite's recipes that were asked for, each once; with axes, of some one value of each.

    Raises:
        UserError: it has no such recipe.
    """
    from harness.suites.grid import MARK

    for variant in chosen or ():
        if (variant.partition(MARK)[0] if axes else variant) not in suite.variants:
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
    return min(session.suite.jobs, cores()) if jobs is None else whole("--jobs", jobs, 1)


def work_of(session: Session, jobs: int | None, runs: int) -> Work:
    """How the runs of a grid are worked on: one after the other, or several at a time."""
    from harness.pipeline.parallel import at_once
    from harness.pipeline.run_suite import in_turn

    most = jobs_of(session, jobs)
    return at_once(most) if min(most, runs) > 1 else in_turn


def run_grid(session: Session, variants: Sequence[str], seeds: Sequence[int], jobs: int | None) -> None:
    """Prepare, train and score every variant with every seed.

    Raises:
        UserError: see `jobs_of` and `harness.pipeline.run_suite`.
    """
    from harness.pipeline.run_suite import run_suite

    work = work_of(session, jobs, len(variants) * len(seeds))
    session.reporter.note(
        f"{session.suite.name} ({session.suite.notice}): {', '.join(variants)}; seeds "
        f"{', '.join(map(str, seeds))}; {session.budget.steps} steps -> {session.folder}"
    )
    run_suite(session, variants, seeds, work)
