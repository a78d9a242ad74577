"""Labelled image sets in a fixed order: our own store, and what EDM2, REPA and REPA-E prepare, read in place.

The order is that of the sorted names, as in the released readers, so position i is one image in every format.
"""

from __future__ import annotations

import bisect
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.core.checkpoint import MANIFEST
from recipes.core.content import content_of
from recipes.core.errors import UserError
from recipes.core.spec import Spec, digest_of
from recipes.data.decoding import SUFFIXES, UNDECODABLE, decode
from recipes.data.files import (
    LABELS,
    Files,
    FolderFiles,
    ZipFiles,
    fingerprint,
    labels_of,
    latent_names,
    pictures,
    printable,
    read_json,
    row_of,
)
from recipes.data.hdf5 import H5Files

#: Plan file; a store is complete when the manifest exists too.
PLAN = "plan.json"
ARROW = "data-00000-of-00001.arrow"


class Images(Protocol):
    """Square RGB images with one label each. Safe to read from several threads."""

    @property
    def side(self) -> int:
        """Pixels along each edge."""
        ...

    @property
    def labels(self) -> Tensor:
        """int64, (N,)."""
        ...

    @property
    def num_classes(self) -> int:
        """Labels are in [0, num_classes)."""
        ...

    @property
    def content(self) -> str:
        """SHA-256, in hex, of what the set holds.

        Our store: the pixels, names and labels, from the manifest. The other formats: labels, names and bytes (of a
        zip sizes and CRCs, which are checked as images are read), so a copy in another format has another hash.
        """
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The name of an image inside its set."""
        ...

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """uint8, (side, side, 3).

        Raises:
            UserError: the image cannot be decoded; names file and image.
        """
        ...


def stack(images: Images, indices: Sequence[int], pool: Executor | None = None) -> Tensor:
    """Decode images, in parallel if there is a pool: uint8, (len(indices), 3, side, side)."""
    out = np.empty((len(indices), 3, images.side, images.side), dtype=np.uint8)

    def fill(slot: int, index: int) -> None:
        out[slot] = images.pixels(index).transpose(2, 0, 1)

    for _ in (map if pool is None else pool.map)(fill, range(len(indices)), indices):
        pass
    return torch.from_numpy(out)


class FileImages:
    """An image set held in named files."""

    def __init__(self, files: Files, labels: Tensor | None = None) -> None:
        """`labels` are given in the order of the names where they do not lie in the files."""
        self._files = files
        self._rows = pictures(files)
        if not self._rows:
            raise UserError(f"{files.path} holds no images ({', '.join((*SUFFIXES, '.npy'))}).")
        names = [files.names[row] for row in self._rows]
        self.labels = labels_of(files, names) if labels is None else labels
        if len(self.labels) != len(names):
            raise UserError(
                f"{files.path} holds {len(names)} images and there are {len(self.labels)} labels. Prepare it again."
            )
        self.num_classes = int(self.labels.max()) + 1
        self.side = self._decoded(0).shape[0]
        self.pixels(0)

    @cached_property
    def content(self) -> str:
        """See `Images.content`."""
        return digest_of([self._files.content(self._rows), fingerprint((), self.labels.tolist())])

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """See `Images.name`."""
        return printable(self._files.names[self._rows[index]])

    def _decoded(self, index: int) -> NDArray[np.uint8]:
        raw = self._files.read(self._rows[index])
        try:
            return decode(raw, self.name(index))
        except UNDECODABLE as error:
            raise UserError(f"{self._files.path}: {self.name(index)} is not an image ({error}). Restore it.") from None

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """See `Images.pixels`."""
        return _square(self._decoded(index), self.side, self._files.path, self.name(index))


def _square(array: NDArray[np.uint8], side: int, path: Path, name: str) -> NDArray[np.uint8]:
    if array.shape != (side, side, 3):
        height, width, _ = array.shape
        raise UserError(
            f"{path}: {name} is {width}x{height} where {side}x{side} is wanted. "
            "All images must be squares of one size: prepare the set again."
        )
    return array


# Our own store.


class ImageShard(Spec):
    """One folder of the store."""

    count: int
    bytes: int
    """Size of the Arrow file."""
    sha256: str
    """SHA-256 of the Arrow file."""
    pixels: str
    """SHA-256 of the names, labels and pixels in their order."""


class Rejected(Spec):
    """A source file that is not in the store."""

    name: str
    reason: str


class ImagesManifest(Spec):
    """``manifest.json`` of a store."""

    kind: str = "repa-bench images 1"
    count: int
    side: int
    num_classes: int
    synsets: tuple[str, ...]
    """Class names in the order of the labels."""
    shards: tuple[ImageShard, ...]
    rejected: tuple[Rejected, ...]
    converted: dict[str, int]
    """How many images were turned into RGB, by their mode before."""
    pillow: str
    """The version of the decoder."""

    @property
    def content(self) -> str:
        """Hash of the pixels, names and labels; the same whatever compressed them."""
        return digest_of({"side": self.side, "classes": self.num_classes, "pixels": [s.pixels for s in self.shards]})


def read_images_manifest(folder: Path) -> ImagesManifest:
    """The manifest of a store.

    Raises:
        UserError: it is missing or not one of ours.
    """
    path = folder / MANIFEST
    data = read_json(path)
    if not isinstance(data, dict) or data.get("kind") != ImagesManifest.model_fields["kind"].default:
        raise UserError(f"{path} is not the manifest of an image store. Choose the folder that `prepare` wrote.")
    return ImagesManifest.parse(data, where=str(path))


@dataclass(frozen=True)
class _Shard:
    """An Arrow file of images."""

    path: Path
    table: Any
    """``image``, ``label`` and ``name``, mapped into memory."""
    places: NDArray[np.int64]
    """(N, 2): where the bytes of each image begin in the file, and how many they are."""

    @classmethod
    def open(cls, path: Path) -> _Shard:
        import pyarrow as arrow

        whole = arrow.memory_map(str(path)).read_buffer()
        table = arrow.ipc.open_stream(arrow.BufferReader(whole)).read_all()
        places = []
        for chunk in table.column("image").chunks:
            encoded = chunk.flatten()[chunk.type.get_field_index("bytes")]
            _, ends, data = encoded.buffers()
            bounds = np.frombuffer(ends, np.int32)[encoded.offset :][: len(encoded) + 1].astype(np.int64)
            places.append(np.stack([data.address - whole.address + bounds[:-1], np.diff(bounds)], axis=1))
        return cls(path, table, np.concatenate(places))

    def read(self, row: int) -> bytes:
        """The encoded image of a row."""
        start, size = self.places[row].tolist()
        handle = os.open(self.path, os.O_RDONLY)
        try:
            return os.pread(handle, size, start)
        finally:
            os.close(handle)


class StoredImages:
    """PNG bytes in Arrow shards, each written by Hugging Face `datasets`.

    The bytes are read by `os.pread`, which lets other threads run while the disk answers: at a page of a memory map
    that is not in memory, all of them would wait.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_images_manifest(folder)
        self.side = self.manifest.side
        self.num_classes = self.manifest.num_classes
        self.content = self.manifest.content
        self._ends = list(accumulate(shard.count for shard in self.manifest.shards))
        self._shards = [self._shard(i) for i in range(len(self.manifest.shards))]
        labels = [shard.table.column("label").to_numpy() for shard in self._shards if shard is not None]
        self.labels = torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *labels]))

    def _arrow(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}" / ARROW

    def _damaged(self, shard: int, what: str) -> UserError:
        path = self._arrow(shard)
        return UserError(f"{path} is damaged: {what}. Remove {path.parent} and {MANIFEST}, and prepare again.")

    def _shard(self, shard: int) -> _Shard | None:
        """None if all source files of the shard were rejected."""
        facts = self.manifest.shards[shard]
        if not facts.count:
            return None
        path = self._arrow(shard)
        if not path.is_file() or path.stat().st_size != facts.bytes:
            raise self._damaged(shard, f"the manifest says that it has {facts.bytes} bytes")
        if content_of(path) != facts.sha256:
            raise self._damaged(shard, "its SHA-256 is not the manifest's")
        opened = _Shard.open(path)
        if len(opened.table) != facts.count:
            raise self._damaged(shard, f"it holds {len(opened.table)} images, the manifest says {facts.count}")
        return opened

    def _place(self, index: int) -> tuple[_Shard, int]:
        """The shard of an image, and its row there."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        shard = self._shards[number]
        assert shard is not None
        return shard, index - (self._ends[number] - self.manifest.shards[number].count)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def name(self, index: int) -> str:
        """See `Images.name`."""
        shard, row = self._place(index)
        return str(shard.table.column("name")[row].as_py())

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """See `Images.pixels`."""
        shard, row = self._place(index)
        try:
            array = decode(shard.read(row), ".png")
        except UNDECODABLE as error:
            raise UserError(
                f"{self.folder}: {self.name(index)} cannot be decoded ({error}). Prepare the folder again."
            ) from None
        return _square(array, self.side, self.folder, self.name(index))

    def verify(self) -> None:
        """Compare every shard's hash with the manifest's; one that was not touched is not read again.

        Raises:
            UserError: a shard is not the one that was written; names it.
        """
        for shard, facts in enumerate(self.manifest.shards):
            if facts.count and content_of(self._arrow(shard)) != facts.sha256:
                raise self._damaged(shard, "its SHA-256 is not the manifest's")


# Which of them is it?


def _open_repa(folder: Path) -> FileImages:
    """``images/`` with labels in it, or in ``vae-sd/`` under the names of the latents, in the same order."""
    images = FolderFiles(folder / "images")
    if row_of(images, LABELS) is not None or not (folder / "vae-sd").is_dir():
        return FileImages(images)
    latents = FolderFiles(folder / "vae-sd")
    return FileImages(images, labels_of(latents, latent_names(latents)))


def holds_jpegs(folder: Path) -> bool:
    """Whether a folder looks like a raw ImageNet tree: folders with JPEGs directly in them."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir())[:20]
    return any(path.suffix.lower() in (".jpeg", ".jpg") for sub in inside for path in sub.iterdir())


