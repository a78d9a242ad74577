"""Datasets whose order is a function of (seed, position), whatever the number of workers or processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from recipes.core.draws import seed_of


@dataclass(frozen=True)
class Batch:
    """What a recipe may look at. What a recipe does not need may be absent."""

    images: Tensor
    """uint8, (N, 3, H, W), 0..255."""
    labels: Tensor
    """int64, (N,)."""
    features: tuple[Tensor, ...] = ()
    """For each frozen encoder, its patch tokens of the clean image: (N, tokens, width)."""
    mean: Tensor | None = None
    """The frozen tokenizer's posterior mean, (N, C, h, w)."""
    std: Tensor | None = None
    """The frozen tokenizer's posterior standard deviation, (N, C, h, w)."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Batch:
        """The chosen rows of every tensor."""
        return self._map(lambda x: x[indices])

    def to(self, device: torch.device) -> Batch:
        """Every tensor on `device`."""
        return self._map(lambda x: x.to(device, non_blocking=True))

    def _map(self, f: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            images=f(self.images),
            labels=f(self.labels),
            features=tuple(f(x) for x in self.features),
            mean=None if self.mean is None else f(self.mean),
            std=None if self.std is None else f(self.std),
        )


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_of(seed, "order", epoch))
    return torch.randperm(size, generator=generator)


def order(seed: int, positions: Tensor, size: int) -> Tensor:
    """Which item stands at each position of the endless stream of shuffled epochs.

    Args:
        seed: the training seed.
        positions: int64, counted from the start of training; any order, may cross epochs.
        size: items in the dataset.

    Returns:
        int64 item indices, of the shape of `positions`. Every epoch is a permutation of all items.
    """
    epochs, offsets = positions // size, positions % size
    out = torch.empty_like(positions)
    for epoch in epochs.unique().tolist():
        here = epochs == epoch
        out[here] = _epoch_order(seed, epoch, size)[offsets[here]]
    return out


def batches(data: Batch, *, seed: int, batch_size: int, start: int, stop: int) -> Iterator[tuple[int, Batch]]:
    """Yield (step, batch) for the steps in [start, stop) from data held in memory."""
    for step in range(start, stop):
        positions = torch.arange(step * batch_size, (step + 1) * batch_size)
        yield step, data.take(order(seed, positions, len(data)))
