"""Where ImageNet's images come from: folders of synsets, or a Hugging Face dataset, under the same names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from recipes.core.errors import UserError

_SYNSET = re.compile(r"n\d{8}")
_HUB_NAME = re.compile(r"(n\d{8})(_\d+)_\1(\.\w+)")
_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


class Source(Protocol):
    """Encoded images in the order of their names. Picklable, for the worker processes."""

    @property
    def names(self) -> list[str]:
        """Sorted."""
        ...

    @property
    def labels(self) -> list[int]:
        """One for each name."""
        ...

    @property
    def synsets(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        ...

    def part(self, rows: range) -> Self:
        """Some of them."""
        ...

    def read(self, index: int) -> bytes:
        """The file's bytes.

        Raises:
            UserError: the file itself cannot be read; this is not the image's fault, so nothing may be left out.
        """
        ...


@dataclass(frozen=True)
class FolderSource:
    """``SYNSET/NAME.JPEG`` below a folder; a label is the position of the synset among the sorted synsets."""

    root: Path
    names: list[str]
    labels: list[int]
    synsets: tuple[str, ...]

    def part(self, rows: range) -> Self:
        """See `Source.part`."""
        here = slice(rows.start, rows.stop)
        return replace(self, names=self.names[here], labels=self.labels[here])

    def read(self, index: int) -> bytes:
        """See `Source.read`."""
        path = self.root / self.names[index]
        try:
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}). Restore it and run again.") from None


@dataclass(frozen=True)
class HubSource:
    """Rows of a Hugging Face dataset."""

    dataset: Any
    column: str
    rows: NDArray[np.int64]
    names: list[str]
    labels: list[int]
    synsets: tuple[str, ...]

    def part(self, rows: range) -> Self:
        """See `Source.part`."""
        here = slice(rows.start, rows.stop)
        return replace(self, rows=self.rows[here], names=self.names[here], labels=self.labels[here])

    def read(self, index: int) -> bytes:
        """See `Source.read`."""
        cell = self.dataset[int(self.rows[index])][self.column]
        if cell["bytes"] is not None:
            return bytes(cell["bytes"])
        try:
            return Path(cell["path"]).read_bytes()
        except OSError as error:
            raise UserError(f"{cell['path']} cannot be read ({error.strerror}). Restore it and run again.") from None


def open_source(source: str) -> Source:
    """Find the images.

    Args:
        source: a folder of synset folders; an id such as ``ILSVRC/imagenet-1k``; a local folder or file of a Hugging
            Face dataset (Parquet, or written by ``save_to_disk``).

    Raises:
        UserError: there are none, with the mend.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if found := _synset_folders(path):
            return _folder_source(path, found)
        if (path / "train").is_dir() and _synset_folders(path / "train"):
            raise UserError(f"{path} holds no synset folders itself: give {path / 'train'}.")
    elif not path.exists() and (source.startswith(("/", "~", ".")) or source.count("/") != 1):
        raise UserError(
            f"{source} does not exist: give a folder of synset folders (nXXXXXXXX/*.JPEG), or a Hugging Face dataset "
            "such as ILSVRC/imagenet-1k."
        )
    return _hub_source(source if not path.exists() else str(path))


def _synset_folders(root: Path) -> list[str]:
    """The sorted folders with images in them; only those named like synsets if there are such."""
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    synsets = [name for name in folders if _SYNSET.fullmatch(name)]
    return synsets or [
        name for name in folders if any(p.suffix.lower() in _SUFFIXES for p in (root / name).iterdir() if p.is_file())
    ]


def _folder_source(root: Path, synsets: Sequence[str]) -> FolderSource:
    found = []
    for label, synset in enumerate(synsets):
        with os.scandir(root / synset) as entries:
            found += [(f"{synset}/{e.name}", label) for e in entries if e.is_file() and not e.name.startswith(".")]
    if not found:
        raise UserError(f"{root} has synset folders and no files in them: unpack the archives of the synsets first.")
    names, labels = zip(*sorted(found), strict=True)
    return FolderSource(root, list(names), list(labels), tuple(synsets))


def _load_hub(source: str) -> Any:
    import datasets

    try:
        if any((Path(source) / name).exists() for name in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(source)
            return loaded["train"] if isinstance(loaded, datasets.DatasetDict) else loaded
        if Path(source).is_file():
            return datasets.load_dataset("parquet", data_files=source, split="train")  # nosec B615
        return datasets.load_dataset(source, split="train")  # nosec B615
    except Exception as error:  # `datasets` raises what its transports raise
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"{source} could not be loaded as a Hugging Face dataset ({type(error).__name__}: {reason}): accept its "
            "terms on its page, log in with `hf auth login` and set HF_HUB_OFFLINE=0, or give a folder of synset "
            "folders."
        ) from None


def _hub_source(source: str) -> HubSource:
    import datasets

    loaded = _load_hub(source)
    images = [name for name, kind in loaded.features.items() if isinstance(kind, datasets.Image)]
    classes = [name for name, kind in loaded.features.items() if isinstance(kind, datasets.ClassLabel)]
    if len(images) != 1 or len(classes) != 1:
        raise UserError(f"{source} needs one image column and one class label; it has {images} and {classes}.")
    loaded = loaded.cast_column(images[0], datasets.Image(decode=False))
    labels = np.asarray(loaded.with_format("numpy")[classes[0]][:], dtype=np.int64)
    if not len(labels) or labels.min() < 0:
        raise UserError(f"{source} has images without labels: give the train split.")
    names = _hub_names(loaded, images[0])
    rows = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
    return HubSource(
        dataset=loaded,
        column=images[0],
        rows=rows,
        names=[names[row] for row in rows],
        labels=labels[rows].tolist(),
        synsets=_hub_synsets(names, labels, loaded.features[classes[0]].names),
    )


def _hub_names(loaded: Any, column: str) -> list[str]:
    """The archive's names where the dataset keeps them, else the row numbers."""
    import pyarrow.compute

    paths: list[str | None] = []
    if loaded._indices is None:  # else the table has other rows than the dataset
        paths = pyarrow.compute.struct_field(loaded.data.column(column), "path").to_pylist()
    names = [_archive_name(path) for path in paths if path is not None]
    if len(set(names)) == len(loaded):
        return names
    return [f"{row:08d}" for row in range(len(loaded))]


def _archive_name(path: str) -> str:
    """``n01440764/n01440764_10026.JPEG`` from ``n01440764_10026_n01440764.JPEG``; else the last two parts."""
    if match := _HUB_NAME.fullmatch(path.rsplit("/", 1)[-1]):
        synset, number, suffix = match.groups()
        return f"{synset}/{synset}{number}{suffix}"
    return "/".join(path.split("/")[-2:])


def _hub_synsets(names: Sequence[str], labels: NDArray[np.int64], given: Sequence[str]) -> tuple[str, ...]:
    """The synset of each label if the names tell it, else the dataset's own class names."""
    pairs = {(int(label), name.split("/")[0]) for name, label in zip(names, labels, strict=True)}
    if len(pairs) == len(given) and all(_SYNSET.fullmatch(synset) for _, synset in pairs):
        return tuple(synset for _, synset in sorted(pairs))
    return tuple(given)
