"""Where every cell of a results folder stands. Reads only: files of jobs, locks, logs and records."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from harness.pipeline.jobs import OPEN, PREPARE, REPORT, JobFile, JobFiles, cell_name, still_open
from harness.records.file import FILE, parse
from harness.records.schema import ScoreRecord
from harness.runtime.locks import alone, holder_of
from harness.suites.base import Budget, Suite
from recipes.core.atomic import write_text
from recipes.core.errors import UserError
from recipes.core.json_lines import read_tail
from recipes.core.jsons import load_json
from recipes.core.spec import Spec
from recipes.data.files import read_json

#: File of a results folder that says which cells it is to have.
GRID = "grid.json"
#: Logged stretches whose median is the time of a step.
STRETCHES = 20
#: What is said of a job that is neither done nor known to its engine.
LOST = "it was cancelled, or its machine is gone, or what it waited for failed; the same command submits it again."


class Grid(Spec):
    """``OUT/grid.json``: the cells that a results folder is to have."""

    suite: str
    notice: str
    cells: tuple[tuple[str, int], ...]
    steps: int
    scores: int
    """Scores of a cell."""

    @classmethod
    def read(cls, out: Path) -> Grid | None:
        """None where the folder has none."""
        path = out / GRID
        return cls.parse(read_json(path), where=str(path)) if path.exists() else None


def expect(out: Path, suite: Suite, budget: Budget, cells: Sequence[tuple[str, int]]) -> None:
    """Add cells to those that a results folder is to have."""
    with alone(out / f".{GRID}.lock"):
        before = Grid.read(out)
        known = before.cells if before is not None and before.suite == suite.name else ()
        every, scores = tuple(dict.fromkeys([*known, *cells])), len(budget.milestones())
        grid = Grid(suite=suite.name, notice=suite.notice, cells=every, steps=budget.steps, scores=scores)
        if grid != before:
            write_text(out / GRID, grid.model_dump_json(indent=1) + "\n")


@dataclass(frozen=True)
class Cell:
    """One recipe with one seed, or the preparation, or the report."""

    name: str
    state: str
    """waiting, running, scoring, stopped, done, failed or lost."""
    where: str = ""
    """Machine and process, or the job's number."""
    since: float | None = None
    """Seconds since the epoch."""
    step: int = 0
    steps: int = 0
    step_seconds: float | None = None
    """Median of the last logged stretches, wall clock."""
    device_seconds: float = 0.0
    """Of training so far."""
    losses: Mapping[str, float] | None = None
    """Last logged."""
    fids: tuple[tuple[int, float], ...] = ()
    """Step and FID of its milestones so far."""
    why: str = ""
    log: str = ""

    @property
    def seconds_left(self) -> float | None:
        """Of training, at the pace so far; scoring comes on top. None where no step is known."""
        if self.state in ("done", "failed"):
            return 0.0
        return None if self.step_seconds is None else max(0, self.steps - self.step) * self.step_seconds


@dataclass(frozen=True)
class Status:
    """All cells of a results folder, and what is left of the whole."""

    title: str
    cells: tuple[Cell, ...]
    doubt: str = ""
    """Why jobs may stand otherwise than is shown."""

    @property
    def over(self) -> bool:
        """Whether nothing is waiting or at work any more."""
        return not any(cell.state in ("waiting", "running", "scoring") for cell in self.cells)

    @property
    def failed(self) -> list[Cell]:
        """The cells that somebody has to look after."""
        return [cell for cell in self.cells if cell.state in ("failed", "lost", "stopped")]

    @property
    def device_seconds(self) -> float:
        """Of training so far."""
        return sum(cell.device_seconds for cell in self.cells)

    @property
    def seconds_left(self) -> float | None:
        """Estimate for all training that is left, at as many cells at a time as now; None where no pace is known."""
        paced = [cell.step_seconds for cell in self.cells if cell.step_seconds is not None]
        if not paced:
            return None
        typical, at_work = median(paced), sum(cell.state == "running" for cell in self.cells)
        left = [
            typical * max(0, cell.steps - cell.step) if cell.seconds_left is None else cell.seconds_left
            for cell in self.cells
        ]
        return max(sum(left) / max(1, at_work), max(left, default=0.0))


def status_of(out: Path) -> Status:
    """Where a results folder stands.

    Raises:
        UserError: it is not a results folder.
    """
    grid, jobs = Grid.read(out), JobFiles(out).all()
    if grid is None and not jobs and not (out / FILE).is_file():
        raise UserError(f"{out} holds no runs, jobs or records; name the --out folder of a `repa-bench run`.")
    names = {cell_name(*cell): cell for cell in grid.cells} if grid else {}
    runs = {path.name.rpartition("-")[0]: path for path in sorted((out / "runs").glob("*-seed*-*"))}
    by_name, scores, doubt = {job.name: job for job in jobs}, _scores(out), ""
    try:
        open_ = still_open(jobs)
    except UserError as error:  # files of jobs are read elsewhere too
        open_, doubt = {job.name: job.state.upper() for job in jobs if job.state in OPEN}, str(error)
    steps = grid.steps if grid else 0
    cells = [
        _cell(name, by_name.get(name), open_, runs.get(name), scores.get(name, []), steps, grid)
        for name in dict.fromkeys([*names, *runs, *(job.name for job in jobs if job.variant is not None)])
    ]
    before = [_apart(by_name[name], open_) for name in (PREPARE,) if name in by_name]
    after = [_apart(by_name[name], open_) for name in (REPORT,) if name in by_name]
    title = f"{grid.suite} ({grid.notice})" if grid else str(out)
    return Status(title, (*before, *cells, *after), doubt)


