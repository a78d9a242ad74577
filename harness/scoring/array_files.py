"""Images in one array: ``arr_0`` of an .npz (ADM's form) or a .npy file, uint8 (N, H, W, 3); or a tensor in memory."""

from __future__ import annotations

import hashlib
import threading
import weakref
import zipfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.core.content import content_of
from recipes.core.errors import UserError
from recipes.data.decoding import array_header
from recipes.data.files import LABELS, MOST_BYTES, UNZIPPABLE

ADM = "arr_0.npy"
#: Size limit for Fortran-ordered arrays, which must be loaded into memory.
MOST_IN_MEMORY = 2**31
_AT_ONCE = 2**20
_MAGIC = b"\x93NUMPY"
Header = tuple[tuple[int, ...], bool, np.dtype[Any]]


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def headers(path: Path) -> dict[str, Header]:
    """Shape, order and dtype of the arrays in an .npz, by member; of a .npy file, under the name ''.

    Raises:
        UserError: it is neither.
    """
    try:
        if not _is_zip(path):
            with path.open("rb") as file:
                return {"": array_header(file)}
        with zipfile.ZipFile(path) as archive:
            found = {}
            for name in archive.namelist():
                if name.endswith(".npy"):
                    with archive.open(name) as member:
                        found[name] = array_header(member)
            return found
    except UNZIPPABLE as error:
        raise UserError(f"{path} is not an .npz with images in arr_0, or it is damaged ({error}).") from None


def holds_arrays(path: Path) -> bool:
    """Whether a file is .npy/.npz (by suffix .npz or by content) rather than a zip of images."""
    if path.suffix.lower() == ".npz":
        return True
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) == _MAGIC:
            return True
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except UNZIPPABLE:
        return False
    flat = bool(names) and all(name.endswith(".npy") and "/" not in name for name in names)
    return ADM in names or (flat and LABELS not in names and any(len(h[0]) != 3 for h in headers(path).values()))


def _is_images(header: Header) -> bool:
    shape, _, dtype = header
    return dtype == np.uint8 and len(shape) == 4 and shape[-1] == 3


def _as_bytes(dtype: np.dtype[Any]) -> str:
    """Advice for converting a non-uint8 array."""
    if dtype.hasobject:
        return "it holds a pickle, which is never loaded: save np.stack(list(x))"
    if dtype.kind == "f":
        return "save (255 * x).round().clip(0, 255).astype(np.uint8) if x is in 0..1, x.astype(np.uint8) if in 0..255"
    if dtype.kind == "b":
        return "save x.astype(np.uint8) * 255"
    if dtype.kind in "iu":
        return "save x.astype(np.uint8) if its values are in 0..255"
    return "its values are no pixels: save images as np.savez(path, arr_0=x)"


def _remedy(header: Header) -> str:
    """Advice for arrays with the wrong shape or dtype."""
    shape, _, dtype = header
    if dtype != np.uint8:
        return _as_bytes(dtype)
    if len(shape) == 4 and shape[1] in (1, 3, 4):
        return "its channels come first: save x.transpose(0, 2, 3, 1)"
    if len(shape) == 4 and shape[-1] == 4:
        return "it has an alpha channel: save x[..., :3] if that is opaque"
    if (len(shape) == 4 and shape[-1] == 1) or (len(shape) == 3 and shape[-1] != 3):
        return "it is grey: save np.repeat(x.reshape(*x.shape[:3], 1), 3, -1)"
    if len(shape) == 3:
        return "it is one image: save x[None], with more"
    if len(shape) == 5:
        return "save x.reshape(-1, *x.shape[-3:])"
    return "save images as np.savez(path, arr_0=x)"


def _told(name: str, header: Header) -> str:
    return f"{name.removesuffix('.npy') or 'the array'} is {header[2]} of shape {header[0]}"


