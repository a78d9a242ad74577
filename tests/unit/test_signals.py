"""Signals wait while a run trains, and act as ever before and after."""

from __future__ import annotations

import os
import signal

import pytest

from harness.runtime.signals import NUMBERS, deferred


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_waits(number):
    before = signal.getsignal(number)
    with deferred() as came:
        assert not came()
        os.kill(os.getpid(), number)
        assert came()
    assert signal.getsignal(number) == before


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), deferred():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) == before


def test_one_that_came_too_late_is_delivered():
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        with deferred():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not seen
        assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)