def _scores(out: Path) -> dict[str, list[ScoreRecord]]:
    """By cell. A line that is damaged, or being written, is passed over: nothing is repaired here."""
    found: dict[str, list[ScoreRecord]] = {}
    path = out / FILE
    for line in path.read_text(errors="replace").split("\n")[:-1] if path.is_file() else ():
        try:
            record = parse(line, "")
        except UserError:
            continue
        if isinstance(record, ScoreRecord) and not record.search:
            found.setdefault(cell_name(record.variant, record.seed), []).append(record)
    return found


def _apart(job: JobFile, open_: Mapping[str, str]) -> Cell:
    """The preparation, or the report."""
    state = _state_of_job(job, open_)
    return Cell(job.name, state, _place(job, open_), job.began or job.submitted, why=job.why, log=job.log)


def _state_of_job(job: JobFile, open_: Mapping[str, str]) -> str:
    if job.state in ("done", "failed"):
        return job.state
    if job.name not in open_:
        return "stopped" if job.state == "stopped" else "lost"
    return "running" if job.state == "running" else "waiting"


def _place(job: JobFile, open_: Mapping[str, str]) -> str:
    if job.state == "running" and job.name in open_:
        return f"{job.host}, job {job.number}"
    asked = open_.get(job.name, "").lower()
    return f"job {job.number}" + (f", {asked}" if asked and job.engine == "slurm" else "")


def _cell(
    name: str,
    job: JobFile | None,
    open_: Mapping[str, str],
    run: Path | None,
    scores: Sequence[ScoreRecord],
    steps: int,
    grid: Grid | None,
) -> Cell:
    rows = read_tail(run / "log.jsonl", STRETCHES + 1, step=int, seconds=int | float) if run is not None else []
    last: Mapping[str, Any] = rows[-1] if rows else {"step": 0, "seconds": 0.0}
    curve = _curve(scores)
    holder = holder_of(run) if run is not None else None
    finished = bool(curve) and curve[-1][0] >= steps and (grid is None or len(curve) >= grid.scores)
    where, since, why = "", None, ""
    if job is not None:
        state, where, why = _state_of_job(job, open_), _place(job, open_), job.why
        since = job.began if state == "running" else job.submitted
        if state == "lost":
            state, why = ("done", "") if finished else ("lost", LOST)
    elif holder is not None:
        state, where, since = "running", f"{holder['host']}, process {holder['pid']}", holder["since"]
    else:
        state = "done" if finished else "stopped" if rows or scores else "waiting"
    if state == "running" and steps and last["step"] >= steps:
        state = "scoring"
    return Cell(
        name=name,
        state=state,
        where=where,
        since=since,
        step=steps if finished else last["step"],
        steps=steps or last["step"],
        step_seconds=_step_seconds(rows),
        device_seconds=_device_seconds(run, float(last["seconds"]), scores),
        losses={k: v for k, v in last.items() if k not in ("step", "seconds") and isinstance(v, int | float)},
        fids=tuple(curve),
        why=why,
        log=job.log if job is not None else "",
    )


def _curve(scores: Sequence[ScoreRecord]) -> list[tuple[int, float]]:
    """FID by step under the protocol that scored most steps: the suite's for curves."""
    by: dict[str, dict[int, float]] = {}
    for r in scores:
        by.setdefault(r.protocol_digest, {})[r.step] = r.metrics.fid
    return sorted(max(by.values(), key=len, default=dict[int, float]()).items())


def _step_seconds(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The median over logged stretches of one process's start; the clock goes on across restarts."""
    paces = [
        (b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairwise(rows) if b["step"] > a["step"]
    ]
    return median(paces) if paces else None


def _device_seconds(run: Path | None, seconds: float, scores: Sequence[ScoreRecord]) -> float:
    """Seconds of training times devices, by the last checkpoint; of a run whose folder is gone, by its records."""
    if run is None:
        return max((r.device_seconds for r in scores), default=0.0)
    for path in sorted(run.glob("checkpoints/[0-9]*/manifest.json"), reverse=True):
        try:
            meta = load_json(path.read_bytes())["meta"]
            return seconds * float(meta["device_seconds"]) / max(1e-9, float(meta["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):  # it is being written, or damaged
            continue
    return seconds


def age(seconds: float) -> str:
    """A duration as people write it: ``45 s``, ``12 min``, ``3.5 h``, ``2.1 d``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}" if size > 60 else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def since(moment: float | None) -> str:
    """How long ago a moment was."""
    return "" if not moment else age(max(0.0, time.time() - moment))
