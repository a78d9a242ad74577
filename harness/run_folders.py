"""What a results folder holds, run by run, and how one is taken away without losing it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import records
from harness.locks import held
from harness.records import AnyRecord, RecordFile, ScoreRecord
from recipes.core.checkpoint import write_text
from recipes.core.errors import UserError, nearest
from recipes.run import Run

#: Where runs go that were taken away, inside their results folder.
TRASH = "trash"
#: Folders of a results folder that hold something of each run, under its name.
PLACES = ("runs", "samples", "shards", "reconstructions")


@dataclass(frozen=True)
class Entry:
    """One run of a results folder."""

    name: str
    """Of its folder: arm, seed and the beginning of its digest."""
    label: str
    seed: int
    step: int
    """That it was trained to; 0 before the first checkpoint."""
    kept: tuple[int, ...]
    """Steps with a checkpoint on this disk."""
    scored: tuple[int, ...]
    """Steps with a score that counts."""
    size: int
    """Bytes of its folder."""
    remarks: tuple[str, ...]


def entries(folder: Path) -> list[Entry]:
    """Every run that a results folder has files or records of, by arm and seed.

    Raises:
        UserError: it holds neither.
    """
    scores = _scores(folder)
    names = {p.name for p in (folder / "runs").glob("*") if (p / "spec.json").exists()} | scores.keys()
    if not names:
        raise UserError(f"{folder} holds no runs; `repa-bench run --out {shlex.quote(str(folder))}` makes some.")
    return sorted(
        (_entry(folder, name, scores.get(name, [])) for name in names), key=lambda e: (e.label, e.seed, e.name)
    )


def name_of(record: AnyRecord) -> str | None:
    """Of the run that a record is of."""
    run, arm, seed = (getattr(record, field, None) for field in ("run", "arm", "seed"))
    return None if run is None else f"{arm}-seed{seed}-{run[:8]}"


def _scores(folder: Path) -> dict[str, list[ScoreRecord]]:
    found: dict[str, list[ScoreRecord]] = {}
    for r in records.read(folder / records.FILE):
        if isinstance(r, ScoreRecord) and (name := name_of(r)) is not None:
            if Path(name).name != name:  # a record may say anything, and what is removed is moved by its name
                raise UserError(f"{folder / records.FILE} names a run '{name}', which is no folder's name; mend that.")
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
    remarks = damage + (run.remarks() if run is not None else [remark for r in scores for remark in r.remarks])
    return Entry(
        name,
        scores[0].label if scores else run.spec.arm if run is not None else name,
        scores[0].seed if scores else run.spec.train.seed if run is not None else 0,
        max((*kept, *scored), default=0),
        kept,
        scored,
        sum(p.stat().st_size for p in place.rglob("*") if p.is_file()),
        tuple(dict.fromkeys(remarks)),
    )


def _belonging(place: Path, name: str, known: Sequence[str]) -> list[Path]:
    """What lies in one of `PLACES` under a run's name, alone or followed by a dash; not what is another run's."""
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
        trash = folder / TRASH / f"{name}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
        trash.mkdir(parents=True)
        lines = RecordFile(folder).take(lambda record: name_of(record) == name)
        write_text(trash / records.FILE, "".join(f"{line}\n" for line in lines))
        for kind in PLACES:
            for found in _belonging(folder / kind, name, known):
                (trash / kind).mkdir(exist_ok=True)
                found.rename(trash / kind / found.name)
    (trash / "runs" / name / ".lock").unlink(missing_ok=True)
    return trash
