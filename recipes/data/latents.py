"""Cached posterior moments of a tokenizer over an image set: sharded, memory-mapped, resumable, checksummed.

A shard is finished when its sidecar exists, which is written after the shard itself has its name; nothing reads a
temporary file. What a shard holds depends on the images and the tokenizer alone, not on how many ranks wrote them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.core.atomic import sha256_of, write_text, written
from recipes.core.checkpoint import MANIFEST
from recipes.core.content import content_of
from recipes.core.errors import UserError
from recipes.core.prefetch import prefetched
from recipes.core.spec import Spec, digest_of
from recipes.data.files import read_json
from recipes.data.images import Images, stack

SHARD_SIZE = 4096
SUM_CHUNK = 256
DType = Literal["float16", "float32"]
Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""uint8 (B, 3, H, W) to the posterior's mean and standard deviation, each (B, C, h, w)."""


def disk_estimate(count: int, channels: int, side: int, dtype: str = "float16") -> int:
    """Bytes of the moments of `count` images with latents of (channels, side, side)."""
    return count * 2 * channels * side * side * np.dtype(dtype).itemsize


def check_room(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        UserError: says both numbers and the remedy.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"{folder} needs {needed / 1e9:.1f} GB for {what} and its disk has {free / 1e9:.1f} GB free: "
            "make room, or choose a folder on another disk."
        )


class LatentSums(Spec):
    """Mergeable sums over images and places, for each channel."""

    values: int
    """How many numbers of each channel."""
    mean: tuple[float, ...]
    square: tuple[float, ...]
    """Mean of the squared means, by channel."""
    variance: tuple[float, ...]
    """Mean of the squared standard deviations, by channel."""

    @classmethod
    def of(cls, moments: NDArray[Any]) -> LatentSums:
        """From (n, 2, C, h, w), in float64, in chunks so that the result does not depend on who made the shard."""
        n, _, channels, height, width = moments.shape
        totals = np.zeros((3, channels))
        for start in range(0, n, SUM_CHUNK):
            part = moments[start : start + SUM_CHUNK].astype(np.float64)
            mean, variance = part[:, 0], np.square(part[:, 1])
            totals += [x.sum(axis=(0, 2, 3)) for x in (mean, np.square(mean), variance)]
        first, second, third = (tuple(row) for row in totals.tolist())
        return cls(values=n * height * width, mean=first, square=second, variance=third)

    def __add__(self, other: LatentSums) -> LatentSums:
        def added(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(x + y for x, y in zip(a, b, strict=True))

        return LatentSums(
            values=self.values + other.values,
            mean=added(self.mean, other.mean),
            square=added(self.square, other.square),
            variance=added(self.variance, other.variance),
        )

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, float64 (C,), of latents drawn from the posteriors."""
        mean, square, variance = (
            torch.tensor(x, dtype=torch.float64) / self.values for x in (self.mean, self.square, self.variance)
        )
        # Law of total variance: of the means, plus the mean of the posteriors' own.
        return mean, (square - mean.square() + variance).clamp_min(0).sqrt()


class LatentsPlan(Spec):
    """What the shards of one folder have in common."""

    kind: str = "repa-bench latents 1"
    count: int
    channels: int
    height: int
    width: int
    dtype: DType
    tokenizer: str
    """Hash of the weights that encoded."""
    images: str
    """Content hash of the images."""
    shard_size: int

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.count // self.shard_size)

    def rows(self, shard: int) -> range:
        """The images of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))

    def shape(self, shard: int) -> tuple[int, ...]:
        """(n, 2, C, h, w)."""
        return len(self.rows(shard)), 2, self.channels, self.height, self.width


class Sidecar(Spec):
    """``XXXXX.json`` beside a finished shard."""

    plan: LatentsPlan
    sha256: str
    sums: LatentSums


class LatentsManifest(Spec):
    """``manifest.json`` of a finished store."""

    plan: LatentsPlan
    sha256: tuple[str, ...]
    """SHA-256 of each shard."""
    mean: tuple[float, ...]
    """Mean of latents drawn from the posteriors, by channel."""
    std: tuple[float, ...]


