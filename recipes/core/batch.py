"""What one training iteration looks at, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Inputs of a recipe; fields that it does not need may be None."""

    labels: Tensor
    """int64, (N,)."""
    images: Tensor | None = None
    """uint8, (N, 3, H, W), 0..255."""
    features: tuple[Tensor, ...] = ()
    """For each frozen encoder, its patch tokens of the clean image: (N, tokens, width)."""
    class_tokens: tuple[Tensor, ...] = ()
    """For each frozen encoder, its class token: (N, width)."""
    attention: tuple[Tensor, ...] = ()
    """Attention logits of the first encoder's layers that the recipe asked for: (N, heads, tokens, tokens) each."""
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

    def pinned(self) -> Batch:
        """Every tensor in page-locked memory, from which a copy to a GPU waits for nobody."""
        return self._map(lambda x: x.pin_memory())

    def _map(self, f: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            labels=f(self.labels),
            images=None if self.images is None else f(self.images),
            features=tuple(f(x) for x in self.features),
            class_tokens=tuple(f(x) for x in self.class_tokens),
            attention=tuple(f(x) for x in self.attention),
            mean=None if self.mean is None else f(self.mean),
            std=None if self.std is None else f(self.std),
        )


class TrainingData(Protocol):
    """Labelled items that can be asked for by index. A `Batch` is one."""

    def __len__(self) -> int: ...

    def take(self, indices: Tensor) -> Batch:
        """The items at `indices`, int64 (N,). Called from several threads at once when batches are read ahead."""
        ...
