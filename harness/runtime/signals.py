"""Handling of SIGTERM, SIGUSR1 (schedulers) and Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
#: Exit code of a process ended by SIGTERM (128 + 15); schedulers requeue it.
TERMINATED = 143
OVER = b"\nstopped by a signal; what was finished is kept, and the same command continues\n"
AGAIN = b"\nfinishing this step, then saving; Ctrl-C again stops at once\n"


@contextmanager
def _received(numbers: Iterable[int], receive: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Context: handle these signals with `receive`."""
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def requeued() -> Iterator[None]:
    """Context: SIGTERM and SIGUSR1 raise SystemExit(TERMINATED), so that locks are released."""

    def receive(number: int, frame: FrameType | None) -> None:
        os.write(2, OVER)
        sys.exit(TERMINATED)

    with _received((signal.SIGTERM, signal.SIGUSR1), receive):
        yield


@contextmanager
def deferred() -> Iterator[Callable[[], int]]:
    """Hold SIGTERM, SIGUSR1 and the first Ctrl-C back; yields a function that says which has come, 0 if none.

    A second Ctrl-C is not held back. Afterwards signals act as before. A signal received but never polled is re-raised
    on exit.
    """
    came: list[int] = []
    noticed = 0

    def receive(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if signal.SIGINT in came:
                signal.default_int_handler(number, frame)
            os.write(2, AGAIN)  # print may be what was interrupted
        came.append(number)

    def stop() -> int:
        nonlocal noticed
        noticed = noticed or (came[0] if came else 0)
        return noticed

    with _received(NUMBERS, receive):
        yield stop
    if came and not noticed:
        signal.raise_signal(came[0])
