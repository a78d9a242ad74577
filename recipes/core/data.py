"""Datasets whose order is a function of (seed, position), whatever the number of workers or processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from recipes.core.draws import seed_of
from recipes.core.errors import UserError
from recipes.core.images import Images, stack

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Batch:
    """What a recipe may look at. What a recipe does not need may be absent."""

    labels: Tensor
    """int64, (N,)."""
    images: Tensor | None = None
    """uint8, (N, 3, H, W), 0..255."""
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

    def pinned(self) -> Batch:
        """Every tensor in page-locked memory, from which a copy to a GPU waits for nobody."""
        return self._map(lambda x: x.pin_memory())

    def _map(self, f: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            labels=f(self.labels),
            images=None if self.images is None else f(self.images),
            features=tuple(f(x) for x in self.features),
            mean=None if self.mean is None else f(self.mean),
            std=None if self.std is None else f(self.std),
        )


class TrainingData(Protocol):
    """Labelled items that can be asked for by index. A `Batch` is one."""

    def __len__(self) -> int: ...

    def take(self, indices: Tensor) -> Batch:
        """The items at `indices`, int64 (N,). Called from several threads at once when batches are read ahead."""
        ...


class Latents(Protocol):
    """Cached posterior moments of a tokenizer, in the order of the images that they were made from."""

    @property
    def images(self) -> str | None:
        """The content hash of those images, if it is known."""
        ...

    def __len__(self) -> int: ...

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations, each float32 (N, C, h, w)."""
        ...


def check_match(images: Images, latents: Latents) -> None:
    """Refuse latents of other images.

    Raises:
        UserError: the counts or the recorded content hash differ.
    """
    if len(images) != len(latents):
        raise UserError(
            f"There are {len(images)} images and {len(latents)} latents: give the latents of these images, or "
            "prepare them again."
        )
    if latents.images is not None and latents.images != images.content:
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
        latents: Latents | None = None,
        threads: int = 1,
    ) -> None:
        """Leave out what the recipe does not look at: it is then not read.

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


def prefetched(make: Callable[[Item], Made], items: Iterable[Item], *, depth: int = 3) -> Iterator[Made]:
    """Yield ``make(item)`` for each item, in order, while the next `depth` are being made in threads.

    What `make` raises is raised here when its turn comes. Closing the iterator early forgets what was not begun and
    waits for what was.

    Args:
        make: safe to call from several threads.
        items: read lazily, in the caller's thread.
        depth: 0 makes each one when it is asked for, in the caller's thread.
    """
    if depth == 0:
        yield from map(make, items)
        return
    queue: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(depth, "ahead")
    try:
        for item in items:
            queue.append(pool.submit(make, item))
            if len(queue) > depth:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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
