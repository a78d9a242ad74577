"""Named byte strings in a folder, a zip or an HDF5 file, and what is read out of them: images, arrays, JSON, labels."""

from __future__ import annotations

import bisect
import hashlib
import io
import lzma
import os
import re
import stat
import struct
import threading
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.core.errors import UserError
from recipes.core.jsons import load_json

LABELS = "dataset.json"
#: What the zip reader raises for bytes that are not a whole archive, or whose directory says what cannot be.
UNZIPPABLE = (
    OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError, KeyError, IndexError,
    NotImplementedError, RuntimeError,
)  # fmt: skip
#: What Pillow and NumPy raise for bytes that are not a whole image.
UNDECODABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, PIL.Image.DecompressionBombError)


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
        return load_json(path.read_bytes())
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


def fingerprint(names: Iterable[str], *columns: Sequence[int]) -> str:
    """SHA-256, in hex, of names and of columns of whole numbers."""
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
        self.fingerprint = fingerprint(self.names, [size for _, size in found])

    def read(self, row: int) -> bytes:
        """See `Files.read`."""
        try:
            return (self.path / self.names[row]).read_bytes()
        except OSError as error:
            raise UserError(f"{self.path / self.names[row]} cannot be read ({error.strerror}). Restore it.") from None


def _refuse_escape(path: Path, member: zipfile.ZipInfo) -> None:
    """Nothing is unpacked here; but a file with such a member was made to hurt who unpacks it.

    Raises:
        UserError: a member outside the archive's folder, or a link.
    """
    parts = PurePosixPath(member.filename.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or re.match("[A-Za-z]:", member.filename):
        raise UserError(f"{path}: the member {member.filename!r} lies outside the archive. Get the file elsewhere.")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise UserError(f"{path}: the member {member.filename!r} is a link. Get the file elsewhere.")


class ZipFiles:
    """The members of a zip file, read by position: no lock, no shared file cursor, one file handle."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = sorted(
                    (m for m in archive.infolist() if not m.filename.endswith("/")), key=lambda m: m.filename
                )
        except UNZIPPABLE as error:
            raise UserError(f"{path} is not a whole zip file ({error}). Copy it again.") from None
        for member in members:
            _refuse_escape(path, member)
        self.names = [m.filename for m in members]
        # Columns instead of a million ZipInfo objects.
        self._offset = np.array([m.header_offset for m in members], dtype=np.int64)
        self._size = np.array([m.compress_size for m in members], dtype=np.int64)
        self._crc = np.array([m.CRC for m in members], dtype=np.int64)
        self._method = np.array([m.compress_type for m in members], dtype=np.int16)
        self._whole = np.array([m.file_size for m in members], dtype=np.int64)
        self.fingerprint = fingerprint(self.names, [m.file_size for m in members], self._crc.tolist())
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
                    # No more than the directory says: a few kilobytes may unpack to more than there is memory.
                    raw = zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, max(1, int(self._whole[row])))
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
        self.fingerprint = fingerprint(self.names, [path.stat().st_size])

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
        pairs = load_json(files.read(row))["labels"]
        table = {str(name): int(label) for name, label in pairs}
    except (ValueError, KeyError, TypeError):
        raise UserError(f'{where} does not read {{"labels": [["NAME", LABEL], ...]}}. Prepare the set again.') from None
    try:
        return torch.tensor([table[name] for name in names], dtype=torch.int64)
    except KeyError as error:
        raise UserError(f"{where} has no label for {error.args[0]}. Prepare the set again.") from None


def latent_names(files: Files) -> list[str]:
    """REPA's ``img-mean-std-XXXXXXXX.npy`` among the names."""
    return [n for n in files.names if n.endswith(".npy") and n.rsplit("/", 1)[-1].startswith("img-mean-std-")]
