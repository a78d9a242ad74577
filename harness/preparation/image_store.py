"""ImageNet, prepared once: ADM's crop of every image, lossless, in shards that can be made in parallel and resumed.

The names, and with them the order and the content hash, are the same whether the images come from the folders of
the archive (``n01440764/n01440764_10026.JPEG``) or from the Hugging Face copy of it.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from harness.preparation.crop import center_crop
from harness.preparation.image_sources import ImageSource, open_source
from harness.runtime.progress import Reporter
from harness.suites.base import IMAGENET_TRAIN
from recipes.core.atomic import sha256_of, temporary, write_text
from recipes.core.checkpoint import MANIFEST
from recipes.core.content import State
from recipes.core.errors import UserError
from recipes.core.spec import Spec, digest_of
from recipes.data.decoding import ODD, as_rgb, oddities, opened
from recipes.data.files import printable, read_json
from recipes.data.images import ARROW, PLAN, ImageShard, ImagesManifest, Rejected, read_images_manifest
from recipes.data.latents import check_room

SHARD_SIZE = 2048
CLASSES = 1000
SIDECAR = "shard.json"
#: 3 is a fifth faster to write than 6 at 7 % more bytes; reading does not care.
PNG_LEVEL = 3
PROBES = 32


# One shard.


class ShardFacts(Spec):
    """``shard.json`` inside a finished shard."""

    shard: ImageShard
    rejected: tuple[Rejected, ...]
    converted: dict[str, int]
    source: str = ""
    """SHA-256 of what was read."""
    state: str = ""
    """Of the files that were read, when they had settled (see `recipes.core.content`)."""


def _kept(state: State | None) -> str:
    return state.digest if state is not None and state.settled else ""


def _refuse_changed(out: Path, shard: int, source: ImageSource) -> None:
    """Check that the source files of a finished shard have not changed.

    Raises:
        UserError: they were.
    """
    path = out / f"{shard:05d}" / SIDECAR
    facts, state = ShardFacts.parse(read_json(path), where=str(path)), source.state()
    if state is None or not facts.source or facts.state == state.digest:
        return
    digest = hashlib.sha256()
    for index in range(len(source.names)):
        digest.update(hashlib.sha256(source.read(index)).digest())
    if digest.hexdigest() != facts.source:
        raise UserError(
            f"images from {printable(source.names[0])} to {printable(source.names[-1])} changed since {out} was "
            f"prepared from them: remove {out} and run again, or choose another folder."
        )
    if _kept(state) != facts.state:
        write_text(path, facts.model_copy(update={"state": _kept(state)}).model_dump_json(indent=1))


def square(raw: bytes, side: int) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    """Decode and crop an image.

    Returns:
        The mode that it had if not RGB, with its `oddities`, and uint8 (side, side, 3).

    Raises:
        Exception: of many kinds, where the bytes are not a whole image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about odd metadata
        with opened(raw) as image:
            told = (*((image.mode,) if image.mode != "RGB" else ()), *oddities(image))
            return told, center_crop(as_rgb(image), side)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "png", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def _squares(
    source: ImageSource, side: int, digest: Any = None
) -> Iterator[tuple[int, tuple[str, ...], NDArray[np.uint8] | None]]:
    """(index, told, pixels) of each image; (index, (reason,), None) of what is not one. `digest` sees every byte."""
    for index in range(len(source.names)):
        raw = source.read(index)
        if digest is not None:
            digest.update(hashlib.sha256(raw).digest())
        try:
            told, pixels = square(raw, side)
        except MemoryError:  # ours, not the image's
            raise
        except Exception as error:
            yield index, (f"{type(error).__name__}: {error}",), None
        else:
            yield index, told, pixels


