"""Read external FID curves from CSV."""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.results.curves import BUDGETS, WITH_TOKENIZER, Observation
from recipes.core.errors import UserError, nearest, visible

#: Columns with the cost of tokenizer pretraining.
PRETRAINING = {f"tokenizer_{name}": name for name in BUDGETS if name != "step"}
REQUIRED = ("recipe", "step", "fid")
#: Columns that may be left out: everything is of one seed then.
SEEDS = ("seed", "generation_seed")
KNOWN = (*REQUIRED, *SEEDS, *(name for name in BUDGETS if name != "step"), *PRETRAINING)
#: Columns whose numbers are whole.
WHOLE = ("step", "images", "tokenizer_images")
#: Same limit as for --seeds.
MAX_SEED = 2**63 - 1
#: Supported separators, most likely first.
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
#: Size limit.
MOST_BYTES = 2**28
#: Magic bytes of binary formats.
OTHERS = {
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip or xlsx", b"\xd0\xcf\x11\xe0": "xls", b"BZh": "bzip2", b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd", b"PAR1": "Parquet",
}  # fmt: skip
#: Marks at the beginning that name an encoding; those of four bytes first, which begin as those of two do.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
#: What `float` takes besides (underscores, other scripts' digits, words) is a mistake in a table.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
INTEGER = re.compile(r"\d+", re.ASCII)
#: Ambiguous: 400.000 may be a decimal or use a thousands separator.
THOUSANDS = re.compile(r"\d{1,3}\.\d{3}", re.ASCII)


def read_csv(path: Path) -> list[Observation]:
    """A table with the columns recipe, step, fid, and optionally seed, generation_seed (one seed where they are left
    out), images, flops, device_seconds, tokenizer_images, tokenizer_flops, tokenizer_device_seconds.

    Cells are separated by commas, semicolons, tabs or bars, whichever makes a header of the first line that is neither
    empty nor begins with ``#``; a line ``sep=;`` before it decides. UTF-8, or UTF-16 and UTF-32 with their marks.

    Raises:
        UserError: a column is missing, unknown or there twice, or a cell is not what it has to be; the line is named.
    """
    table = _Table.of(path, _text(path))
    try:
        found = {line: _observation(table, line, cells) for line, cells in table}
    except csv.Error as error:
        raise table.wrong(f"it cannot be read as CSV ({error}); are all quotes closed?") from None
    if not found:
        raise table.wrong("it has no row below its header.")
    _refuse_clashes(table, found)
    return list(found.values())


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"--curves {path} cannot be read as CSV ({error.strerror}); name a table of curves.") from None
    if len(content) > MOST_BYTES:
        raise UserError(f"--curves {path} is larger than {MOST_BYTES // 2**20} MiB: no table of curves is.")
    if other := next((kind for begins, kind in OTHERS.items() if content.startswith(begins)), None):
        raise UserError(f"--curves {path} is {other}, not text; unpack it, or save the table as CSV in UTF-8.")
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise UserError(
            f"--curves {path} cannot be read as CSV: line {line} has the byte 0x{byte:02x}, which is not {encoding}; "
            "save it as UTF-8 (spreadsheets: 'CSV UTF-8')."
        ) from None
    if "\0" in text:
        raise UserError(f"--curves {path} cannot be read as CSV: it has zero bytes; save it as UTF-8.")
    return text.lstrip("\ufeff")


