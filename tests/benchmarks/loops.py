"""Ways of training that a benchmark can step: the core, and the plain loop beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from benchmarks.plain_loop import PlainLoop, TorchDraws
from torch import nn

from harness.pipeline.probe import random_batch, random_inputs
from recipes.core.distributed import World
from recipes.core.draws import KeyedDraws
from recipes.core.spec import Execution
from recipes.training.build import build_networks, build_trainer
from recipes.training.flops import flops_per_step
from recipes.training.spec import RunSpec, TrainingInputs


def with_train(spec: RunSpec, **changes: int) -> RunSpec:
    return spec.model_copy(update={"train": spec.train.model_copy(update=changes)})


def image_side(spec: RunSpec) -> int:
    return spec.sit.latent_size * spec.tokenizer.factor


@dataclass
class Loop:
    """A way of training that can be stepped."""

    step: Callable[[], Any]
    images: int
    """Of one step."""
    modules: Sequence[nn.Module]
    """Everything that stays in memory between two steps: trained, averaged and frozen."""
    optimizers: Sequence[torch.optim.Optimizer]
    settings: dict[str, Any]
    """What it was measured with."""

    def held_bytes(self) -> int:
        """Weights, buffers and moments."""
        tensors = [t for m in self.modules for t in (*m.parameters(), *m.buffers())]
        tensors += [
            t for o in self.optimizers for s in o.state.values() for t in s.values() if isinstance(t, torch.Tensor)
        ]
        return sum(t.numel() * t.element_size() for t in tensors)


def seeded_inputs(spec: RunSpec) -> TrainingInputs:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return random_inputs(spec)


def core_loop(spec: RunSpec, execution: Execution, device: torch.device, *, ddp: bool = False) -> Loop:
    """`ddp`: DDP as with several processes, of which there is one: its hooks and buckets, and nothing sent."""
    inputs = seeded_inputs(spec)
    with device:  # weights are drawn there: on a CPU an XL takes seconds
        trainer = build_trainer(spec, inputs, execution=execution, world=World(device=device))
    if ddp:
        for reducer in trainer._reducers.values():
            reducer._ddp = reducer._over(reducer._parameters)
    count = spec.train.batch_size
    batch = random_batch(spec, count, image_side(spec)).to(device)
    items = torch.arange(count, device=device)
    frozen = [m for m in (*inputs.encoders, inputs.perceptual) if m is not None]
    return Loop(
        step=lambda: trainer.train_step(batch, KeyedDraws(0, trainer.position, items)),
        images=count,
        modules=[*trainer.recipe.networks.values(), *trainer.averages.values(), *frozen],
        optimizers=list(trainer.optimizers.values()),
        settings={
            "precision": spec.train.precision,
            "micro_batch": trainer.micro_batch,
            "compiled": execution.compile,
            "ddp": ddp,
        },
    )


def plain_loop(spec: RunSpec, device: torch.device, *, foreach: bool | None = False) -> Loop:
    inputs = seeded_inputs(spec)
    with device:
        networks = build_networks(
            spec, inputs.tokenizer, discriminator=inputs.discriminator, perceptual=inputs.perceptual
        )
    networks.sit.bn.start_from(inputs.latent_mean, inputs.latent_std)
    encoders = [encoder.to(device) for encoder in inputs.encoders]
    for network in (networks.sit, networks.vae, networks.discriminator, networks.perceptual):
        if network is not None:
            network.to(device)
    options = spec.method.options
    plain = PlainLoop(spec.recipe, networks, options, spec.train, encoders=encoders, foreach=foreach)
    count = spec.train.batch_size
    batch, draws = random_batch(spec, count, image_side(spec)).to(device), TorchDraws(count, device)
    frozen = [*encoders, *([networks.perceptual] if networks.perceptual is not None else [])]
    return Loop(
        step=lambda: plain.step(batch, draws),
        images=count,
        modules=[*plain.models.values(), plain.ema, *frozen],
        optimizers=list(plain.optimizers.values()),
        settings={"precision": "tf32" if device.type == "cuda" else "fp32", "part": count, "compiled": False},
    )


@lru_cache
def flops_per_image(spec_json: str) -> float:
    spec = RunSpec.model_validate_json(spec_json)
    return flops_per_step(spec, image_side(spec)) / spec.train.batch_size
