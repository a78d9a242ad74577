"""Work done ahead by a few threads, its results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def prefetched(make: Callable[[Item], Made], items: Iterable[Item], *, depth: int = 3) -> Iterator[Made]:
    """Yield ``make(item)`` for each item, in order, while the next `depth` are being made in threads.

    Exceptions of `make` are re-raised at that item's position. Closing early cancels pending items and waits for
    running ones.

    Args:
        make: safe to call from several threads.
        items: read lazily, in the caller's thread.
        depth: 0 makes each one when it is asked for, in the caller's thread.
    """
    if depth == 0:
        yield from map(make, items)
        return
    queue: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(depth, "ahead")
    try:
        for item in items:
            queue.append(pool.submit(make, item))
            if len(queue) > depth:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