@dataclass
class _Table:
    """Rows below a header."""

    path: Path
    lines: Sequence[str]
    """The lines of the file, from the header on."""
    offset: int
    """Lines before it."""
    separator: str
    header: list[str] = field(default_factory=list)
    """As the columns are called here; empty where a column has no name."""

    @classmethod
    def of(cls, path: Path, text: str) -> _Table:
        """Find the header and what separates its cells."""
        lines, said = list(io.StringIO(text, newline="")), re.match(r'"?sep=([^"\w\r\n ])"?\s', text)
        blank = ' \r\n"' + "".join(SEPARATORS)
        header = (k for k, line in enumerate(lines) if line.strip(blank) and not line.startswith("#"))
        offset = next((k for k in header if k or not said), None)
        if offset is None:
            raise UserError(f"--curves {path} has no header; the columns are {', '.join(KNOWN)}.")
        cells = {s: lines[offset].split(s) for s in SEPARATORS}
        likely = max(SEPARATORS, key=lambda s: sum(_name(cell) in KNOWN for cell in cells[s]))
        table = cls(path, lines[offset:], offset, said[1] if said else likely)
        table._read_header()
        return table

    def wrong(self, text: str, line: int | None = None) -> UserError:
        """What is wrong with the table, or with a line of it."""
        return UserError(f"--curves {self.path}" + ("" if line is None else f", line {line}") + f": {text}")

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(self.lines, delimiter=self.separator, skipinitialspace=True, strict=True)
        for cells in reader:
            yield self.offset + reader.line_num, [cell.strip() for cell in cells]

    def _read_header(self) -> None:
        line, cells = next(self._rows())
        self.header = [_name(cell) for cell in cells]
        for name in REQUIRED:
            if name not in self.header:
                raise self.wrong(
                    f"there is no column '{name}' in the header '{self.lines[0].strip()[:200]}', whose cells are "
                    f"separated by {SEPARATORS.get(self.separator, repr(self.separator))}; the columns are "
                    f"{', '.join(KNOWN)}, with a row for each recipe, seed and step.",
                    line,
                )
        for name, cell in zip(self.header, cells, strict=True):
            if name and self.header.count(name) > 1:
                raise self.wrong(f"the column '{name}' stands twice; leave the right one.", line)
            if name and name not in KNOWN:
                meant = nearest(name, set(KNOWN) - set(self.header))
                raise self.wrong(f"unknown column '{cell}'.{meant} Rename it, or take it out.", line)
        for column, name in PRETRAINING.items():
            if column in self.header and name not in self.header:
                raise self.wrong(f"{column} needs the column {name} beside it.", line)

    def __iter__(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Number of the line, and cells by column, of every row that is neither empty nor a note."""
        rows = self._rows()
        next(rows)
        for line, cells in rows:
            filled = [cell for cell in cells if cell]
            if not filled or (len(filled) == 1 and cells[0].startswith("#")):
                continue
            if cells[0].startswith("#"):
                raise self.wrong("begins with '#'; take the line out if it is not meant.", line)
            if any(cells[len(self.header) :]):
                raise self.wrong(
                    f"more cells than columns; a decimal comma? It has {len(cells)}, the header {len(self.header)}; "
                    "write 9.5, not 9,5, and 400000, not 400,000.",
                    line,
                )
            if any(cell and not name for name, cell in zip(self.header, cells, strict=False)):
                raise self.wrong("a cell stands in a column without a name; name the column, or take it out.", line)
            if any("\n" in cell or "\r" in cell for cell in filled):
                raise self.wrong("a cell has a line break in it; is a quote missing?", line)
            yield line, {name: cell for name, cell in zip(self.header, cells, strict=False) if name}


def _name(cell: str) -> str:
    """A column's name: ``Generation Seed`` is generation_seed."""
    return re.sub(r"[\s-]+", "_", cell.strip(' \r\n"').casefold())


def _observation(table: _Table, line: int, row: Mapping[str, str]) -> Observation:
    numbers = {name: _number(table, line, name, text) for name, text in row.items() if name not in ("recipe", *SEEDS)}
    missing = [name for name in table.header if name and name not in row]
    if missing:
        raise table.wrong(f"{missing[0]} is '', since the line has fewer cells than the header.", line)
    budgets = {currency: numbers[name] for name, currency in BUDGETS.items() if name in numbers}
    for column, name in PRETRAINING.items():
        if column in numbers:
            budgets[WITH_TOKENIZER[BUDGETS[name]]] = numbers[name] + numbers[column]
    if not (recipe := unicodedata.normalize("NFC", row["recipe"])):
        raise table.wrong("recipe is empty.", line)
    seed, generation_seed = (_seed(table, line, name, row[name]) if name in row else 0 for name in SEEDS)
    return Observation(recipe, seed, generation_seed, int(numbers["step"]), numbers["fid"], budgets)


def _number(table: _Table, line: int, name: str, text: str) -> float:
    whole, least = name in WHOLE, "a number from 0" if name in PRETRAINING else "a positive number"
    value = float(text) if NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value) or value < 0 or (value == 0 and name not in PRETRAINING):
        comma = " A decimal or thousands comma? Write 9.5, not 9,5, and 400000." if "," in text else ""
        absent = " Leave the row out if it was not measured." if text.casefold() in ("", "nan", "na", "-") else ""
        kind = f"a whole number, {least}," if whole else least
        raise table.wrong(f"{name} is '{text}', not {kind.rstrip(',')}.{comma}{absent}", line)
    if whole and value != int(value):
        raise table.wrong(f"{name} is '{text}', not a whole number.", line)
    if THOUSANDS.fullmatch(text) and (whole or (table.separator == ";" and name != "fid")):
        raise table.wrong(
            f"{name} is '{text}': is that {float(text):g}, or {text.replace('.', '')}? Write it without the point.",
            line,
        )
    return value


def _seed(table: _Table, line: int, name: str, text: str) -> int:
    """Parse exactly as int: 64-bit seeds do not fit a float."""
    whole = text.removesuffix(".0")  # as a column is saved that has a gap somewhere
    if not INTEGER.fullmatch(whole) or int(whole) > (MAX_SEED if whole == text else 2**53):
        raise table.wrong(f"{name} is '{text}', not a whole number from 0 to {MAX_SEED}.", line)
    return int(whole)


def _seen(name: str) -> str:
    """Visible form of a name (casefolded, no spaces or format characters) to detect near-duplicates."""
    return "".join(c for c in name.casefold() if not c.isspace() and unicodedata.category(c) != "Cf")


def _refuse_clashes(table: _Table, found: Mapping[int, Observation]) -> None:
    """Refuse duplicate rows, contradicting costs, and recipe names that look alike."""
    seen: set[tuple[object, ...]] = set()
    costs: dict[tuple[object, ...], dict[str, float]] = {}
    names: dict[str, str] = {}
    for line, o in found.items():
        key = (o.recipe, o.seed, o.step, o.generation_seed)
        where = f"recipe {o.recipe}, seed {o.seed}, step {o.step}"
        if key in seen:
            raise table.wrong(
                f"{where}, generation seed {o.generation_seed} stands twice. A column 'seed' tells trainings apart, "
                "'generation_seed' the sample sets of one.",
                line,
            )
        seen.add(key)
        cost = costs.setdefault(key[:3], o.budgets)
        for name in (name for name in cost if cost[name] != o.budgets[name]):
            raise table.wrong(
                f"{where} has cost {o.budgets[name]:g} {name}, and {cost[name]:g} above; a checkpoint has cost the "
                "same whatever is drawn of it.",
                line,
            )
        if (name := names.setdefault(_seen(o.recipe), o.recipe)) != o.recipe:
            raise table.wrong(f"recipe '{o.recipe}', and '{name}' above; give one name to one recipe.", line)


def foreign(path: Path) -> list[Observation]:
    """Curves that stand beside ours, marked as not ours.

    Raises:
        UserError: see `read_csv`.
    """
    return [replace(o, recipe=f"{o.recipe} (not ours: {visible(path.name)})") for o in read_csv(path)]
