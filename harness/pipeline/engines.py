"""Where the jobs of a grid run: SLURM, or lanes on this machine. The engine is submitit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from harness.pipeline.job import SAVE_SECONDS, Command, Lane
from harness.pipeline.jobs import FOLDER, PREPARE, REPORT, JobFile, JobFiles, still_open
from recipes.core.errors import UserError
from recipes.core.spec import Spec

#: Seconds that a job is told before it has to end: to save, and for torchrun to end.
NOTICE_SECONDS = SAVE_SECONDS + 30
#: How often a job may use up its time and begin again.
TIMEOUTS = 1000
#: Minutes of a lane: submitit wants a number.
FOR_EVER = 60 * 24 * 365 * 10
#: Minutes of a job where nobody says.
MINUTES = 24 * 60
#: Cores of a job that trains on no GPU.
CORES = 2


class Cluster(Spec):
    """What SLURM is asked for: a TOML file of these keys, or options of the same names."""

    partition: str | None = None
    account: str | None = None
    constraint: str | None = None
    time: int = MINUTES
    """Minutes of a job; it saves before they are over, and begins again."""
    nodes: int = 1
    gpus: int = 0
    """GPUs on each node, a process for each."""
    cpus: int | None = None
    """Cores on each node; 8 a GPU, or 2, where nobody says."""
    notice: int = NOTICE_SECONDS
    """Seconds before the end of its time at which a job is told to save."""
    mem: str | None = None
    """Memory on each node, as SLURM writes it: ``64GB``."""
    at_once: int = 256
    """Jobs of an array that run at a time, at most."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the command, as ``module load cuda``."""
    flags: Mapping[str, JsonValue] = {}
    """Further flags of sbatch: ``qos = "long"``."""

    @classmethod
    def read(cls, path: Path | None, given: Mapping[str, Any]) -> Cluster:
        """The file's keys, over which go the options that were given.

        Raises:
            UserError: the file cannot be read, or has a key or value that is not known.
        """
        data: dict[str, Any] = {}
        if path is not None:
            try:
                data = tomllib.loads(path.read_text())
            except (OSError, ValueError) as error:
                raise UserError(f"--cluster {path}: {error}. Give a TOML file of keys as partition and gpus.") from None
        merged = data | {key: value for key, value in given.items() if value is not None}
        found = cls.parse(merged, where=f"--cluster {path}" if path is not None else "--on slurm")
        if found.time * 60 <= found.notice:
            raise UserError(
                f"--time {found.time}: a job is told to save {found.notice} s before its end; give it more minutes "
                "than that, or a smaller `notice` in the --cluster file."
            )
        return found

    @property
    def processes(self) -> int:
        """Processes on each node."""
        return max(1, self.gpus)

    @property
    def cores(self) -> int:
        """Cores on each node."""
        return self.cpus or 8 * self.gpus or CORES

    def parameters(self, name: str, after: str = "") -> dict[str, Any]:
        """As submitit names them.

        Args:
            name: of the job, as queues show it.
            after: what it waits for, as sbatch's ``--dependency``; may be empty.
        """
        known = {
            "partition": self.partition, "account": self.account, "constraint": self.constraint, "mem": self.mem,
            "gpus_per_node": self.gpus or None, "setup": list(self.setup) or None, "dependency": after or None,
        }  # fmt: skip
        return {
            "job_name": f"repa-{name}",
            "time": self.time,
            "nodes": self.nodes,
            "ntasks_per_node": 1,
            "cpus_per_task": self.cores,
            "signal_delay_s": self.notice,
            "array_parallelism": self.at_once,
            "stderr_to_stdout": True,
            **{key: value for key, value in known.items() if value is not None},
            "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes"} | dict(self.flags),
        }


def _after(way: str, numbers: Collection[str]) -> str:
    """A dependency on jobs, as sbatch writes it."""
    return ":".join([way, *sorted(numbers)]) if numbers else ""


