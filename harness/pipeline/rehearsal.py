"""Estimates the duration of a whole comparison (digits suites, CPU) by running every stage briefly and scaling up.

Nothing is looked up: the suite's own stages are rehearsed for a few steps, images and samples each, in a folder that is
thrown away, and what one unit took is multiplied. Seconds are of the processor: such a suite has one thread, so they
are the wall clock of a quiet machine, however busy this one is now.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time

from harness.assets.cache import Store
from harness.pipeline import score, tokenizers, train
from harness.pipeline import session as pipeline_session
from harness.pipeline.pace import QUIET_SECONDS, QUIET_STEPS
from harness.pipeline.probe import WARM_UP
from harness.preparation.base import PreparationContext
from harness.preparation.prepare import prepare
from harness.runtime.progress import Reporter
from harness.sampling.protocol import Protocol
from harness.suites.base import Budget, draws_of
from harness.suites.digits import DigitsSuite
from recipes.core.distributed import World
from recipes.core.spec import Execution

#: Training steps of each network that the preparation trains, in a rehearsal.
STEPS = 12
#: Images of each set.
IMAGES = 1024


@dataclass(frozen=True)
class Whole:
    """A comparison from its start to its report."""

    jobs: int
    """Runs at a time."""
    seconds: dict[str, float]
    """Seconds of each stage, in their order, on a quiet machine."""
    busy: float
    """How many times as long it takes while the machine is as busy as during the rehearsal."""
    cached: tuple[str, ...]
    """Assets that are there already."""
    rehearsed: float
    """Seconds that the rehearsal took."""


@dataclass(frozen=True)
class Costs:
    """What was measured."""

    preparation: dict[str, float]
    """Seconds that each asset of the whole suite takes to make."""
    examination: float
    """Seconds for the tokenizer's own quality and the noise floor."""
    sample: dict[str, float]
    """By protocol: seconds for one sample, drawn and judged."""
    report: float
    """Seconds."""


def rehearse(suite: DigitsSuite, execution: Execution, report: Callable[[Path], object]) -> Costs:
    """Prepare, train a step, score and report a suite of the same networks with few steps, images and samples.

    Args:
        suite: whose costs are asked for.
        execution: how it would be laid out.
        report: writes the report of a results folder.
    """
    small, variant = _shortened(suite), suite.default_variants[0]
    with TemporaryDirectory(prefix="repa-bench-plan-") as place:
        watch, store, folder = _Watch(), Store(Path(place) / "cache"), Path(place) / "results"
        session = pipeline_session.Session(
            small, Budget(steps=1, score_every=1), folder, store, watch, execution=execution
        )
        with pipeline_session.threads_of(session):
            prepared = prepare(small, PreparationContext(store, watch, World(), execution), [variant])
        preparation = {made.label: _scaled(made, suite) for made in watch.made}
        examination = _timed(lambda: tokenizers.examine(session, prepared, [variant]))
        run = train.train(session, prepared, variant, 0)
        sample = {}
        for protocol in dict.fromkeys((small.curve_protocol, *small.final_protocols)):
            one = [prepared.evaluation(run, 1, protocol)]
            seconds = _timed(partial(score.score_evaluations, session, prepared, one, "score"))
            sample[protocol.name] = seconds / protocol.samples
        judged = min(tokenizers.RECONSTRUCTED, suite.data.reference)
        return Costs(preparation, examination * judged / IMAGES, sample, _timed(lambda: report(folder)))


