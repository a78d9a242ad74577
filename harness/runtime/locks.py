"""File locks: one process at a time works in a folder; a second one gets an error that names the first."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from recipes.core.atomic import lives, open_own, sweep
from recipes.core.errors import UserError
from recipes.core.jsons import load_json

FILE = ".lock"
_HOST = socket.gethostname()
#: Heartbeat interval, for machines that share a disk whose file system does not share locks.
BEAT_SECONDS = 20.0
#: A holder on another machine without heartbeat for this long counts as dead.
SILENT_SECONDS = 120.0
#: Polling interval where flock cannot block.
POLL_SECONDS = 0.02
#: What a file system says that has no locks.
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


@contextmanager
def held(folder: Path, *, on: bool = True) -> Iterator[None]:
    """Hold a folder while working on it. What a killed holder left half written in it is removed first.

    The kernel lets go of the lock when its holder dies, however that happens. If the file system does not share locks
    between machines, a holder elsewhere is recognised by the lock file's recent mtime.

    Args:
        folder: made if it is not there.
        on: false does nothing: of several processes of one command, one holds.

    Raises:
        UserError: somebody else holds it; names process and machine.
    """
    if not on:
        yield
        return
    path = folder / FILE
    lock = _taken(path, wait=False)
    if lock is None:
        raise _refusal(path)
    if (wait := SILENT_SECONDS - _silence(path)) > 0 and _holder(path).get("host", _HOST) != _HOST:
        lock.release(gone=False)
        raise _refusal(path, f" If it is dead, the folder is free {wait:.0f} s from now, or when {path} is removed.")
    lock.sign()
    with lock.kept(beating=True):
        sweep(folder)
        yield


@contextmanager
def alone(path: Path, *, on: bool = True, on_wait: Callable[[str], None] = lambda holder: None) -> Iterator[None]:
    """Wait until no other process holds a file of that name, then hold it; it is gone afterwards. Not to be nested.

    The kernel's lock wakes those who wait on this machine. A claim (a file that only one process can create) keeps
    other machines out whose file system does not share the kernel's locks.

    Args:
        path: the file.
        on: false does nothing: of several processes of one command, one holds.
        on_wait: called before a wait, with the process and machine that hold it.
    """
    if not on:
        yield
        return
    if (lock := _taken(path, wait=False, claim=True)) is None:
        on_wait("process {pid} on {host}".format_map({"pid": "?", "host": "?"} | _holder(_claim_of(path))))
        while (lock := _taken(path, wait=True, claim=True)) is None:
            time.sleep(POLL_SECONDS)
    with lock.kept(beating=True):
        yield


def is_held(path: Path) -> bool:
    """Whether somebody holds a file by `alone`. Only reads."""
    claim = _claim_of(path)
    return claim.exists() and not _is_dead(claim)


@dataclass(frozen=True)
class _Lock:
    """A lock file that is ours."""

    path: Path
    file: BinaryIO
    claim: Path | None
    """A file created with O_EXCL, for file systems that have no flock or do not share it between machines."""

    def sign(self) -> None:
        """Write pid and host into the lock file."""
        self.file.truncate(0)
        self.file.write(_signature())
        self.file.flush()

    def release(self, *, gone: bool = True) -> None:
        """Release the lock; its file is unlinked first (if still ours), so that nobody waits on an unlinked one."""
        if gone and _is_at(self.file, self.path):
            self.path.unlink(missing_ok=True)
        if self.claim is not None:  # before those who wait for the kernel's lock are woken
            self.claim.unlink(missing_ok=True)
        self.file.close()

    @contextmanager
    def kept(self, *, beating: bool) -> Iterator[None]:
        """Hold the lock, and release it at the end whatever happens."""
        stop = threading.Event()
        beat = threading.Thread(target=self._beat, args=(stop,), daemon=True)
        if beating:
            beat.start()
        try:
            yield
        finally:
            stop.set()
            if beating:
                beat.join()
            self.release()

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(BEAT_SECONDS):
            for path in (self.path, self.claim):
                with suppress(OSError):  # the next one may succeed
                    if path is not None:
                        os.utime(path)


def _signature() -> bytes:
    return json.dumps({"pid": os.getpid(), "host": _HOST, "since": time.time()}).encode()


def _holder(path: Path) -> dict[str, Any]:
    """Who says in a lock file that it is theirs; nothing where its holder died while writing it, or just made it."""
    try:
        found = load_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def holder_of(folder: Path) -> dict[str, Any] | None:
    """Who works in a folder (see `held`): ``pid``, ``host`` and ``since``, in seconds since the epoch; None if nobody
    does. Only reads.
    """
    path, found = folder / FILE, _holder(folder / FILE)
    if "pid" not in found or "host" not in found:
        return None
    dead = not lives(found["pid"]) if found["host"] == _HOST else _silence(path) > SILENT_SECONDS
    return None if dead else {"since": None} | found


def _silence(path: Path) -> float:
    """Seconds since the last heartbeat."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _refusal(path: Path, more: str = "") -> UserError:
    holder = _holder(path)
    return UserError(
        f"{path.parent} is being worked on by process {holder.get('pid', '?')} on {holder.get('host', '?')}; wait for "
        f"it, stop it, or choose another --out.{more}"
    )


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file still has that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _taken(path: Path, *, wait: bool, claim: bool = False) -> _Lock | None:
    """The lock; nothing where somebody else has it and we are not to wait, or cannot be woken.

    Its last holder may remove the file after we have opened it, and another process make a new one. So after locking,
    check that the path still names the file that we locked; otherwise retry.
    """
    while True:
        file = open_own(path)
        try:
            lock = _Lock(path, file, _lock(file, path, wait=wait, claim=claim))
        except BlockingIOError:
            file.close()
            return None
        if _is_at(file, path):
            return lock
        lock.release(gone=False)


def _lock(file: BinaryIO, path: Path, *, wait: bool, claim: bool) -> Path | None:
    """Lock an open file, and make a claim to its name where one is wanted or the file cannot be locked: see `_Lock`.

    Raises:
        BlockingIOError: somebody else was first.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        claim = True
    return _claimed(path) if claim else None


def _claim_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.claim")


def _claimed(path: Path) -> Path:
    """Create the claim file exclusively; a stale one (dead creator) is removed, itself under a claim so that only one
    process removes it.

    Raises:
        BlockingIOError: somebody else was first.
    """
    claim = _claim_of(path)
    while True:
        try:
            with claim.open("xb") as file:
                file.write(_signature())
            return claim
        except FileExistsError:
            if not _is_dead(claim):
                raise BlockingIOError from None
        taking = _claimed(claim)
        if _is_dead(claim):
            claim.unlink(missing_ok=True)
        taking.unlink(missing_ok=True)


def _is_dead(claim: Path) -> bool:
    holder = _holder(claim)
    gone = holder.get("host") == _HOST and isinstance(holder.get("pid"), int) and not lives(holder["pid"])
    return gone or SILENT_SECONDS < _silence(claim) < float("inf")
