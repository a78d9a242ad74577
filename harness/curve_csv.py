"""Curves of FID that others made, from a table."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.curves import BUDGETS, WITH_TOKENIZER, Observation
from recipes.core.errors import UserError, nearest

#: Columns with what training the tokenizer beforehand cost, in the same currencies.
PRETRAINING = {f"tokenizer_{name}": name for name in BUDGETS if name != "step"}
REQUIRED = ("recipe", "step", "fid")
#: Columns that may be left out: everything is of one seed then.
SEEDS = ("seed", "generation_seed")
#: As `--seeds` has it.
MAX_SEED = 2**63 - 1


def read_csv(path: Path) -> list[Observation]:
    """A table with the columns recipe, step, fid, and optionally seed, generation_seed (one seed where they are left
    out), images, flops, device_seconds, tokenizer_images, tokenizer_flops, tokenizer_device_seconds.

    Raises:
        UserError: a column is missing or unknown, or a cell is no number; the line is named.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            _check_header(path, header)
            found = [_observation(path, reader.line_num, row, header) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--curves {path} cannot be read as CSV ({error}).") from None
    if not found:
        raise UserError(f"--curves {path} has no row below its header.")
    _refuse_twice(path, found)
    return found


def _check_header(path: Path, header: Sequence[str]) -> None:
    known = (*REQUIRED, *SEEDS, *(b for b in BUDGETS if b != "step"), *PRETRAINING)
    for name in REQUIRED:
        if name not in header:
            raise UserError(f"--curves {path}: there is no column '{name}'; the columns are {', '.join(known)}.")
    for name in header:
        if header.count(name) > 1:
            raise UserError(f"--curves {path}: the column '{name}' stands twice.")
        if name not in known:
            raise UserError(f"--curves {path}: unknown column '{name}'.{nearest(name, known)}")


def _observation(path: Path, line: int, row: dict[str | None, str], header: Sequence[str]) -> Observation:
    def number(name: str, *, whole: bool = False, positive: bool = True) -> float:
        text = (row.get(name) or "").strip()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or (positive and value <= 0) or (whole and value != int(value)):
            kind = "a whole number" if whole else "a positive number"
            raise UserError(f"--curves {path}, line {line}: {name} is '{text}', not {kind}.")
        return value

    if None in row:
        raise UserError(f"--curves {path}, line {line}: more cells than columns; a decimal comma? Write 9.5, not 9,5.")
    budgets = {BUDGETS[name]: number(name) for name in BUDGETS if name in header}
    for column, name in PRETRAINING.items():
        if column in header:
            if name not in header:
                raise UserError(f"--curves {path}: {column} needs the column {name} beside it.")
            budgets[BUDGETS[name] + WITH_TOKENIZER] = budgets[BUDGETS[name]] + number(column, positive=False)
    recipe = (row.get("recipe") or "").strip()
    if not recipe:
        raise UserError(f"--curves {path}, line {line}: recipe is empty.")
    seed, generation_seed = (_seed(path, line, row, name) if name in header else 0 for name in SEEDS)
    return Observation(
        recipe,
        seed,
        generation_seed,
        int(number("step", whole=True)),
        number("fid"),
        budgets,
    )


def _seed(path: Path, line: int, row: dict[str | None, str], name: str) -> int:
    text = (row.get(name) or "").strip()
    if not text.isdecimal() or int(text) > MAX_SEED:
        raise UserError(f"--curves {path}, line {line}: {name} is '{text}', not a whole number from 0 to {MAX_SEED}.")
    return int(text)


def _refuse_twice(path: Path, found: Sequence[Observation]) -> None:
    seen = set()
    for o in found:
        key = (o.recipe, o.seed, o.generation_seed, o.step)
        if key in seen:
            raise UserError(
                f"--curves {path}: recipe {o.recipe}, seed {o.seed}, generation seed {o.generation_seed}, "
                f"step {o.step} stands twice. A column 'seed' tells trainings apart, 'generation_seed' the sample sets "
                "of one."
            )
        seen.add(key)


def foreign(path: Path) -> list[Observation]:
    """Curves that stand beside ours, marked as not ours.

    Raises:
        UserError: see `read_csv`.
    """
    return [replace(o, recipe=f"{o.recipe} (not ours: {path.name})") for o in read_csv(path)]
