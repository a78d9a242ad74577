"""Tables on a terminal and in files. No number is ever cut: where a table does not fit, its rows become blocks."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.cells import cell_len
from rich.table import Table

from harness.runtime.console import PlainConsole

if TYPE_CHECKING:
    from reports.table import Table as ReportTable


def print_summary(runs: Sequence[Path]) -> None:
    """Print the summary tables of some results folders."""
    from reports.summary import summarize

    print_tables(summarize(runs).text_tables())


out_console = PlainConsole()
#: Cells that say nothing; a block leaves them out.
EMPTY = ("", "–")
Justify = Literal["left", "right"]


def print_tables(tables: Sequence[ReportTable]) -> None:
    """Print tables, one below the other."""
    for table in tables:
        print_table(table.title, table.columns, table.rows, table.note)


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "", *, justify: Justify = "right"
) -> None:
    """A table whose cells break between words only.

    On a terminal, and where `COLUMNS` is set, it is as wide as there; in a file or a pipe as wide as it needs to be.
    Where not even its longest words find room beside each other, every row is printed as a block instead.

    Args:
        title: a line above it.
        columns: names; the first is that of the rows.
        rows: finished text.
        note: lines below it.
        justify: of all columns but the first.
    """
    space = _space()
    say(title, style="bold")
    widths = _widths([columns, *rows], space)
    if widths is None:
        assert space is not None
        for row in rows:
            _put("\n".join(_block(columns, row, space)))
    else:
        shown = Table()
        for number, (column, width) in enumerate(zip(columns, widths, strict=True)):
            shown.add_column(column, justify=justify if number else "left", overflow="fold", width=width)
        for row in rows:
            shown.add_row(*row)
        wide = PlainConsole(width=sum(widths) + 3 * len(widths) + 1)
        (wide if space is None else out_console).print(shown)
    if note:
        say(note)


def say(text: object, style: str | None = None) -> None:
    """Print text, wrapped between words on a terminal, unwrapped in a file."""
    lines, space = str(text).split("\n"), _space()
    if space is not None:
        indents = [line[: len(line) - len(line.lstrip())] for line in lines]
        lines = [part for line, indent in zip(lines, indents, strict=True)
                 for part in _wrapped(line, space, indent + "  " * bool(indent)) or [""]]  # fmt: skip
    _put("\n".join(lines), style)


def _put(text: str, style: str | None = None) -> None:
    """Print literally: no rich markup, highlighting or cropping."""
    out_console.print(text, style=style, highlight=False, soft_wrap=True)


def _space() -> int | None:
    """Terminal width, or None in a file or pipe."""
    return out_console.width if out_console.is_terminal or "COLUMNS" in os.environ else None


def _widths(cells: Sequence[Sequence[str]], space: int | None) -> list[int] | None:
    """Column widths that fit `space`, breaking cells between words; None if impossible."""
    columns = list(zip(*cells, strict=True))
    whole = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in columns]
    widths = [max(cell_len(word) for cell in column for word in cell.split() or [""]) for column in columns]
    if space is None:
        return whole
    left = space - sum(widths) - 3 * len(widths) - 1
    if left < 0:
        return None
    while left and widths != whole:  # a character to the column that lacks the fewest
        _, at = min(
            (want - width, number)
            for number, (want, width) in enumerate(zip(whole, widths, strict=True))
            if want > width
        )
        widths[at] += 1
        left -= 1
    return widths


def _block(columns: Sequence[str], row: Sequence[str], space: int) -> Iterator[str]:
    """A row's name, and below it what its other cells say, as many to a line as fit."""
    yield from _wrapped(row[0], space)
    line = ""
    for column, cell in zip(columns[1:], row[1:], strict=True):
        pair = f"{' '.join(column.split())}: {' '.join(cell.split())}"
        if cell in EMPTY:
            continue
        if line and cell_len(line) + 3 + cell_len(pair) > space:
            yield from _wrapped(line, space, "    ")
            line = ""
        line = f"{line}   {pair}" if line else f"  {pair}"
    yield from _wrapped(line, space, "    ")


def _wrapped(text: str, space: int, indent: str = "") -> list[str]:
    """Lines of at most so many characters if their words let them, the later ones indented."""
    return textwrap.wrap(text, space, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
