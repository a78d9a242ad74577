"""Several processes at once: python together.py WORK PROCESSES FOLDER ROUNDS KIND. They are forked, to start fast."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import sys
import traceback
from pathlib import Path
from typing import Any

from harness.runtime.locks import alone, held
from recipes.core.errors import UserError

FORK = multiprocessing.get_context("fork")


def without_locks() -> None:
    """From now on, as on a file system that has none."""

    def flock(handle: Any, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    fcntl.flock = flock  # type: ignore[assignment]


def count_up(root: Path, rounds: int, kind: str, barrier: Any) -> None:
    """Add one to a number in a file, so often; the file says nothing where two did it at once."""
    if kind.endswith("without locks"):
        without_locks()
    number = root / "number"
    barrier.wait()
    for _ in range(rounds):
        while True:
            try:
                with held(root / "folder") if kind.startswith("held") else alone(root / "x" / "lock"):
                    before = int(number.read_text())
                    number.write_text("")  # who reads now does not find a number
                    number.write_text(f"{before + 1}")
                break
            except UserError as error:
                if "is being worked on by process" not in str(error):
                    raise


def score(root: Path, rounds: int, kind: str, barrier: Any) -> None:
    """Score one set against one reference, with another process beside."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests_support import Toy

    from harness.scoring import score_images
    from harness.scoring.image_sets import open_samples

    told, job = [], score_images.Job(Toy(), "inception", ("fid", "is"), root / "cache")
    for _ in range(rounds):
        barrier.wait()
        found = score_images.score(open_samples(root / "fake.npz", flag="--samples"), root / "real.npz", job)
        assert found is not None
        told.append({name: found[name] for name in ("fid", "is")})
        barrier.wait()
    with alone(root / "told.lock"), (root / "told").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in told)


def main() -> None:
    """Exit with the number of processes that failed."""
    work, count, root, rounds, kind = sys.argv[1:]
    barrier = FORK.Barrier(int(count), timeout=120)

    def live() -> None:
        try:
            {"count_up": count_up, "score": score}[work](Path(root), int(rounds), kind, barrier)
        except BaseException:
            traceback.print_exc()
            barrier.abort()
            raise

    processes = [FORK.Process(target=live) for _ in range(int(count))]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(sum(process.exitcode != 0 for process in processes))


if __name__ == "__main__":
    main()
