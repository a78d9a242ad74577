"""Refusals that commands and Python functions share: of options that decide nothing, of numbers, of places."""

from __future__ import annotations

import os
from collections.abc import Mapping
from operator import index
from pathlib import Path
from typing import Any

from recipes.core.errors import UserError


def refuse_idle(given: Mapping[str, bool], where: str) -> None:
    """Refuse options that the command would ignore.

    Args:
        given: by flag, whether it was.
        where: what it goes with.

    Raises:
        UserError: at least one was given.
    """
    for flag, was in given.items():
        if was:
            raise UserError(f"{flag} decides nothing here; it goes with {where}. Leave it out.")


def refuse_unwritable(flag: str, path: Path, *, folder: bool = True) -> None:
    """Check early that an output path is writable.

    Raises:
        UserError: it is a file where a folder is meant or the other way round, or its place is not ours to write to.
    """
    if path.exists() and path.is_dir() != folder:
        raise UserError(f"{flag} {path}: a {'folder' if folder else 'file'} is meant, and this is none.")
    place = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not (place == path or place.is_dir()) or not os.access(place, os.W_OK):
        raise UserError(f"{flag} {path}: {place} is not ours to write to. Give another path.")


#: The largest seed; seeds and counts are kept in 64 bits.
MOST = 2**63 - 1


def whole(flag: str, value: Any, least: int) -> int:
    """The value as an int; NumPy's whole numbers are taken too.

    Raises:
        UserError: it is no whole number, or out of range.
    """
    if hasattr(value, "__index__") and not isinstance(value, bool) and least <= index(value) <= MOST:
        return index(value)
    raise UserError(f"{flag} {value}: a whole number from {least} to {MOST} is meant.")
