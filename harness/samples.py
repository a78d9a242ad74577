"""Sets of images to be measured: an ADM .npz, a folder, a prepared data set. Read in order, a batch at a time."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.core.errors import UserError
from recipes.core.files import UNDECODABLE, UNZIPPABLE, decode
from recipes.core.images import Images, open_images, stack
from recipes.core.spec import digest_of

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
LOSSY = {".jpg", ".jpeg"}
THREADS = 8


class ImageSet(Protocol):
    """Images in a fixed order, read in any."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know about the set."""
        ...

    @property
    def identity(self) -> str:
        """Digest of what tells it from others without reading it: place, size and time of its files, or its hash."""
        ...

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Tensor:
        """uint8, (stop - start, 3, H, W). Safe to call from several threads."""
        ...


def batches(images: ImageSet, size: int) -> Iterator[Tensor]:
    """All of a set, `size` at a time."""
    for start in range(0, len(images), size):
        yield images.read(start, min(start + size, len(images)))


def _identity(root: Path, files: Sequence[Path]) -> str:
    facts = [(str(p.relative_to(root)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return digest_of([str(root.absolute()), facts])


class NpzImages:
    """``arr_0`` of an .npz, uint8 (N, H, W, 3), read as a stream: 50,000 images of 256 pixels are 10 GB."""

    warnings: tuple[str, ...] = ()
    _file: IO[bytes] | None

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            UserError: no ``arr_0``, or not such an array.
        """
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                self.shape, fortran, dtype = read(file)
                self._offset = file.tell()
        except UNZIPPABLE as error:
            raise UserError(f"{path} is not an .npz with images in arr_0 ({error}).") from None
        if dtype != np.uint8 or len(self.shape) != 4 or self.shape[-1] != 3 or fortran:
            raise UserError(
                f"{path}: arr_0 is {dtype} of shape {tuple(self.shape)}; images are uint8 of shape (N, H, W, 3)."
            )
        if self.shape[0] == 0:
            raise UserError(f"{path}: arr_0 holds no image.")
        self._lock, self._file = threading.Lock(), None

    @property
    def identity(self) -> str:
        """See `ImageSet`."""
        return _identity(self.path.parent, [self.path])

    def __len__(self) -> int:
        return int(self.shape[0])

    def read(self, start: int, stop: int) -> Tensor:
        """See `ImageSet`.

        Raises:
            UserError: the file was cut short or is damaged.
        """
        each = int(np.prod(self.shape[1:]))
        with self._lock:
            # One open file for reading on: of a compressed array, going back means starting over.
            try:
                if self._file is None or self._file.tell() > self._offset + start * each:
                    self._file = zipfile.ZipFile(self.path).open("arr_0.npy")  # noqa: SIM115
                self._file.seek(self._offset + start * each)
                raw = self._file.read((stop - start) * each)
            except UNZIPPABLE as error:
                raise UserError(
                    f"{self.path} cannot be read to its end ({error}): it was damaged or cut short."
                ) from None
        if len(raw) != (stop - start) * each:
            raise UserError(f"{self.path} ends within image {start + len(raw) // each}: it was cut short.")
        pixels = np.frombuffer(bytearray(raw), np.uint8).reshape(stop - start, *self.shape[1:])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


class FolderImages:
    """Image files of a folder and what is below it, by name."""

    def __init__(self, folder: Path) -> None:
        """List them.

        Raises:
            UserError: there is none.
        """
        self.folder = folder
        self.files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not self.files:
            raise UserError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))}).")
        self._pool, self._shape = ThreadPoolExecutor(THREADS, "decode"), _read(self.files[0]).shape
        lossy = sum(p.suffix.lower() in LOSSY for p in self.files)
        self.warnings: tuple[str, ...] = ()
        if lossy:
            self.warnings = (
                f"{lossy:,} of {len(self.files):,} images in {folder} are JPEGs: compression changes FID (5.80 for "
                "2.50 in one report); keep samples as PNG or .npz.",
            )

    @property
    def identity(self) -> str:
        """See `ImageSet`."""
        return _identity(self.folder, self.files)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, start: int, stop: int) -> Tensor:
        """See `ImageSet`.

        Raises:
            UserError: a file that cannot be decoded, or of another size than the first.
        """
        files = self.files[start:stop]
        pixels = list(self._pool.map(_read, files))
        for path, image in zip(files, pixels, strict=True):
            if image.shape != self._shape:
                raise UserError(
                    f"{path} is {image.shape[1]} x {image.shape[0]} pixels and the first image "
                    f"{self._shape[1]} x {self._shape[0]}; resize them all in one way."
                )
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        return decode(path.read_bytes(), path.name)
    except UNDECODABLE as error:
        raise UserError(f"{path} cannot be decoded ({error}); remove it or write it again.") from None


class PreparedImages:
    """A data set that was prepared for training."""

    warnings: tuple[str, ...] = ()

    def __init__(self, images: Images) -> None:
        self._images, self._pool = images, ThreadPoolExecutor(THREADS, "decode")

    @property
    def identity(self) -> str:
        """The set's own content hash."""
        return self._images.content

    def __len__(self) -> int:
        return len(self._images)

    def read(self, start: int, stop: int) -> Tensor:
        """See `ImageSet`."""
        return stack(self._images, range(start, stop), self._pool)


def open_samples(path: Path, *, flag: str) -> ImageSet:
    """Recognise a set of images by what it is.

    Raises:
        UserError: it is none; `flag` is named.
    """
    if not path.exists():
        raise UserError(f"{flag} {path}: there is no such file or folder.")
    if path.suffix == ".npz":
        return NpzImages(path)
    if path.is_dir() and not (path / "manifest.json").exists() and not (path / "dataset.json").exists():
        return FolderImages(path)
    return PreparedImages(open_images(path))
