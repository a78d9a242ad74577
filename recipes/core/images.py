"""Labelled image sets in a fixed order: our own store, and what EDM2, REPA and REPA-E prepare, read in place.

The order is that of the sorted names, as in the released readers, so position i is one image in every format.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import json
import os
import struct
import threading
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.core.checkpoint import MANIFEST, sha256_of
from recipes.core.errors import UserError
from recipes.core.spec import Spec, digest_of

#: What a preparation writes first and the manifest completes.
PLAN = "plan.json"
LABELS = "dataset.json"
ARROW = "data-00000-of-00001.arrow"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".npy")
#: What Pillow and NumPy raise for bytes that are not a whole image.
UNDECODABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, PIL.Image.DecompressionBombError)


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
        """SHA-256, in hex, of what is cheap to know at open time.

        Our store: the pixels, names and labels, from the manifest. The other formats: names, labels, sizes and, in
        a zip, CRCs; so a copy in another format has another hash, and an edit that keeps the size may go unseen.
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


def load_array(raw: bytes) -> NDArray[Any]:
    """The array in the bytes of one .npy file.

    Raises:
        ValueError: it is no .npy file, or holds a pickle, which is never loaded.
    """
    return np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)


def decode(raw: bytes, name: str) -> NDArray[np.uint8]:
    """One PNG, JPEG, ... or (3 or 1, H, W) uint8 .npy file as uint8 (H, W, 3).

    Raises:
        ValueError, OSError, ...: see `UNDECODABLE`. Pickled arrays are never loaded.
    """
    if name.lower().endswith(".npy"):
        array = load_array(raw)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[0] not in (1, 3):
            raise ValueError(f"{array.dtype} of shape {array.shape} is not a uint8 (3, H, W) image")
        return np.broadcast_to(array, (3, *array.shape[1:])).transpose(1, 2, 0)
    with PIL.Image.open(io.BytesIO(raw)) as image:
        return np.asarray(image.convert("RGB"))


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({error}). Restore it or prepare the folder again.") from None


# Named byte strings: a folder, a zip, an HDF5 file.


class Files(Protocol):
    """Byte strings in the order of their names. Safe to read from several threads."""

    @property
    def path(self) -> Path:
        """The folder or file that holds them."""
        ...

    @property
    def names(self) -> list[str]:
        """Sorted."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the names and of what tells their contents apart cheaply."""
        ...

    def read(self, row: int) -> bytes:
        """The bytes of ``names[row]``."""
        ...


def _fingerprint(names: Iterable[str], *columns: Sequence[int]) -> str:
    digest = hashlib.sha256("\n".join(names).encode())
    for column in columns:
        digest.update(np.asarray(column, dtype="<i8").tobytes())
    return digest.hexdigest()


def _walk(folder: Path, prefix: str = "") -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name, entry.stat().st_size


class FolderFiles:
    """The files below a folder, named by their path inside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = sorted(_walk(path))
        self.names = [name for name, _ in found]
        self.fingerprint = _fingerprint(self.names, [size for _, size in found])

    def read(self, row: int) -> bytes:
        """See `Files.read`."""
        try:
            return (self.path / self.names[row]).read_bytes()
        except OSError as error:
            raise UserError(f"{self.path / self.names[row]} cannot be read ({error.strerror}). Restore it.") from None


class ZipFiles:
    """The members of a zip file, read by position: no lock, no shared file cursor, one file handle."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = sorted((m for m in archive.infolist() if not m.is_dir()), key=lambda m: m.filename)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is not a whole zip file ({error}). Copy it again.") from None
        self.names = [m.filename for m in members]
        # Columns instead of a million ZipInfo objects.
        self._offset = np.array([m.header_offset for m in members], dtype=np.int64)
        self._size = np.array([m.compress_size for m in members], dtype=np.int64)
        self._crc = np.array([m.CRC for m in members], dtype=np.int64)
        self._method = np.array([m.compress_type for m in members], dtype=np.int16)
        self.fingerprint = _fingerprint(self.names, [m.file_size for m in members], self._crc.tolist())
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)

    def read(self, row: int) -> bytes:
        """See `Files.read`; checks the CRC."""
        start = int(self._offset[row])
        header = os.pread(self._handle, 30, start)
        if len(header) == 30:
            name_length, extra_length = struct.unpack("<HH", header[26:30])
            raw = os.pread(self._handle, int(self._size[row]), start + 30 + name_length + extra_length)
            try:
                if self._method[row] == zipfile.ZIP_DEFLATED:
                    raw = zlib.decompress(raw, -zlib.MAX_WBITS)
                if zlib.crc32(raw) == self._crc[row]:
                    return raw
            except zlib.error:
                pass
        raise UserError(f"{self.path}: {self.names[row]} is damaged (its CRC is wrong). Copy the zip file again.")


