"""Estimates the cost of a comparison before it is run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from harness.assets import catalogue
from harness.assets.cache import Store
from harness.pipeline.cache_contents import made_by
from harness.pipeline.probe import Probe, probe
from harness.pipeline.rehearsal import Whole, rehearse, scoring, whole
from harness.pipeline.stages import (
    SHARD_BYTES,
    Rates,
    Stage,
    draws,
    flops_per_evaluation,
    lost_to_a_kill,
    stages_of,
    storage_of,
)
from harness.results.confidence import SeedNoise, detectable, seeds_to_detect
from harness.results.noise import NOISE
from harness.suites.base import IMAGENET_TRAIN, Budget, Suite
from harness.suites.digits import DigitsSuite
from recipes.core.distributed import World
from recipes.core.errors import UserError
from recipes.core.precision import Precision
from recipes.core.spec import Execution
from recipes.data.latents import disk_estimate
from recipes.training.build import build_networks, layout
from recipes.training.flops import flops_to
from recipes.training.spec import RunSpec

#: A lossless PNG of a photograph takes about 0.6 of its pixels.
PNG_SHARE = 0.6
#: Bytes for each parameter in training: float32 weights, gradients and two moments.
STATE_BYTES = 16


@dataclass(frozen=True)
class VariantPlan:
    """One variant with all its seeds."""

    variant: str
    label: str
    seeds: int
    steps: int
    batch_size: int
    layout: str
    parameters: dict[str, int]
    """Number of parameters of each trained network."""
    flops_per_step: int
    training_flops: float
    """Floating-point operations of training, all seeds together."""
    sampling_flops: float
    """FLOPs of all network evaluations for sampling; decoding and Inception are not counted."""
    sampling_seconds: float
    """What they take on one device, each in its protocol's number format."""
    state_bytes: int
    """Weights, gradients, moments and averages on the device; activations come on top."""
    flops_per_second: float
    """FLOP/s of one device: stated or measured."""
    peak_bytes: int | None
    """Measured on one device, if it was."""
    devices: int
    scoring_seconds: float | None = None
    """Seconds to sample and score all seeds, if rehearsed."""

    @property
    def device_hours(self) -> float:
        """Hours for training and scoring on one device; without a rehearsal, scoring is network evaluations alone."""
        if self.scoring_seconds is not None:
            return (self.training_flops / self.flops_per_second + self.scoring_seconds) / 3600
        return (self.training_flops / self.flops_per_second + self.sampling_seconds) / 3600


@dataclass(frozen=True)
class Shows:
    """What training seeds can show, by the rule of `harness.results.confidence` and the suite's sd over seeds."""

    noise: SeedNoise
    recipes: int
    """Number of recipes compared with the baseline."""
    smallest: float | None
    """Smallest speedup that the planned seeds detect with probability `CHANCE`; None if no speedup is."""
    factor: float | None
    """Speedup that was asked for."""
    seeds: int | None
    """How many seeds show it with the probability `CHANCE`."""
    device_hours: float | None
    """What these seeds cost."""


@dataclass(frozen=True)
class Rehearsal:
    """Extra inputs of a rehearsal."""

    report: Callable[[Path], object]
    """Writes the report of a results folder."""
    jobs: int
    """Runs at a time."""
    start: float
    """Start-up seconds of a process."""


@dataclass(frozen=True)
class Plan:
    """Everything that `repa-bench plan` reports."""

    cells: tuple[VariantPlan, ...]
    stages: tuple[Stage, ...]
    """Empty where the whole was rehearsed."""
    lost_seconds: float
    """Training that a process that dies without a word loses at most."""
    disk: dict[str, int]
    """Bytes that data and checkpoints will take, what is there already left out."""
    missing: dict[str, str]
    """Asset to the command that brings it."""
    throughput: str
    """How the throughput was obtained (measured or assumed)."""
    shows: Shows | None
    """None where the suite's spread over seeds is not known."""
    whole: Whole | None
    """From the start to the report; None where that was not rehearsed."""