def prepare_shard(out: Path, shard: int, source: ImageSource, side: int) -> int:
    """Write one shard under a name that appears at the end, and return how many source images it covers."""
    folder = out / f"{shard:05d}"
    columns: dict[str, list[Any]] = {"image": [], "label": [], "name": []}
    rejected: list[Rejected] = []
    converted: Counter[str] = Counter()
    digest, read, state = hashlib.sha256(), hashlib.sha256(), source.state()
    for index, told, pixels in _squares(source, side, read):
        name, label = source.names[index], source.labels[index]
        shown = printable(name)  # Arrow's and JSON's text is UTF-8
        if pixels is None:
            rejected.append(Rejected(name=shown, reason=printable(told[0]).replace("\n", " ")[:200]))
            continue
        converted.update(told)
        digest.update(f"{name}\0{label}\0".encode("utf-8", "surrogatepass") + pixels.tobytes())
        columns["image"].append({"bytes": _png(pixels), "path": None})
        columns["label"].append(label)
        columns["name"].append(shown)
    with temporary(folder) as made:
        size, sha = _save_columns(made, columns)
        facts = ImageShard(count=len(columns["name"]), bytes=size, sha256=sha, pixels=digest.hexdigest())
        sidecar = ShardFacts(
            shard=facts,
            rejected=tuple(rejected),
            converted=dict(sorted(converted.items())),
            source=read.hexdigest(),
            state=_kept(state),
        )
        write_text(made / SIDECAR, sidecar.model_dump_json(indent=1))
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise
    return len(source.names)


def _save_columns(folder: Path, columns: dict[str, list[Any]]) -> tuple[int, str]:
    """Write an Arrow folder; returns the bytes and the SHA-256 of its file (none for no rows)."""
    import datasets

    folder.mkdir()
    if not columns["name"]:
        return 0, ""
    kinds = {"image": datasets.Image(), "label": datasets.Value("int64"), "name": datasets.Value("string")}
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()  # one bar for the whole, not one for each shard
    try:
        made = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
        made.save_to_disk(str(folder), num_shards=1)
    finally:
        if shown:
            datasets.enable_progress_bars()
    path = folder / ARROW
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path.stat().st_size, sha256_of(path)


# All shards.


class StorePlan(Spec):
    """``plan.json``: what a folder is being filled with, so that another source cannot be mixed in."""

    source: str
    """Hash of the names and labels."""
    count: int
    side: int
    shard_size: int
    synsets: tuple[str, ...]

    @classmethod
    def of(cls, source: ImageSource, side: int, shard_size: int) -> StorePlan:
        """For a source."""
        digest = digest_of([source.names, source.labels])
        return cls(
            source=digest, count=len(source.names), side=side, shard_size=shard_size, synsets=tuple(source.synsets)
        )

    @property
    def shards(self) -> list[range]:
        """The source rows of each shard."""
        return [range(s, min(s + self.shard_size, self.count)) for s in range(0, self.count, self.shard_size)]


