"""Feature networks behind one interface: uint8 images in, features and class logits out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

#: uint8 images (N, 3, H, W) -> features (N, D) and logits (N, classes).
Extractor = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Features:
    """Features and logits of a set of images, in order."""

    features: Tensor
    """float32, (N, D)."""
    logits: Tensor
    """float32, (N, classes)."""

    @classmethod
    @torch.no_grad()
    def of(cls, images: Iterable[Tensor], extractor: Extractor) -> Features:
        """Stream batches of images through a network."""
        pairs = [extractor(batch) for batch in images]
        return cls(torch.cat([f for f, _ in pairs]), torch.cat([g for _, g in pairs]))
