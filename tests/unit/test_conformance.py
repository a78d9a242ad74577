"""Recipes of files: what the conformance kit finds, and what a file may not be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from builders import make_batch
from conftest import ROOT

from harness.checks.conformance import CHECKS, Bench
from recipes import recipe_files
from recipes.base import Needs
from recipes.core.errors import UserError
from recipes.recipe_files import VARIABLE, _package_hash, outside_recipes, told_of_recipe, use_files
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


SAME = "def extra_loss(self, seen, step):\n        return None, {}\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("import sys\n\nsys.exit(0)\n", "line 3: SystemExit: 0"),
        ("raise KeyboardInterrupt\n", "line 1: KeyboardInterrupt"),
        ("class Größe(Vanilla):\n    pass\n", "use ASCII letters"),
        (f"class M{'x' * 90}(Vanilla):\n    pass\n", "at most 80"),
        ("class Mine(Vanilla):\n    class Options:\n        pass\n", "Mine.Options is to be derived from `Objective`"),
        ("class Mine(Vanilla):\n    class Options(Objective):\n        n: int = 1.5\n", "Mine.Options: n: .*integer"),
        ("class Mine(Vanilla):\n    class Options(Objective):\n        n: int\n", "Mine.Options: n: Field required"),
        ("class Mine(Vanilla):\n    class Options(Objective):\n        n: object = print\n", "written as JSON"),
        ("class Mine(Vanilla):\n    def f(self):\n        import helper\n", "it imports helper of its own folder"),
        ("from helper.parts import x\n", "it imports helper.parts of its own folder"),
        ("from . import helper\n", "it imports . of its own folder"),
    ],
)
@pytest.mark.parametrize("on_path", [False, True])
def test_a_file_that_cannot_be_a_recipe_is_a_sentence(text, sentence, on_path, tmp_path, monkeypatch):
    (tmp_path / "helper.py").write_text("x = 1\n")
    if on_path:
        monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "mine.py"
    head = "from recipes.vanilla import Vanilla; from recipes.base import Objective\n" if "class" in text else ""
    file.write_text(head + text)
    with pytest.raises(UserError, match=sentence):
        use_files([file])
    assert os.environ[VARIABLE] == ""


def test_what_is_no_text_is_a_sentence(tmp_path):
    file = tmp_path / "mine.py"
    file.write_bytes(b"x = 1\n# \xe9\n")
    with pytest.raises(UserError, match="line 2: it is not UTF-8 text"):
        use_files([file])
    with pytest.raises(UserError, match="it is a folder"):
        use_files([tmp_path])


def test_a_second_name_is_no_second_recipe_and_paths_may_hold_a_colon(tmp_path):
    (tmp_path / "a:b").mkdir()
    use_files([mine(tmp_path / "a:b", SAME + "\n\nAlias = Mine\nitems = [{}]\n")])
    assert list(outside_recipes()) == ["mine"]


def test_what_the_installed_packages_have_is_no_helper(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "random.py").write_text("")
    use_files([mine(tmp_path, "import random, numpy\n    " + SAME)])
    assert list(outside_recipes()) == ["mine"]


def child(code: str) -> subprocess.CompletedProcess[str]:
    """What a child process of a command does, as a worker or a job."""
    words = [sys.executable, "-c", f"from recipes.recipe_files import *\n{code}"]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)


def test_an_edit_while_a_command_is_at_work_is_refused_where_the_file_is_read_again(tmp_path):
    file = mine(tmp_path, SAME)
    use_files([file])
    first = outside_recipes()["mine"]
    code = f"use_files([Path({str(file)!r})])"
    assert child(code).returncode == 0
    file.write_text(file.read_text() + "\n")
    assert outside_recipes()["mine"] is first  # this process has it
    for again in (code, "outside_recipes()"):
        assert "mine.py: it has changed since this command began; give the command again." in child(again).stderr
    use_files([file])  # another command
    assert outside_recipes()["mine"].source != first.source


def test_an_edit_of_the_same_length_in_the_same_second_is_run(tmp_path):
    for value in (1, 2):
        file = mine(tmp_path, f"value = {value}\n")
        os.utime(file, (0, 0))
        use_files([file])
        assert outside_recipes()["mine"].kind.value == value


def test_an_installed_package_is_hashed_whole(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "my_recipes_of_two_files"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("x = 1\n")
    mine(package, "from my_recipes_of_two_files.helper import x\n    " + SAME)
    point = EntryPoint("mine", f"{package.name}.mine:Mine", recipe_files.ENTRY_POINTS)
    broken = EntryPoint("broken", "nothing_of_that_name:Mine", recipe_files.ENTRY_POINTS)
    monkeypatch.setattr(recipe_files, "_installed", lambda: (point,))
    before = outside_recipes()["mine"]
    (package / "helper.py").write_text("x = 2\n")
    assert _package_hash(before.kind.__module__, before.path) != before.source
    monkeypatch.setattr(recipe_files, "_installed", lambda: (broken,))
    with pytest.raises(UserError, match=r"'broken' .* cannot be loaded: ModuleNotFoundError"):
        outside_recipes()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("def extra_loss(self, seen, step):\n        return seen.out.taps[15], {}\n", r"mine.py: line 8: KeyError: 15"),
        ("def extra_loss(self, seen, step):\n        pass\n", r"mine.py: base.py, line \d+: TypeError: cannot unpack"),
        (
            "@classmethod\n    def needs(cls, options):\n        return Needs()\n",
            r"mine.py: registry.py, .*: TypeError",
        ),
        ("def extra_loss(self, seen, step):\n        raise SystemExit\n", r"mine.py: line 8: SystemExit"),
    ],
)
def test_an_error_of_a_recipe_of_yours_is_a_sentence(body, told, tmp_path):
    recipe = used(tmp_path, body)
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        CHECKS["randomness comes through step.draws alone"](Bench(recipe))
    sentence = told_of_recipe(caught.value)
    assert re.search(f"^recipe mine, .*{told}", sentence)
    assert f"check-recipe {tmp_path / 'mine.py'}" in sentence


def test_an_error_of_the_tree_is_not_told_as_yours(tmp_path):
    used(tmp_path, SAME)
    recipe = find_recipe("layersync", {"blocks": [[1, 99]]}, where="layersync")
    with pytest.raises(KeyError) as caught:
        CHECKS["randomness comes through step.draws alone"](Bench(recipe))
    assert told_of_recipe(caught.value) is None
