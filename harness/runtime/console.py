"""A console on which names, paths and cells are text, whatever is in them."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from recipes.core.errors import visible


class PlainConsole(Console):
    """Brackets and colons mean nothing, and what a terminal would obey is spelt out."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string that is printed comes by here, alone or in a table."""
        return super().render_str(visible(text), **options)
