"""Suites: what is trained on what, and how it is judged. Each is a Python function that returns a whole spec."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.suites.base import Suite, Variant
from harness.suites.digits import DigitsSuite, digits
from harness.suites.imagenet256 import ImagenetSuite, imagenet256, imagenet_smoke
from harness.suites.smoke import smoke
from recipes.core.errors import UserError, nearest
from recipes.core.spec import EVERY_FIELD, with_overrides
from recipes.recipe_files import outside_recipes, told_of_recipe
from recipes.registry import find_recipe
from recipes.training.flops import flops_per_step

AnySuite = DigitsSuite | ImagenetSuite
SUITES: dict[str, Callable[[], AnySuite]] = {
    "digits": digits,
    "smoke": smoke,
    "imagenet256": imagenet256,
    "imagenet-smoke": imagenet_smoke,
}


def suite(name: str, overrides: Mapping[str, Any] | None = None) -> AnySuite:
    """A suite by name, with dotted keys replaced.

    Raises:
        UserError: no such suite, no such key, or a value that the key does not take.
    """
    if name not in SUITES:
        raise UserError(f"--suite: there is no suite '{name}'.{nearest(name, SUITES)}")
    default = _with_outside(SUITES[name]())
    if not overrides:
        return default
    data = json.loads(default.model_dump_json(context=EVERY_FIELD))
    for variant in default.variants:
        every = default.method(variant).options.model_dump(mode="json", context=EVERY_FIELD)
        data["variants"][variant]["options"] = every
        del data["variants"][variant]["later"]  # is nobody's to set
    parsed = type(default).parse(with_overrides(data, overrides), where="--set")
    written = parsed.model_copy(update={"variants": _as_written(parsed, default)})
    tried(written, written.default_variants, "--set")
    return written


def _with_outside(chosen: AnySuite) -> AnySuite:
    """Add a variant for each external recipe, also to the default variants.

    Raises:
        UserError: a recipe has the name of a variant.
    """
    variants, default = dict(chosen.variants), chosen.default_variants
    first = next(iter(variants.values()))
    for recipe in outside_recipes().values():
        if recipe.name in variants:
            raise UserError(f"{recipe.path}: '{recipe.name}' is the name of a variant of {chosen.name}; rename yours.")
        options = find_recipe(recipe.name, {}, where=recipe.name).options.model_dump(mode="json")
        told = {"recipe": recipe.name, "label": recipe.name, "about": recipe.about}
        variants[recipe.name] = first.changed(**told, options=options, later=True)
        default = (*default, recipe.name)
    if len(default) == len(chosen.default_variants):
        return chosen
    return chosen.model_copy(update={"variants": variants, "default_variants": default})


def _as_written(parsed: AnySuite, default: AnySuite) -> dict[str, Variant]:
    """Normalise variant options; a changed `later` variant loses the flag and so enters the digest."""
    out: dict[str, Variant] = {}
    for name, variant in parsed.variants.items():
        options, before = parsed.method(name).options.model_dump(mode="json"), default.variants[name]
        written = variant.model_copy(update={"options": options, "later": before.later})
        out[name] = written if written == before else written.model_copy(update={"later": False})
    return out


def tried(chosen: Suite, variants: Sequence[str], flag: str) -> None:
    """Dry-run a training step of each variant on the meta device, to fail early.

    Raises:
        UserError: the values that a flag gave do not fit together.
    """
    for variant in variants:
        try:
            flops_per_step(chosen.run_spec(variant, 0, {}), chosen.image_size)
        except UserError:
            raise
        except Exception as error:  # whatever PyTorch says of shapes
            own = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            reason = told_of_recipe(error) or own
            raise UserError(f"{flag}: with these values recipe {variant} cannot be built ({reason}).") from None
