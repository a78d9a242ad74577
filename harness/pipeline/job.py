"""What runs inside a job: the command of a cell, under torchrun where it has several processes, until it ends or is
told to make room.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from harness.pipeline.jobs import JobFile, JobFiles
from harness.runtime.signals import TERMINATED

#: How long a stopped run may take to save: the largest saves of XL take half a minute.
SAVE_SECONDS = 150
#: Between looks at a child. A handler of signals looks too, and `Popen.wait` beside it would never return.
POLL_SECONDS = 0.2
#: How much of a job's output is read for the sentence that says why it failed.
TAIL_BYTES = 65536


class Failed(Exception):  # noqa: N818 (so that SLURM calls the job failed)
    """The command of a job ended with an error, which its output says."""


@dataclass
class Command:
    """A command of `repa-bench` in processes of its own. submitit pickles it, and calls it in the job."""

    out: Path
    job: JobFile
    processes: int = 1
    """On each node."""
    nodes: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    _child: subprocess.Popen[bytes] | None = None
    _stopped: bool = False

    def __call__(self) -> None:
        """Run to the end.

        Raises:
            Failed: the command failed, or was stopped by a signal.
        """
        files, main = JobFiles(self.out), self._node() == 0
        if main:
            facts = {"host": socket.gethostname(), "pid": os.getpid(), "log": _log(), "number": _number()}
            now = {"state": "running", "starts": self.job.starts + 1, "began": time.time(), "ended": None, "why": ""}
            self.job = files.change(self.job, **facts, **now)
        code = self._run()
        if main:
            self._close(files, code)
        if code:
            raise Failed(f"{self.job.name}: exit code {code}")

    def checkpoint(self) -> Any:
        """Called by submitit when the job is preempted, or its time is nearly over: save, and begin again later."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        self.job = JobFiles(self.out).change(self.job, state="stopped", ended=time.time())
        return DelayedSubmission(self)

    def stop(self) -> None:
        """Ask the command to save and end, and wait for it."""
        child, self._stopped = self._child, True
        if child is None:
            return
        deadline = time.monotonic() + SAVE_SECONDS
        child.terminate()
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        child.kill()
        self._child = None

    def _run(self) -> int:
        environment = os.environ | self.environment
        child = self._child = subprocess.Popen(self._words(), env=environment, preexec_fn=_deaf)
        while (code := child.poll()) is None:
            time.sleep(POLL_SECONDS)
        self._child = None
        return code

    def _close(self, files: JobFiles, code: int) -> None:
        stopped = self._stopped or code in (TERMINATED, -signal.SIGTERM)  # torchrun itself ends with 1 then
        state = "done" if code == 0 else "stopped" if stopped else "failed"
        why = "" if code == 0 else why_it_failed(Path(self.job.log), code)
        self.job = files.change(self.job, state=state, code=code, ended=time.time(), why=why)

    def _words(self) -> list[str]:
        """The command, under torchrun where it has several processes."""
        launcher: list[str] = []
        if self.nodes * self.processes > 1:
            launcher = [
                *("-m", "torch.distributed.run", "--nnodes", str(self.nodes), "--nproc-per-node", str(self.processes)),
                *("--shutdown-timeout", str(SAVE_SECONDS - 10)),
                *(self._meeting() if self.nodes > 1 else ["--standalone"]),
            ]
        return [sys.executable, *launcher, "-m", "harness.cli", *self.job.command]

    @staticmethod
    def _meeting() -> list[str]:
        """Where the nodes meet: the first one, at a port that its job's number gives."""
        from submitit import JobEnvironment

        here = JobEnvironment()
        port = 20000 + int(here.raw_job_id) % 10000
        return [
            "--rdzv-backend",
            "c10d",
            "--rdzv-id",
            here.raw_job_id,
            "--rdzv-endpoint",
            f"{here.hostnames[0]}:{port}",
        ]

    @staticmethod
    def _node() -> int:
        return int(os.environ.get("SLURM_NODEID", "0"))


@dataclass
class Lane:
    """A worker of this machine: does one job of a results folder after the other. submitit pickles and calls it."""

    out: Path
    processes: int
    environment: dict[str, str]

    def __call__(self) -> None:
        """Work until no job is left.

        Raises:
            Failed: one of its jobs failed; the others were done.
        """
        os.setpgid(0, 0)  # Ctrl-C on the terminal is not for us
        files, failed = JobFiles(self.out), []
        while (job := files.take(_number())) is not None:
            command = Command(self.out, job, self.processes, environment=self.environment)
            with _passing_on(command):
                try:
                    command()
                except Failed as error:
                    failed.append(str(error))
            if command.job.state == "stopped":
                break
        if failed:
            raise Failed("; ".join(failed))


@contextmanager
def _passing_on(command: Command) -> Iterator[None]:
    """Context: SIGTERM stops the command, which saves."""

    def receive(number: int, frame: FrameType | None) -> None:
        command.stop()

    before = signal.signal(signal.SIGTERM, receive)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _deaf() -> None:
    """In a child: SLURM sends SIGUSR2 to all processes of a preempted job, and it is for submitit's alone."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _log() -> str:
    """The file of this job's output."""
    from submitit import JobEnvironment

    return str(JobEnvironment().paths.stdout)


def _number() -> str:
    """The number that the engine gave this job; inside a lane, the lane's."""
    from submitit import JobEnvironment

    return str(JobEnvironment().job_id)


def why_it_failed(log: Path, code: int) -> str:
    """The last error in a job's output, or its exit code."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    told = [line for line in lines if line.startswith("Error: ") or " Error: " in line]
    if told:
        return told[-1].partition("Error: ")[2]
    if code < 0:
        return f"killed by signal {-code}"
    return f"exit code {code}" + (f": {lines[-1][:300]}" if lines else "")
