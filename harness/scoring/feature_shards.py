"""What a feature network said of a set of images, kept in shards: ranges of indices that appear whole or not at all.

Shards are deterministic; processes share them and interrupted work resumes at the first missing one.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.features.base import FeatureNetwork, Outputs
from harness.features.pixels import rows_about
from harness.metrics.statistics import Measured
from harness.runtime.locks import alone
from harness.scoring.image_sets import ImageSet
from recipes.core import checkpoint
from recipes.core.distributed import World
from recipes.core.errors import DamagedError
from recipes.core.finite import finite
from recipes.core.prefetch import prefetched
from recipes.core.spec import digest_of

#: Images of a shard of a set that is read.
SHARD = 1024
#: Pixels that are read at a time, whatever the batch: 256 images of 256 x 256.
MOST_PIXELS = 2**24
PART = "outputs"
#: Images that a shard may keep beside the outputs: all of them, and those of the grid.
IMAGES, GRID = "images", "grid"


class Shards:
    """The shards of a set of `count` images, in a folder of their own."""

    def __init__(self, folder: Path, count: int, size: int | None = None) -> None:
        """With `size` images in each; small ones are shared evenly by many processes."""
        self.folder, self.count, self.size = folder, count, size or SHARD

    def ranges(self, rank: int = 0, size: int = 1) -> list[range]:
        """Indices of each shard; with several processes, those of one."""
        starts = range(0, self.count, self.size)
        return [range(start, min(start + self.size, self.count)) for start in starts[rank::size]]

    def place(self, indices: range) -> Path:
        """The folder of a shard."""
        return self.folder / f"{indices.start:07d}"

    def missing(self, ranges: Sequence[range], key: str | None = None) -> tuple[list[range], list[str]]:
        """Ranges without a finished shard; damaged or foreign shards are removed.

        Args:
            ranges: of `ranges`.
            key: what their maker gave as that fact; not looked at if None.

        Returns:
            The ranges, and a sentence for each shard that was removed.
        """
        out, notes = [], []
        for indices in ranges:
            try:
                if self.place(indices).exists():
                    self._verify(indices, key)
                    continue
            except DamagedError as error:
                shutil.rmtree(self.place(indices))
                notes.append(f"a damaged shard was removed and made again: {error.what}")
            out.append(indices)
        return out, notes

    def _verify(self, indices: range, key: str | None) -> None:
        place = self.place(indices)
        meta = checkpoint.read_manifest(place)
        if (meta.get("start"), meta.get("count")) != (indices.start, len(indices)) or key not in (
            None,
            meta.get("key"),
        ):
            raise DamagedError(f"{place} holds another set's images")
        for name in (PART, IMAGES, GRID):
            if name == PART or checkpoint.hash_of_part(place, name):
                checkpoint.verify_part(place, name)

    def save(
        self, indices: range, outputs: Outputs, facts: Mapping[str, Any], images: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write a shard; `images`, uint8 (n, 3, H, W), are those to be kept: `IMAGES`, `GRID`, both or none.

        Raises:
            UserError: an output is not finite.
            ValueError: an output has another number of rows.
        """
        for name, value in outputs.items():
            if len(value) != len(indices):
                raise ValueError(f"{len(value)} rows of {name} for {len(indices)} images")
            finite(value, f"{name} of image", indices.start, "the network that looked at it has damaged weights")
        parts: dict[str, Mapping[str, Tensor]] = {PART: outputs}
        for name, kept in (images or {}).items():
            parts[name] = {name: kept}
        meta = {"start": indices.start, "count": len(indices), **facts}
        checkpoint.save_folder(self.place(indices), parts, meta)

    def load(self, *, digest: str | None = None, notes: Sequence[str] = ()) -> Measured:
        """All of them.

        Args:
            digest: of the set; default: of the digests that the shards' makers gave as a fact.
            notes: what happened on the way.

        Raises:
            UserError: a shard is damaged.
            ValueError: one is missing.
        """
        places = [self.place(indices) for indices in self.ranges()]
        if missing := [p.name for p in places if not p.exists()]:
            raise ValueError(f"{self.folder} lacks the shards {', '.join(missing)}")
        parts = [checkpoint.load_part(place, PART) for place in places]
        facts = [checkpoint.read_manifest(place) for place in places]
        if digest is None:
            digest = digest_of([fact["pixels"] for fact in facts])
        size = facts[0].get("size")  # older shards have none
        out = Measured(
            parts, folder=self.folder.parent, digest=digest, size=(size[0], size[1]) if size else None, notes=notes
        )
        if out.rows != self.count:
            raise ValueError(f"{out.rows} images were measured of {self.count}")
        return out

    def images(self, name: str = IMAGES) -> Iterator[Tensor]:
        """The kept images of each shard, uint8 (n, 3, H, W)."""
        for indices in self.ranges():
            yield checkpoint.load_part(self.place(indices), name)[name]

    def alone(
        self, *, on: bool = True, on_wait: Callable[[str], None] = lambda holder: None
    ) -> AbstractContextManager[None]:
        """Wait until no other command makes or removes them; see `harness.runtime.locks.alone`."""
        return alone(self.folder.with_name(f".{self.folder.name}.lock"), on=on, on_wait=on_wait)

    def clear(self) -> None:
        """Remove them."""
        shutil.rmtree(self.folder, ignore_errors=True)


