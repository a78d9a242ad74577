"""Recipes of files: what the conformance kit finds, and what a file may not be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders import make_batch

from harness.checks.conformance import CHECKS, Bench
from recipes.base import Needs
from recipes.recipe_files import VARIABLE, use_files
from recipes.registry import Recipe, find_recipe
from recipes.training.build import complete

HEAD = "import torch\nfrom recipes.base import Needs, Objective\nfrom recipes.vanilla import Vanilla\n\n\n"
TEACHER = """def extra_loss(self, seen, step):
        if {}:
            return None, {{}}
        with torch.no_grad():
            out = step.averages["sit"](seen.point.x_t, seen.point.t, seen.labels)
        return (seen.out.velocity - out.velocity).square().mean(), {{}}
"""
CHANGES = "\n    @classmethod\n    def changes(cls, options):\n        return (40,)\n"
FLOPS = "FLOPs are counted, and what stops stops costing"
LATE = "def extra_loss(self, seen, step):\n        return ({} if step.number >= 10 else None), {{}}\n"


@pytest.fixture(autouse=True)
def _no_files(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")


def mine(folder: Path, body: str) -> Path:
    file = folder / "mine.py"
    file.write_text(f"{HEAD}class Mine(Vanilla):\n    {body}")
    return file


def used(folder: Path, body: str) -> Recipe:
    use_files([mine(folder, body)])
    return find_recipe("mine", {}, where="mine")


@pytest.mark.parametrize(
    ("when", "iteration"),
    [
        ("step.number < 4", 5),
        ("step.number % 16 == 0", 1),
        ("step.number != 999", 999),
        ("seen.out.velocity.is_meta", 0),
    ],
)
def test_a_cost_that_is_not_counted_is_a_fault(when, iteration, tmp_path):
    told = CHECKS[FLOPS](Bench(used(tmp_path, TEACHER.format(when))))
    assert told.startswith(f"iteration {iteration} costs ")
    assert "`changes`" in told


def test_a_cost_that_is_declared_is_none(tmp_path):
    assert CHECKS[FLOPS](Bench(used(tmp_path, TEACHER.format("step.number < 40") + CHANGES))) == ""


def test_what_grows_with_the_square_of_the_batch_is_counted(tmp_path):
    body = """def extra_loss(self, seen, step):
        z = seen.out.velocity.flatten(1)
        return (z @ z.mT).mean(), {}
"""
    assert CHECKS[FLOPS](Bench(used(tmp_path, body))) == ""


@pytest.mark.parametrize(
    ("rule", "late"),
    [
        ("losses are finite scalars, each for its own network", 'seen.out.velocity.mean() * float("nan")'),
        ("randomness comes through step.draws alone", "seen.out.velocity.mean() * torch.rand(())"),
        ("randomness comes through step.draws alone", "seen.out.velocity.mean() * __import__('random').random()"),
        ("any micro-batch gives the same", "seen.out.velocity.std(0).mean()"),
    ],
)
def test_a_fault_that_comes_late_is_found(rule, late, tmp_path):
    assert CHECKS[rule](Bench(used(tmp_path, LATE.format(late))))


@pytest.mark.parametrize("needs", [Needs(), Needs(features=True), Needs(tokenizer=True), Needs(class_token=True)])
def test_a_recipe_in_training_gets_what_it_declares(needs):
    batch = make_batch()
    assert batch.features
    given = complete(batch, needs, ())
    assert bool(given.features) == needs.features
    assert bool(given.class_tokens) == needs.class_token
    assert given.attention == ()
    assert (given.images is not None) == needs.tokenizer == (given.mean is None) == (given.std is None)
    assert torch.equal(given.labels, batch.labels)
