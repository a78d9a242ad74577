"""Named byte strings in a folder, a zip or an HDF5 file, and what is read out of them: images, arrays, JSON, labels."""

from __future__ import annotations

import bisect
import bz2
import errno
import hashlib
import lzma
import os
import re
import stat
import struct
import weakref
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from recipes.core.content import State, remembered
from recipes.core.errors import UserError
from recipes.core.jsons import load_json
from recipes.data.decoding import SUFFIXES, UNDECODABLE, UNREAD, is_lossy, oddities, opened

LABELS = "dataset.json"
#: Size limits for a decompressed file / for dataset.json.
MOST_BYTES, MOST_LABEL_BYTES = 2**28, 2**30
#: Junk names to ignore (plus dot files).
JUNK = {"__macosx", "@eadir", "$recycle.bin", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini",
        "thumbnails", "thumbnail", "thumbs"}  # fmt: skip
_ASTRAY = "links that lead nowhere or in a circle, or no files"
#: Suffixes of known non-image files.
_BESIDE = (
    ".json", ".jsonl", ".txt", ".csv", ".tsv", ".md", ".html", ".yaml", ".yml", ".log", ".xml", ".pdf", ".py", ".sh",
    ".pt", ".pth", ".pkl", ".parquet", ".arrow", ".lock", ".sha256", ".md5", ".toml", ".ini", ".mp4", ".cache",
)  # fmt: skip
_KNOWN = frozenset((*SUFFIXES, *UNREAD, ".npy", ".npz", ".zip", ".tar", ".tgz", ".gz", *_BESIDE))
#: Number of trailing bytes that contain the zip's end record.
_END_OF_ZIP = 2**16 + 2**10
#: Files whose bytes are hashed at a time.
_HASHED_AT_ONCE, _THREADS = 1024, 8
#: What the zip reader raises for bytes that are not a whole archive, or whose directory says what cannot be.
UNZIPPABLE = (
    OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError, KeyError, IndexError,
    NotImplementedError, RuntimeError,
)  # fmt: skip


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
    def missing(self) -> list[str]:
        """Broken or circular links, special files, and unlisted HDF5 entries."""
        ...

    @property
    def missing_are(self) -> str:
        """What `missing` are, in words."""
        ...

    @property
    def state(self) -> State:
        """State of the files below, to see that none was touched."""
        ...

    def content(self, rows: Sequence[int]) -> str:
        """SHA-256 of names and bytes of some rows. For zips: hash of names, sizes and CRCs (CRCs are verified on
        reading).
        """
        ...

    def read(self, row: int) -> bytes:
        """The bytes of ``names[row]``.

        Raises:
            UserError: they cannot be read, are damaged, or are more than `MOST_BYTES`.
        """
        ...


def fingerprint(names: Iterable[str], *columns: Sequence[int]) -> str:
    """SHA-256, in hex, of names and of columns of whole numbers."""
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogatepass"))
    for column in columns:
        digest.update(np.asarray(column, dtype="<i8").tobytes())
    return digest.hexdigest()


def is_junk(name: str) -> bool:
    """Whether a path component is hidden or junk."""
    return any(part.startswith(".") or part.lower() in JUNK for part in name.split("/"))


def natural(name: str) -> tuple[tuple[str | int, ...], str]:
    """A key that sorts names by the numbers in them: 2 before 10."""
    return tuple(int(p) if k % 2 else p for k, p in enumerate(re.split(r"([0-9]{1,99})", name))), name


