"""Where ImageNet's images come from: folders of synsets, or a Hugging Face dataset, under the same names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from recipes.core.content import State
from recipes.core.errors import UserError
from recipes.data.decoding import SUFFIXES
from recipes.data.files import FolderFiles, is_junk, left_out, natural, printable

_SYNSET = re.compile(r"n\d{8}")
_HUB_NAME = re.compile(r"(n\d{8})(_\d+)_\1(\.\w+)")


#: Folder names that denote splits.
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
#: Suffixes of files that may hold labels.
TABLES = (".parquet", ".arrow", ".csv", ".json", ".jsonl", ".tar", ".zip")


class ImageSource(Protocol):
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

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings about skipped or unusual files."""
        ...

    def state(self) -> State | None:
        """File state for change detection; None if the source has no local files."""
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
    notes: tuple[str, ...]

    def state(self) -> State:
        """See `ImageSource.state`."""
        return State.of((name, (self.root / name).stat()) for name in self.names)

    def part(self, rows: range) -> Self:
        """See `ImageSource.part`."""
        here = slice(rows.start, rows.stop)
        return replace(self, names=self.names[here], labels=self.labels[here])

    def read(self, index: int) -> bytes:
        """See `ImageSource.read`."""
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
    notes: tuple[str, ...] = ()
    place: Path | None = None
    """Where it lies, if that is on this machine."""

    def state(self) -> State | None:
        """See `ImageSource.state`."""
        if self.place is None:
            return None
        if self.place.is_file():
            return State.of([(str(self.place.absolute()), self.place.stat())])
        return FolderFiles(self.place).state

    def part(self, rows: range) -> Self:
        """See `ImageSource.part`."""
        here = slice(rows.start, rows.stop)
        return replace(self, rows=self.rows[here], names=self.names[here], labels=self.labels[here])

    def read(self, index: int) -> bytes:
        """See `ImageSource.read`."""
        cell = self.dataset[int(self.rows[index])][self.column]
        if cell["bytes"] is not None:
            return bytes(cell["bytes"])
        try:
            return Path(cell["path"]).read_bytes()
        except OSError as error:
            raise UserError(f"{cell['path']} cannot be read ({error.strerror}). Restore it and run again.") from None


def open_source(source: str) -> ImageSource:
    """Find the images.

    Args:
        source: a folder of synset folders; an id such as ``ILSVRC/imagenet-1k``; a local folder or file of a Hugging
            Face dataset (Parquet, or written by ``save_to_disk``).

    Raises:
        UserError: there are none, with the remedy.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if found := _class_folders(path):
            if {name.lower() for name in found} <= SPLITS:
                raise UserError(f"{path} holds splits ({', '.join(found)}) and no classes: give one of them.")
            return _folder_source(path, found)
        if (path / "train").is_dir() and _class_folders(path / "train"):
            raise UserError(f"{path} holds no synset folders itself: give {path / 'train'}.")
        if _has_images(path):
            return _folder_source(path, [])
        _refuse_others(path)
    elif not path.exists() and (source.startswith(("/", "~", ".")) or source.count("/") != 1):
        raise UserError(
            f"{source} does not exist: give a folder of synset folders (nXXXXXXXX/*.JPEG), or a Hugging Face dataset "
            "such as ILSVRC/imagenet-1k."
        )
    return _hub_source(source if not path.exists() else str(path))


def _refuse_others(path: Path) -> None:
    """Explain why a folder without class folders and without a dataset is refused (nested folders are ambiguous).

    Raises:
        UserError: it holds no files that say the labels of images.
    """
    names = [name for name in FolderFiles(path).names if not is_junk(name)]
    if any(name.lower().endswith(TABLES) for name in names):
        return
    pictures = [name for name in names if name.lower().endswith(SUFFIXES) and name.count("/") > 1]
    if not pictures:
        there = f"its files are as {printable(names[0])}" if names else "it is empty"
        raise UserError(
            f"{path} holds no images ({', '.join(SUFFIXES)}) and no Hugging Face data set; {there}: give a folder with "
            "one folder of images for each class."
        )
    raise UserError(
        f"{path}: its images lie in folders of folders ({printable(pictures[0])}), which say no class: give a folder "
        "with one folder of images for each class."
    )


def _has_images(folder: Path) -> bool:
    return any(p.name.lower().endswith(SUFFIXES) and not is_junk(p.name) and p.is_file() for p in folder.iterdir())


def _class_folders(root: Path) -> list[str]:
    """Class folders in natural order; if any is named like a synset, only those."""
    folders = sorted((p.name for p in root.iterdir() if p.is_dir() and not is_junk(p.name)), key=natural)
    return [name for name in folders if _SYNSET.fullmatch(name)] or [n for n in folders if _has_images(root / n)]


def _folder_source(root: Path, classes: Sequence[str]) -> FolderSource:
    """The files of class folders, or, without any, the images of a flat folder as one class."""
    files = FolderFiles(root)
    label_of = {name: label for label, name in enumerate(classes)}
    names, outside = [], []
    for name in files.names:
        *above, last = name.split("/")
        image = last.lower().endswith(SUFFIXES)
        if is_junk(name):
            continue
        if (len(above) == 1 and above[0] in label_of) or (not classes and not above and image):
            names.append(name)
        elif image:
            outside.append(name)
    if not names:
        raise UserError(f"{root} has synset folders and no files in them: unpack the archives of the synsets first.")
    notes = left_out(files)
    if outside:
        where = "below a flat folder" if not classes else "not directly in a class folder"
        notes.append(f"{root}: {len(outside):,} images left out, {where} ({printable(outside[0])}).")
    if all(name.isdecimal() for name in classes) and [int(name) for name in classes] != list(range(len(classes))):
        notes.append(f"{root}: the classes are numbered {', '.join(classes[:4])}...; their labels are 0, 1, 2, ...")
    labels = [label_of.get(name.split("/")[0], 0) for name in names]
    if empty := [name for name, label in label_of.items() if label not in set(labels)]:
        notes.append(f"{root}: {len(empty):,} of the {len(classes):,} classes have no image ({printable(empty[0])}).")
    synsets = tuple(map(printable, classes)) or (printable(root.absolute().name),)
    return FolderSource(root, names, labels, synsets, tuple(notes))


def _own_cache(path: Path) -> str | None:
    """Own cache folder for `datasets`: its default key (path and mtime) is not reliable, as rsync and tar restore
    mtimes.
    """
    import datasets

    if not path.exists():
        return None
    state = State.of([(str(path), path.stat())]) if path.is_file() else FolderFiles(path).state
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "repa-bench" / state.digest)


def _load_hub(source: str) -> Any:
    import datasets

    cache = _own_cache(Path(source).absolute())
    try:
        if any((Path(source) / name).exists() for name in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(source)
            return loaded["train"] if isinstance(loaded, datasets.DatasetDict) else loaded
        if Path(source).is_file():
            return datasets.load_dataset("parquet", data_files=source, split="train", cache_dir=cache)  # nosec B615
        return datasets.load_dataset(source, split="train", cache_dir=cache)  # nosec B615
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
        place=Path(source) if Path(source).exists() else None,
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