def make_plan(
    suite: Suite,
    budget: Budget,
    variants: Sequence[str],
    seeds: int,
    *,
    store: Store,
    execution: Execution,
    world: World,
    devices: int,
    rates: Rates,
    seconds: float | None,
    detect: float | None = None,
    rehearsal: Rehearsal | None = None,
) -> Plan:
    """Count what every cell costs.

    Args:
        suite: what would be run.
        budget: for how long.
        variants: which of it.
        seeds: how many training seeds each.
        store: where assets would be.
        execution: how steps would be laid out.
        world: where a probe runs.
        devices: that training would be spread over.
        rates: of one device, and of preparing images.
        seconds: measure each variant for so long instead.
        detect: a speedup that is to be shown.
        rehearsal: of the rest, for a suite that makes its own data and is measured on the CPU.

    Raises:
        UserError: a speedup is to be shown on a suite whose spread over seeds is not known.
    """
    specs = {variant: suite.run_spec(variant, 0, {}) for variant in variants}
    began = time.perf_counter(), time.process_time()
    measured = {
        variant: _probe(spec, seconds, execution, world) if seconds else None for variant, spec in specs.items()
    }
    scored, complete = None, None
    if rehearsal is not None and isinstance(suite, DigitsSuite):
        scored, complete = _whole(suite, budget, measured, seeds, store, execution, rehearsal, began)
    cells = [
        _cell(suite, budget, spec, seeds, execution, devices, rates, measured[variant], scored)
        for variant, spec in specs.items()
    ]
    throughput = (
        f"measured for {seconds:g} s a variant on {world.device.type}, one process"
        if seconds
        else f"{rates.source}, sustained on each device (--tflops; measure with --probe 60)"
    )
    shows = _shows(suite, cells, seeds, detect)
    missing = _missing(suite, variants, store)
    slowest = max((cell.flops_per_step / cell.flops_per_second / devices for cell in cells), default=0.0)
    lost = lost_to_a_kill(slowest, execution.save_minutes, execution.save_every, budget.steps)
    stages: list[Stage] = []
    if complete is None:
        stages = stages_of(
            suite, budget, specs, seeds, _measured(rates, specs, measured),
            images=_lacks_images(suite, variants, store), latents=_lacks_latents(suite, variants, store),
        )  # fmt: skip
    disk = _disk(suite, variants, store, cells, execution, budget)
    return Plan(tuple(cells), tuple(stages), lost, disk, missing, throughput, shows, complete)


def _probe(spec: RunSpec, seconds: float, execution: Execution, world: World) -> Probe:
    """Probe; on the CPU scaled by CPU time / wall time, as if the machine were idle."""
    wall, processor = time.perf_counter(), time.process_time()
    found = probe(spec, seconds, execution=execution, world=world)
    if world.device.type != "cpu":
        return found
    free = min(1.0, (time.process_time() - processor) / (time.perf_counter() - wall))
    return replace(
        found,
        seconds_per_step=found.seconds_per_step * free,
        images_per_second=found.images_per_second / free,
        flops_per_second=found.flops_per_second / free,
    )


def _measured(rates: Rates, specs: Mapping[str, RunSpec], measured: Mapping[str, Probe | None]) -> Rates:
    """Rates, with that of the first variant's training in the place of one that was assumed, if it was measured."""
    for variant, found in measured.items():
        if found is not None:
            known = {specs[variant].train.precision: found.flops_per_second}
            return replace(rates, flops={**known, **rates.flops, **known}, source="measured or given")
    return rates


def _whole(
    suite: DigitsSuite,
    budget: Budget,
    measured: Mapping[str, Probe | None],
    seeds: int,
    store: Store,
    execution: Execution,
    rehearsal: Rehearsal,
    began: tuple[float, float],
) -> tuple[float, Whole]:
    """Rehearse and extrapolate; returns (scoring seconds of one variant's seeds, whole comparison).

    What was measured so far began at the seconds `began` of the wall clock and of the processor.
    """
    wall, processor = began
    steps = {variant: one.seconds_per_step for variant, one in measured.items() if one is not None}
    costs = rehearse(suite, execution, rehearsal.report)
    there = tuple(path.name.removeprefix("digits-").rpartition("-")[0] for path in made_by(suite, store))
    stages = whole(suite, budget, steps, seeds, costs, cached=there, jobs=rehearsal.jobs, start=rehearsal.start)
    scored = sum(scoring(suite, budget, costs, first=number == 0) for number in range(seeds))
    took = time.perf_counter() - wall
    busy = max(1.0, took / (time.process_time() - processor))
    return scored, Whole(rehearsal.jobs, stages, busy, there, took)