def whole(
    suite: DigitsSuite,
    budget: Budget,
    steps: Mapping[str, float],
    seeds: int,
    costs: Costs,
    *,
    cached: Sequence[str],
    jobs: int,
    start: float,
) -> dict[str, float]:
    """Wall clock of each stage of a comparison.

    Args:
        suite: see `rehearse`.
        budget: of each run.
        steps: seconds of a training step of each variant.
        seeds: how many of each variant.
        costs: of everything else.
        cached: assets that need not be made.
        jobs: runs at a time.
        start: seconds until a process works.
    """
    runs = {
        (variant, seed): budget.steps * step
        + scoring(suite, budget, costs, first=seed == 0)
        + costs.examination * suite.run_spec(variant, 0, {}).method.needs.tokenizer
        for variant, step in steps.items()
        for seed in range(seeds)
    }
    at_once = min(jobs, len(runs))
    stages = {
        "start": start,
        "preparation": sum(seconds for name, seconds in costs.preparation.items() if name not in cached),
        "tokenizer and noise floor": costs.examination,
    }
    if at_once > 1:  # see `harness.pipeline.parallel`: paces first, then processes that have to start too
        stages["pace"] = seeds * sum(map(_pace, steps.values()))
        stages["start of the workers"] = start
    stages["training and scoring"] = _makespan(list(runs.values()), at_once)
    return stages | {"report": costs.report}


def scoring(suite: DigitsSuite, budget: Budget, costs: Costs, *, first: bool) -> float:
    """Seconds to draw and judge the samples of one run; of the grid's `first` seed there are more."""
    return sum(p.samples * costs.sample[p.name] for _, p, _ in draws_of(suite, budget, first=first))


@dataclass
class _Made:
    """Timings of a preparation stage."""

    label: str
    times: list[float]
    """The clock at its begin, at each unit's end, and at its end."""


class _Watch(Reporter):
    """Silent reporter that records the CPU time after each unit of each stage."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.made: list[_Made] = []

    @contextmanager
    def stage(self, label: str, total: int, start: int = 0) -> Iterator[Callable[[int], None]]:
        """See `Reporter.stage`."""
        times = [process_time()]
        yield lambda done: times.append(process_time())
        self.made.append(_Made(label, [*times, process_time()]))


def _scaled(made: _Made, suite: DigitsSuite) -> float:
    """Seconds that a stage takes in the whole suite."""
    trained = {
        "features": suite.features.training.steps,
        "encoder": suite.encoder.training.steps,
        "tokenizer": suite.tokenizer.training.steps,
    }
    images = (suite.data.reference if made.label.startswith("reference") else suite.data.train) / IMAGES
    spans = [b - a for a, b in zip(made.times, made.times[1:], strict=False)]
    if made.label not in trained:
        return sum(spans) * images
    # The first steps are slow, and after the last one the network looks at the reference.
    return trained[made.label] * median(spans[WARM_UP:-1]) + spans[-1] * suite.data.reference / IMAGES


def _shortened(suite: DigitsSuite) -> DigitsSuite:
    """The suite with few steps, images and samples."""
    parts = {
        name: part.model_copy(update={"training": part.training.model_copy(update={"steps": STEPS})})
        for name in ("features", "encoder", "tokenizer")
        for part in (getattr(suite, name),)
    }

    def few(protocol: Protocol) -> Protocol:
        return protocol.model_copy(update={"samples": suite.chunk, "manifold_size": suite.chunk})

    return suite.model_copy(
        update={
            **parts,
            "data": suite.data.model_copy(update={"train": IMAGES, "reference": IMAGES}),
            "curve_protocol": few(suite.curve_protocol),
            "final_protocols": tuple(map(few, suite.final_protocols)),
            "max_rfid": 1e9,  # a tokenizer of a few steps is bad
        }
    )


def _timed(work: Callable[[], object]) -> float:
    began = process_time()
    work()
    return process_time() - began


def _pace(step: float) -> float:
    """Seconds that `harness.pipeline.pace.measure` takes."""
    return WARM_UP * step + max(QUIET_SECONDS, QUIET_STEPS * step)


def _makespan(runs: Sequence[float], jobs: int) -> float:
    """Makespan of longest-first scheduling on `jobs` workers."""
    free = [0.0] * jobs
    for seconds in sorted(runs, reverse=True):
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)
