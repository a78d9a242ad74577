"""The file of records: one JSON object a line, appended atomically, each with a check."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.records.schema import ADAPTER, AnyRecord, migrated
from harness.runtime.locks import alone, is_held
from recipes.core.atomic import open_own, write_text
from recipes.core.errors import DamagedError, UserError
from recipes.core.jsons import load_json
from recipes.core.spec import digest_of

FILE = "records.jsonl"
#: Lock file beside it, held while writing.
LOCK = f".{FILE}.lock"
#: Damaged lines are moved to this file.
DAMAGED_FILE = "records.damaged.jsonl"
#: A line's own digest, beside its fields.
CHECK = "check"
#: Length of a hex SHA-256.
DIGEST_LENGTH = 64


def parse(line: str, where: str) -> AnyRecord:
    """One line.

    Raises:
        DamagedError: it is not what was written.
        UserError: it is not a record of this schema.
    """
    try:
        fields = load_json(line)
        check = fields.pop(CHECK, None)
        sound = not _is_renamed(fields) if check is None else check == digest_of(fields)
    except (ValueError, AttributeError, TypeError):
        sound = False
    if not sound:
        raise DamagedError(
            f"{where} is damaged: it is not what was written",
            "Run the same command again, which measures it anew, or remove the line.",
        )
    try:
        return ADAPTER.validate_json(json.dumps(migrated(fields)))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{where}: {key or 'line'}: {first['msg']}. Remove the line, or read the file with the version that wrote "
            "it."
        ) from None


def _is_renamed(fields: Mapping[str, Any]) -> bool:
    """Whether a line lacks "check" because that key was corrupted (its digest is found under another key); the oldest
    records have no digest at all.
    """
    texts = ((key, value) for key, value in fields.items() if isinstance(value, str) and len(value) == DIGEST_LENGTH)
    return any(value == digest_of({k: v for k, v in fields.items() if k != key}) for key, value in texts)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Every finished line with its place; a last one without its newline is a write cut short, and is passed over."""
    if not path.is_file():
        return
    text = path.read_bytes().decode(errors="replace")
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        yield line, f"{path}, line {number}"


def read(path: Path) -> Iterator[AnyRecord]:
    """Every record of a file; a last line without its newline is a write cut short, and is passed over.

    Raises:
        DamagedError: a line that is not what was written.
        UserError: a line that is not a record of this schema.
    """
    for line, where in _lines(path):
        yield parse(line, where)


def left_out(path: Path) -> list[str]:
    """A sentence if the last line was cut short, unless it is being written now."""

    def is_open() -> bool:
        return path.is_file() and not path.read_bytes().endswith(b"\n")

    if not is_open() or is_held(path.parent / LOCK) or not is_open():  # at the second look the writer is done
        return []
    return [f"the last line of {path} was cut short and is left out: the same run again measures it anew"]


class RecordFile:
    """The records of one output folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FILE

    def all(self) -> list[AnyRecord]:
        """Every record, in the order of writing."""
        return list(read(self.path))

    def keys(self) -> set[tuple[object, ...]]:
        """What has been measured."""
        return {record.key() for record in read(self.path)}

    def append(self, record: AnyRecord) -> None:
        """Append one record under a lock, and flush it to the disk, unless its key is there: another process was
        faster. An incomplete last line is truncated first; if the disk is full, the partial write is undone.
        """
        fields = record.model_dump(mode="json")
        line = json.dumps(fields | {CHECK: digest_of(fields)}, sort_keys=True, allow_nan=False) + "\n"
        with self._alone(), open_own(self.path) as file:
            if record.key() in self._sound_keys():
                return
            file.seek(0)
            end = file.read().rfind(b"\n") + 1
            file.truncate(end)
            try:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise

    def repair(self) -> list[str]:
        """Move damaged lines to a file of their own, so that they are measured again; a sentence for each.

        Raises:
            UserError: a line that is not a record of this schema.
        """
        bad = []
        if not self.path.exists():
            return []
        with self._alone():
            lines = list(_lines(self.path))
            for line, where in lines:
                try:
                    parse(line, where)
                except DamagedError:
                    bad.append((line, where))
            if bad:
                with open_own(self.folder / DAMAGED_FILE) as aside:
                    aside.writelines(f"{line}\n".encode() for line, _ in bad)
                damaged = {where for _, where in bad}
                kept = [f"{line}\n" for line, where in lines if where not in damaged]
                write_text(self.path, "".join(kept))
        return [f"{where} was damaged and is now in {DAMAGED_FILE}" for _, where in bad]

    def take(self, wanted: Callable[[AnyRecord], bool]) -> list[str]:
        """Take records out of the file; returns their lines.

        Raises:
            DamagedError: a line that is not what was written.
            UserError: a line that is not a record of this schema.
        """
        if not self.path.exists():
            return []
        with self._alone():
            lines = [(line, wanted(parse(line, where))) for line, where in _lines(self.path)]
            write_text(self.path, "".join(f"{line}\n" for line, gone in lines if not gone))
        return [line for line, gone in lines if gone]

    def _alone(self) -> AbstractContextManager[None]:
        """Hold the write lock."""
        return alone(self.folder / LOCK)

    def _sound_keys(self) -> set[tuple[object, ...]]:
        """`keys`, passing over what cannot be read: a bad line must not cost the next measurement."""
        out = set()
        for line, where in _lines(self.path):
            try:
                out.add(parse(line, where).key())
            except UserError:
                continue
        return out