class H5Files:
    """The datasets of an HDF5 file whose names lie in NAME_h5.json beside it, as REPA-E prepares them."""

    def __init__(self, path: Path) -> None:
        import h5py

        self.path = path
        listing = path.with_name(f"{path.stem}_h5.json")
        names = read_json(listing)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{listing} is not a list of names. Prepare {path.name} again.")
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise UserError(f"{path} is not a whole HDF5 file ({error}). Copy it again.") from None
        self._lock = threading.Lock()  # h5py is not safe to use from several threads
        self.names = sorted({*names, *((LABELS,) if LABELS in self._file else ())})
        # The size of every key of a million would take minutes; the file's size takes none.
        self.fingerprint = _fingerprint(self.names, [path.stat().st_size])

    def read(self, row: int) -> bytes:
        """See `Files.read`."""
        try:
            with self._lock:
                value = self._file[self.names[row]][()]
        except (KeyError, OSError) as error:
            raise UserError(f"{self.path}: {self.names[row]} cannot be read ({error}). Copy the file again.") from None
        return value if isinstance(value, bytes) else np.asarray(value).tobytes()


def row_of(files: Files, name: str) -> int | None:
    """Where a name stands among the names."""
    row = bisect.bisect_left(files.names, name)
    return row if row < len(files.names) and files.names[row] == name else None


def labels_of(files: Files, names: Sequence[str]) -> Tensor:
    """The labels that ``dataset.json`` gives to names: int64, (N,).

    Raises:
        UserError: there is no ``dataset.json``, or a name has no label in it.
    """
    where = f"{files.path}: {LABELS}"
    row = row_of(files, LABELS)
    if row is None:
        raise UserError(f"{where} is missing, so the images have no labels. Put it back beside them.")
    try:
        pairs = json.loads(files.read(row))["labels"]
        table = {str(name): int(label) for name, label in pairs}
    except (ValueError, KeyError, TypeError):
        raise UserError(f'{where} does not read {{"labels": [["NAME", LABEL], ...]}}. Prepare the set again.') from None
    try:
        return torch.tensor([table[name] for name in names], dtype=torch.int64)
    except KeyError as error:
        raise UserError(f"{where} has no label for {error.args[0]}. Prepare the set again.") from None


class FileImages:
    """An image set held in named files."""

    def __init__(self, files: Files, labels: Tensor | None = None) -> None:
        """`labels` are given in the order of the names where they do not lie in the files."""
        self._files = files
        self._rows = [row for row, name in enumerate(files.names) if name.lower().endswith(SUFFIXES)]
        if not self._rows:
            raise UserError(f"{files.path} holds no images ({', '.join(SUFFIXES)}).")
        names = [files.names[row] for row in self._rows]
        self.labels = labels_of(files, names) if labels is None else labels
        if len(self.labels) != len(names):
            raise UserError(
                f"{files.path} holds {len(names)} images and there are {len(self.labels)} labels. Prepare it again."
            )
        self.num_classes = int(self.labels.max()) + 1
        self.content = digest_of([files.fingerprint, _fingerprint((), self.labels.tolist())])
        self.side = self._decoded(0).shape[0]
        self.pixels(0)

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """See `Images.name`."""
        return self._files.names[self._rows[index]]

    def _decoded(self, index: int) -> NDArray[np.uint8]:
        try:
            return decode(self._files.read(self._rows[index]), self.name(index))
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
    """Of the Arrow file."""
    sha256: str
    """Of the Arrow file."""
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