class NpzImages:
    """uint8 (N, H, W, 3) in an .npz or .npy, read as a stream: 50,000 images of 256 pixels are 10 GB."""

    names: None = None
    _file: IO[bytes] | None

    def __init__(self, path: Path) -> None:
        """Find the array: ``arr_0``, or the only one of images.

        Raises:
            UserError: there is none, or it is not whole; what is there is named, with its remedy.
        """
        self.path = path
        found = headers(path)
        self._member, self.warnings = self._choose(found)
        self.shape, self._fortran, _ = found[self._member]
        if 0 in self.shape:
            raise UserError(f"{path}: {_told(self._member, found[self._member])}, which holds no image.")
        self._each = int(np.prod(self.shape[1:], dtype=object))
        if self._each > MOST_BYTES:
            raise UserError(f"{path}: images of {self.shape[2]} x {self.shape[1]} pixels are too large to be read.")
        self.adm = self._member == ADM and not self._fortran
        """Whether ADM's evaluator reads it."""
        self._lock, self._file, self._at = threading.Lock(), None, 0
        self._close: Callable[[], object] = lambda: None
        self._refuse_torn()
        self._whole = self._in_memory() if self._fortran else None

    def _choose(self, found: dict[str, Header]) -> tuple[str, tuple[str, ...]]:
        images = [name for name, header in found.items() if _is_images(header)]
        others = [name.removesuffix(".npy") for name in images if name != ADM]
        if ADM in images or images == [""]:
            more = f"{self.path}: {', '.join(others)} holds images too; arr_0 is measured."
            return (ADM, (more,) if others else ()) if ADM in images else ("", ())
        if len(images) == 1:
            return images[0], (f"{self.path}: the images are those in {others[0]}; there are none in arr_0.",)
        first = next((name for name in (ADM, "") if name in found), None)
        if first is None and len(found) == 1:
            first = next(iter(found))
        if first is not None:
            raise UserError(
                f"{self.path}: {_told(first, found[first])}; images are uint8 of shape (N, H, W, 3): "
                f"{_remedy(found[first])}."
            )
        held = "; ".join(_told(*item) for item in found.items()) or "there is no array"
        raise UserError(f"{self.path}: there are no images (uint8, (N, H, W, 3)) in arr_0: {held}. Name them arr_0.")

    def _open(self) -> IO[bytes]:
        if not self._member:
            return self.path.open("rb")
        with zipfile.ZipFile(self.path) as archive:  # the member holds the file open
            return archive.open(self._member)

    def _refuse_torn(self) -> None:
        """Refuse truncated arrays."""
        with self._open() as file:
            array_header(file)
            self._offset = file.tell()
        if self._member:
            with zipfile.ZipFile(self.path) as archive:
                size = archive.getinfo(self._member).file_size - self._offset
        else:
            size = self.path.stat().st_size - self._offset
        if size != (wanted := self._each * len(self)):
            raise UserError(
                f"{self.path} cannot be read to its end: its array has {size:,} bytes and {self.shape} are {wanted:,}; "
                "it was damaged or cut short."
            )

    def _in_memory(self) -> NDArray[np.uint8]:
        """An array in Fortran order: (3, W, H, N) in C order, turned so that each image is a run of bytes."""
        if self._each * len(self) > MOST_IN_MEMORY:
            raise UserError(f"{self.path} is in Fortran order and too large for it: save np.ascontiguousarray(x).")
        raw = self._stream(0, self._each * len(self))
        return np.ascontiguousarray(np.frombuffer(raw, np.uint8).reshape(self.shape[::-1]).T)

    @property
    def identity(self) -> str:
        """See `ImageSet`."""
        return content_of(self.path)

    @property
    def size(self) -> tuple[int, int]:
        """See `ImageSet`."""
        return self.shape[2], self.shape[1]

    def __len__(self) -> int:
        return int(self.shape[0])

    def _bytes(self, file: IO[bytes], count: int) -> bytes:
        try:
            raw = file.read(count)
        except UNZIPPABLE as error:
            raise UserError(f"{self.path} cannot be read to its end ({error}): it was damaged or cut short.") from None
        if len(raw) != count:
            raise UserError(f"{self.path} ends early: it was cut short.")
        return raw

    def read(self, start: int, stop: int) -> Tensor:
        """See `ImageSet`.

        Raises:
            UserError: the file was cut short or is damaged.
        """
        if self._whole is not None:
            pixels = self._whole[start:stop].copy()
        else:
            raw = self._stream(start * self._each, (stop - start) * self._each)
            pixels = np.frombuffer(bytearray(raw), np.uint8).reshape(stop - start, *self.shape[1:])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def _stream(self, start: int, count: int) -> bytes:
        """Bytes of the array. Skipped bytes are read, because zipfile verifies CRCs only when reading sequentially."""
        with self._lock:
            try:
                if self._file is None or self._at > start:
                    self._close()
                    self._file, self._at = self._open(), 0
                    self._close = weakref.finalize(self, self._file.close)
                    self._bytes(self._file, self._offset)
            except UNZIPPABLE as error:
                raise UserError(f"{self.path} cannot be read ({error}): it was damaged or cut short.") from None
            while self._at < start:
                self._at += len(self._bytes(self._file, min(start - self._at, _AT_ONCE)))
            raw = self._bytes(self._file, count)
            self._at += count
        return raw


class TensorImages:
    """uint8 (N, 3, H, W) in memory, on any device."""

    names: None = None
    warnings: tuple[str, ...] = ()

    def __init__(self, images: Tensor) -> None:
        """Look at its type and shape.

        Raises:
            UserError: it is of another type or shape, with the remedy.
        """
        shape = tuple(images.shape)
        if images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or 0 in shape:
            raise UserError(
                f"the images are a tensor of {images.dtype} and shape {shape}; give uint8 of shape (N, 3, H, W): "
                f"{_of_tensor(images.dtype, shape)}."
            )
        self._images = images

    @cached_property
    def identity(self) -> str:
        """See `ImageSet`."""
        found = hashlib.sha256(str(tuple(self._images.shape)).encode())
        for image in self._images:
            found.update(image.cpu().contiguous().numpy().data)
        return found.hexdigest()

    @property
    def size(self) -> tuple[int, int]:
        """See `ImageSet`."""
        return self._images.shape[3], self._images.shape[2]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, start: int, stop: int) -> Tensor:
        """See `ImageSet`."""
        return self._images[start:stop].cpu()


def _of_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    """Advice for a tensor of another type or shape."""
    if dtype.is_floating_point:
        return "(255 * x).round().clamp(0, 255).to(torch.uint8) if x is in 0..1, x.to(torch.uint8) if in 0..255"
    if dtype != torch.uint8:
        return "x.to(torch.uint8) if its values are in 0..255"
    if 0 in shape:
        return "it holds no image"
    if len(shape) == 4 and shape[-1] == 3:
        return "its channels come last: x.permute(0, 3, 1, 2)"
    if len(shape) == 4 and shape[1] == 1:
        return "it is grey: x.expand(-1, 3, -1, -1)"
    return "it is one image: x[None], with more" if len(shape) == 3 else "stack images of three channels"
