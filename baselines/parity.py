"""What of the released code each recipe reproduces: written by ``nox -s parity``, checked by the tests."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

FILE = Path(__file__).parent / "parity.json"


class Parity(BaseModel):
    """The replay of one folder of recorded computations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    """Under tests/golden."""
    released: str
    """Repository and commit of the code that was recorded."""
    quantities: int
    """That were compared."""
    passed: int
    """Within their bounds."""


@lru_cache
def parity() -> dict[str, Parity]:
    """By recipe."""
    return {name: Parity.model_validate(found) for name, found in json.loads(FILE.read_text()).items()}
