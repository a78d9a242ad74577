"""Append-only JSON-lines files (logs, notes); each line carries a checksum."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any

from recipes.core.atomic import open_own
from recipes.core.jsons import load_json
from recipes.core.spec import digest_of

CHECK = "check"
#: No row is longer.
MOST_ROW_BYTES = 4096


def row_text(row: Mapping[str, Any]) -> str:
    """The line of a row."""
    return json.dumps({**row, CHECK: digest_of(row)[:16]}) + "\n"


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row; a line that was cut short before it stays a line of its own."""
    with open_own(path) as file:
        file.seek(max(0, file.seek(0, 2) - 1))
        torn = file.read() not in (b"", b"\n")
        file.write(("\n" * torn + row_text(row)).encode())


def read_rows(path: Path, **fields: type | UnionType) -> tuple[list[dict[str, Any]], int]:
    """The rows, and how many lines are not what was written. An unterminated last line is ignored.

    Rows of older versions have no digest, and are believed where they have these fields.
    """
    if not path.is_file():
        return [], 0
    lines = path.read_bytes().split(b"\n")
    found = [row for line in lines[:-1] if (row := _row(line)) is not None]
    rows = [row for row in found if all(isinstance(row.get(name), kind) for name, kind in fields.items())]
    return rows, len(lines) - 1 - len(rows)


def read_tail(path: Path, count: int, **fields: type | UnionType) -> list[dict[str, Any]]:
    """The last rows of a file that may be long and is being written, at most `count`; see `read_rows`."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        size = file.seek(0, 2)
        start = file.seek(max(0, size - count * MOST_ROW_BYTES))
        lines = file.read().split(b"\n")[1 if start else 0 : -1]
    found = [row for line in lines[-count:] if (row := _row(line)) is not None]
    return [row for row in found if all(isinstance(row.get(name), kind) for name, kind in fields.items())]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = load_json(line)
        check = row.pop(CHECK, None)
        return row if check in (None, digest_of(row)[:16]) else None
    except (ValueError, TypeError, AttributeError):
        return None


def left_out(path: Path, count: int) -> list[str]:
    """Note about damaged lines."""
    if count == 1:
        return [f"1 line of {path.name} was damaged and is left out"]
    return [f"{count} lines of {path.name} were damaged and are left out"] if count else []
