"""Checkpoints that appear whole or not at all, and that never run code when they are read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recipes.core.errors import UserError

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


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


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
    temporary.mkdir()
    hashes = {}
    for name, tensors in parts.items():
        path = temporary / f"{name}.safetensors"
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path)
        _sync(path)
        hashes[path.name] = sha256_of(path)
    manifest = temporary / MANIFEST
    manifest.write_text(json.dumps({"files": hashes, "meta": meta}, indent=1, sort_keys=True))
    _sync(manifest)
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
    _sync(folder.parent)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest's ``meta``.

    Raises:
        UserError: the folder holds no readable manifest.
    """
    try:
        meta: dict[str, Any] = json.loads((folder / MANIFEST).read_text())["meta"]
        return meta
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder} is not a checkpoint: it has no readable {MANIFEST}. Remove it and run again."
        ) from None


def load_part(folder: Path, name: str) -> dict[str, Tensor]:
    """Read one file of a folder written by `save_folder`, after checking its hash.

    Raises:
        UserError: the file is missing, or is not the one that the manifest names.
    """
    read_manifest(folder)
    path = folder / f"{name}.safetensors"
    wanted = json.loads((folder / MANIFEST).read_text())["files"].get(path.name)
    if wanted is None or not path.exists():
        raise UserError(f"{folder} holds no {path.name}. Remove the folder and run again.")
    if sha256_of(path) != wanted:
        raise UserError(f"{path} is damaged: its SHA-256 is not the manifest's. Remove {folder} and run again.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}). Remove {folder} and run again.") from None


def drop_part(folder: Path, name: str) -> None:
    """Remove one file of a folder and its line in the manifest (the optimizer state of an old checkpoint)."""
    path = folder / f"{name}.safetensors"
    if not path.exists():
        return
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"].pop(path.name, None)
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
    path.unlink()