def _unrecognised(path: Path) -> UserError:
    raw = (path, path / "train") if path.is_dir() else ()
    for folder in raw:
        if folder.is_dir() and holds_jpegs(folder):
            return UserError(
                f"{folder} looks like raw ImageNet: prepare it once with "
                f"`repa-bench prepare --suite imagenet256 --data {folder}`, and give the folder that this writes."
            )
    return UserError(
        f"{path} is no image set that we can read: give a folder that `repa-bench prepare` wrote, an EDM2 zip or "
        f"folder with {LABELS}, a REPA folder with images/ and vae-sd/, or REPA-E's images.h5 with images_h5.json."
    )


def is_store(folder: Path) -> bool:
    """Whether a folder is our image store (possibly unfinished); foreign manifest/plan files do not count."""
    manifest, plan = _mapping(folder / MANIFEST), _mapping(folder / PLAN)
    return manifest.get("kind") == ImagesManifest.model_fields["kind"].default or "shard_size" in plan


def _mapping(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}


def _open_folder(folder: Path) -> Images:
    if is_store(folder):
        if not (folder / MANIFEST).exists():
            raise UserError(
                f"{folder} is not finished. Run the `repa-bench prepare` that began it again: it continues."
            )
        return StoredImages(folder)
    if (folder / "images.h5").exists():
        return FileImages(H5Files(folder / "images.h5"))
    if (folder / "images").is_dir():
        return _open_repa(folder)
    if (folder / LABELS).exists():
        return FileImages(FolderFiles(folder))
    if (folder / MANIFEST).exists():
        read_images_manifest(folder)
    raise _unrecognised(folder)


def open_images(path: Path) -> Images:
    """Open an image set, recognised by what it holds.

    Args:
        path: a folder that `prepare` wrote; an EDM2 zip, or the same as a folder; a REPA folder (``images/`` and
            ``vae-sd/``); REPA-E's ``images.h5`` or the folder with it.

    Raises:
        UserError: it is none of these, is not finished, or is damaged.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist.")
    if path.is_dir():
        return _open_folder(path)
    if zipfile.is_zipfile(path):
        return FileImages(ZipFiles(path))
    import h5py

    if h5py.is_hdf5(path):
        return FileImages(H5Files(path))
    raise _unrecognised(path)
