"""The one reader of JSON that somebody else may have written."""

from __future__ import annotations

import json
from typing import Any

#: Nothing that is meant has more levels.
DEPTH = 100


class TooDeepError(ValueError):
    """Lists in lists, until a reader's stack is at its end."""


def load_json(text: str | bytes) -> Any:
    """The value in a JSON text.

    Raises:
        TooDeepError: it is nested deeper than `DEPTH`; what reads it later would not survive that.
        ValueError: it is no JSON.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise TooDeepError(f"it is nested deeper than {DEPTH} levels") from None
    level = [value]
    for _ in range(DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return value
    raise TooDeepError(f"it is nested deeper than {DEPTH} levels")
