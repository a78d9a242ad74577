"""How fast a run's steps are on this machine, and what memory they take: real steps on random data."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

import torch

from recipes.core.data import Batch
from recipes.core.distributed import World
from recipes.core.draws import KeyedDraws
from recipes.core.spec import Execution
from recipes.models.autoencoder import Autoencoder
from recipes.models.discriminator import PatchDiscriminator
from recipes.models.encoder import Encoder
from recipes.models.perceptual import Perceptual
from recipes.run import RunSpec, TrainingInputs, build_trainer, flops_per_step

WARM_UP = 3


@dataclass(frozen=True)
class Probe:
    """What was measured."""

    steps: int
    seconds_per_step: float
    images_per_second: float
    peak_bytes: int
    """Of the device's allocator; on the CPU, of the process."""
    flops_per_second: float
    """Floating-point operations of the specification's step (see `flops_per_step`) over the step's time."""


def random_inputs(spec: RunSpec) -> TrainingInputs:
    """Networks with random weights in the places of the specification's frozen ones; they cost the same."""
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
    rows = torch.arange(trainer.rows.start, trainer.rows.stop, device=world.device)
    batch = random_batch(spec, len(rows), side).to(world.device)

    def step() -> None:
        trainer.train_step(batch, KeyedDraws(0, trainer.position, rows))

    for _ in range(WARM_UP):
        step()
    _synchronize(world)
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)
    began, steps = time.perf_counter(), 0
    while steps == 0 or (time.perf_counter() - began < seconds and steps != max_steps):
        step()
        _synchronize(world)
        steps += 1
    each = (time.perf_counter() - began) / steps
    flops = flops_per_step(spec, side)
    return Probe(steps, each, spec.train.batch_size / each, _peak(world), flops / each)


def _synchronize(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)


def _peak(world: World) -> int:
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated(world.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
