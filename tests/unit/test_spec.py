"""Specifications are strict, and digests tell them apart."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from harness.suites import suite
from recipes import recipe_files, registry
from recipes.core.errors import UserError
from recipes.core.spec import OptimizerSpec, Spec, digest_of
from recipes.registry import find_recipe, recipe_class
from recipes.repa import Repa


class Example(Spec):
    count: int
    rate: float = 0.5
    inner: OptimizerSpec = OptimizerSpec()


def test_round_trip_and_digest():
    one = Example(count=1)
    assert Example.parse(one.model_dump(mode="json"), where="test") == one
    assert one.digest() == Example(count=1).digest()
    assert one.digest() != Example(count=2).digest()
    assert digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1})


@pytest.mark.parametrize("data", [{"count": "1"}, {"count": 1.5}, {"count": 1, "extra": 2}, {}])
def test_wrong_data_is_one_sentence(data):
    with pytest.raises(UserError, match=r"^test: (count|extra): "):
        Example.parse(data, where="test")


def test_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Example(count=1).count = 2  # type: ignore[misc]


def test_override_reaches_a_nested_key():
    assert suite("digits", {"sit.depth": 6}).sit.depth == 6
    assert suite("digits", {"sit.depth": 6}).identity() != suite("digits").identity()


def test_budget_is_not_part_of_the_identity():
    assert suite("digits", {"budget.steps": 3000}).identity() == suite("digits").identity()


@pytest.mark.parametrize(
    ("key", "hint"), [("sit.dept", "'depth'"), ("sitt.depth", "'sit'"), ("sit.depth.x", "no key 'x'")]
)
def test_wrong_override_names_the_nearest_key(key, hint):
    with pytest.raises(UserError, match=hint):
        suite("digits", {key: 3})


def test_wrong_override_value():
    with pytest.raises(UserError, match=r"sit\.depth: .*integer"):
        suite("digits", {"sit.depth": "deep"})


def test_unknown_names_have_suggestions():
    with pytest.raises(UserError, match="Did you mean 'digits'"):
        suite("digit")
    with pytest.raises(UserError, match="Did you mean 'repa_e'"):
        recipe_class("repa-e")
    with pytest.raises(UserError, match="Did you mean 'vae_alignment'"):
        find_recipe("repa_e", {"vae_alignement": 1.0}, where="variant")


def test_a_recipe_outside_the_tree_is_found_by_its_entry_point(monkeypatch):
    mine, clash = (
        EntryPoint(name=name, value="recipes.repa:Repa", group=recipe_files.ENTRY_POINTS) for name in ("mine", "repa")
    )
    monkeypatch.setattr(recipe_files, "_installed", lambda: (mine, clash))
    assert recipe_class("mine") is Repa
    assert "mine" in registry.recipe_names()
    with pytest.raises(UserError, match="'repa' is the name of a recipe of this tree; rename yours"):
        recipe_class("repa")
    monkeypatch.setattr(recipe_files, "_installed", lambda: (mine, mine))
    with pytest.raises(UserError, match="two recipes are named 'mine'"):
        recipe_class("mine")


def test_released_defaults():
    """The defaults of the recipes are the paper's."""
    options = find_recipe("repa_e", {}, where="variant").options.model_dump()
    expected = {"alignment": 0.5, "vae_alignment": 1.5, "kl": 1e-6, "gan": 0.1, "l1": 1.0, "perceptual": 1.0}
    assert {name: options[name] for name in expected} == expected
    assert options["label_dropout"] == 0.1
    adam = OptimizerSpec()
    assert (adam.lr, adam.betas, adam.eps, adam.weight_decay, adam.clip_norm) == (1e-4, (0.9, 0.999), 1e-8, 0.0, 1.0)
