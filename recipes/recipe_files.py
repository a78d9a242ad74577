"""External recipes: --recipe-file and installed entry points."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from recipes.base import SiTRecipe
from recipes.core.atomic import sha256_of
from recipes.core.errors import UserError

#: Environment variable with the recipe files (inherited by child processes).
VARIABLE = "REPA_BENCH_RECIPE_FILES"
ENTRY_POINTS = "repa_bench.recipes"


@dataclass(frozen=True)
class OutsideRecipe:
    """An external recipe."""

    name: str
    kind: type[SiTRecipe]
    source: str
    """SHA-256 of its file, which is part of its runs' identity."""
    path: Path

    @property
    def about(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.kind) or f"{self.name}, of {self.path.name}").splitlines()[0]


def use_files(paths: Sequence[Path]) -> None:
    """Register recipe files for this process and its children.

    Raises:
        UserError: see `outside_recipes`.
    """
    before = os.environ.get(VARIABLE, "")
    os.environ[VARIABLE] = os.pathsep.join(str(path.absolute()) for path in dict.fromkeys(paths))
    try:
        outside_recipes()
    except UserError:
        os.environ[VARIABLE] = before
        raise


def outside_recipes() -> dict[str, OutsideRecipe]:
    """By name: those of the files in use, then of installed packages.

    Raises:
        UserError: a file cannot be read or run, holds no recipe, or two recipes have one name.
    """
    named = [Path(text) for text in os.environ.get(VARIABLE, "").split(os.pathsep) if text]
    found = [recipe for path in named for recipe in _of_file(path)]
    found += [_of_entry_point(point) for point in _installed()]
    out: dict[str, OutsideRecipe] = {}
    for recipe in found:
        if (other := out.setdefault(recipe.name, recipe)) is not recipe:
            raise UserError(f"two recipes are named '{recipe.name}', of {other.path} and {recipe.path}; rename one.")
    return out


@lru_cache(maxsize=1)
def _installed() -> tuple[EntryPoint, ...]:
    """Looked up once: it takes 9 ms."""
    return tuple(entry_points(group=ENTRY_POINTS))


def _of_file(path: Path) -> list[OutsideRecipe]:
    if not path.is_file():
        raise UserError(f"--recipe-file {path}: it is not there.")
    source = sha256_of(path)
    kinds = _kinds(path, source)
    if not kinds:
        raise UserError(
            f"--recipe-file {path}: it defines no recipe; derive a class from one, as `class Mine(Vanilla)`."
        )
    return [OutsideRecipe(_name(kind), kind, source, path) for kind in kinds]


@lru_cache
def _kinds(path: Path, source: str) -> tuple[type[SiTRecipe], ...]:
    """Recipe classes defined in a file, without those named _X, in file order."""
    name = f"repa_bench_recipe_{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}_{source[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--recipe-file {path}: name a Python file, ending in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever somebody's code raises
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        where = f"line {line}: " if line else ""
        raise UserError(f"--recipe-file {path}: {where}{type(error).__name__}: {error}.") from None
    return tuple(
        value
        for key, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, SiTRecipe)
        and value.__module__ == name
        and not key.startswith("_")
    )


def _of_entry_point(point: EntryPoint) -> OutsideRecipe:
    try:
        kind = point.load()
    except Exception as error:  # whatever somebody's package raises
        told = f"the installed recipe '{point.name}' ({point.value}) cannot be loaded: {type(error).__name__}: {error}"
        raise UserError(f"{told}. Repair the package that registers it, or take it away.") from None
    if not (isinstance(kind, type) and issubclass(kind, SiTRecipe)):
        raise UserError(f"the installed recipe '{point.name}' ({point.value}) is no subclass of a recipe.")
    path = Path(inspect.getfile(kind))
    return OutsideRecipe(point.name, kind, sha256_of(path), path)


def _name(kind: type[SiTRecipe]) -> str:
    """``MyRecipe`` is ``my_recipe``."""
    return "_".join(word.lower() for word in _words(kind.__name__))


def _words(name: str) -> Iterator[str]:
    yield from re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name) or [name]