class LatentStore:
    """A finished folder of shards. Safe to read from several threads."""

    def __init__(self, folder: Path, manifest: LatentsManifest) -> None:
        self.folder = folder
        self.manifest = manifest
        plan = manifest.plan
        self.channels, self.height, self.width = plan.channels, plan.height, plan.width
        self.tokenizer = plan.tokenizer
        self.images = plan.images
        self.mean = torch.tensor(manifest.mean, dtype=torch.float64)
        self.std = torch.tensor(manifest.std, dtype=torch.float64)
        self.content = digest_of(manifest.model_dump(mode="json"))
        self._shards = [self._map(shard) for shard in range(plan.shards)]

    @classmethod
    def open(cls, folder: Path) -> LatentStore:
        """Map the shards into memory, after a look whether they are what was written.

        Raises:
            UserError: the folder is not finished, or a shard is missing, of another shape or damaged.
        """
        path = folder / MANIFEST
        if not path.exists() and _shard(folder, 0).with_suffix(".json").exists():
            raise UserError(
                f"{folder} is not finished. Run the `repa-bench prepare` that began it again: it continues."
            )
        if not path.exists():
            raise UserError(f"{folder} holds no cached latents: give a folder that `repa-bench prepare` wrote.")
        data = read_json(path)
        if not isinstance(data, dict) or "plan" not in data:
            raise UserError(f"{path} is not the manifest of cached latents. Choose the folder that `prepare` wrote.")
        manifest = LatentsManifest.parse(data, where=str(path))
        if manifest != _joined(folder):
            raise UserError(
                f"{path} is damaged: it does not say what the .json files of the shards beside it say. Remove "
                f"{folder}, and prepare the latents again."
            )
        store = cls(folder, manifest)
        store.verify()
        return store

    def _map(self, shard: int) -> NDArray[Any]:
        plan, path = self.manifest.plan, _shard(self.folder, shard)
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise _damaged(path, str(error)) from None
        if array.shape != plan.shape(shard) or array.dtype != np.dtype(plan.dtype):
            raise _damaged(path, f"it is {array.dtype} of shape {array.shape}, not {plan.dtype} {plan.shape(shard)}")
        return array

    def __len__(self) -> int:
        return self.manifest.plan.count

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations, each float32 (N, C, h, w), of int64 `indices` (N,)."""
        wanted = indices.numpy()
        out = np.empty((2, len(wanted), self.channels, self.height, self.width), dtype=np.float32)
        shards, rows = np.divmod(wanted, self.manifest.plan.shard_size)
        for shard in np.unique(shards).tolist():
            here = np.flatnonzero(shards == shard)
            out[:, here] = self._shards[shard][rows[here]].swapaxes(0, 1)
        both = torch.from_numpy(out)
        return both[0], both[1]

    def verify(self) -> None:
        """Compare every shard's hash with the manifest's; one that was not touched since is not read again.

        ImageNet's latents are tens of gigabytes: a minute or two for the first command that opens them, nothing for the
        next. Corruption below the file system is not detected again later.

        Raises:
            UserError: names the damaged shards.
        """
        paths = [_shard(self.folder, shard) for shard in range(self.manifest.plan.shards)]
        with ThreadPoolExecutor(8, "verify") as pool:  # hashing lets other threads run
            found = list(pool.map(content_of, paths))
        bad = [path for path, sha, wanted in zip(paths, found, self.manifest.sha256, strict=True) if sha != wanted]
        if bad:
            raise _damaged(bad[0], f"its SHA-256 is not the manifest's{_others(len(bad) - 1)}")


def _shard(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.npy"


def _others(more: int) -> str:
    return f" (and so for {more} more)" if more else ""


def _damaged(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} is damaged: {what}. Remove it, its {path.stem}.json and {MANIFEST}, and prepare the latents again."
    )


# Writing.


def share(count: int, shard_size: int, rank: int = 0, world: int = 1) -> int:
    """How many images the shards of a rank hold: the total for its progress bar."""
    starts = range(rank * shard_size, count, world * shard_size)
    return sum(min(shard_size, count - start) for start in starts)


def _finished(folder: Path, shard: int) -> Sidecar | None:
    path = _shard(folder, shard).with_suffix(".json")
    if not path.exists():
        return None
    sidecar = Sidecar.parse(read_json(path), where=str(path))
    if not _shard(folder, shard).exists():
        raise UserError(
            f"{_shard(folder, shard)} is missing. Remove {path.name} and {MANIFEST} beside it and run again."
        )
    return sidecar


def _same(folder: Path, found: LatentsPlan, wanted: LatentsPlan) -> None:
    for key, value in wanted.model_dump().items():
        if (other := getattr(found, key)) != value:
            raise UserError(
                f"{folder} holds latents with {key} {other}, and {value} is wanted: "
                "choose another folder, or remove it."
            )


def write_latents(
    folder: Path,
    images: Images,
    encode: Encode,
    *,
    tokenizer: str,
    dtype: DType = "float16",
    shard_size: int = SHARD_SIZE,
    batch_size: int = 64,
    threads: int = 1,
    rank: int = 0,
    world: int = 1,
    on_done: Callable[[int], None] = lambda done: None,
) -> None:
    """Encode the images of the shards rank, rank + world, ... that are not finished yet.

    Args:
        folder: made if it is not there.
        images: what is encoded, in their order, without flips.
        encode: uint8 (B, 3, H, W) on the CPU to mean and standard deviation.
        tokenizer: hash of its weights.
        dtype: ``float16`` or ``float32``.
        shard_size: images in a shard.
        batch_size: images in a call of `encode`; batches do not cross shards.
        threads: that decode.
        rank: of this process.
        world: how many processes write.
        on_done: told how many of this rank's images are done; their total is `share`.

    Raises:
        UserError: the folder holds other latents, the disk is too small, or a value does not fit.
    """
    if not len(images):
        raise UserError("There are no images to encode.")
    folder.mkdir(parents=True, exist_ok=True)
    plan = _plan(images, encode, tokenizer, dtype, shard_size)
    done = [sidecar for shard in range(plan.shards) if (sidecar := _finished(folder, shard))]
    for sidecar in done:
        _same(folder, sidecar.plan, plan)
    missing = [shard for shard in range(plan.shards) if not _shard(folder, shard).with_suffix(".json").exists()]
    left = sum(len(plan.rows(shard)) for shard in missing)
    if missing:
        size = np.dtype(dtype).itemsize * 2 * plan.channels * plan.height * plan.width
        check_room(folder, left * size, "the latents")
    mine = [shard for shard in missing if shard % world == rank]
    written = share(plan.count, shard_size, rank, world) - sum(len(plan.rows(shard)) for shard in mine)
    on_done(written)
    with ThreadPoolExecutor(max(threads, 1), "decode") as pool:
        for shard in mine:
            _write_shard(folder, shard, _encoded(images, encode, plan, shard, batch_size, pool), plan, written, on_done)
            written += len(plan.rows(shard))


def _plan(images: Images, encode: Encode, tokenizer: str, dtype: DType, shard_size: int) -> LatentsPlan:
    """Ask the tokenizer for its shape with one image."""
    mean, _ = encode(stack(images, [0]))
    _, channels, height, width = mean.shape
    return LatentsPlan(
        count=len(images),
        channels=channels,
        height=height,
        width=width,
        dtype=dtype,
        tokenizer=tokenizer,
        images=images.content,
        shard_size=shard_size,
    )


def _encoded(
    images: Images, encode: Encode, plan: LatentsPlan, shard: int, batch_size: int, pool: ThreadPoolExecutor
) -> Iterator[NDArray[Any]]:
    """The moments (b, 2, C, h, w) of a shard's images, batch by batch, decoding ahead."""
    rows = plan.rows(shard)
    chunks = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    read = prefetched(lambda chunk: stack(images, chunk, pool), chunks, depth=2)
    for chunk, pixels in zip(chunks, read, strict=True):
        moments = torch.stack(encode(pixels), dim=1).detach().float().cpu().numpy()
        yield _fitting(moments, plan, images, chunk)


