"""The jobs of a grid and where each stands: a file for each in OUT/jobs, which any machine can read."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.records.file import RecordFile
from harness.records.schema import ScoreRecord
from harness.runtime.locks import alone
from harness.suites.base import Budget, Suite, draws_of
from recipes.core.atomic import lives, write_text
from recipes.core.errors import UserError
from recipes.core.jsons import load_json
from recipes.core.spec import Spec

#: Folder of a results folder.
FOLDER = "jobs"
PREPARE, REPORT = "prepare", "report"
State = Literal["submitted", "running", "stopped", "done", "failed"]
#: States of a job that an engine still has to do with.
OPEN: tuple[State, ...] = ("submitted", "running", "stopped")
SQUEUE_SECONDS = 60


class JobFile(Spec):
    """``OUT/jobs/NAME.json``: one job and where it stands. Its submitter writes it first, then the job itself."""

    name: str
    """`PREPARE`, `REPORT`, or the name of a cell."""
    variant: str | None = None
    seed: int | None = None
    command: tuple[str, ...]
    """Arguments of `repa-bench`."""
    engine: str = ""
    number: str = ""
    """SLURM's, or the process of the lane of this machine; before a lane has taken it, of all lanes, with commas."""
    state: State = "submitted"
    host: str = ""
    pid: int | None = None
    starts: int = 0
    """How often it has begun: preempted jobs begin again."""
    submitted: float = 0.0
    """Seconds since the epoch, as are the others."""
    began: float | None = None
    ended: float | None = None
    code: int | None = None
    """Exit code of its command."""
    why: str = ""
    """Why it failed, in a sentence."""
    log: str = ""
    """File of its output."""


def cell_name(variant: str, seed: int) -> str:
    """The name of the job that trains and scores one recipe with one seed."""
    return f"{variant}-seed{seed}"


class JobFiles:
    """The jobs of a results folder."""

    def __init__(self, out: Path) -> None:
        self.folder = out / FOLDER

    def path(self, name: str) -> Path:
        """The file of a job."""
        return self.folder / f"{name}.json"

    def read(self, name: str) -> JobFile | None:
        """A job, or None where there is none of that name or its file cannot be read."""
        try:
            return JobFile.parse(load_json(self.path(name).read_bytes()), where=str(self.path(name)))
        except (OSError, ValueError, UserError):
            return None

    def all(self) -> list[JobFile]:
        """Every job, in the order of submission."""
        found = [job for path in self.folder.glob("*.json") if (job := self.read(path.stem)) is not None]
        return sorted(found, key=lambda job: (job.submitted, job.name))

    def write(self, job: JobFile) -> JobFile:
        """Keep where a job stands."""
        write_text(self.path(job.name), job.model_dump_json(indent=1) + "\n")
        return job

    def change(self, job: JobFile, **fields: object) -> JobFile:
        """Keep what has changed of a job; returns it. A job that has begun is not called submitted again."""
        new = job.model_copy(update=fields)
        with alone(self.folder / ".change.lock"):
            there = self.read(job.name) if new.state == "submitted" and new.number else None
            return there if there is not None and there.number == new.number else self.write(new)

    def submitting(self, *, on: bool) -> AbstractContextManager[None]:
        """Context: nobody else submits jobs of this folder meanwhile; without `on`, nothing is held."""
        return alone(self.folder / ".submit.lock", on=on)

    def taking(self) -> AbstractContextManager[None]:
        """Context: no lane takes a job meanwhile."""
        return alone(self.folder / ".take.lock")

    def take(self, lane: str) -> JobFile | None:
        """The next job for a lane of this machine, marked as running; None where none is left for it.

        Preparation comes first, and every lane waits for it. The report comes last, from the lane that ends last.

        Args:
            lane: the number of its process.
        """
        while True:
            with self.taking():
                mine = [job for job in self.all() if job.engine == "local"]
                waiting = [job for job in mine if job.state == "submitted"]
                working = [job for job in mine if job.state == "running" and lives(job.pid or 0)]
                if any(job.name == PREPARE and job.state in ("failed", "stopped") for job in mine):
                    for job in waiting:
                        self.change(job, state="failed", ended=time.time(), why="the preparation failed")
                    return None
                # PREPARE and REPORT are the first and the last that were submitted.
                if not waiting or (waiting[0].name == REPORT and working):
                    return None
                if not any(job.name == PREPARE for job in working):
                    facts = {"host": socket.gethostname(), "pid": os.getpid(), "number": lane}
                    return self.change(waiting[0], state="running", **facts)
            time.sleep(1.0)


def of_grid(files: JobFiles, words: Sequence[str], cells: Iterable[tuple[str, int]], out: Path) -> list[JobFile]:
    """The jobs of a grid: preparation, the cells, the report.

    Args:
        files: where they are kept.
        words: the command that all share, with its options: ``run --suite ...``.
        cells: variant and seed.
        out: results folder.
    """
    command, options = words[0], list(words[1:])
    jobs = [JobFile(name=PREPARE, command=(PREPARE, *without(options, LAYOUT)))]
    for variant, seed in cells:
        one = (command, *options, "--cell", f"{variant}:{seed}")
        jobs.append(JobFile(name=cell_name(variant, seed), variant=variant, seed=seed, command=one))
    if command == "run":
        jobs.append(JobFile(name=REPORT, command=(REPORT, str(out))))
    return jobs