def measure(
    images: ImageSet,
    network: FeatureNetwork,
    shards: Shards,
    *,
    batch: int,
    world: World,
    on_done: Callable[[int], None] = lambda done: None,
) -> Measured | None:
    """One pass over a set of images, shared by the processes; what an earlier call finished is not read again.

    The next batches are read while the network looks at one.

    Args:
        images: the set.
        network: what looks at them.
        shards: where its outputs are kept.
        batch: images at once, of large ones fewer; decides nothing.
        world: the processes.
        on_done: given the number of images that are done, as if the other processes were as far.

    Returns:
        the outputs, in the main process.

    Raises:
        UserError: an image cannot be read.
    """

    ranges = shards.ranges(world.rank, world.size)
    missing, notes = shards.missing(ranges)
    done = sum(map(len, ranges)) - sum(map(len, missing))
    pixels: dict[int, Any] = {}
    parts: list[Outputs] = []

    def read(item: tuple[range, range]) -> tuple[range, range, Tensor, Outputs]:
        indices, chunk = item
        found = images.read(chunk.start, chunk.stop)
        shown = found[:, :3].permute(0, 2, 3, 1)  # without an original beside it
        if chunk.start == indices.start:
            pixels[indices.start] = hashlib.sha256(str(tuple(shown.shape[1:])).encode())
        pixels[indices.start].update(shown.contiguous().numpy().data)
        return indices, chunk, found, rows_about(found)

    # One thread reads ahead, so in order: a hash needs it, and a compressed array cannot go back.
    at_once = max(1, min(batch, MOST_PIXELS // (images.size[0] * images.size[1])))
    work = [(indices, chunk) for indices in missing for chunk in _chunks(indices, at_once)]
    for indices, chunk, found, about in prefetched(read, work, depth=1):
        parts.append({name: value.cpu() for name, value in network(found).items()} | about)
        done += len(chunk)
        if chunk.stop == indices.stop:
            outputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            facts = {"pixels": pixels.pop(indices.start).hexdigest(), "size": [found.shape[3], found.shape[2]]}
            shards.save(indices, outputs, facts)
            parts = []
        on_done(min(done * world.size, len(images)))
    world.barrier()
    return shards.load(notes=notes) if world.main else None


def _chunks(indices: range, size: int) -> list[range]:
    return [range(i, min(i + size, indices.stop)) for i in range(indices.start, indices.stop, size)]