def threads_each(cores: int, processes: int) -> dict[str, str]:
    """The environment that divides cores among the processes of a job, unless the user's says otherwise."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // processes)))}


@dataclass(frozen=True)
class Slurm:
    """Jobs of SLURM: preparation, an array of cells that waits for it, and the report behind them."""

    out: Path
    cluster: Cluster

    def submit(self, jobs: Sequence[JobFile]) -> list[JobFile]:
        """Submit jobs; returns them with their numbers.

        Raises:
            UserError: SLURM is not here, or refuses.
        """
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise UserError(
                "--on slurm: there is no sbatch and srun here; run this where jobs are submitted, or give --on local:2."
            )
        single = self.cluster.model_copy(update={"nodes": 1})
        files = JobFiles(self.out)
        there = still_open(before := files.all())
        older = {job.name: job.number.partition("_")[0] for job in before if job.name in there}
        done = self._array([j for j in jobs if j.name == PREPARE], single, PREPARE, "")
        prepare = {job.number for job in done} | {number for name, number in older.items() if name == PREPARE}
        cells = [job for job in jobs if job.variant is not None]
        done += self._array(cells, self.cluster, "grid", _after("afterok", prepare))
        grid = {job.number.partition("_")[0] for job in done} | {n for name, n in older.items() if name != REPORT}
        if (report := [job for job in jobs if job.name == REPORT]) and REPORT in older:
            subprocess.run(["scancel", older[REPORT]], check=False)  # it would not wait for the new cells
        return done + self._array(report, single, REPORT, _after("afterany", grid))

    def _array(self, jobs: Sequence[JobFile], cluster: Cluster, name: str, after: str) -> list[JobFile]:
        """Submit jobs that need the same as one array; returns them with their numbers."""
        import submitit

        if not jobs:
            return []
        folder = (self.out / FOLDER / "slurm").absolute()
        executor = submitit.SlurmExecutor(folder, max_num_timeout=TIMEOUTS)
        executor.update_parameters(**cluster.parameters(name, after))
        mine = [job.model_copy(update={"engine": "slurm", "submitted": time.time()}) for job in jobs]
        try:
            with executor.batch():
                submitted = [executor.submit(self._command(job, cluster)) for job in mine]
            numbers = [str(job.job_id) for job in submitted]
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"--on slurm: sbatch refuses: {str(error).strip().splitlines()[-1]}") from None
        files = JobFiles(self.out)
        return [files.change(job, number=number) for job, number in zip(mine, numbers, strict=True)]

    def _command(self, job: JobFile, cluster: Cluster) -> Command:
        processes = 1 if job.name == REPORT else cluster.processes
        return Command(self.out.absolute(), job, processes, cluster.nodes, threads_each(cluster.cores, processes))

    def script(self, jobs: Sequence[JobFile]) -> str:
        """What would be given to sbatch for the cells, and what each job would run."""
        from submitit.slurm.slurm import _make_sbatch_string

        cells = [job for job in jobs if job.variant is not None] or list(jobs)
        folder = (self.out / FOLDER / "slurm" / "%j").absolute()
        script: str = _make_sbatch_string(
            command="python -u -m submitit.core._submit ...",
            folder=folder,
            map_count=len(cells),
            **self.cluster.parameters("grid"),
        )
        return script + "\n# jobs\n" + "\n".join(f"# {job.name}: repa-bench {' '.join(job.command)}" for job in jobs)


@dataclass(frozen=True)
class Local:
    """Lanes on this machine: processes that outlive this command, each of which does one job after the other."""

    out: Path
    lanes: int
    cores: int
    gpus: tuple[int, ...] = ()

    def submit(self, jobs: Sequence[JobFile]) -> list[JobFile]:
        """Write the jobs, then start the lanes; returns the jobs."""
        files, now = JobFiles(self.out), time.time()
        cells = sum(job.variant is not None for job in jobs)
        with files.taking():  # so that no lane looks before everything is there
            there = {job.number for job in files.all() if job.state == "running" and still_open([job])}
            more = max(1, min(self.lanes - len(there), cells))
            lanes = ",".join([*sorted(there), *(self._lane(number) for number in range(more))])
            return [
                files.change(job, engine="local", number=lanes, submitted=now + place / 1000)
                for place, job in enumerate(jobs)
            ]

    def _lane(self, number: int) -> str:
        """Start a lane; returns its process. Neither Ctrl-C nor the end of the terminal ends it."""
        import submitit

        mine = self.gpus[number :: self.lanes]
        executor = submitit.LocalExecutor((self.out / FOLDER / "lanes").absolute())
        executor.update_parameters(
            timeout_min=FOR_EVER,
            gpus_per_node=len(mine),
            visible_gpus=mine,
            signal_delay_s=NOTICE_SECONDS,
            stderr_to_stdout=True,
        )
        processes = max(1, len(mine))
        lane = Lane(self.out.absolute(), processes, threads_each(self.cores // self.lanes, processes))
        with _detached():
            return str(executor.submit(lane).job_id)

    def script(self, jobs: Sequence[JobFile]) -> str:
        """What the lanes would run."""
        head = f"# {self.lanes} lanes on this machine, {self.cores} cores, GPUs {list(self.gpus) or 'none'}"
        return "\n".join([head, *(f"{job.name}: repa-bench {' '.join(job.command)}" for job in jobs)])


@contextmanager
def _detached() -> Iterator[None]:
    """Context: what is started does not end with the terminal or by Ctrl-C, and keeps no pipe of ours open."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    kept = {number: os.dup(number) for number in (0, 1, 2)}
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in kept:
        os.dup2(nowhere, number)
    try:
        yield
    finally:
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
        for number, handler in handlers.items():
            signal.signal(number, handler)