#: Options of training that preparing does not know, with a value and without.
LAYOUT = {"--micro-batch": 1, "--save-every": 1, "--save-minutes": 1, "--keep": 1, "--on-nan": 1, "--compile": 0,
          "--no-compile": 0, "--checkpointing": 0}  # fmt: skip


def without(options: Sequence[str], left_out: Mapping[str, int]) -> list[str]:
    """Options without some of them, each of which has so many values."""
    words, out = iter(options), []
    for word in words:
        if word not in left_out:
            out.append(word)
        else:
            list(itertools.islice(words, left_out[word]))
    return out


# Which are still to be done.


@dataclass(frozen=True)
class Finished:
    """What of a grid is there already."""

    cells: frozenset[tuple[str, int]]

    @classmethod
    def of(cls, out: Path, suite: Suite, budget: Budget, seeds: Sequence[int], command: str) -> Finished:
        """By the records for ``run``, by the checkpoints for ``train``."""
        return cls(frozenset(_scored(out, suite, budget, seeds) if command == "run" else _trained(out, budget)))


def _scored(out: Path, suite: Suite, budget: Budget, seeds: Sequence[int]) -> Iterable[tuple[str, int]]:
    mine, found = suite.identity(), dict[tuple[str, int], set[tuple[int, str, int]]]()
    for r in RecordFile(out).all():
        if isinstance(r, ScoreRecord) and not r.search and r.suite_digest == mine:
            found.setdefault((r.variant, r.seed), set()).add((r.step, r.protocol.digest(), r.generation_seed))
    for (variant, seed), keys in found.items():
        wanted = {(step, p.digest(), g) for step, p, g in draws_of(suite, budget, first=seed == seeds[0])}
        if wanted <= keys:
            yield variant, seed


def _trained(out: Path, budget: Budget) -> Iterable[tuple[str, int]]:
    for folder in (out / "runs").glob("*-seed*-*"):
        variant, _, rest = folder.name.rpartition("-seed")
        if all((folder / "checkpoints" / f"{step:07d}" / "manifest.json").exists() for step in budget.milestones()):
            yield variant, int(rest.split("-")[0])


def still_open(jobs: Sequence[JobFile]) -> dict[str, str]:
    """Of jobs that are submitted or at work: by name, what their engine says of them.

    A job whose engine does not know it any more (cancelled, its machine gone) is left out.

    Raises:
        UserError: SLURM does not answer.
    """
    slurm = in_queue() if any(job.engine == "slurm" and job.state != "done" for job in jobs) else {}
    found = {}
    for job in jobs:
        if job.engine == "slurm" and job.number in slurm and not (slurm[job.number] == "COMPLETING" and job.ended):
            found[job.name] = slurm[job.number]
        elif job.engine == "local" and job.state in ("submitted", "running") and job.host in ("", socket.gethostname()):
            lanes = [job.pid] if job.state == "running" else [int(lane) for lane in job.number.split(",") if lane]
            if any(lives(lane or 0) for lane in lanes):
                found[job.name] = job.state.upper()
    return found


def in_queue() -> dict[str, str]:
    """SLURM's jobs of this user: state by number, as ``12_3`` for a job of an array.

    Raises:
        UserError: SLURM does not answer.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%F|%K|%T"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=SQUEUE_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        raise UserError(
            f"SLURM does not answer (squeue: {str(said).strip()}); ask again where and when it does."
        ) from None
    out = {}
    for line in told.splitlines():
        number, index, state = line.strip().split("|")
        out[number if index == "N/A" else f"{number}_{index}"] = state
    return out


def to_submit(files: JobFiles, jobs: Sequence[JobFile], finished: Finished) -> tuple[list[JobFile], list[str]]:
    """The jobs that are missing, failed or lost, and a sentence for each that is not submitted.

    Raises:
        UserError: a job of the same name is at work with other options.
    """
    before = {job.name: old for job in jobs if (old := files.read(job.name)) is not None}
    open_ = still_open(list(before.values()))
    out, told = [], []
    for job in jobs:
        old = before.get(job.name)
        if job.variant is not None and job.seed is not None and (job.variant, job.seed) in finished.cells:
            told.append(f"{job.name}: done")
        elif old is not None and job.name in open_ and job.name != REPORT:
            if old.command != job.command:
                cancel = "scancel" if old.engine == "slurm" else "kill"
                raise UserError(
                    f"{job.name} is still being worked on (job {old.number}, {open_[job.name]}) with other options. "
                    f"Wait for it, or end it with `{cancel} {old.number.replace(',', ' ')}`."
                )
            told.append(f"{job.name}: job {old.number}, {open_[job.name].lower()}")
        else:
            out.append(job)
    if not any(job.variant is not None for job in out):  # nothing to prepare; the report may never have come to be
        reported = before.get(REPORT)
        wanted = reported is None or (reported.state != "done" and REPORT not in open_)
        out = [job for job in out if job.name == REPORT and wanted]
    return out, told