def images_estimate(source: ImageSource, side: int, count: int) -> int:
    """Bytes of `count` images in the store, from a few of the source's images spread over it."""
    total = len(source.names)
    probes = sorted({total * i // PROBES for i in range(PROBES)})
    sizes = []
    for probe in probes:
        found = [len(_png(x)) for _, _, x in _squares(source.part(range(probe, probe + 1)), side) if x is not None]
        sizes += found
    each = sum(sizes) / len(sizes) if sizes else side * side * 3
    return int(count * (each * 1.02 + 64))


def _claim(out: Path, plan: StorePlan) -> None:
    """Write the plan, or check that it is the one that the folder was begun with."""
    path = out / PLAN
    if not path.exists():
        # Another rank may be writing the plan just now.
        if out.exists() and any(p.name != PLAN and not p.name.endswith(".tmp") for p in out.iterdir()):
            raise UserError(f"{out} is not empty and was not begun by `prepare`: choose another folder.")
        write_text(path, plan.model_dump_json(indent=1))
        return
    begun = StorePlan.parse(read_json(path), where=str(path))
    for key, value in plan.model_dump().items():
        if (other := getattr(begun, key)) != value:
            told = f"{key} {other}, not {value}" if key in ("count", "side", "shard_size") else f"another {key}"
            raise UserError(f"{out} was begun with {told}: choose another folder, or remove it.")


def prepare_images(
    source: str,
    out: Path,
    *,
    side: int = 256,
    shard_size: int = SHARD_SIZE,
    processes: int = 1,
    rank: int = 0,
    world: int = 1,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Crop and store the images of the shards rank, rank + world, ... that are not there yet.

    Args:
        source: see `open_source`.
        out: made if it is not there; a folder that was begun is continued.
        side: pixels along each edge.
        shard_size: source images in a shard.
        processes: that decode, crop and compress; a shard each.
        rank: of this caller.
        world: how many callers share the work; whoever finds all shards there writes the manifest.
        reporter: told the disk estimate and the progress.

    Returns:
        What to tell the user: ``complete``, ``estimate_bytes`` of what was missing, and once complete ``count``,
        ``num_classes``, ``content``, ``rejected``, ``converted`` and ``warnings``.

    Raises:
        UserError: no images, a disk that is too small, or a folder with something else in it.
    """
    reporter = reporter or Reporter()
    found = open_source(source)
    plan = StorePlan.of(found, side, shard_size)
    _claim(out, plan)
    missing = [i for i in range(len(plan.shards)) if not (out / f"{i:05d}").exists()]
    for i in sorted(set(range(rank, len(plan.shards), world)) - set(missing)):
        _refuse_changed(out, i, found.part(plan.shards[i]))
    left = sum(len(plan.shards[i]) for i in missing)
    estimate = images_estimate(found, side, left) if left else 0
    if left:
        reporter.note(f"  {left} of {plan.count} images to prepare, about {estimate / 1e9:.2f} GB in {out}")
        check_room(out, estimate, "the images")
    mine = [i for i in missing if i % world == rank]
    with reporter.stage("images", sum(len(plan.shards[i]) for i in mine)) as tell:
        done = 0
        for covered in _run(out, found, plan, mine, processes):
            done += covered
            tell(done)
    facts = _finish(out, plan)
    if facts is not None:
        facts["warnings"] += found.notes
    return {"complete": facts is not None, "estimate_bytes": estimate, **(facts or {})}


def _run(out: Path, source: ImageSource, plan: StorePlan, shards: Sequence[int], processes: int) -> Iterator[int]:
    """Prepare shards, here or in worker processes; yields the source images that each one covered."""
    if processes <= 1 or len(shards) <= 1:
        for i in shards:
            yield prepare_shard(out, i, source.part(plan.shards[i]), plan.side)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(min(processes, len(shards)), context, _end_with_parent) as pool:
        futures = [pool.submit(prepare_shard, out, i, source.part(plan.shards[i]), plan.side) for i in shards]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise UserError(
                f"A worker process was killed, probably for want of memory: run again with fewer than {processes} "
                "processes; finished shards are kept."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Pool initializer: exit when the parent process dies."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _finish(out: Path, plan: StorePlan) -> dict[str, Any] | None:
    """Write the manifest if every shard is there. Ranks that do so at one time write the same bytes."""
    paths = [out / f"{i:05d}" / SIDECAR for i in range(len(plan.shards))]
    if not all(path.exists() for path in paths):
        return None
    if not (out / MANIFEST).exists():
        sidecars = [ShardFacts.parse(read_json(path), where=str(path)) for path in paths]
        converted: Counter[str] = Counter()
        for sidecar in sidecars:
            converted.update(sidecar.converted)
        rejected = [line for sidecar in sidecars for line in sidecar.rejected]
        if len(rejected) == plan.count:
            raise UserError(
                f"none of the {plan.count:,} files is an image ({rejected[0].name}: {rejected[0].reason}): remove "
                f"{out} and choose other --data."
            )
        manifest = ImagesManifest(
            count=sum(sidecar.shard.count for sidecar in sidecars),
            side=plan.side,
            num_classes=len(plan.synsets),
            synsets=plan.synsets,
            shards=tuple(sidecar.shard for sidecar in sidecars),
            rejected=tuple(rejected),
            converted=dict(sorted(converted.items())),
            pillow=PIL.__version__,
        )
        write_text(out / MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=1))
    return _facts(read_images_manifest(out))


def _facts(manifest: ImagesManifest) -> dict[str, Any]:
    told = []
    if (manifest.num_classes, manifest.count) != (CLASSES, IMAGENET_TRAIN):
        told.append(
            f"{manifest.count} images of {manifest.num_classes} classes; ImageNet's training set has {IMAGENET_TRAIN} "
            f"of {CLASSES}, so published figures are not comparable"
        )
    told += [f"{n:,} of {manifest.count:,} images {ODD[kind]}" for kind, n in manifest.converted.items() if kind in ODD]
    return {
        "count": manifest.count,
        "num_classes": manifest.num_classes,
        "content": manifest.content,
        "rejected": [line.model_dump() for line in manifest.rejected],
        "converted": manifest.converted,
        "warnings": told,
    }
