"""Arrows run one way: recipes, baselines <- harness <- reports <- harness/cli.py; core and models come first."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGES = ("recipes", "harness", "baselines", "reports")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in PACKAGES}


def allowed(module: str) -> tuple[str, ...]:
    """The prefixes that a module may import."""
    if module.startswith("harness.cli"):
        return PACKAGES
    if module.startswith("recipes.core."):
        return ("recipes.core",)
    if module.startswith("recipes.models."):
        return ("recipes.core", "recipes.models")
    if module.startswith("recipes."):
        return ("recipes",)
    if module.startswith("baselines"):
        return ("baselines",)
    if module.startswith("harness"):
        return ("recipes", "baselines", "harness")
    return PACKAGES


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_direction(path: Path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for name in imported(path):
        assert name.startswith(allowed(module)), f"{module} imports {name}"
        assert module.startswith("harness.cli") or not name.startswith("harness.cli"), (
            f"{module} imports the command line"
        )


def test_recipes_do_not_know_the_registry():
    for name in ("vanilla", "repa", "repa_e", "objective", "networks"):
        assert not any("registry" in x or "recipes.run" in x for x in imported(ROOT / "recipes" / f"{name}.py"))


def test_baselines_import_no_torch():
    for path in (ROOT / "baselines").rglob("*.py"):
        assert "import torch" not in path.read_text()
