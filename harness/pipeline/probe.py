"""How fast a run's steps are on this machine, and what memory they take: real steps on random data."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

import torch

from recipes.core.batch import Batch
from recipes.core.distributed import World
from recipes.core.loop import Trainer
from recipes.core.spec import Execution
from recipes.models.autoencoder import Autoencoder
from recipes.models.discriminator import PatchDiscriminator
from recipes.models.encoder import Encoder
from recipes.models.perceptual import Perceptual
from recipes.training.build import build_trainer
from recipes.training.flops import flops_per_step
from recipes.training.spec import RunSpec, TrainingInputs

WARM_UP = 3


@dataclass(frozen=True)
class Probe:
    """What was measured."""

    steps: int
    seconds_per_step: float
    images_per_second: float
    peak_bytes: int
    """Peak memory of the device's allocator; on the CPU, of the process."""
    flops_per_second: float
    """Floating-point operations of the specification's step (see `flops_per_step`) over the step's time."""


def random_inputs(spec: RunSpec) -> TrainingInputs:
    """Random-weight stand-ins for the frozen networks, of the same cost."""
    joint = "vae" in spec.train.optimizers
    return TrainingInputs(
        data=random_batch(spec, 1, spec.sit.latent_size * spec.tokenizer.factor),
        tokenizer=Autoencoder(spec.tokenizer) if joint else None,
        latent_mean=torch.zeros(spec.sit.channels),
        latent_std=torch.ones(spec.sit.channels),
        encoders=tuple(Encoder(encoder) for encoder in spec.encoders),
        perceptual=Perceptual(input_range=spec.perceptual) if spec.perceptual else None,
        discriminator=PatchDiscriminator(spec.discriminator) if "discriminator" in spec.train.optimizers else None,
    )


def random_batch(spec: RunSpec, count: int, side: int) -> Batch:
    """A batch of the specification's shapes; encoder tokens only where no encoder is there to make them."""
    g = torch.Generator().manual_seed(0)
    latent = (count, spec.sit.channels, spec.sit.latent_size, spec.sit.latent_size)
    stored = spec.sit.encoder_widths if not spec.encoders else ()
    return Batch(
        images=torch.randint(0, 256, (count, 3, side, side), generator=g, dtype=torch.uint8),
        labels=torch.randint(0, spec.sit.num_classes, (count,), generator=g),
        features=tuple(torch.randn(count, spec.sit.tokens, width, generator=g) for width in stored),
        class_tokens=tuple(torch.randn(count, width, generator=g) for width in stored),
        attention=tuple(
            torch.randn(count, 4, spec.sit.tokens, spec.sit.tokens, generator=g) for _ in spec.method.needs.attention
        ),
        mean=torch.randn(latent, generator=g),
        std=torch.rand(latent, generator=g),
    )


def probe(spec: RunSpec, seconds: float, *, execution: Execution, world: World, max_steps: int | None = None) -> Probe:
    """Train on one random batch for about so long, after a warm-up in which kernels are compiled.

    Args:
        spec: what to train.
        seconds: of measurement; at least one step is made.
        execution: device, parts, compilation.
        world: this process.
        max_steps: stop earlier.
    """
    side = spec.sit.latent_size * spec.tokenizer.factor
    trainer = build_trainer(spec, random_inputs(spec), execution=execution, world=world)
    batch = random_batch(spec, trainer.rows.stop - trainer.rows.start, side).to(world.device)
    times = step_times(trainer, ((position, batch) for position in count()), seconds, most=max_steps)
    each = sum(times) / len(times)
    flops = flops_per_step(spec, side)
    return Probe(len(times), each, spec.train.batch_size / each, _peak(world), flops / each)


def step_times(
    trainer: Trainer, stream: Iterable[tuple[int, Batch]], seconds: float, *, least: int = 1, most: int | None = None
) -> list[float]:
    """Train for about so long, after a warm-up in which kernels are compiled.

    Args:
        trainer: at step 0.
        stream: endless (position, batch) pairs from position 0 on.
        seconds: of measurement.
        least: make so many steps however long they take.
        most: stop earlier.

    Returns:
        Seconds of each step, from the end of one to the end of the next.
    """
    done, world = trainer.train(stream), trainer.world
    for _ in range(WARM_UP):
        next(done)
    _synchronize(world)
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)
    times: list[float] = []
    began = last = time.perf_counter()
    while len(times) < least or (last - began < seconds and len(times) != most):
        next(done)
        _synchronize(world)
        now = time.perf_counter()
        times.append(now - last)
        last = now
    return times


def _synchronize(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)


def _peak(world: World) -> int:
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated(world.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
