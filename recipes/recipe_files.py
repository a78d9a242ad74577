"""External recipes: --recipe-file and installed entry points."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.machinery import PathFinder, SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import FrameType

from recipes.base import Objective, SiTRecipe
from recipes.core.atomic import sha256_of
from recipes.core.errors import UserError

#: Environment variable with the recipe files, inherited by child processes: the process that named them, and the
#: SHA-256 of each by its path.
VARIABLE = "REPA_BENCH_RECIPE_FILES"
ENTRY_POINTS = "repa_bench.recipes"
OURS = {path.name for path in Path(__file__).parents[1].iterdir()}
NAME_LIMIT = 80


@dataclass(frozen=True)
class OutsideRecipe:
    """An external recipe."""

    name: str
    kind: type[SiTRecipe]
    source: str
    """SHA-256 of its file, or of its package, which is part of its runs' identity."""
    path: Path

    @property
    def about(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.kind) or f"{self.name}, of {self.path.name}").splitlines()[0]


def use_files(paths: Sequence[Path]) -> None:
    """Register recipe files, as they are now, for this process and its children.

    Raises:
        UserError: see `outside_recipes`; a file is not what it was when a parent process registered it.
    """
    before = os.environ.get(VARIABLE, "")
    parent, known = _named()
    found = {path: hashlib.sha256(_text(path)).hexdigest() for path in (path.absolute() for path in paths)}
    for path, source in found.items():
        if parent != os.getpid() and known.get(path, source) != source:
            raise _changed(path)
    os.environ[VARIABLE] = json.dumps([os.getpid(), {str(path): source for path, source in found.items()}])
    try:
        outside_recipes()
    except UserError:
        os.environ[VARIABLE] = before
        raise


def _named() -> tuple[int, Mapping[Path, str]]:
    """The process that registered files, and their hashes."""
    parent, known = json.loads(os.environ.get(VARIABLE) or "[0, {}]")
    return parent, {Path(path): source for path, source in known.items()}


def outside_recipes() -> dict[str, OutsideRecipe]:
    """By name: those of the files in use, as they were when they were registered, then of installed packages.

    Raises:
        UserError: a file cannot be read or run, is not what it was, holds no recipe, or two recipes have one name.
    """
    named = _named()[1]
    found = [recipe for path, source in named.items() for recipe in _of_file(path, source)]
    found += [recipe for recipe in map(_of_entry_point, _installed()) if recipe.path not in named]
    out: dict[str, OutsideRecipe] = {}
    for recipe in found:
        if (other := out.get(recipe.name)) is not None:
            raise UserError(f"two recipes are named '{recipe.name}', of {other.path} and {recipe.path}; rename one.")
        out[recipe.name] = recipe
    return out


@lru_cache(maxsize=1)
def _installed() -> tuple[EntryPoint, ...]:
    """Looked up once: it takes 9 ms."""
    return tuple(entry_points(group=ENTRY_POINTS))


@cache
def _of_file(path: Path, source: str) -> tuple[OutsideRecipe, ...]:
    """Recipes of the classes defined in a file, without those named _X, in file order. It is run once."""
    where, text = f"--recipe-file {path}", _text(path)
    if hashlib.sha256(text).hexdigest() != source:
        raise _changed(path)
    name = f"repa_bench_recipe_{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}_{source[:8]}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Loader(name, str(path), text))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        _refuse_neighbours(path, ast.parse(text, str(path)))
        spec.loader.exec_module(module)
    except UserError:
        raise
    except BaseException as error:  # whatever somebody's code raises, sys.exit() too
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        raise UserError(f"{where}: {f'line {line}: ' if line else ''}{_short(error)}.") from None
    own = [kind for kind in vars(module).values() if _is_recipe(kind) and kind.__module__ == name]
    kinds = dict.fromkeys(kind for kind in own if not kind.__name__.startswith("_"))  # one may have two names
    if not kinds:
        raise UserError(f"{where}: it defines no recipe; derive a class from one, as `class Mine(Vanilla)`.")
    return tuple(OutsideRecipe(_name(kind, where), _with_options(kind, where), source, path) for kind in kinds)


class _Loader(SourceFileLoader):
    """Runs the text that was hashed: neither another one that is there by now nor bytecode."""

    def __init__(self, name: str, path: str, text: bytes) -> None:
        super().__init__(name, path)
        self.text = text

    def get_data(self, path: str) -> bytes:
        return self.text

    def path_stats(self, path: str) -> Mapping[str, object]:
        raise OSError


def _text(path: Path) -> bytes:
    where = f"--recipe-file {path}"
    if path.is_dir():
        raise UserError(f"{where}: it is a folder; name a Python file.")
    if not path.is_file():
        raise UserError(f"{where}: it is not there.")
    if path.suffix != ".py":
        raise UserError(f"{where}: name a Python file, ending in .py.")
    text = path.read_bytes()
    try:
        text.decode()
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise UserError(f"{where}: line {line}: it is not UTF-8 text; save it as UTF-8.") from None
    return text


