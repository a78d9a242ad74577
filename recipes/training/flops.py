"""Floating-point operations of a training step, counted on shapes alone."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from recipes.core.batch import Batch
from recipes.core.draws import KeyedDraws
from recipes.models.encoder import Encoder
from recipes.models.perceptual import Perceptual
from recipes.training.build import build_networks
from recipes.training.spec import RunSpec


def flops_per_step(spec: RunSpec, image_size: int) -> int:
    """Floating-point operations of one training step, forward and backward, a multiply-add counted as two.

    Counted by PyTorch's `FlopCounterMode` (matrix products, convolutions, attention) on meta tensors, so any size
    costs nothing. Frozen encoders and LPIPS are in it; optimizers and elementwise work are not.
    """
    # Two images stand for all: every counted operation is proportional to the batch.
    train = spec.train.model_copy(update={"batch_size": 2, "seed": 0})
    two = spec.model_copy(update={"train": train, "inputs": {}})
    return _flops_of(two.model_dump_json(), image_size) * spec.train.batch_size // 2


@lru_cache
def _flops_of(spec_json: str, image_size: int) -> int:
    """See `flops_per_step`; of a whole batch, counted once for all seeds."""
    spec = RunSpec.model_validate_json(spec_json)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        networks = build_networks(spec, perceptual=Perceptual(input_range=spec.perceptual) if spec.perceptual else None)
        batch = meta_batch(spec, image_size)
        draws = KeyedDraws(0, 0, torch.arange(spec.train.batch_size))
        for update in spec.method.on(networks).updates(batch, draws):
            update.loss.backward()
    return int(counter.get_total_flops())


def meta_batch(spec: RunSpec, image_size: int) -> Batch:
    """A batch of the specification's shapes on the default device, seen by its frozen encoders."""
    n, side, channels = spec.train.batch_size, spec.sit.latent_size, spec.sit.channels
    images = torch.zeros(n, 3, image_size, image_size, dtype=torch.uint8)
    with torch.no_grad():
        seen = tuple(Encoder(encoder)(images) for encoder in spec.encoders)
    stored = tuple(torch.zeros(n, spec.sit.tokens, width) for width in spec.sit.encoder_widths)
    return Batch(
        images=images,
        labels=torch.zeros(n, dtype=torch.int64),
        features=seen or stored,
        mean=torch.zeros(n, channels, side, side),
        std=torch.zeros(n, channels, side, side),
    )
