"""Several runs at a time: worker processes of this machine, each with one thread, each on one run after another.

Results go to run folders and records as usual; the pipe (`line`) only carries requests for the next run and progress.
This module imports nothing heavy, so that a worker can say how many threads it wants before
PyTorch is loaded.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import ModuleType
from typing import TYPE_CHECKING, Any

from harness.runtime.progress import Reporter
from harness.runtime.signals import TERMINATED, deferred
from recipes.core.errors import Diverged, Stopped, UserError

if TYPE_CHECKING:
    from harness.pipeline.run_suite import Grid, Work
    from harness.pipeline.session import Session
    from harness.preparation.base import Prepared
    from recipes.training.run_folder import Run

POLL_SECONDS = 0.2
#: One thread, for every library that has threads of its own.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
#: Stages per run in the progress bar: training, scoring.
STAGES = 2


def cores() -> int:
    """How many cores of this machine this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def at_once(jobs: int) -> Work:
    """So many runs at a time, the longest first, so that nobody waits at the end for a long one that began last."""

    def work(session: Session, prepared: Prepared, grid: Grid, scored: bool) -> None:
        from harness.pipeline.checkpoints import open_run
        from harness.pipeline.run_suite import in_turn
        from harness.pipeline.train import needed

        runs = {cell: open_run(session, prepared, *cell) for cell in grid}
        left = {cell: run for cell, run in runs.items() if needed(session, prepared, run)}
        if len(left) > 1:
            seconds = _measure(session, prepared, left)
            _Crew(session, sorted(left, key=lambda cell: -seconds[cell]), scored).work(jobs)
        in_turn(session, prepared, [cell for cell in grid if cell not in left or len(left) == 1], scored)

    return work


def _measure(session: Session, prepared: Prepared, runs: Mapping[tuple[str, int], Run]) -> dict[tuple[str, int], float]:
    """Seconds of a step of each run; of those that have still to be trained measured now, before they run at once."""
    from harness.pipeline import pace
    from harness.pipeline.session import threads_of

    milestones = set(session.budget.milestones())
    missing = [run for run in runs.values() if pace.quiet(run) is None and not milestones <= set(run.steps())]
    if missing:
        with session.reporter.stage("pace, one run at a time", len(missing)) as on_step, threads_of(session):
            for number, run in enumerate(missing, start=1):
                with session.costed("pace", run.spec.variant, run.spec.train.seed):
                    pace.measure(run, prepared.inputs(run.spec.variant), session.execution, session.world)
                on_step(number)
    return {cell: pace.quiet(run) or 0.0 for cell, run in runs.items()}


@dataclass
class _Worker:
    """Parent-side state of a worker process."""

    process: SpawnProcess
    line: Connection
    cell: tuple[str, int] | None = None
    """The run that it works on."""
    bar: ExitStack = field(default_factory=ExitStack)
    """Progress bar of the stage that it is at."""
    tell: Callable[[int], None] = lambda done: None
    total: int = 1
    over: int = 0
    """Stages of its run that are over."""
    share: float = 0.0
    """Fraction of its stage that is done."""


