"""One process at a time works on a run's folder; who comes second is told who was first."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from recipes.core.checkpoint import sweep
from recipes.core.errors import UserError

FILE = ".lock"
#: A holder says so often that it lives, for machines that share a disk but not their locks.
BEAT_SECONDS = 20.0
#: A holder on another machine that was silent for so long is dead.
SILENT_SECONDS = 120.0


@contextmanager
def held(folder: Path, *, on: bool = True) -> Iterator[None]:
    """Hold a folder while working on it. What a killed holder left half written in it is removed first.

    The kernel lets go of the lock when its holder dies, however that happens. A holder on another machine whose lock
    the file system does not pass on is known by the file's age.

    Args:
        folder: made if it is not there.
        on: false does nothing: of several processes of one command, one holds.

    Raises:
        UserError: somebody else holds it; names process and machine.
    """
    if not on:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    with _open(path) as file:
        _refuse_if_held(path, file)
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
        file.flush()
        os.utime(path)
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(path, stop), daemon=True)
        beat.start()
        try:
            sweep(folder)
            yield
        finally:
            stop.set()
            beat.join()
            path.unlink(missing_ok=True)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until nobody else on this machine holds a file of that name, then hold it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _open(path) as file:
        with suppress(OSError):  # a file system without locks: what two make at once is the same
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open(path: Path) -> Any:
    """The lock file, opened; not one that its last holder has just removed."""
    while True:
        file = path.open("a+")
        try:
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
        except FileNotFoundError:
            pass
        file.close()


def _refuse_if_held(path: Path, file: Any) -> None:
    file.seek(0)
    try:
        holder = json.loads(file.read() or "{}")
    except ValueError:  # its holder died while writing it
        holder = {}
    pid, host = holder.get("pid", "?"), holder.get("host", "?")
    sentence = (
        f"{path.parent} is being worked on by process {pid} on {host}; wait for it, stop it, or choose another --out."
    )
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(sentence) from None
    except OSError:  # a file system without locks: age alone tells
        pass
    age = time.time() - path.stat().st_mtime
    if holder and host != socket.gethostname() and age < SILENT_SECONDS:
        raise UserError(
            f"{sentence} If it is dead, the folder is free {SILENT_SECONDS - age:.0f} s from now, or when {path} is "
            "removed."
        )


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        try:
            os.utime(path)
        except OSError:  # the next one may succeed
            continue
