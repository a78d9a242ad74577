"""FLOPs of training, counted on meta tensors."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from recipes.base import SiTRecipe
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

    Counted by PyTorch's formulas (matrix products, convolutions, attention) on meta tensors, so any size
    costs nothing. Frozen encoders and LPIPS are in it; optimizers and elementwise work are not.
    """
    # On meta tensors the whole batch costs no more than an image, and what grows with its square is counted too.
    train = spec.train.model_copy(update={"seed": 0})
    plain = spec.model_copy(update={"train": train, "inputs": {}})
    phase = max((step for step in (0, *spec.method.changes) if step <= number), default=0)
    return _flops_of(plain.model_dump_json(), image_size, phase)


@lru_cache
def _flops_of(spec_json: str, image_size: int, number: int) -> int:
    """See `flops_per_step`; counted once for all seeds."""
    spec = RunSpec.model_validate_json(spec_json)
    with torch.device("meta"):
        networks = build_networks(spec, perceptual=Perceptual(input_range=spec.perceptual) if spec.perceptual else None)
        with (seen := _Counter()):
            batch = meta_batch(spec, image_size, number)
        draws = KeyedDraws(0, number, torch.arange(spec.train.batch_size))
        step = Step(number, batch, draws, {"sit": networks.sit})
        return seen.total + flops_of(spec.method.on(networks), step)


def flops_of(recipe: SiTRecipe, step: Step) -> int:
    """Floating-point operations of one iteration, on whatever device its networks are."""
    # Of fused attention on the CPU nothing is counted.
    with (counter := _Counter()), sdpa_kernel(SDPBackend.MATH):
        for update in recipe.updates(step):
            update.loss.backward()
    return counter.total


class _Counter(TorchDispatchMode):
    """PyTorch's `FlopCounterMode` without its table of modules, which takes most of its time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


def meta_batch(spec: RunSpec, image_size: int, number: int = 0) -> Batch:
    """A batch of the specification's shapes on the default device, as `complete` gives it to the recipe."""
    n, side, channels = spec.train.batch_size, spec.sit.latent_size, spec.sit.channels
    needs, tokens, widths = spec.method.needs_at(number), spec.sit.tokens, spec.sit.encoder_widths
    stored = Batch(
        images=torch.zeros(n, 3, image_size, image_size, dtype=torch.uint8),
        labels=torch.zeros(n, dtype=torch.int64),
        mean=torch.zeros(n, channels, side, side),
        std=torch.zeros(n, channels, side, side),
    )
    if not spec.encoders:
        stored = replace(
            stored,
            features=tuple(torch.zeros(n, tokens, width) for width in widths),
            class_tokens=tuple(torch.zeros(n, width) for width in widths),
            attention=tuple(torch.zeros(n, 1, tokens, tokens) for _ in needs.attention),
        )
    with torch.no_grad():
        return complete(stored, needs, [Encoder(encoder) for encoder in spec.encoders])