def _fitting(moments: NDArray[Any], plan: LatentsPlan, images: Images, rows: Sequence[int]) -> NDArray[Any]:
    """The moments in the plan's dtype, or a `UserError` that names an image whose values do not fit in it."""
    with np.errstate(over="ignore"):
        cast = moments.astype(plan.dtype)
    for values, what, remedy in (
        (moments, "is not finite", "check the tokenizer's weights and precision"),
        (cast, f"overflows {plan.dtype}", "keep the latents in float32"),
    ):
        bad = np.flatnonzero(~np.isfinite(values).all(axis=(1, 2, 3, 4)))
        if len(bad):
            raise UserError(f"The latent of {images.name(rows[bad[0]])} {what}{_others(len(bad) - 1)}: {remedy}.")
    return cast


def _write_shard(
    folder: Path,
    shard: int,
    parts: Iterator[NDArray[Any]],
    plan: LatentsPlan,
    before: int,
    on_done: Callable[[int], None],
) -> None:
    path = _shard(folder, shard)
    moments = np.empty(plan.shape(shard), dtype=plan.dtype)
    end = 0
    for part in parts:
        moments[end : end + len(part)] = part
        end += len(part)
        on_done(before + end)
    with written(path) as file:
        np.save(file, moments, allow_pickle=False)
    sidecar = Sidecar(plan=plan, sha256=sha256_of(path), sums=LatentSums.of(moments))
    write_text(path.with_suffix(".json"), sidecar.model_dump_json(indent=1))


def finish_latents(folder: Path) -> LatentStore:
    """Check that every shard exists and write the manifest. One process calls it, after all have written.

    Raises:
        UserError: names a shard that is missing.
    """
    manifest = _joined(folder)
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=1))
    return LatentStore.open(folder)


def _joined(folder: Path) -> LatentsManifest:
    """Manifest computed from all sidecars.

    Raises:
        UserError: names a shard that is missing.
    """
    first = _finished(folder, 0)
    if first is None:
        raise UserError(f"{_shard(folder, 0)} is missing: run the preparation again.")
    plan = first.plan
    sidecars = [_finished(folder, shard) for shard in range(plan.shards)]
    missing = [shard for shard, sidecar in enumerate(sidecars) if sidecar is None]
    if missing:
        raise UserError(
            f"{_shard(folder, missing[0])} is missing{_others(len(missing) - 1)}: run the preparation again."
        )
    found = [sidecar for sidecar in sidecars if sidecar is not None]
    for sidecar in found:
        _same(folder, sidecar.plan, plan)
    total = found[0].sums
    for sidecar in found[1:]:
        total += sidecar.sums
    mean, std = total.statistics()
    return LatentsManifest(
        plan=plan,
        sha256=tuple(sidecar.sha256 for sidecar in found),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
    )
