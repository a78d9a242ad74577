"""FLOPs of training, counted on meta tensors."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import torch
from torch.utils.flop_counter import FlopCounterMode

from recipes.core.batch import Batch
from recipes.core.draws import KeyedDraws
from recipes.core.step import Step
from recipes.models.encoder import Encoder
from recipes.models.perceptual import Perceptual
from recipes.training.build import build_networks, complete
from recipes.training.spec import RunSpec


def flops_to(spec: RunSpec, image_size: int, steps: int) -> int:
    """Floating-point operations of the first `steps` training steps, as the recipe's schedule has them."""
    changes = [0, *spec.method.changes, steps]
    return sum(
        (min(end, steps) - begin) * flops_per_step(spec, image_size, begin)
        for begin, end in pairwise(changes)
        if begin < min(end, steps)
    )


def flops_per_step(spec: RunSpec, image_size: int, number: int = 0) -> int:
    """Floating-point operations of training step `number`, forward and backward, a multiply-add counted as two.

    Counted by PyTorch's `FlopCounterMode` (matrix products, convolutions, attention) on meta tensors, so any size
    costs nothing. Frozen encoders and LPIPS are in it; optimizers and elementwise work are not.
    """
    # Two images stand for all: every counted operation is proportional to the batch.
    train = spec.train.model_copy(update={"batch_size": 2, "seed": 0})
    two = spec.model_copy(update={"train": train, "inputs": {}})
    phase = max((step for step in (0, *spec.method.changes) if step <= number), default=0)
    return flops_of(two.model_dump_json(), image_size, phase) * spec.train.batch_size // 2


@lru_cache
def flops_of(spec_json: str, image_size: int, number: int) -> int:
    """See `flops_per_step`; of a whole batch, counted once for all seeds."""
    spec = RunSpec.model_validate_json(spec_json)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        networks = build_networks(spec, perceptual=Perceptual(input_range=spec.perceptual) if spec.perceptual else None)
        batch = meta_batch(spec, image_size, number)
        draws = KeyedDraws(0, number, torch.arange(spec.train.batch_size))
        for update in spec.method.on(networks).updates(Step(number, batch, draws, {"sit": networks.sit})):
            update.loss.backward()
    return int(counter.get_total_flops())


def meta_batch(spec: RunSpec, image_size: int, number: int = 0) -> Batch:
    """A batch of the specification's shapes on the default device, seen by its frozen encoders."""
    n, side, channels = spec.train.batch_size, spec.sit.latent_size, spec.sit.channels
    needs, tokens, widths = spec.method.needs_at(number), spec.sit.tokens, spec.sit.encoder_widths
    stored = Batch(
        images=torch.zeros(n, 3, image_size, image_size, dtype=torch.uint8),
        labels=torch.zeros(n, dtype=torch.int64),
        mean=torch.zeros(n, channels, side, side),
        std=torch.zeros(n, channels, side, side),
    )
    if spec.encoders:
        with torch.no_grad():
            return complete(stored, needs, [Encoder(encoder) for encoder in spec.encoders])
    return replace(
        stored,
        features=tuple(torch.zeros(n, tokens, width) for width in widths),
        class_tokens=tuple(torch.zeros(n, width) for width in widths),
        attention=tuple(torch.zeros(n, 1, tokens, tokens) for _ in needs.attention),
    )
