"""Pictures for tests of metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from harness.features.base import FEATURES, LOGITS, SPATIAL
from harness.metrics.manifold import Points, manifold


def pictures(seed: int, count: int, side: int = 32) -> np.ndarray:
    """Smooth random colours: uint8 (count, side, side, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(PIL.Image.fromarray(c).resize((side, side), PIL.Image.BICUBIC)) for c in coarse])


class Toy:
    """A feature network that costs nothing: random projections of coarse pixels, none negative, as Inception's."""

    convention, content, notes = "toy", "t" * 64, ()

    def __init__(self) -> None:
        self.looked = 0
        generator = torch.Generator().manual_seed(0)
        self._features, self._logits = (torch.randn(48, d, generator=generator) / 500 for d in (12, 10))

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.looked += len(images)
        coarse = F.adaptive_avg_pool2d(images.float(), 4).flatten(1)
        return {FEATURES: coarse @ self._features.abs(), LOGITS: coarse @ self._logits, SPATIAL: coarse[:, :7].clone()}


def write_sets(root: Path, **sets: np.ndarray) -> Path:
    """NAME.npz and NAME/ with the same images as PNGs."""
    for name, images in sets.items():
        np.savez(root / f"{name}.npz", arr_0=images)
        (root / name).mkdir()
        for k, image in enumerate(images):
            PIL.Image.fromarray(image).save(root / name / f"{k:06d}.png")
    return root


def precision_recall(*, real: Points, fake: Points, k: int = 3, **options: int) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991) of features (N, D) and (M, D)."""
    found = manifold(real=real, fake=fake, k=k, **options)
    return found.precision, found.recall
