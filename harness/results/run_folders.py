"""List the runs of a results folder and move runs to its trash."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.records import file
from harness.records.file import RecordFile
from harness.records.schema import AnyRecord, ScoreRecord
from harness.runtime.locks import held
from recipes.core.atomic import write_text
from recipes.core.errors import UserError, nearest
from recipes.training.run_folder import Run

#: Trash folder inside a results folder.
TRASH = "trash"
#: Folders of a results folder that hold something of each run, under its name.
PLACES = ("runs", "samples", "shards", "reconstructions")
#: Search depth and number of results folders named in messages.
DEPTH, SHOWN = 3, 8


@dataclass(frozen=True)
class Entry:
    """One run of a results folder."""

    name: str
    """Name of its folder: variant, seed and the beginning of its digest."""
    label: str
    seed: int
    step: int
    """Step that it was trained to; 0 before the first checkpoint."""
    kept: tuple[int, ...]
    """Steps with a checkpoint on this disk."""
    scored: tuple[int, ...]
    """Scored steps (without searches)."""
    size: int
    """Size of its folder, in bytes."""
    notes: tuple[str, ...]


def entries(folder: Path) -> list[Entry]:
    """Every run that a results folder has files or records of, by variant and seed.

    Raises:
        UserError: it holds neither.
    """
    scores = _scores(folder)
    names = {p.name for p in (folder / "runs").glob("*") if (p / "spec.json").exists()} | scores.keys()
    if not names:
        raise UserError(f"{folder} holds no runs; {instead(folder)}.")
    return sorted(
        (_entry(folder, name, scores.get(name, [])) for name in names), key=lambda e: (e.label, e.seed, e.name)
    )


def instead(folder: Path) -> str:
    """Advice (sentence end) for a folder that is not a results folder."""
    makes = f"`repa-bench run --out {shlex.quote(str(folder))}` makes"
    if folder.exists() and not folder.is_dir():
        return "it is a file: name the results folder that it lies in"
    if not folder.is_dir():
        return f"there is no such folder, and {makes} one"
    found = [path.parent for level in range(1, DEPTH + 1) for path in sorted(folder.glob("*/" * level + file.FILE))]
    shown = [str(path) for path in found if TRASH not in path.relative_to(folder).parts]
    if shown:
        more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
        return f"results lie below it, in {', '.join(shown[:SHOWN])}{more}: name one or several of these"
    if above := next((path for path in folder.absolute().parents if (path / file.FILE).is_file()), None):
        return f"it lies in the results folder {above}: name that"
    return f"{makes} some"


def set_aside(folder: Path, digest: str) -> list[str]:
    """Move preparation-only records of another suite digest to the trash. A sentence if something was moved.

    Args:
        folder: of results.
        digest: of the suite that is about to write there.
    """
    foreign = [record for record in RecordFile(folder).all() if record.suite_digest != digest]
    if not foreign or any(getattr(record, field, None) for record in foreign for field in ("run", "variant")):
        return []
    place = _trash(folder, f"preparation-{foreign[0].suite_digest[:8]}")
    lines = RecordFile(folder).take(lambda record: record.suite_digest != digest)
    write_text(place / file.FILE, "".join(f"{line}\n" for line in lines))
    return [f"what a suite of other settings had prepared in {folder}, without a run, is now in {place}"]


def _trash(folder: Path, name: str) -> Path:
    """A new folder for what is taken away."""
    place = folder / TRASH / f"{name}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    place.mkdir(parents=True)
    return place


def name_of(record: AnyRecord) -> str | None:
    """The folder's name of the run that a record belongs to."""
    run, variant, seed = (getattr(record, field, None) for field in ("run", "variant", "seed"))
    return None if run is None else f"{variant}-seed{seed}-{run[:8]}"


def _scores(folder: Path) -> dict[str, list[ScoreRecord]]:
    found: dict[str, list[ScoreRecord]] = {}
    for r in file.read(folder / file.FILE):
        if isinstance(r, ScoreRecord) and (name := name_of(r)) is not None:
            if Path(name).name != name:  # a record may say anything, and what is removed is moved by its name
                raise UserError(f"{folder / file.FILE} names a run '{name}', which is no folder's name; repair that.")
            found.setdefault(name, []).append(r)
    return found


def _entry(folder: Path, name: str, scores: list[ScoreRecord]) -> Entry:
    place, run, damage = folder / "runs" / name, None, []
    try:
        run = Run.open(place) if (place / "spec.json").exists() else None
    except UserError as error:  # it can be taken away all the same
        damage = [str(error)]
    kept = tuple(run.steps()) if run is not None else ()
    scored = tuple(sorted({r.step for r in scores if not r.search}))
    source = scores[0].source if scores else run.spec.source if run is not None else None
    version = [] if source is None else [f"its file: SHA-256 {source[:8]}"]
    notes = version + damage + (run.notes() if run is not None else [note for r in scores for note in r.notes])
    return Entry(
        name,
        scores[0].label if scores else run.spec.variant if run is not None else name,
        scores[0].seed if scores else run.spec.train.seed if run is not None else 0,
        max((*kept, *scored), default=0),
        kept,
        scored,
        sum(p.stat().st_size for p in place.rglob("*") if p.is_file()),
        tuple(dict.fromkeys(notes)),
    )


def _belonging(place: Path, name: str, known: Sequence[str]) -> list[Path]:
    """Files in `place` that belong to run `name` (NAME or NAME-*), excluding those of runs with a longer name."""
    others = [other for other in known if other != name]
    found = sorted(place.iterdir()) if place.is_dir() else []
    mine = [p for p in found if p.name == name or (place.name != "runs" and p.name.startswith(f"{name}-"))]
    return [
        p
        for p in mine
        if not any(p.name == other or p.name.startswith(f"{other}-") for other in others if other.startswith(name))
    ]


def remove(folder: Path, name: str) -> Path:
    """Move a run, with its samples and its records, to a folder of its own under `TRASH`; returns that.

    Args:
        folder: of results.
        name: of the run, or the beginning of it that no other has.

    Raises:
        UserError: there is no such run, there are several, or somebody works on it.
    """
    known = [entry.name for entry in entries(folder)]
    meant = [name] if name in known else [other for other in known if name and other.startswith(name)]
    if len(meant) > 1:
        raise UserError(f"{folder} holds several runs '{name}...': {', '.join(meant)}; name one.")
    if not meant:
        raise UserError(f"{folder} holds no run '{name}'.{nearest(name, known)}")
    name = meant[0]
    place = folder / "runs" / name
    with held(place, on=place.exists()):
        trash = _trash(folder, name)
        lines = RecordFile(folder).take(lambda record: name_of(record) == name)
        write_text(trash / file.FILE, "".join(f"{line}\n" for line in lines))
        for kind in PLACES:
            for found in _belonging(folder / kind, name, known):
                (trash / kind).mkdir(exist_ok=True)
                found.rename(trash / kind / found.name)
    (trash / "runs" / name / ".lock").unlink(missing_ok=True)
    return trash