def _shows(suite: Suite, cells: Sequence[VariantPlan], seeds: int, detect: float | None) -> Shows | None:
    noise, recipes = NOISE.get(suite.name), max(1, len(cells) - 1)
    if noise is None:
        if detect is not None:
            raise UserError(f"--detect: how far FID spreads over training seeds on suite {suite.name} is not known.")
        return None
    needed = None if detect is None else seeds_to_detect(detect, noise, recipes)
    hours = None if needed is None else sum(cell.device_hours for cell in cells) * needed / seeds
    return Shows(noise, recipes, detectable(seeds, noise, recipes), detect, needed, hours)


def _cell(
    suite: Suite,
    budget: Budget,
    spec: RunSpec,
    seeds: int,
    execution: Execution,
    devices: int,
    rates: Rates,
    measured: Probe | None,
    scoring_seconds: float | None,
) -> VariantPlan:
    with torch.device("meta"):
        networks = build_networks(spec)
    trained = {"sit": networks.sit, "vae": networks.vae, "discriminator": networks.discriminator}
    parameters = {k: sum(p.numel() for p in n.parameters()) for k, n in trained.items() if n is not None}
    total, sit = sum(parameters.values()), parameters["sit"]
    milestones = budget.milestones()
    flops = flops_to(spec, suite.image_size, milestones[-1])
    per_image, sampling = float(flops_per_evaluation(spec)), dict[Precision, float]()
    for protocol, sets in draws(suite, budget, seeds):
        evaluations = sets * protocol.samples * protocol.nfe
        sampling[protocol.precision] = sampling.get(protocol.precision, 0.0) + evaluations * per_image
    mine = _measured(rates, {spec.variant: spec}, {spec.variant: measured})
    kind = "cuda" if suite.wants_gpu and measured is None else execution.device
    return VariantPlan(
        variant=spec.variant,
        label=suite.variants[spec.variant].label,
        seeds=seeds,
        steps=milestones[-1],
        batch_size=spec.train.batch_size,
        layout=str(layout(spec, execution, World(size=devices, device=torch.device(kind)))),
        parameters=parameters,
        flops_per_step=flops // milestones[-1],
        training_flops=float(flops) * seeds,
        sampling_flops=sum(sampling.values()),
        sampling_seconds=sum(flops / mine.of(precision)[0] for precision, flops in sampling.items()),
        state_bytes=STATE_BYTES * total + 4 * sit,
        flops_per_second=measured.flops_per_second if measured else rates.of(spec.train.precision)[0],
        peak_bytes=measured.peak_bytes if measured else None,
        devices=devices,
        scoring_seconds=scoring_seconds,
    )


def _disk(
    suite: Suite,
    variants: Sequence[str],
    store: Store,
    cells: Sequence[VariantPlan],
    execution: Execution,
    budget: Budget,
) -> dict[str, int]:
    """Bytes by what takes them. With one run at a time, their sum is the most that is there at once."""
    saved = [storage_of(cell.parameters, len(budget.milestones()), execution.keep) for cell in cells]
    disk = {
        "checkpoints of all runs": sum(one.finished * cell.seeds for one, cell in zip(saved, cells, strict=True)),
        "one more while a run trains (for each run at a time)": max((one.working for one in saved), default=0),
        "features of samples, until they are scored": SHARD_BYTES
        * max(p.samples for p in (suite.curve_protocol, *suite.final_protocols)),
    }
    pixels = 3 * suite.image_size**2
    if _lacks_images(suite, variants, store):
        disk["images, lossless PNG"] = int(IMAGENET_TRAIN * pixels * PNG_SHARE)
    for name in _lacks_latents(suite, variants, store):
        shape, dtype = suite.latents_of(variants)[name]
        disk[f"latents of {name}, {dtype}"] = disk_estimate(IMAGENET_TRAIN, shape[0], shape[1], dtype)
    return disk


def _lacks_images(suite: Suite, variants: Sequence[str], store: Store) -> bool:
    wanted = any("images" in suite.needs(variant) for variant in variants)
    return wanted and catalogue.find(store, "images") is None


def _lacks_latents(suite: Suite, variants: Sequence[str], store: Store) -> list[str]:
    there = store.root / "latents"
    return [name for name in suite.latents_of(variants) if not list(there.glob(f"{name}-*/manifest.json"))]


def _missing(suite: Suite, variants: Sequence[str], store: Store) -> dict[str, str]:
    names = dict.fromkeys([name for variant in variants for name in suite.needs(variant)] + suite.scored_by())
    out = {}
    for name in names:
        if catalogue.find(store, name) is None:
            known = catalogue.source(name)
            out[name] = f"repa-bench fetch {name}" if known.hub or known.url else known.about
    return out
