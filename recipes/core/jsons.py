"""The one reader of JSON that somebody else may have written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

#: Maximum nesting depth.
DEPTH = 100


def _nested(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]


class TooDeepError(ValueError):
    """JSON nested too deeply."""


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
    level, depth = _nested([value]), 0
    while level:
        if depth == DEPTH:
            raise TooDeepError(f"it is nested deeper than {DEPTH} levels")
        level = _nested(inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer))
        depth += 1
    return value
