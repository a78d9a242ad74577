"""Checkpoints that appear whole or not at all, and that never run code when they are read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recipes.core.errors import DamagedError
from recipes.core.spec import digest_of

MANIFEST = "manifest.json"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk, so that a power cut after the rename cannot empty it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


@contextmanager
def _whole(temporary: Path) -> Iterator[None]:
    """What could not be written to the end is removed: on a full disk it would be in the way of the next try."""
    try:
        yield
    except BaseException as error:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        # safetensors tells the system's error in words
        if isinstance(error, SafetensorError) and (told := re.search(r"os error (\d+)", str(error))):
            raise OSError(int(told[1]), os.strerror(int(told[1])), str(temporary)) from None
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        if not _lives(leftover.name.split(".")[-2]):
            leftover.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _whole(temporary):
        temporary.write_bytes(content)
        _sync(temporary)
        temporary.replace(path)
    _sync(path.parent)


def _lives(pid: str) -> bool:
    """Whether a process of this machine has that number."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written in a folder that nobody else writes to."""
    for leftover in folder.rglob(".*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def save_folder(folder: Path, parts: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> None:
    """Write `parts` as NAME.safetensors and a manifest with their hashes, under a name that appears at the end.

    Args:
        folder: where it will lie; replaced if it exists.
        parts: tensors by name, by file.
        meta: JSON-able facts, kept in the manifest.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a process that was killed while writing
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    with _whole(temporary):
        temporary.mkdir()
        hashes = {}
        for name, tensors in parts.items():
            path = temporary / f"{name}.safetensors"
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path)
            _sync(path)
            hashes[path.name] = sha256_of(path)
        (temporary / MANIFEST).write_text(_manifest_text(hashes, meta))
        _sync(temporary / MANIFEST)
        _put(temporary, folder)
    _sync(folder.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it is never seen half there."""
    gone = folder.with_name(f".{folder.name}.gone.tmp")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _put(temporary: Path, folder: Path) -> None:
    """Give a finished folder its name; another of that name goes only when the new one is there."""
    before = folder.with_name(f".{folder.name}.before.tmp")
    try:
        temporary.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        folder.rename(before)
        temporary.rename(folder)
        shutil.rmtree(before, ignore_errors=True)


def _manifest_text(hashes: Mapping[str, str], meta: Mapping[str, Any]) -> str:
    content = {"files": dict(hashes), "meta": dict(meta)}
    return json.dumps(content | {"check": digest_of(content)}, indent=1, sort_keys=True)


def _manifest(folder: Path) -> dict[str, Any]:
    """``files`` and ``meta``.

    Raises:
        DamagedError: it is not there, or not what was written.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text())
        content = {"files": dict(found["files"]), "meta": dict(found["meta"])}
        sound = found.get("check") in (None, digest_of(content))  # older ones have no check
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DamagedError(
            f"{folder} is not a checkpoint: it has no readable {MANIFEST}. Remove it and run again."
        ) from None
    if not sound:
        raise DamagedError(
            f"{folder / MANIFEST} is damaged: it is not what was written. Remove {folder} and run again."
        )
    return content


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest's ``meta``.

    Raises:
        DamagedError: the folder holds no readable manifest.
    """
    meta: dict[str, Any] = _manifest(folder)["meta"]
    return meta


def hash_of_part(folder: Path, name: str) -> str | None:
    """SHA-256 of a file of the folder as the manifest has it; nothing if it has no such file.

    Raises:
        DamagedError: the folder holds no readable manifest.
    """
    found: str | None = _manifest(folder)["files"].get(f"{name}.safetensors")
    return found


def verify_part(folder: Path, name: str) -> Path:
    """Check the hash of one file of a folder written by `save_folder`; its path.

    Raises:
        DamagedError: the file is missing, or is not the one that the manifest names.
    """
    wanted = hash_of_part(folder, name)
    path = folder / f"{name}.safetensors"
    if wanted is None or not path.is_file():
        raise DamagedError(f"{folder} holds no {path.name}. Remove the folder and run again.")
    if sha256_of(path) != wanted:
        raise DamagedError(f"{path} is damaged: its SHA-256 is not the manifest's. Remove {folder} and run again.")
    return path


def load_part(folder: Path, name: str) -> dict[str, Tensor]:
    """Read one file of a folder written by `save_folder`, after checking its hash.

    Raises:
        DamagedError: the file is missing, or is not the one that the manifest names.
    """
    path = verify_part(folder, name)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DamagedError(f"{path} cannot be read ({error}). Remove {folder} and run again.") from None


def drop_part(folder: Path, name: str) -> None:
    """Remove one file of a folder and its line in the manifest (the optimizer state of an old checkpoint)."""
    path = folder / f"{name}.safetensors"
    if not path.exists():
        return
    content = _manifest(folder)
    if content["files"].pop(path.name, None) is not None:
        write_text(folder / MANIFEST, _manifest_text(content["files"], content["meta"]))
    path.unlink()
