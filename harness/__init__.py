"""How to measure: checkpoint in, record out. `import harness` gives a notebook `run`, `load`, `speedup` and `evaluate`.

They are imported when they are first asked for: torch takes seconds, and the command line passes through here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.api import Results, evaluate, load, run, speedup
    from recipes.core.errors import UserError

__all__ = ["Results", "UserError", "evaluate", "load", "run", "speedup"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'harness' has no attribute '{name}'")
    return getattr(import_module("recipes.core.errors" if name == "UserError" else "harness.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