def printable(name: str) -> str:
    """Name with undecodable bytes escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def pictures(files: Files) -> list[int]:
    """The rows of the images: no junk, and .npy files where there are no others."""
    rows = [row for row, name in enumerate(files.names) if not is_junk(name)]
    encoded = [row for row in rows if files.names[row].lower().endswith(SUFFIXES)]
    return encoded or [row for row in rows if files.names[row].lower().endswith(".npy")]


def _is_strange(name: str) -> bool:
    """Whether the suffix is unknown (perhaps a truncated name)."""
    _, dot, suffix = name.rsplit("/", 1)[-1].rpartition(".")
    return bool(dot) and f".{suffix.lower()}" not in _KNOWN


def left_out(files: Files) -> list[str]:
    """Warnings about files that are skipped."""
    named = [name for name in files.names if name.lower().endswith(SUFFIXES + UNREAD)]
    plain = [name for name in files.names if not is_junk(name)]
    has_encoded, out = any(name.lower().endswith(SUFFIXES) for name in plain), []
    for found, what in (
        ([n for n in plain if n.lower().endswith((".npy", ".npz")) and has_encoded], "arrays beside pictures"),
        ([n for n in plain if n.lower().endswith((".zip", ".tar", ".tgz", ".tar.gz"))], "archives inside the set"),
        ([n for n in plain if "." not in (last := n.rsplit("/", 1)[-1]) and last.upper() != last], "without a suffix"),
        ([n for n in plain if _is_strange(n)], "by their suffix no pictures"),
        ([n for n in named if is_junk(n)], "hidden, or made by a file manager or notebook"),
        ([n for n in named if not is_junk(n) and n.lower().endswith(UNREAD)], "in a format that is not read"),
        (files.missing, files.missing_are),
    ):
        if found:
            first = printable(found[0]) + ", ..." * (len(found) > 1)
            out.append(f"{files.path}: {len(found):,} left out, {what} ({first}).")
    return out


@dataclass(frozen=True)
class Survey:
    """Content hash and oddity counts of a file set."""

    content: str
    """SHA-256 of the names and bytes, in order."""
    odd: dict[str, int]
    """How many are of each kind of `oddities`, and how many are JPEGs."""


def survey(files: Files, rows: Sequence[int], *, look: bool = False) -> Survey:
    """Read the bytes of some rows, in parallel; not again while nothing was touched (see `remembered`).

    Args:
        files: where they lie.
        rows: which.
        look: count oddities of pictures; what cannot be decoded has none.
    """

    def one(row: int) -> tuple[bytes, tuple[str, ...]]:
        raw = files.read(row)
        return hashlib.sha256(raw).digest(), _looked_at(raw, files.names[row]) if look else ()

    def make() -> dict[str, Any]:
        digest, odd = hashlib.sha256(), Counter[str]()
        with ThreadPoolExecutor(_THREADS, "hash") as pool:
            for start in range(0, len(rows), _HASHED_AT_ONCE):
                part = rows[start : start + _HASHED_AT_ONCE]
                for row, (sha, kinds) in zip(part, pool.map(one, part), strict=True):
                    digest.update(files.names[row].encode("utf-8", "surrogatepass") + b"\0" + sha)
                    odd.update(kinds)
        return {"content": digest.hexdigest(), "odd": dict(odd)}

    what = f"survey {look} {fingerprint(files.names[row] for row in rows)}"
    return Survey(**remembered(files.path, files.state, what, make))


def _looked_at(raw: bytes, name: str) -> tuple[str, ...]:
    if name.lower().endswith(".npy"):
        return ()
    try:
        with opened(raw) as image:
            return (*oddities(image), *(("jpeg",) if is_lossy(image) else ()))
    except UNDECODABLE:  # reading says so
        return ()


def _walk(
    folder: Path, missing: list[str], prefix: str = "", above: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[str, os.stat_result]]:
    """The files below a folder. Links are followed, but not in circles; those that lead nowhere are `missing`."""
    about = folder.stat()
    here = (about.st_dev, about.st_ino)
    if here in above:
        missing.append(prefix.rstrip("/"))
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            try:
                facts = entry.stat()
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                    raise
                missing.append(name)
                continue
            if stat.S_ISDIR(facts.st_mode):
                yield from _walk(Path(entry.path), missing, f"{name}/", (*above, here))
            elif stat.S_ISREG(facts.st_mode):
                yield name, facts
            else:
                missing.append(name)


class FolderFiles:
    """The files below a folder, named by their path inside it."""

    missing_are = _ASTRAY

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names, self.missing = list[str](), list[str]()

        def found() -> Iterator[tuple[str, os.stat_result]]:
            for name, facts in _walk(path, self.missing):
                self.names.append(name)
                yield name, facts

        self.state = State.of(found())
        self.names.sort()
        self.missing.sort()

    def content(self, rows: Sequence[int]) -> str:
        """See `Files.content`."""
        return survey(self, rows).content

    def read(self, row: int) -> bytes:
        """See `Files.read`."""
        path = self.path / self.names[row]
        try:
            with path.open("rb") as file:
                refuse_large(path, self.names[row], os.fstat(file.fileno()).st_size)
                return file.read()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}). Restore it.") from None


def refuse_large(path: Path, name: str, size: int) -> None:
    """Refuse files above the size limit.

    Raises:
        UserError: it is.
    """
    most = MOST_LABEL_BYTES if name == LABELS else MOST_BYTES
    if size > most:
        raise UserError(
            f"{path}: {printable(name)} has {size:,} bytes, more than the {most:,} that are read. Leave it out."
        )


def _refuse_escape(path: Path, member: zipfile.ZipInfo) -> None:
    """Refuse zips with path traversal or link members (malicious even though we never extract).

    Raises:
        UserError: a member outside the archive's folder, or a link.
    """
    parts = PurePosixPath(member.filename.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or re.match("[A-Za-z]:", member.filename):
        raise UserError(f"{path}: the member {member.filename!r} lies outside the archive. Get the file elsewhere.")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise UserError(f"{path}: the member {member.filename!r} is a link. Get the file elsewhere.")


def _refuse_swallowed(path: Path, found: int) -> None:
    """Check the member count against the end record (damage can hide members).

    Raises:
        zipfile.BadZipFile: they are fewer, or more.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END_OF_ZIP))
        end = file.read()
    at, wide = end.rfind(b"PK\5\6"), end.rfind(b"PK\6\6")
    if at < 0 or len(end) < at + 12:
        return
    (said,) = struct.unpack_from("<H", end, at + 10)
    if said == 0xFFFF and 0 <= wide <= len(end) - 40:
        (said,) = struct.unpack_from("<Q", end, wide + 32)
    if said not in (found, found % 2**16, 0xFFFF):  # some writers count on from 0 after 65,535
        raise zipfile.BadZipFile(f"its end says {said:,} members, its directory has {found:,}")


