"""What schedulers send before they take the machine away."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NUMBERS = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Hold SIGTERM and SIGUSR1 back; yields a function that says whether one has come.

    Afterwards they act as before. One that came too late to be noticed is delivered then.
    """
    came: list[int] = []
    before = {number: signal.signal(number, lambda received, _: came.append(received)) for number in NUMBERS}
    noticed = False

    def stop() -> bool:
        nonlocal noticed
        noticed = noticed or bool(came)
        return noticed

    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came and not noticed:
        signal.raise_signal(came[0])