class StoredImages:
    """PNG bytes in memory-mapped Arrow shards, each written by Hugging Face `datasets`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_images_manifest(folder)
        self.side = self.manifest.side
        self.num_classes = self.manifest.num_classes
        self.content = self.manifest.content
        self._ends = list(accumulate(shard.count for shard in self.manifest.shards))
        self._tables = [self._table(i) for i in range(len(self.manifest.shards))]
        labels = [table.column("label").to_numpy() for table in self._tables if table is not None]
        self.labels = torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *labels]))

    def _arrow(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}" / ARROW

    def _damaged(self, shard: int, what: str) -> UserError:
        path = self._arrow(shard)
        return UserError(f"{path} is damaged: {what}. Remove {path.parent} and {MANIFEST}, and prepare again.")

    def _table(self, shard: int) -> Any:
        """The shard's Arrow table, or None if all its source files were rejected."""
        import datasets

        facts = self.manifest.shards[shard]
        if not facts.count:
            return None
        path = self._arrow(shard)
        if not path.is_file() or path.stat().st_size != facts.bytes:
            raise self._damaged(shard, f"the manifest says that it has {facts.bytes} bytes")
        loaded = datasets.Dataset.load_from_disk(str(path.parent), keep_in_memory=False)
        if len(loaded) != facts.count:
            raise self._damaged(shard, f"it holds {len(loaded)} images, the manifest says {facts.count}")
        return loaded.data

    def _cell(self, index: int, column: str) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        shard = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[shard] - self.manifest.shards[shard].count)
        return self._tables[shard].column(column)[row].as_py()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def name(self, index: int) -> str:
        """See `Images.name`."""
        return str(self._cell(index, "name"))

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """See `Images.pixels`."""
        try:
            array = decode(self._cell(index, "image")["bytes"], ".png")
        except UNDECODABLE as error:
            raise UserError(
                f"{self.folder}: {self.name(index)} cannot be decoded ({error}). Prepare the folder again."
            ) from None
        return _square(array, self.side, self.folder, self.name(index))

    def verify(self) -> None:
        """Hash every shard again.

        Raises:
            UserError: a shard is not the one that was written; names it.
        """
        for shard, facts in enumerate(self.manifest.shards):
            if facts.count and sha256_of(self._arrow(shard)) != facts.sha256:
                raise self._damaged(shard, "its SHA-256 is not the manifest's")


# Which of them is it?


def _open_repa(folder: Path) -> FileImages:
    """``images/`` with labels in it, or in ``vae-sd/`` under the names of the latents, in the same order."""
    images = FolderFiles(folder / "images")
    if row_of(images, LABELS) is not None or not (folder / "vae-sd").is_dir():
        return FileImages(images)
    latents = FolderFiles(folder / "vae-sd")
    return FileImages(images, labels_of(latents, latent_names(latents)))


def latent_names(files: Files) -> list[str]:
    """REPA's ``img-mean-std-XXXXXXXX.npy`` among the names."""
    return [n for n in files.names if n.endswith(".npy") and n.rsplit("/", 1)[-1].startswith("img-mean-std-")]


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


def _open_folder(folder: Path) -> Images:
    if (folder / MANIFEST).exists():
        return StoredImages(folder)
    if (folder / PLAN).exists():
        raise UserError(f"{folder} is not finished. Run the `repa-bench prepare` that began it again: it continues.")
    if (folder / "images.h5").exists():
        return FileImages(H5Files(folder / "images.h5"))
    if (folder / "images").is_dir():
        return _open_repa(folder)
    if (folder / LABELS).exists():
        return FileImages(FolderFiles(folder))
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
