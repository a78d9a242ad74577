"""Checkpoints that appear whole or not at all, and that never run code when they are read."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recipes.core.atomic import sha256_of, sync, temporary, write_text
from recipes.core.errors import DamagedError
from recipes.core.jsons import load_json
from recipes.core.spec import digest_of

MANIFEST = "manifest.json"


# Folders.


def save_folder(folder: Path, parts: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> None:
    """Write `parts` as NAME.safetensors and a manifest with their hashes, under a name that appears at the end.

    Args:
        folder: where it will lie; replaced if it exists.
        parts: tensors by name, by file.
        meta: JSON-able facts, kept in the manifest.
    """
    with temporary(folder) as made:
        made.mkdir()
        hashes = {}
        for name, tensors in parts.items():
            path = made / f"{name}.safetensors"
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path)
            sync(path)
            hashes[path.name] = sha256_of(path)
        (made / MANIFEST).write_text(_manifest_text(hashes, meta))
        sync(made / MANIFEST)
        put(made, folder)
    sync(folder.parent)


def host_copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of tensors as they are now, contiguous and on the CPU: pinned and waited for once where they are on a GPU.

    Training may then go on while the copy is written.
    """
    copies = {}
    for name, tensor in tensors.items():
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        copies[name] = copy.copy_(tensor.detach(), non_blocking=True)
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.synchronize(device)
    return copies


class Writer:
    """Writes in a thread, one thing at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def begin(self, copied: Callable[[], Callable[[], None]]) -> None:
        """Begin to write, after waiting for what was begun before.

        Args:
            copied: called after that wait, so that no two copies are held; returns what writes its copy.

        Raises:
            Exception: what the one before raised.
        """
        self.wait()
        self._pending = self._pool.submit(copied())

    def wait(self) -> None:
        """Return when everything is written.

        Raises:
            Exception: what writing raised, such as an OSError of a full disk.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def remove_folder(folder: Path) -> None:
    """Remove a folder atomically: no reader sees it half removed."""
    with temporary(folder) as gone:
        folder.rename(gone)


def put(made: Path, folder: Path) -> None:
    """Give a finished folder its name; another of that name goes only when the new one is there."""
    try:
        made.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        with temporary(folder) as before:
            with suppress(FileNotFoundError):  # another process was as far
                folder.rename(before)
            put(made, folder)


def _manifest_text(hashes: Mapping[str, str], meta: Mapping[str, Any]) -> str:
    content = {"files": dict(hashes), "meta": dict(meta)}
    return json.dumps(content | {"check": digest_of(content)}, indent=1, sort_keys=True)


def _manifest(folder: Path) -> dict[str, Any]:
    """``files`` and ``meta``.

    Raises:
        DamagedError: it is not there, or not what was written.
    """
    try:
        found = load_json((folder / MANIFEST).read_bytes())
        content = {"files": dict(found["files"]), "meta": dict(found["meta"])}
        sound = found.get("check") in (None, digest_of(content))  # older ones have no check
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DamagedError(f"{folder} is not a checkpoint: it has no readable {MANIFEST}") from None
    if not sound:
        raise DamagedError(
            f"{folder / MANIFEST} is damaged: it is not what was written", f"Remove {folder} and run again."
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
        raise DamagedError(f"{folder} holds no {path.name}", "Remove the folder and run again.")
    if sha256_of(path) != wanted:
        raise DamagedError(f"{path} is damaged: its SHA-256 is not the manifest's", f"Remove {folder} and run again.")
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
        raise DamagedError(f"{path} cannot be read ({error})", f"Remove {folder} and run again.") from None


def drop_part(folder: Path, name: str) -> None:
    """Remove one file of a folder and its line in the manifest (the optimizer state of an old checkpoint)."""
    path = folder / f"{name}.safetensors"
    if not path.exists():
        return
    content = _manifest(folder)
    if content["files"].pop(path.name, None) is not None:
        write_text(folder / MANIFEST, _manifest_text(content["files"], content["meta"]))
    path.unlink()
