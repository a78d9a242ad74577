"""UserError and other exceptions of the project."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in an option, key or file, told in one sentence with its remedy.

    The command line prints the sentence and exits with code 2. Every other exception is a bug and keeps its
    traceback.
    """

    def __str__(self) -> str:
        """Message with control characters escaped."""
        return visible(super().__str__())


def visible(text: str) -> str:
    """Replace control and format characters and surrogates by Python escapes."""
    if text.isprintable():
        return text
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else c.encode("unicode_escape").decode()
        for c in text
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """Say what `name` was probably meant to be: ``" Did you mean 'repa_e'?"``, or the list of what exists."""
    choices = sorted(known)
    parts = [part for part in re.split(r"[^\w-]+", name) if part]
    if len(parts) > 1 and set(parts) <= set(choices):
        return f" Write them with spaces between: {' '.join(parts)}."
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" There are: {', '.join(choices) or 'none'}."


class DamagedError(UserError):
    """A file of ours is not what was written: cut short, changed, or another one's."""

    def __init__(self, what: str, remedy: str = "Remove it and run again.") -> None:
        super().__init__(f"{what}. {remedy}")
        self.what = what


class Diverged(Exception):  # noqa: N818 (what happened to a training, not a mistake)
    """Training went wrong in a way that more steps cannot repair; the last good checkpoint is as it was."""


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """A run was asked to stop, and everything is saved; `number` is the signal that asked."""

    def __init__(self, text: str, number: int = 0) -> None:
        super().__init__(text)
        self.number = number
