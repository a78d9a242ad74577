"""Run `repa-bench` and die, by SIGKILL, when it is about to touch its N-th file under some folders.

python killed.py N COUNTER FOLDER... -- ARGUMENTS. With N = 0 it lives. COUNTER then says how many it touched; of
a run that died, by this or otherwise, which was the last.
"""

from __future__ import annotations

import os
import signal
import sys

TOUCHES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree", "os.utime"}


def main() -> None:
    split = sys.argv.index("--")
    number, counter, *folders = sys.argv[1:split]
    deadline, prefixes, seen = int(number), tuple(folders), 0
    told = os.open(counter, os.O_CREAT | os.O_WRONLY)

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in TOUCHES and arguments and str(arguments[0]).startswith(prefixes):
            seen += 1
            os.pwrite(told, f"{arguments[0]}\n".encode(), 0)
            if seen == deadline:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    sys.argv = ["repa-bench", *sys.argv[split + 1 :]]
    from harness.cli.app import main as repa_bench

    try:
        repa_bench()
    finally:
        os.pwrite(told, f"{seen}\n".encode(), 0)


if __name__ == "__main__":
    main()
