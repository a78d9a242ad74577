"""Arrows between rooms run one way, imports inside functions included: see the tree in CONTRIBUTING."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGES = ("recipes", "harness", "baselines", "reports")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
#: Rooms, from the ground up: what each may import besides itself.
ROOMS: dict[str, str] = {
    "baselines": "",
    "recipes.core": "",
    "recipes.data": "recipes.core",
    "recipes.models": "recipes.core",
    "recipes.released": "recipes.core recipes.models",
    "recipes": "recipes.core recipes.models recipes.data",
    "recipes.registry": "recipes.core recipes.models recipes",
    "recipes.training": "recipes.core recipes.data recipes.models recipes.released recipes recipes.registry",
    "harness.runtime": "recipes.core",
    "harness.sampling": "recipes.core recipes.models",
    "harness.features": "recipes.core recipes.models",
    "harness.metrics": "recipes.core recipes.data harness.features",
    "harness.assets": "recipes.core recipes.data recipes.models recipes.released harness.runtime harness.features",
    "harness.records": "recipes.core harness.runtime harness.sampling",
    "harness.suites": "RECIPES harness.sampling",
    "harness.scoring": "RECIPES harness.runtime harness.sampling harness.features harness.metrics harness.records",
    "harness.results": "RECIPES baselines harness.runtime harness.sampling harness.suites harness.records",
    "harness.preparation": "RECIPES harness.runtime harness.assets harness.suites harness.features harness.metrics "
    "harness.scoring harness.sampling",
    "harness.checks": "RECIPES harness.runtime harness.sampling harness.assets harness.features harness.metrics "
    "harness.records harness.scoring",
    "harness.pipeline": "RECIPES harness.runtime harness.sampling harness.features harness.metrics harness.assets "
    "harness.suites harness.records harness.scoring harness.results harness.preparation",
    "reports": "recipes.core baselines harness.records harness.results",
    # What a notebook calls stands beside the command line, and shares with it what lies below. The package itself is
    # the door to it alone; nothing imports the package by its bare name.
    "harness.api": "RECIPES reports harness.runtime harness.records harness.results harness.scoring harness.pipeline",
    "harness": "recipes.core harness.api",
    "harness.cli": "RECIPES BASELINES REPORTS HARNESS",
}
RECIPES = [room for room in ROOMS if room.startswith("recipes")]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in PACKAGES}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(name: str) -> str:
    """The longest room that a module, or something in it, lies in."""
    parts = name.split(".")
    return next(room for k in range(len(parts), 0, -1) if (room := ".".join(parts[:k])) in ROOMS)


def allowed(room: str) -> set[str]:
    if room == "harness.cli":
        return set(ROOMS)
    return {inner for word in ROOMS[room].split() for inner in (RECIPES if word == "RECIPES" else [word])} | {room}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_direction(path: Path):
    room = room_of(module_of(path))
    for name in imported(path):
        assert room_of(name) in allowed(room), f"{path.relative_to(ROOT)} ({room}) imports {name}"


def test_rooms_have_no_circle_and_each_says_what_it_is_for():
    list(TopologicalSorter({room: allowed(room) - {room} for room in ROOMS}).static_order())
    for path in FILES:
        inits = [folder / "__init__.py" for folder in path.relative_to(ROOT).parents if folder != Path()]
        assert all((ROOT / init).read_text().startswith('"""') for init in inits)


def test_modules_have_no_circle():
    modules = {module_of(path): path for path in FILES}
    known = {
        name: {m for x in imported(path) for m in (x, x.rpartition(".")[0]) if m in modules}
        for name, path in modules.items()
    }
    # `from harness.cli import commands` names the package too, whose file imports nothing.
    list(TopologicalSorter({name: found - {name} for name, found in known.items()}).static_order())


def test_baselines_import_no_torch():
    for path in (ROOT / "baselines").rglob("*.py"):
        assert "import torch" not in path.read_text()
