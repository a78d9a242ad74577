"""A rich console that prints all text literally (no markup, no emoji, control characters escaped)."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from recipes.core.errors import visible


class PlainConsole(Console):
    """No markup or emoji codes; control characters are escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Called for every printed string."""
        return super().render_str(visible(text), **options)
