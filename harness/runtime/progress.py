"""Progress a person can follow: a bar with ETA on a terminal, a line for each finished stage elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from harness.runtime.console import PlainConsole

LINE_EVERY_SECONDS = 15.0


class Reporter:
    """Prints notes and progress bars."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        """With `quiet`, nothing is said: one of several processes speaks for all."""
        self.console = console or PlainConsole(stderr=True)
        self.quiet = quiet
        self._display: Progress | None = None
        self._whole: Callable[[int], None] = lambda done: None
        self._before = 0

    def note(self, text: str, style: str | None = None) -> None:
        """Print one line."""
        if not self.quiet:
            whole = not self.console.is_terminal  # a log keeps its lines
            self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=whole)

    @contextmanager
    def stage(self, label: str, total: int, start: int = 0) -> Iterator[Callable[[int], None]]:
        """A stage of `total` units; yields a function to call with the units done so far."""
        began = time.perf_counter()
        with self.bar(label, total, start) as on_step:
            yield on_step
        self.note(f"  {label}: {time.perf_counter() - began:.1f} s")

    @contextmanager
    def whole(self, label: str, total: int, *, on: bool) -> Iterator[Callable[[int], None]]:
        """Progress bar above those of several stages, which `part` of each moves on; yields a function to call with the
        units that were done before the stage that comes. Without `on`, there is none.
        """
        if not on:
            yield lambda before: None
            return

        def begin(before: int) -> None:
            self._before = before
            self._whole(before)

        with self.together(), self.bar(label, total) as self._whole:
            yield begin
        self._whole = lambda done: None

    def part(self, on_step: Callable[[int], None]) -> Callable[[int], None]:
        """A stage's function, which moves the bar of `whole` on too."""

        def both(done: int) -> None:
            on_step(done)
            self._whole(self._before + done)

        return both

    @contextmanager
    def bar(self, label: str, total: int, start: int = 0) -> Iterator[Callable[[int], None]]:
        """Progress bar without a final line."""
        with self.together() as bars:
            if bars is None:
                yield self._lines(label, total, start)
                return
            task = bars.add_task(label, total=total, completed=start)
            yield lambda done: bars.update(task, completed=done)
            bars.remove_task(task)

    @contextmanager
    def together(self) -> Iterator[Progress | None]:
        """Share one live display among nested bars; yields None without a terminal."""
        if self._display is not None or not self.console.is_terminal or self.quiet:
            yield self._display
            return
        try:
            with self._bars() as self._display:
                yield self._display
        finally:
            self._display = None

    def _bars(self) -> Progress:
        columns = (
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        return Progress(*columns, console=self.console, transient=True)

    def _lines(self, label: str, total: int, start: int) -> Callable[[int], None]:
        began = last = time.perf_counter()

        def tell(done: int) -> None:
            nonlocal last
            now = time.perf_counter()
            if now - last >= LINE_EVERY_SECONDS and start < done < total:
                last = now
                eta = (now - began) / (done - start) * (total - done)
                self.note(f"    {label}: {done}/{total}, ETA {eta:.0f} s")

        return tell
