"""Recipes by name: ours explicitly, others of files and of the entry-point group ``repa_bench.recipes``.

A recipe of this tree is run as a variant: `harness/suites/followups.py` makes one for every suite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.base import Needs, Networks, Objective, SiTRecipe
from recipes.contrastive import Contrastive
from recipes.core.errors import UserError, nearest
from recipes.dispersive import Dispersive
from recipes.haste import Haste
from recipes.irepa import IRepa
from recipes.layersync import LayerSync
from recipes.models.sit import SiTSpec
from recipes.recipe_files import outside_recipes
from recipes.reg import Reg
from recipes.repa import Repa
from recipes.repa_e import RepaE
from recipes.sra import Sra
from recipes.vanilla import Vanilla

RECIPES: dict[str, type[SiTRecipe]] = {
    "vanilla": Vanilla,
    "repa": Repa,
    "repa_e": RepaE,
    "irepa": IRepa,
    "reg": Reg,
    "haste": Haste,
    "layersync": LayerSync,
    "sra": Sra,
    "contrastive": Contrastive,
    "dispersive": Dispersive,
}


def recipe_names() -> list[str]:
    """Every known recipe."""
    return [*RECIPES, *outside_recipes()]


@dataclass(frozen=True)
class Recipe:
    """A recipe's class and its options, parsed once."""

    kind: type[SiTRecipe]
    options: Objective
    source: str | None = None
    """SHA-256 of the recipe's file if it is not built in, else None."""

    @property
    def needs(self) -> Needs:
        """Union of its needs over the whole training."""
        return self.kind.needs(self.options)

    @property
    def changes(self) -> Sequence[int]:
        """Iterations at which its needs or its computation change."""
        return self.kind.changes(self.options)

    def needs_at(self, number: int) -> Needs:
        """Its needs in iteration `number`."""
        return self.kind.needs(self.options, number)

    def shape(self, sit: SiTSpec, widths: tuple[int, ...]) -> SiTSpec:
        """Its network, for encoders of these widths."""
        return self.kind.shape(self.options, sit, widths)

    def on(self, networks: Networks) -> SiTRecipe:
        """The recipe at work on networks."""
        return self.kind(networks, self.options)


def recipe_class(name: str) -> type[SiTRecipe]:
    """The recipe class of that name.

    Raises:
        UserError: no such recipe, or two of that name.
    """
    return _found(name)[0]


def _found(name: str) -> tuple[type[SiTRecipe], str | None]:
    outside = outside_recipes()
    if name in RECIPES:
        if name in outside:
            raise UserError(f"{outside[name].path}: '{name}' is the name of a recipe of this tree; rename yours.")
        return RECIPES[name], None
    if name in outside:
        return outside[name].kind, outside[name].source
    raise UserError(
        f"there is no recipe '{name}'.{nearest(name, recipe_names())} If it is of a file of yours, give --recipe-file."
    )


def find_recipe(name: str, options: Mapping[str, Any], *, where: str) -> Recipe:
    """A recipe with its options, defaults filled in.

    Raises:
        UserError: no such recipe, or an option that it does not have, with the nearest one; `where` is named.
    """
    kind, source = _found(name)
    for key in options:
        if key not in kind.Options.model_fields:
            raise UserError(f"{where}: recipe {name} has no option '{key}'.{nearest(key, kind.Options.model_fields)}")
    return Recipe(kind, kind.Options.parse(options, where=where), source)
