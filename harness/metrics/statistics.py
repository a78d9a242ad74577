"""A measured image set: feature rows and/or mean and covariance."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.features.base import Outputs
from harness.metrics.frechet import Moments, MomentSums
from harness.metrics.manifold import Points

#: Outputs above this many bytes are gathered in a file and memory-mapped.
IN_MEMORY = 64 * 2**20
CPU = torch.device("cpu")


def mapped(folder: Path, like: NDArray[Any], rows: int) -> NDArray[Any]:
    """An array on the disk with rows like these, in a file without a name: nobody shares it, and nobody finds it later.

    Space is preallocated: a memmap on a full disk would raise SIGBUS.

    Raises:
        OSError: there is not so much.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, rows * like[0].nbytes)
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), str(folder)) from None
        return np.memmap(file, like.dtype, "r+", shape=(rows, *like.shape[1:]))


class Measured:
    """A set of images, reduced to a network's outputs, or to the statistics that somebody published of them."""

    def __init__(
        self,
        parts: Sequence[Mapping[str, Tensor]],
        *,
        known: Mapping[str, Moments] | None = None,
        count: int | None = None,
        folder: Path | None = None,
        digest: str = "",
        size: tuple[int, int] | None = None,
        seen: Tensor | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """From outputs in order.

        Args:
            parts: outputs by name; in each, as many rows of every one.
            known: moments that stand in the place of the parts' own.
            count: of the images that the moments are of; default: the rows of the parts. None if nobody knows.
            folder: where large outputs are gathered.
            digest: of the images.
            size: their width and height, if that is known.
            notes: what happened while they were measured.
            seen: hashes of the first images, where no network looks at any (see `harness.features.pixels`).
        """
        self._parts, self._folder, self.notes = list(parts), folder, tuple(notes)
        self._known: dict[str, Moments] = dict(known or {})
        self._moments: dict[str, Moments] = {}
        self._points: dict[str, Points] = {}
        self.digest, self.size, self.seen = digest, size, seen
        self.rows = sum(len(next(iter(part.values()))) for part in self._parts)
        self.count = count if count is not None or known else self.rows

    def under(self, known: Mapping[str, Moments], digest: str) -> Measured:
        """Same rows, but with published moments of a larger set."""
        return Measured(self._parts, known=known, folder=self._folder, digest=digest, size=self.size)

    def joined(self, more: Outputs) -> Measured:
        """Copy with additional outputs for the same rows."""
        sizes = [len(next(iter(part.values()))) for part in self._parts]
        split = {name: value.split(sizes) for name, value in more.items()}
        parts = [{**part, **{name: split[name][k] for name in more}} for k, part in enumerate(self._parts)]
        known, folder, size = self._known, self._folder, self.size
        return Measured(parts, known=known, count=self.count, folder=folder, digest=self.digest, size=size)

    def has(self, name: str) -> bool:
        """Whether there are rows of that output."""
        return bool(self._parts) and all(name in part for part in self._parts)

    def rows_of(self, *names: str) -> Outputs:
        """All rows of some outputs; nothing where one is missing, as in shards of a version that did not keep it."""
        if not all(map(self.has, names)):
            return {}
        return {name: torch.as_tensor(self.points(name)) for name in names}

    def moments(self, name: str, device: torch.device | None = None) -> Moments:
        """Mean and covariance of an output, in float64, on a device (default: the CPU); computed once.

        Raises:
            ValueError: fewer than two rows, or a value that is not finite.
        """
        if name not in self._moments:
            self._moments[name] = self._known.get(name) or self._compute_moments(name, device or CPU)
        # Kept where it is wanted, with its spectrum: it is not computed for another device again.
        self._moments[name] = self._moments[name].to(device or CPU)
        return self._moments[name]

    def _compute_moments(self, name: str, device: torch.device) -> Moments:
        sums = MomentSums.empty(self._parts[0][name].shape[1], device)
        for part in self._parts:
            sums.add(part[name].to(device))
        return sums.moments()

    def points(self, name: str) -> Points:
        """All rows of an output, (N, D); in a file where they are large and there is a folder for it."""
        if name not in self._points:
            first = self._parts[0][name]
            size = self.rows * first[0].numel() * first.element_size()
            if self._folder is None or size <= IN_MEMORY:
                self._points[name] = torch.cat([part[name] for part in self._parts])
            else:
                self._points[name] = self._gathered(name, self._folder)
        return self._points[name]

    def _gathered(self, name: str, folder: Path) -> NDArray[Any]:
        out, done = mapped(folder, self._parts[0][name].numpy(), self.rows), 0
        for part in self._parts:
            out[done : done + len(part[name])] = part[name].numpy()
            done += len(part[name])
        return out
