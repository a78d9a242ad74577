"""File hashes, cached while the files' metadata (incl. ctime) is unchanged.

Content decides, not name, size and time: tar, rsync and restored backups set the time of a file back. What no program
can set is when the file's entry last changed (ctime); with device, inode, size and time of change it says whether a
file is still the one that was hashed. A file that changed within the last two seconds is not remembered, since a
second change may fall on the same tick. File systems without a ctime (FAT, some network shares) give the time of
change in its place: there, a file that is replaced by one of the same size and time, at the same inode, goes unseen.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.core.atomic import sha256_of, write_text
from recipes.core.spec import digest_of

CACHE_VARIABLE = "REPA_BENCH_CACHE"
#: Minimum age before a hash is cached.
SETTLED_NS = 2_000_000_000
SLOW_SECONDS = 5.0
VERSION = 1


def default_cache() -> Path:
    """``$REPA_BENCH_CACHE``, else ``repa-bench`` in the user's cache folder."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "repa-bench"


@dataclass(frozen=True)
class State:
    """Combined metadata digest of some files."""

    digest: str
    """Sum of the hashes of their names and entries."""
    settled: bool
    """Whether all files are older than SETTLED_NS."""

    @classmethod
    def of(cls, files: Iterable[tuple[str, os.stat_result]]) -> State:
        """From names and entries, in any order: a folder tells them in any."""
        total = newest = 0
        for name, facts in files:
            entry = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
            text = name.encode("utf-8", "surrogatepass") + b"\0" + repr(entry).encode()
            total += int.from_bytes(hashlib.sha256(text).digest(), "big")
            newest = max(newest, facts.st_ctime_ns)
        return cls(f"{total:x}", abs(time.time_ns() - newest) > SETTLED_NS)


def remembered(where: Path, state: State, what: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Cached result of `make()`, keyed by file state and `what`.

    Args:
        where: they lie, for whoever waits.
        state: taken before the files are read.
        what: is asked of them.
        make: reads them; JSON-able.
    """
    path = default_cache() / "content" / f"{digest_of([VERSION, state.digest, what])}.json"
    with suppress(OSError, ValueError, KeyError, AttributeError, TypeError):  # not there, or not whole
        known = json.loads(path.read_bytes())
        if known.pop("check") == digest_of(known):
            return dict(known)
    waiting = threading.Timer(SLOW_SECONDS, _say, [f"  reading {where} to know its content ..."])
    waiting.daemon = True
    waiting.start()
    try:
        made = make()
    finally:
        waiting.cancel()
    if state.settled:
        with suppress(OSError):  # a cache that is full or not ours costs time, nothing else
            write_text(path, json.dumps(made | {"check": digest_of(made)}))
    return made


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # one of several processes speaks for all
        print(text.encode("utf-8", "backslashreplace").decode(), file=sys.stderr, flush=True)


def content_of(path: Path) -> str:
    """SHA-256 of a file, in hex; not read again while it was not touched."""
    state = State.of([(str(path.absolute()), path.stat())])
    return str(remembered(path, state, "sha256", lambda: {"sha256": sha256_of(path)})["sha256"])
