"""Tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from harness.console import PlainConsole

if TYPE_CHECKING:
    from reports.tables import Table as ReportTable


out_console = PlainConsole()


def print_tables(tables: Sequence[ReportTable]) -> None:
    """One below the other."""
    for table in tables:
        shown = Table(title=table.title, title_justify="left", caption=table.note, caption_justify="left")
        for number, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
        for row in table.rows:
            shown.add_row(*row)
        out_console.print(shown)