class _Crew:
    """The workers, and what is left for them."""

    def __init__(self, session: Session, waiting: Sequence[tuple[str, int]], scored: bool) -> None:
        self._session, self._reporter = session, session.reporter
        self._waiting, self._count = deque(waiting), len(waiting)
        self._task = sorted({variant for variant, _ in waiting}), scored
        self._workers: dict[Connection, _Worker] = {}
        self._over, self._stopping = 0, False
        self._error: Exception | None = None
        self._saved: list[str] = []

    def work(self, jobs: int) -> None:
        """Run until the queue is empty.

        Raises:
            Stopped: by a signal, after the workers have saved.
            Exception: what the first worker that failed raised, after the others have saved.
        """
        with (
            deferred() as stop,
            self._reporter.together(),
            self._reporter.bar(f"all {self._count} runs (%)", 100) as tell,
        ):
            try:
                for _ in range(min(jobs, self._count)):
                    self._start()
                while self._workers:
                    if (stop() or self._error) and not self._stopping:
                        self._stop()
                    for line in wait(list(self._workers), POLL_SECONDS):
                        self._listen(self._workers[line])  # type: ignore[index]
                    tell(int(100 * self._done()))
            finally:
                for worker in self._workers.values():  # a second Ctrl-C: at once
                    worker.process.kill()
        if number := stop():
            raise Stopped(" ".join(self._saved) or "stopped by a signal; what was finished is kept.", number)
        if self._error is not None:
            raise self._error

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        line, theirs = spawn.Pipe()
        process = spawn.Process(target=_live, args=(theirs,), daemon=True)
        with _nameless():
            process.start()
        theirs.close()  # the end of the process is then the end of the line
        known = {f.name: getattr(self._session, f.name) for f in fields(self._session) if f.name != "reporter"}
        line.send((known, *self._task))
        self._workers[line] = _Worker(process, line)

    def _stop(self) -> None:
        """Ask every worker to save and exit."""
        self._stopping = True
        for worker in self._workers.values():
            worker.process.terminate()

    def _listen(self, worker: _Worker) -> None:
        try:
            message = worker.line.recv()
        except (EOFError, ConnectionResetError):
            self._gone(worker)
            return
        match message:
            case ("next",):
                self._give(worker)
            case ("say", text, style):
                self._reporter.note(f"{_name(worker.cell)}: {text}", style)
            case ("begin", label, total, start):
                worker.total = total
                worker.tell = worker.bar.enter_context(self._reporter.bar(label, total, start))
            case ("step", done):
                worker.share = done / max(1, worker.total)
                worker.tell(done)
            case ("end", text):
                worker.over, worker.share = worker.over + 1, 0.0
                worker.bar.close()
                self._reporter.note(text)
            case Stopped() if self._stopping:
                self._saved.append(str(message))
            case Exception():
                self._error, worker.cell = self._error or message, None

    def _give(self, worker: _Worker) -> None:
        """The next run, if there is one."""
        self._over += worker.cell is not None
        worker.over, worker.share = 0, 0.0
        worker.cell = self._waiting.popleft() if self._waiting and not self._stopping else None
        with suppress(OSError):  # it is gone, and its line will say so
            worker.line.send(worker.cell)

    def _gone(self, worker: _Worker) -> None:
        """Handle the exit of a worker, possibly during a run."""
        del self._workers[worker.line]
        worker.bar.close()
        worker.process.join()
        code = worker.process.exitcode
        if (worker.cell is None and code == 0) or self._stopping or self._error:
            return
        how = f"was killed (signal {-code})" if code is not None and code < 0 else f"ended (exit code {code})"
        self._error = UserError(
            f"the process that worked on {_name(worker.cell)} {how}; if memory ran out, give a smaller --jobs. "
            "What was saved before is as it was, and the same command continues."
        )

    def _done(self) -> float:
        """The share of the work that is done."""
        at_work = sum(min(1.0, (w.over + w.share) / STAGES) for w in self._workers.values() if w.cell)
        return (self._over + at_work) / self._count


@contextmanager
def _nameless() -> Iterator[None]:
    """Context: this process has an empty main module. A worker would import ours before anything else, and a script
    that calls `harness.run` would call it again there.
    """
    ours = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = ours


def _name(cell: tuple[str, int] | None) -> str:
    return "{}, seed {}".format(*cell) if cell else "no run yet"


# ---------------------------------------------------------------- in a worker


def _live(line: Connection) -> None:
    """A worker process, from its beginning to its end."""
    os.setpgid(0, 0)  # Ctrl-C on the terminal is our parent's to pass on
    os.environ.update(ONE_THREAD)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: sys.exit(TERMINATED))
    threading.Thread(target=_follow, daemon=True).start()
    with suppress(EOFError):  # our parent is gone
        known, variants, scored = line.recv()
        try:
            _work(line, known, variants, scored)
        except Exception as error:
            _send(line, _portable(error))
    for number in (signal.SIGTERM, signal.SIGUSR1):  # it is over: nothing is left to be saved
        signal.signal(number, signal.SIG_IGN)


def _follow() -> None:
    """Send ourselves SIGTERM when the parent process dies."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _work(line: Connection, known: dict[str, Any], variants: list[str], scored: bool) -> None:
    from harness.pipeline.run_suite import in_turn
    from harness.pipeline.session import Session, prepare

    session = Session(**known, reporter=_Relay(line))
    prepared = prepare(session, variants)
    while True:
        _send(line, ("next",))
        try:
            cell = line.recv()
        except EOFError:
            return
        if cell is None:
            return
        in_turn(session, prepared, [cell], scored)


def _send(line: Connection, message: object) -> None:
    """Send, ignoring a closed pipe (`_follow` handles the parent's death)."""
    with suppress(OSError):
        line.send(message)


def _portable(error: Exception) -> Exception:
    """A picklable version of the exception, with traceback as note."""
    from recipes.recipe_files import told_of_recipe

    known = isinstance(error, UserError | Diverged | Stopped | OSError | MemoryError)
    if not known and (sentence := told_of_recipe(error)):
        return UserError(sentence)
    sent = error if known else RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note("".join(traceback.format_exception(error)))
    return sent


class _Relay(Reporter):
    """Reporter of a worker: forwards messages to the parent."""

    def __init__(self, line: Connection) -> None:
        super().__init__(quiet=True)
        self._line = line

    def note(self, text: str, style: str | None = None) -> None:
        """See `Reporter.note`."""
        _send(self._line, ("say", text, style))

    @contextmanager
    def stage(self, label: str, total: int, start: int = 0) -> Iterator[Callable[[int], None]]:
        """See `Reporter.stage`."""
        began = time.perf_counter()
        _send(self._line, ("begin", label, total, start))
        yield lambda done: _send(self._line, ("step", done))
        _send(self._line, ("end", f"  {label}: {time.perf_counter() - began:.1f} s"))
