"""What a notebook or a script calls, as `harness.load` and so on: each function does what a command does, and gives the
same numbers.

Like `harness.cli` it may import everything, and nothing but `harness/__init__.py` imports it. Where a sentence of a
`UserError` names an option of the command, ``--recipes`` say, it means the argument of that name.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.pipeline.opening import choose, opened, run_grid, store_of
from harness.pipeline.score_files import opened_job
from harness.records.schema import AnyRecord
from harness.results import merging
from harness.results.comparison import BASELINE, Comparison, compared
from harness.results.curves import Selection
from harness.results.rows import score_rows
from harness.runtime.refusals import whole
from harness.scoring import score_images
from harness.scoring.image_sets import TensorImages, open_samples
from recipes.core.content import CACHE_VARIABLE
from recipes.core.errors import UserError
from recipes.recipe_files import VARIABLE
from reports.summary import CurveSummary, Shown, Summary, summarize_comparison
from reports.table import Table

#: One name (or several with commas between), or several.
Names = str | Iterable[str]
PathLike = str | os.PathLike[str]


@dataclass(frozen=True, repr=False)
class Results(Shown):
    """The scores of one results folder or several; a notebook shows the tables that `repa-bench run` prints."""

    comparison: Comparison
    """Everything that reports are made of; no stable interface."""
    placed: tuple[tuple[Path, AnyRecord], ...]
    """Every record with its folder."""

    @property
    def records(self) -> list[dict[str, Any]]:
        """A flat dictionary for each score, with the columns of a report's results.csv; a table for
        ``pandas.DataFrame``.

        Losses of training are not among them; ``log.jsonl`` of a run's folder has these.
        """
        return score_rows(self.comparison)

    @property
    def recipes(self) -> dict[str, str]:
        """What each recipe is called, by its name: the baseline first."""
        return self.comparison.variants

    @property
    def protocol(self) -> str:
        """The protocol that speedups are read from, as `records` name it; others score the last checkpoint alone."""
        return self.comparison.protocol(self.comparison.curve_digest).protocol.label

    def text_tables(self) -> list[Table]:
        """What `repa-bench run` prints."""
        return Summary(self.comparison).text_tables()


def load(*folders: PathLike) -> Results:
    """Read results folders, as ``harness.load("runs/digits")``; several as one set.

    Raises:
        UserError: a folder without scores, or folders whose numbers must not stand in one table.
    """
    if not folders:
        raise UserError('name a results folder, as harness.load("runs/digits").')
    placed = merging.read([_path(folder) for folder in folders])
    return Results(compared(placed), tuple(placed))


def speedup(
    results: Results,
    recipes: Names | None = None,
    baseline: str = BASELINE,
    *,
    seeds: Iterable[int] | None = None,
    until: int | None = None,
    target: float | None = None,
) -> CurveSummary:
    """How much sooner recipes reach the baseline's last FID, in every currency, with intervals and verdicts.

    Verdicts are corrected for the number of recipes that are asked for together, so ask once, for all that you look at.

    Args:
        results: of `load` or `run`.
        recipes: one or several; by default all.
        baseline: what they are compared with.
        seeds: only these training seeds.
        until: only checkpoints up to this step.
        target: the FID to reach instead.

    Returns:
        a table when shown. ``rows`` is flat, for ``pandas.DataFrame``; ``as_dict()`` is what `repa-bench speedup
        --json` prints.

    Raises:
        UserError: there is no such recipe, seed, step or target.
    """
    selection = Selection(
        tuple(_several("--recipes", recipes, _names) or ()),
        tuple(_several("--seeds", seeds, _seeds) or ()),
        None if until is None else whole("--until", until, 1),
    )
    return summarize_comparison(compared(results.placed, selection, baseline=baseline), target=target)


def evaluate(
    images: Tensor | PathLike,
    reference: PathLike,
    *,
    metrics: Names | None = None,
    features: str = "inception",
    weights: PathLike | None = None,
    cache: PathLike | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """Score images against a reference, as `repa-bench score --samples ... --reference ... --json` does.

    Args:
        images: a uint8 tensor (N, 3, H, W) on any device; or a path: a folder, an .npz with ``arr_0``, a prepared set.
        reference: a path: ADM's .npz, or what `images` may be.
        metrics: names; by default fid, sfid, is, precision and recall.
        features: the feature network: inception, dinov2-vit-s, -b, -l or -g.
        weights: its file; by default what `repa-bench fetch` brought.
        cache: where assets are kept; by default $REPA_BENCH_CACHE or ~/.cache/repa-bench.
        device: cpu, cuda or auto.
        quiet: print no progress.

    Returns:
        each metric by its name, with its standard error (``NAME_se``) and floor (``NAME_floor``) where there is one;
        then numbers of images, digests, rules and warnings. Empty in all processes but the first under torchrun.

    Raises:
        UserError: images, a reference or weights that cannot be used, with the remedy.
    """
    names = _several("--metrics", metrics, _names)
    if not isinstance(images, Tensor | str | os.PathLike):
        raise UserError(
            f"the images are a {type(images).__name__}; give a path, or a uint8 tensor (N, 3, H, W): of an array "
            "x (N, H, W, 3), torch.from_numpy(x).permute(0, 3, 1, 2)."
        )
    with (
        _as_a_guest(),
        opened_job(
            store_of(_path_or_none(cache)),
            features=features,
            weights=_path_or_none(weights),
            metrics=None if names is None else ",".join(names),
            device=device,
            quiet=quiet,
        ) as job,
    ):
        samples = TensorImages(images) if isinstance(images, Tensor) else open_samples(_path(images), flag="--samples")
        return score_images.score(samples, _path(reference), job) or {}


def run(
    suite: str = "digits",
    recipes: Names | None = None,
    seeds: Iterable[int] | None = None,
    steps: int | None = None,
    out: PathLike | None = None,
    *,
    score_every: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    grid: Mapping[str, Iterable[Any]] | None = None,
    recipe_files: Iterable[PathLike] = (),
    data: str | None = None,
    cache: PathLike | None = None,
    device: str = "auto",
    jobs: int | None = None,
    quiet: bool = False,
) -> Results:
    """Prepare, train and score a suite, as `repa-bench run` does, and load the results.

    What is there is not done again: the same call continues an interrupted one (``recipes.core.errors.Stopped`` says
    that a signal or Ctrl-C came and everything is saved), and one with more seeds or steps adds them. No report is
    written; `repa-bench report` writes it.

    Args:
        suite: which; `repa-bench list` names them.
        recipes: which; by default the suite's.
        seeds: training seeds; by default the suite's.
        steps: the last effective step; by default the suite's.
        out: the results folder; by default runs/SUITE.
        score_every: steps between scored checkpoints; by default the suite's.
        overrides: dotted keys of the suite with new values, as ``{"sit.depth": 6}``; results go to a folder of their
            own.
        grid: a sweep, as ``{"options.alignment": [0.25, 0.5]}``: a variant for each value, in the same folder.
        recipe_files: Python files with recipes of yours.
        data: where the images lie, for suites that read them. A data set of the Hugging Face hub may be downloaded:
            commands set HF_HUB_OFFLINE to 1, which here is yours to set.
        cache: where assets are kept; by default $REPA_BENCH_CACHE or ~/.cache/repa-bench.
        device: cpu, cuda, or auto: a GPU if the suite wants one.
        jobs: runs at a time of suites that are small, on the CPU; by default one a core, as far as the suite goes.
        quiet: print no progress.

    Returns:
        all results of the folder, those of earlier calls too.

    Raises:
        UserError: something that was named does not exist, or does not fit what the folder holds.
    """
    with (
        _as_a_guest(),
        opened(
            choose(
                suite,
                _several("--recipes", recipes, _names),
                axes={key: list(values) for key, values in (grid or {}).items()},
                overrides=overrides,
                recipe_files=[_path(file) for file in recipe_files],
                out=_path_or_none(out),
                steps=steps,
                score_every=score_every,
            ),
            cache=_path_or_none(cache),
            data=data,
            device=device,
            seeds=_several("--seeds", seeds, list),
            layout={"compile": None},
            quiet=quiet,
        ) as session,
    ):
        run_grid(session, session.variants, session.seeds, jobs)
        session.world.barrier()  # the first process writes the last record
        return load(session.folder)


@contextmanager
def _as_a_guest() -> Iterator[None]:
    """Set back what commands set for their own process (the cache, recipes of files), and hide what libraries say when
    they are first imported.
    """
    before = {name: os.environ.get(name) for name in (CACHE_VARIABLE, VARIABLE)}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(diffusers|transformers|tqdm)\.")
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _several(flag: str, given: Any, listed: Callable[[Any], list[Any]]) -> list[Any] | None:
    """A list of what was given, None for None.

    Raises:
        UserError: nothing is in it, which might be read as everything.
    """
    if given is None:
        return None
    if not (found := listed(given)):
        raise UserError(f"{flag} names none; leave it out for the default.")
    return found


def _names(given: Names) -> list[str]:
    parts = given.split(",") if isinstance(given, str) else list(given)
    return [part.strip() for part in parts if part.strip()]


def _seeds(given: Iterable[int]) -> list[int]:
    return [whole("--seeds", seed, 0) for seed in given]


def _path(given: PathLike) -> Path:
    return Path(given).expanduser()


def _path_or_none(given: PathLike | None) -> Path | None:
    return None if given is None else _path(given)