def _changed(path: Path) -> UserError:
    return UserError(f"--recipe-file {path}: it has changed since this command began; give the command again.")


def _refuse_neighbours(path: Path, tree: ast.Module) -> None:
    """A module of the file's own folder would decide what is computed, and is in no hash."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        else:
            continue
        for name in names:
            if name.startswith(".") or _is_beside(path.parent, name.partition(".")[0]):
                raise UserError(
                    f"--recipe-file {path}: line {node.lineno}: it imports {name} of its own folder; a recipe is one "
                    "file, whose SHA-256 is part of its runs' identity. Move what it needs into it, or install a "
                    f"package with an entry point in {ENTRY_POINTS}."
                )


def _is_beside(folder: Path, name: str) -> bool:
    """Whether ``import name`` would find a module of that folder."""
    if name in sys.stdlib_module_names | OURS or not ((folder / f"{name}.py").is_file() or (folder / name).is_dir()):
        return False
    spec = PathFinder.find_spec(name)
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
    return not places or any(Path(place).parent in (folder, folder / name) for place in places if place)


def _is_recipe(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, SiTRecipe)


@cache
def _of_entry_point(point: EntryPoint) -> OutsideRecipe:
    where = f"the installed recipe '{point.name}' ({point.value})"
    try:
        kind = point.load()
    except BaseException as error:  # whatever somebody's code raises
        raise UserError(f"{where} cannot be loaded: {_short(error)}. Repair or uninstall its package.") from None
    if not _is_recipe(kind):
        raise UserError(f"{where} is no subclass of a recipe.")
    path = Path(inspect.getfile(kind))
    return OutsideRecipe(point.name, _with_options(kind, where), _package_hash(kind.__module__, path), path)


def _package_hash(module: str, path: Path) -> str:
    """SHA-256 of a module's file, or of all modules of the package that it is in."""
    places = getattr(sys.modules[module.partition(".")[0]], "__path__", ())
    files = {str(file.relative_to(place)): file for place in places for file in Path(place).rglob("*.py")}
    if len(files) < 2:
        return sha256_of(path)
    lines = [f"{name} {sha256_of(files[name])}\n" for name in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _with_options(kind: type[SiTRecipe], where: str) -> type[SiTRecipe]:
    """The class, whose options are sound."""
    where = f"{where}: {kind.__name__}.Options"
    if not (isinstance(kind.Options, type) and issubclass(kind.Options, Objective)):
        raise UserError(f"{where} is to be derived from `Objective`, or from another recipe's Options.")
    defaults = kind.Options.parse({}, where=where)
    try:
        written = defaults.model_dump(mode="json", warnings=False)
    except ValueError as error:
        raise UserError(f"{where}: its defaults cannot be written as JSON ({_short(error)}).") from None
    kind.Options.parse(written, where=where)
    return kind


def _name(kind: type[SiTRecipe], where: str) -> str:
    """``MyRecipe`` is ``my_recipe``."""
    name = "_".join(word.lower() for word in _words(kind.__name__))
    if not kind.__name__.isascii() or len(name) > NAME_LIMIT:
        raise UserError(
            f"{where}: the name of class {kind.__name__[:NAME_LIMIT]} becomes that of run folders; use ASCII letters "
            f"and digits, at most {NAME_LIMIT}."
        )
    return name


def _words(name: str) -> Iterator[str]:
    yield from re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name) or [name]


def _short(error: BaseException) -> str:
    """The type of an error and the first line of its text."""
    text = (str(error).strip().splitlines() or [""])[0][:200].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def told_of_recipe(error: BaseException) -> str | None:
    """A sentence about an error in the code of an external recipe, or in what was done for one; None of any other."""
    try:
        recipes = list(outside_recipes().values())
    except UserError:
        return None
    frames = list(traceback.walk_tb(error.__traceback__))[::-1]
    if not isinstance(error, Exception):  # sys.exit() by a signal's handler may come anywhere
        frames = frames[:1]
    for frame, line in frames:
        for recipe in recipes:
            if frame.f_code.co_filename == str(recipe.path):
                return _sentence(recipe, f"line {line}", error)
    if isinstance(error, Exception):
        for frame, _ in frames:
            for recipe in recipes:
                if any(thing is recipe.kind for thing in _handled(frame)):
                    last, line = frames[0]
                    return _sentence(recipe, f"{Path(last.f_code.co_filename).name}, line {line}", error)
    return None


def _handled(frame: FrameType) -> Iterator[object]:
    """Classes that a frame has to do with: of its variables, and of the recipe that one of them holds."""
    for value in frame.f_locals.values():
        fields = getattr(value, "__dict__", {})
        yield from (value, type(value), fields.get("kind"), type(fields.get("recipe")))


def _sentence(recipe: OutsideRecipe, where: str, error: BaseException) -> str:
    return (
        f"recipe {recipe.name}, {recipe.path}: {where}: {_short(error)}. "
        f"`repa-bench check-recipe {recipe.path}` may tell more."
    )
