"""A table, and how it is written in Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from recipes.core.errors import visible


@dataclass(frozen=True)
class Table:
    """Cells are finished text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    runs: tuple[tuple[str, ...], ...] = ()
    """For each row, the runs whose records its numbers are made of: with the step of a column and the protocol that
    the table names, they tell the lines of results.csv."""

    @property
    def traced(self) -> list[tuple[str, tuple[str, ...]]]:
        """The first cells of the rows that name runs, and these, each once."""
        return list(dict.fromkeys((row[0], runs) for row, runs in zip(self.rows, self.runs, strict=False) if runs))

    def markdown(self) -> str:
        """A GitHub table under its title."""
        lines = [
            f"### {plain(self.title)}",
            "",
            _row(self.columns),
            _row(["---", *["---:"] * (len(self.columns) - 1)]),
        ]
        lines += [_row(row) for row in self.rows]
        if self.note:
            lines += ["", plain(self.note)]
        if self.traced:
            lines += ["", "<details><summary>runs</summary>", ""]
            lines += [f"- {plain(name)}: {plain(', '.join(runs))}" for name, runs in self.traced]
            lines += ["", "</details>"]
        return "\n".join([*lines, ""])

    def text(self) -> str:
        """Aligned columns under its title."""
        cells = [[one_line(cell) for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        return "\n".join([one_line(self.title), *lines, *([one_line(self.note)] if self.note else []), ""])

    def latex(self) -> str:
        """A booktabs table, its title as the caption."""
        spec = "l" + "r" * (len(self.columns) - 1)
        body = [" & ".join(map(_tex, row)) + r" \\" for row in self.rows]
        traces = [one_line(f"% {name}: runs {', '.join(runs)}") for name, runs in self.traced]
        lines = [
            *traces,
            r"\begin{table}",
            rf"\caption{{{_tex(self.title)}}}",
            rf"\begin{{tabular}}{{{spec}}}",
            r"\toprule",
            " & ".join(map(_tex, self.columns)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines)


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$", "±": r"$\pm$", "–": "--", "<": "$<$",
    ">": "$>$", "|": "$|$", "≥": r"$\geq$",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in one_line(text))


def one_line(text: str) -> str:
    """Single line with control characters escaped."""
    return visible(" ".join(text.split()))


#: Where Markdown would see a link or picture: ``](``, ``]:``, and bare addresses, which GitHub links.
_LINK = re.compile(
    r"(?<=\])(?=[(:])|(?<=:)(?=//)|(?<=www)(?=\.)|(?=@[\w-]+\.\w)|(?<=mailto)(?=:)|(?<=xmpp)(?=:)", re.IGNORECASE
)


def plain(text: str) -> str:
    """For Markdown: one line, and neither HTML, nor links, nor pictures in it."""
    escaped = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _LINK.sub(r"\\", escaped)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(plain(cell).replace("|", "\\|") for cell in cells) + " |"
