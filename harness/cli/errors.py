"""Exit codes, and user messages for errors of the environment (disk, memory, permissions)."""

from __future__ import annotations

import errno
import sys
from typing import Any

import typer

INTERRUPTED = 130
DIVERGED = 3
# What the parser raises for a mistyped option. Typer exports its leaves but not their base, which is Click's own in
# some versions of Typer and a copy in others.
PARSER_ERROR: Any = typer.BadParameter.__mro__[2]


def of_a_recipe(error: BaseException) -> str | None:
    """What somebody's recipe did wrong; nothing if the error is of another kind, or none was loaded."""
    files = sys.modules.get("recipes.recipe_files")
    return files.told_of_recipe(error) if files is not None else None


def of_the_machine(error: Exception) -> str | None:
    """What the machine lacks, with its remedy; nothing if the error is ours."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"no space is left ({error.strerror}: {error.filename or 'a file'}). What was saved before is as it was; "
            "make room and run the same command again, or give --out or --cache on a larger disk."
        )
    if isinstance(error, OSError) and error.filename is not None and error.errno is not None:
        return f"{error.filename}: {error.strerror}. Repair that, or give another path."
    if type(error).__name__ == "ValidationError":  # pydantic's; importing it here would make --help slow
        return f"a value does not fit: {' '.join(str(error).split())[:300]}. Repair the file or option that it is from."
    words = ("out of memory", "can't allocate memory", "alloc_cpu", "bad_alloc")
    if isinstance(error, MemoryError) or any(w in str(error).lower() for w in words):
        return (
            f"out of memory ({(str(error).strip().splitlines() or ['MemoryError'])[0][:160]}). Free some, or use a "
            "larger machine. Training: lower --micro-batch (images at once; the rest is accumulated) or add "
            "--checkpointing; the batch and the results stay the same. What was saved before is as it was."
        )
    return None
