"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from recipes.core.errors import UserError

#: Short hash of the host name, used in temporary file names.
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
#: Names of the temporaries that this process is writing.
_OURS: set[str] = set()
#: Temporaries of other machines count as abandoned after this time (we cannot check their processes).
ABANDONED_SECONDS = 24 * 3600.0


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file or folder to the disk, so that a power cut after the rename cannot empty it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# What is written appears under its name when it is whole.


def lives(pid: int) -> bool:
    """Whether a process with this pid exists."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _abandoned(leftover: Path) -> bool:
    """Whether a temporary file's creator is gone (local: pid check; other machine: age)."""
    made = re.search(r"\.(?:([0-9a-f]{8})-)?([0-9]+)(?:-[0-9a-f]+)?\.tmp$", leftover.name)
    if made and made[1] in (None, _HOST):
        pid = int(made[2])  # a process of a container often has the number of the one before it
        return leftover.name not in _OURS if pid == os.getpid() else not lives(pid)
    try:
        return time.time() - leftover.lstat().st_mtime > ABANDONED_SECONDS
    except FileNotFoundError:
        return False


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A name beside a path that no other process or thread has, on any machine: it holds the host, the process and a
    random number. Anything still at that path on exit is deleted.

    Stale temporaries of the same target from dead processes are deleted.

    Raises:
        OSError: a full disk, whatever the library made of it that wrote.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if _abandoned(leftover):
            _discard(leftover)
    made = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    _discard(made)
    _OURS.add(made.name)
    try:
        yield made
    except Exception as error:
        if (number := _errno_behind(error)) is not None:
            raise OSError(number, os.strerror(number), str(path)) from None
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a write does not say of which file
        raise
    finally:
        _discard(made)
        _OURS.discard(made.name)


def _errno_behind(error: BaseException) -> int | None:
    """The system's error that a library has told in words of its own: safetensors in a text, torch as a context."""
    if isinstance(error, SafetensorError) and (told := re.search(r"os error (\d+)", str(error))):
        return int(told[1])
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        return error.__context__.errno
    return None


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which gets its name when it is whole and on the disk."""
    with temporary(path) as made:
        with made.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        made.replace(path)
    sync(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with written(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def open_own(path: Path) -> BinaryIO:
    """A file of ours to read and append to in place, made if it is not there: never through a link.

    Raises:
        UserError: somebody has put a link, a pipe or a device in its place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
            raise
        raise _no_file(path) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _no_file(path)
    return os.fdopen(handle, "a+b")


def _no_file(path: Path) -> UserError:
    return UserError(f"{path} is a link, a pipe or a device, and nothing is written through it. Remove it.")


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written in a folder that nobody else writes to."""
    for leftover in folder.rglob(".*.tmp"):
        _discard(leftover)
