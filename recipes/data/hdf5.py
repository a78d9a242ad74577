"""Named byte strings in an HDF5 file."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from recipes.core.content import State, content_of
from recipes.core.errors import UserError
from recipes.core.spec import digest_of
from recipes.data.files import LABELS, printable, read_json, refuse_large


class H5Files:
    """The datasets of an HDF5 file whose names lie in NAME_h5.json beside it, as REPA-E prepares them."""

    missing_are = "not in the list of names"

    def __init__(self, path: Path) -> None:
        import h5py

        self.path = path
        listing = path.with_name(f"{path.stem}_h5.json")
        if not listing.is_file():
            raise UserError(
                f"{path} has no {listing.name} beside it, the list of its images' names (REPA-E's form). Write one, or "
                "save an array as .npz."
            )
        names = read_json(listing)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{listing} is not a list of names. Prepare {path.name} again.")
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise UserError(f"{path} is not a whole HDF5 file ({error}). Copy it again.") from None
        self._lock = threading.Lock()  # h5py is not safe to use from several threads
        self.names = sorted(
            {*(str(PurePosixPath(name)) for name in names), *((LABELS,) if LABELS in self._file else ())}
        )
        self.missing = sorted(self._unlisted())
        self.state = State.of([(str(path.absolute()), path.stat())])

    def _unlisted(self) -> Iterator[str]:
        """Datasets that the list does not mention. Group sizes are compared first for speed."""
        listed: dict[str, set[str]] = {"": set()}
        for parts in (name.split("/") for name in self.names):
            for k in range(len(parts)):
                listed.setdefault("/".join(parts[:k]), set()).add(parts[k])
        for group, inside in listed.items():
            if self._is_own(group) and hasattr(held := self._file[group or "/"], "keys") and len(held) > len(inside):
                yield from (f"{group}/{name}".lstrip("/") for name in held if name not in inside)

    def content(self, rows: Sequence[int]) -> str:
        """See `Files.content`; of the file as a whole."""
        return digest_of([[self.names[row] for row in rows], content_of(self.path)])

    def read(self, row: int) -> bytes:
        """See `Files.read`; refuses what would be read from another file."""
        from h5py import Dataset

        name = self.names[row]
        try:
            with self._lock:
                self._refuse_outside(name)
                data = self._file[name]
                if not isinstance(data, Dataset):
                    listing = self.path.with_name(f"{self.path.stem}_h5.json")
                    raise UserError(f"{self.path}: {printable(name)} is no image. Take it out of {listing.name}.")
                refuse_large(self.path, name, data.nbytes)
                value = data[()]
        except (KeyError, OSError, AttributeError, TypeError, RuntimeError) as error:
            raise UserError(f"{self.path}: {printable(name)} cannot be read ({error}). Copy the file again.") from None
        return value if isinstance(value, bytes) else np.asarray(value).tobytes()

    def _is_own(self, path: str) -> bool:
        """Whether the path consists only of hard links inside this file."""
        import h5py

        parts = [part for part in path.split("/") if part]
        above = ("/".join(parts[: k + 1]) for k in range(len(parts)))
        return all(isinstance(self._file.get(p, getlink=True), h5py.HardLink) for p in above)

    def _refuse_outside(self, name: str) -> None:
        data = self._file[name] if self._is_own(name) else None
        if data is None or getattr(data, "external", None) or getattr(data, "is_virtual", False):
            raise UserError(
                f"{self.path}: {printable(name)} is a link or lies in another file. Get the file elsewhere, or write "
                "it with its contents in it."
            )