class ZipFiles:
    """The members of a zip file, read by position: no lock, no shared file cursor, one file handle."""

    missing_are = _ASTRAY

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                _refuse_swallowed(path, len(archive.infolist()))
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
        self._method = np.array([m.compress_type for m in members], dtype=np.int64)
        self._encrypted = np.array([bool(m.flag_bits & 1) for m in members])
        self._whole = np.array([m.file_size for m in members], dtype=np.int64)
        self.state, self.missing = State.of([(str(path.absolute()), path.stat())]), list[str]()
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)

    def _unpacker(self, row: int) -> Any:
        if self._method[row] == zipfile.ZIP_DEFLATED:
            return zlib.decompressobj(-zlib.MAX_WBITS)
        if self._method[row] == zipfile.ZIP_BZIP2:
            return bz2.BZ2Decompressor()
        raise UserError(f"{self.path}: {self.names[row]} is packed by LZMA or another method. Zip it with deflate.")

    def content(self, rows: Sequence[int]) -> str:
        """See `Files.content`."""
        return fingerprint(self.names, self._whole.tolist(), self._crc.tolist())

    def read(self, row: int) -> bytes:
        """See `Files.read`; checks the CRC."""
        refuse_large(self.path, self.names[row], max(int(self._size[row]), int(self._whole[row])))
        start = max(0, int(self._offset[row]))
        header = os.pread(self._handle, 30, start)
        if len(header) == 30:
            name_length, extra_length = struct.unpack("<HH", header[26:30])
            try:
                raw = os.pread(self._handle, int(self._size[row]), start + 30 + name_length + extra_length)
                if self._encrypted[row]:
                    raise UserError(f"{self.path}: {self.names[row]} is encrypted. Unpack it and zip it again.")
                if self._method[row] != zipfile.ZIP_STORED:
                    # No more than the directory says: a few kilobytes may unpack to more than there is memory.
                    raw = self._unpacker(row).decompress(raw, max(1, int(self._whole[row])))
                if zlib.crc32(raw) == self._crc[row]:
                    return raw
            except (zlib.error, OSError):
                pass
        raise UserError(f"{self.path}: {self.names[row]} is damaged (its CRC is wrong). Copy the zip file again.")


def row_of(files: Files, name: str) -> int | None:
    """Index of a name (binary search), or None."""
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
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f'{where} does not read {{"labels": [["NAME", LABEL], ...]}}. Prepare the set again.') from None
    try:
        if gone := sorted(table.keys() - set(files.names)):
            raise UserError(
                f"{where} has labels of {len(gone):,} images that are not there ({printable(gone[0])}): the set is not "
                "whole. Restore them, or take their labels out."
            )
        return torch.tensor([table[name] for name in names], dtype=torch.int64)
    except KeyError as error:
        raise UserError(f"{where} has no label for {printable(error.args[0])}. Prepare the set again.") from None


def latent_names(files: Files) -> list[str]:
    """REPA's ``img-mean-std-XXXXXXXX.npy`` among the names."""
    latents = (n for n in files.names if n.endswith(".npy") and n.rsplit("/", 1)[-1].startswith("img-mean-std-"))
    return [name for name in latents if not is_junk(name)]
