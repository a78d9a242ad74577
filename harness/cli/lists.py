"""Lists on the command line: ``--seeds 0 1 2``, ``--seeds 0,1,2`` and ``--seeds 0 --seeds 1`` are one."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.core.errors import UserError

#: Options that take one comma-separated text.
JOINED = ("--metrics", "--format")
#: Options whose values may hold commas themselves.
UNSPLIT = ("--set", "--grid", "--flag")
_SPAN = re.compile(r"\d+\s*(-|:|\.\.\.?)\s*\d+")


def expand_lists(arguments: Sequence[str], command: Any) -> list[str]:
    """One rule for every option that takes several values: `--seeds 0 1 2`, `--seeds 0,1,2`, `--seeds 0, 1, 2` and
    `--seeds 0 --seeds 1 --seeds 2` are the same, and so are `--metrics fid kid` and `--metrics fid,kid`.

    For commands with folder arguments, an existing folder ends the list: any path with "/", or a bare name if no folder
    has been named yet.

    Args:
        arguments: of the command line.
        command: the whole command, whose parameters say which options those are.

    Returns:
        The same as the parser wants it: `JOINED` options once with commas, the others once for each value.

    Raises:
        UserError: a span of numbers, as 0-3.
    """
    at, command = _leaf(arguments, command)
    options = {flag: p for p in command.params if p.param_type_name == "option" for flag in p.opts}
    folders = any(p.param_type_name == "argument" for p in command.params)
    out, words, joined = list(arguments[:at]), deque(arguments[at:]), dict[str, int]()
    named = False  # a folder
    while words and words[0] != "--":
        word = words.popleft()
        flag, equals, value = word.partition("=")
        option = options.get(flag)
        if option is None or option.is_flag or not (option.multiple or flag in JOINED):
            out.append(word)
            named |= option is None
            if option is not None and not option.is_flag and not equals and words:
                out.append(words.popleft())
            continue
        values = [value] if equals else []
        while words and _goes_on(words[0], flag, first=not values, folders=folders, named=named):
            values.append(words.popleft())
        if flag not in UNSPLIT:
            values = [part.strip() for text in values for part in text.split(",") if part.strip()] or values[:1]
        if flag.endswith("seeds") and (span := next(filter(_SPAN.fullmatch, values), None)):
            raise UserError(f"{flag} {span}: spans are not read; name each, as {flag} 0 1 2.")
        if flag not in JOINED:
            out += [part for one in values for part in (flag, one)] or [word]
        elif flag in joined:
            out[joined[flag]] = ",".join([out[joined[flag]], *values])
        else:
            out += [flag, *([",".join(values)] if values else [])]
            joined[flag] = len(out) - 1
    return [*out, *words]


def _leaf(arguments: Sequence[str], command: Any) -> tuple[int, Any]:
    """The command that a line names, and how many of its words do so."""
    for at, word in enumerate(arguments):
        inner = getattr(command, "commands", {}).get(word)
        if inner is None:
            return at, command
        command = inner
    return len(arguments), command


def _goes_on(word: str, flag: str, *, first: bool, folders: bool, named: bool) -> bool:
    """Whether a word is one more value of a list."""
    if word.startswith("-") and not re.match(r"-[\d.]", word):
        return False
    if first:
        return True
    if flag in UNSPLIT:
        return "=" in word
    return not (folders and Path(word).is_dir() and ("/" in word or not named))
