"""Sets of images to be measured: an array, a folder, a zip, a prepared data set. Read in order, a batch at a time."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.scoring.array_files import NpzImages as NpzImages
from harness.scoring.array_files import TensorImages as TensorImages
from harness.scoring.array_files import holds_arrays
from recipes.core.errors import UserError
from recipes.data.decoding import ODD, SUFFIXES, UNDECODABLE, decode
from recipes.data.files import (
    Files,
    FolderFiles,
    Survey,
    ZipFiles,
    is_junk,
    left_out,
    pictures,
    printable,
    survey,
)
from recipes.data.hdf5 import H5Files
from recipes.data.images import StoredImages, is_store, open_images, stack

THREADS = 8
_JPEG = "are JPEGs, WebPs or GIFs: compression changes FID (5.80 for 2.50 in one report); keep samples as PNG or .npz"


class ImageSet(Protocol):
    """Images in a fixed order, read in any."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the set. May read all files (like `identity`)."""
        ...

    @property
    def identity(self) -> str:
        """Content digest, independent of path and mtime."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of every image in pixels."""
        ...

    @property
    def names(self) -> Sequence[str] | None:
        """Labels of the images, in order; None where they have none."""
        ...

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Tensor:
        """uint8, (stop - start, 3, H, W). Safe to call from several threads."""
        ...


class NamedSet(ImageSet, Protocol):
    """A set whose images have names, and are read in any order."""

    def take(self, rows: Sequence[int]) -> Tensor:
        """uint8, (len(rows), 3, H, W)."""
        ...


def batches(images: ImageSet, size: int) -> Iterator[Tensor]:
    """All of a set, `size` at a time."""
    for start in range(0, len(images), size):
        yield images.read(start, min(start + size, len(images)))


def _instead(files: Files) -> str:
    """Advice for a source without images."""
    plain = [name for name in files.names if not is_junk(name)]
    if left_out(files):
        return f"write PNGs. {left_out(files)[0]}"
    if any(name.lower().endswith(".npz") for name in plain):
        return "of several .npz, give one at a time, or join their arr_0 into one file."
    return f"its files are as {printable(plain[0])}; give a set of images." if plain else "it is empty; give another."


class NamedImages:
    """Image files of a folder, a zip or an HDF5 file, by name. Labels are not looked at."""

    def __init__(self, files: Files) -> None:
        """List them.

        Raises:
            UserError: there is none, or the first cannot be decoded.
        """
        self.files, self._rows = files, pictures(files)
        if not self._rows:
            raise UserError(f"{files.path} holds no image ({', '.join(SUFFIXES)}): {_instead(files)}")
        self.names = [files.names[row] for row in self._rows]
        self._pool, self._shape = ThreadPoolExecutor(THREADS, "decode"), self._decoded(0).shape

    @cached_property
    def _survey(self) -> Survey:
        return survey(self.files, self._rows, look=True)

    @property
    def identity(self) -> str:
        """See `ImageSet`."""
        return self._survey.content

    @property
    def warnings(self) -> tuple[str, ...]:
        """See `ImageSet`."""
        odd, told = self._survey.odd, ODD | {"jpeg": _JPEG}
        where = f"of {len(self):,} images in {self.files.path}"
        kinds = [f"{odd[kind]:,} {where} {about}." for kind, about in told.items() if kind in odd]
        return (*kinds, *left_out(self.files))

    @property
    def size(self) -> tuple[int, int]:
        """See `ImageSet`."""
        return self._shape[1], self._shape[0]

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, start: int, stop: int) -> Tensor:
        """See `ImageSet`.

        Raises:
            UserError: a file that cannot be decoded, or of another size than the first.
        """
        return self.take(range(start, stop))

    def take(self, rows: Sequence[int]) -> Tensor:
        """See `NamedSet`; raises as `read`."""
        pixels = list(self._pool.map(self._decoded, rows))
        for row, image in zip(rows, pixels, strict=True):
            if image.shape != self._shape:
                raise UserError(
                    f"{self._where(row)} is {image.shape[1]} x {image.shape[0]} pixels and the first image "
                    f"{self._shape[1]} x {self._shape[0]}; resize them all in one way."
                )
        return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()

    def _where(self, row: int) -> str:
        return f"{self.files.path}: {printable(self.names[row])}"

    def _decoded(self, row: int) -> NDArray[np.uint8]:
        raw = self.files.read(self._rows[row])
        try:
            return decode(raw, self.names[row])
        except UNDECODABLE as error:
            raise UserError(f"{self._where(row)} cannot be decoded ({error}); remove it or write it again.") from None


class FolderImages(NamedImages):
    """Image files of a folder, recursively."""

    def __init__(self, folder: Path) -> None:
        super().__init__(FolderFiles(folder))


class PreparedImages:
    """A data set that was prepared for training."""

    warnings: tuple[str, ...] = ()

    def __init__(self, images: StoredImages) -> None:
        self._images, self._pool = images, ThreadPoolExecutor(THREADS, "decode")

    @cached_property
    def identity(self) -> str:
        """The set's content hash, after verifying its files against it."""
        self._images.verify()
        return self._images.content

    @property
    def size(self) -> tuple[int, int]:
        """See `ImageSet`."""
        return self._images.side, self._images.side

    @cached_property
    def names(self) -> list[str]:
        """See `ImageSet`."""
        return [self._images.name(k) for k in range(len(self))]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, start: int, stop: int) -> Tensor:
        """See `ImageSet`."""
        return self.take(range(start, stop))

    def take(self, rows: Sequence[int]) -> Tensor:
        """See `NamedSet`."""
        return stack(self._images, rows, self._pool)


def _open_folder(folder: Path) -> ImageSet:
    if is_store(folder):
        images = open_images(folder)
        assert isinstance(images, StoredImages)
        return PreparedImages(images)
    if (folder / "images.h5").exists():
        return NamedImages(H5Files(folder / "images.h5"))
    if (folder / "images").is_dir() and (folder / "vae-sd").is_dir():  # REPA's: the latents are no images
        return FolderImages(folder / "images")
    return FolderImages(folder)


def _open_file(path: Path, flag: str) -> ImageSet:
    import h5py

    if not path.is_file():
        raise UserError(f"{flag} {path} is a pipe or a device; give a file or a folder.")
    if holds_arrays(path):
        return NpzImages(path)
    if h5py.is_hdf5(path):
        return NamedImages(H5Files(path))
    wanted = "give an .npz or .npy of uint8 (N, H, W, 3), a folder or zip of images, or a prepared set"
    if zipfile.is_zipfile(path):
        files = ZipFiles(path)
        if not any(name.endswith("/data.pkl") for name in files.names):
            return NamedImages(files)
    elif tarfile.is_tarfile(path):
        raise UserError(f"{flag} {path} is a tar archive: unpack it and give the folder.")
    elif path.suffix.lower() in SUFFIXES:
        raise UserError(f"{flag} {path} is one image: give the folder that it lies in.")
    elif path.suffix.lower() not in (".pt", ".pth"):
        raise UserError(f"{flag} {path} is no set of images that we can read: {wanted}.")
    raise UserError(f"{flag} {path} is a file of PyTorch: save np.savez(path, arr_0=x.numpy()), or {wanted}.")


def open_samples(path: Path, *, flag: str) -> ImageSet:
    """Open a set of images, detecting its format.

    Raises:
        UserError: unknown format; the message names `flag`.
    """
    if not path.exists():
        raise UserError(f"{flag} {path}: there is no such file or folder.")
    return _open_folder(path) if path.is_dir() else _open_file(path, flag)
