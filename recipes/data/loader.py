"""Training data in batches; their order is a function of (seed, position)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

from recipes.core.batch import Batch, TrainingData
from recipes.core.draws import seed_of
from recipes.core.errors import UserError
from recipes.core.prefetch import prefetched
from recipes.data.images import Images, stack
from recipes.data.latents import LatentStore


def check_match(images: Images, latents: LatentStore) -> None:
    """Refuse latents of other images.

    Raises:
        UserError: the counts or the recorded content hash differ.
    """
    if len(images) != len(latents):
        raise UserError(
            f"There are {len(images)} images and {len(latents)} latents: give the latents of these images, or "
            "prepare them again."
        )
    if latents.images != images.content:
        raise UserError(
            f"The latents were made from other images (content {latents.images[:12]}, these have "
            f"{images.content[:12]}): give the latents of these images, or prepare them again."
        )


class StoredData:
    """Training data on disk: images decoded in parallel (Pillow releases the GIL), latents gathered."""

    def __init__(
        self,
        *,
        labels: Tensor,
        images: Images | None = None,
        latents: LatentStore | None = None,
        threads: int = 1,
    ) -> None:
        """Pass only what the recipe needs; the rest is not read.

        Args:
            labels: int64, (N,).
            images: what is decoded.
            latents: what is gathered.
            threads: that decode one batch; 1 decodes in the caller's thread.

        Raises:
            UserError: latents of other images, or another number of labels.
        """
        if images is not None and latents is not None:
            check_match(images, latents)
        for part in (images, latents):
            if part is not None and len(part) != len(labels):
                raise UserError(f"There are {len(labels)} labels for {len(part)} items: give the labels of this set.")
        self._labels, self._images, self._latents = labels, images, latents
        self._pool = ThreadPoolExecutor(threads, "decode") if threads > 1 and images is not None else None

    def __len__(self) -> int:
        return len(self._labels)

    def take(self, indices: Tensor) -> Batch:
        """See `TrainingData.take`."""
        images = None if self._images is None else stack(self._images, indices.tolist(), self._pool)
        mean, std = (None, None) if self._latents is None else self._latents.take(indices)
        return Batch(labels=self._labels[indices], images=images, mean=mean, std=std)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_of(seed, "order", epoch))
    return torch.randperm(size, generator=generator)


def order(seed: int, positions: Tensor, size: int) -> Tensor:
    """Item index at each position of the infinite shuffled stream.

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


def batches(
    data: TrainingData,
    *,
    seed: int,
    batch_size: int,
    start: int,
    stop: int,
    rows: slice | None = None,
    ahead: int = 0,
    pin: bool = False,
) -> Iterator[tuple[int, Batch]]:
    """Yield (step, batch) for the steps in [start, stop).

    Args:
        data: in memory or on disk.
        seed: the training seed, which decides the order.
        batch_size: of the global batch.
        start: the first step.
        stop: the step after the last.
        rows: the part of every global batch that this process holds; all of it if None.
        ahead: batches that are read in background threads while the caller trains; 0 reads them when they are asked
            for.
        pin: into page-locked memory, for a GPU.
    """

    def plan() -> Iterator[tuple[int, Tensor]]:
        for step in range(start, stop):
            positions = torch.arange(step * batch_size, (step + 1) * batch_size)
            yield step, order(seed, positions if rows is None else positions[rows], len(data))

    def read(planned: tuple[int, Tensor]) -> tuple[int, Batch]:
        step, indices = planned
        batch = data.take(indices)
        return step, batch.pinned() if pin else batch

    yield from prefetched(read, plan(), depth=ahead)
