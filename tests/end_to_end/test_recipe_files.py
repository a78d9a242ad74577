"""A recipe of yours beside those of the tree, the league, and verification: the commands as a user gives them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import warm
from conftest import ROOT

from recipes.core.errors import UserError
from recipes.recipe_files import VARIABLE, outside_recipes, use_files
from recipes.training.run_folder import Run

EXAMPLE = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)[1]


@pytest.fixture(autouse=True)
def _no_files_before_or_after(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")


class Place:
    """A results folder, its cache, and a recipe file."""

    def __init__(self, root: Path) -> None:
        self.out, self.cache, self.file = root / "out", root / "cache", root / "spread.py"
        self.file.write_text(EXAMPLE)

    def command(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {"REPA_BENCH_CACHE": str(self.cache), "COLUMNS": "200"} | environment
        return warm.repa_bench(*arguments, environment=variables)

    def run(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        done = self.command("run", "--suite", "smoke", "--out", self.out, *arguments, **environment)
        assert "Traceback" not in done.stderr
        return done

    def scores(self) -> list[dict]:
        rows = [json.loads(line) for line in (self.out / "records.jsonl").read_text().splitlines()]
        return [r for r in rows if r["kind"] == "score"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    found = Place(tmp_path_factory.mktemp("arena"))
    done = found.run("--recipes", "vanilla", "layersync")
    assert done.returncode == 0, done.stderr
    return found


def test_the_documented_example_conforms_and_runs_beside_what_is_there(place):
    done = place.command("check-recipe", place.file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok  ") == 5
    before = place.scores()
    done = place.run("--recipe-file", place.file, "--recipes", "vanilla", "layersync", "spread")
    assert done.returncode == 0, done.stderr
    new = place.scores()[len(before) :]
    assert {r["variant"] for r in new} == {"spread"}  # nothing was trained or scored again
    assert len({r["source"] for r in new}) == 1
    assert new[0]["about"].startswith("Vanilla, less a multiple")
    assert "spread" in (place.out / "report" / "report.md").read_text()
    assert place.run("--recipe-file", place.file, "--recipes", "spread").returncode == 0
    assert len(place.scores()) == len(before) + len(new)


def test_an_edited_file_is_another_recipe_and_that_is_said(place):
    assert place.run("--recipe-file", place.file, "--recipes", "spread").returncode == 0
    before = place.scores()
    place.file.write_text(EXAMPLE.replace("weight: float = 0.01", "weight: float = 0.02"))
    done = place.run("--recipe-file", place.file, "--recipes", "vanilla", "spread")
    assert done.returncode == 0, done.stderr
    new = place.scores()[len(before) :]
    assert {r["variant"] for r in new} == {"spread"}
    assert {r["source"] for r in new} != {r["source"] for r in before if r["variant"] == "spread"}
    assert "spread: its file has changed (now SHA-256" in done.stderr + done.stdout
    told = (place.out / "report" / "report.md").read_text()
    assert "spread: there are runs of several versions of its file; shown is the one that ran last" in told
    assert "1 run(s) of others are left out" in told
    place.file.write_text(EXAMPLE)  # and back: what is there counts again
    done = place.run("--recipe-file", place.file, "--recipes", "vanilla", "spread")
    assert done.returncode == 0, done.stderr
    assert len(place.scores()) == len(before) + len(new)
    assert (place.out / "report" / "report.md").read_text() != told
    use_files([place.file])
    specs = [Run.open(folder).spec for folder in (place.out / "runs").glob("spread-*")]
    assert len({spec.source for spec in specs}) == 2
    (older,) = [spec for spec in specs if spec.source != outside_recipes()["spread"].source]
    with pytest.raises(UserError, match="is of another version of recipe spread: its file had SHA-256"):
        older.method.needs  # noqa: B018


def test_the_league_and_verification(place):
    page = place.out.parent / "league"
    done = place.command("league", place.out, "--out", page)
    assert done.returncode == 0, done.stderr
    told = (page / "league.md").read_text()
    assert "provisional: 1 training seed(s) of the baseline, the rules want 5" in told
    assert re.search(r"\| LayerSync \|.*144 of 144, vita-epfl/LayerSync@4001d6d", told)
    assert (page / "index.html").read_text().startswith("<!doctype html>")
    done = place.command("verify", "--suite", "smoke", "--out", place.out, "--recipes", "layersync")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "layersync, seed 0, step 8: the same weights, bit by bit" in done.stdout


def test_a_record_that_its_recipe_does_not_give_is_found(place, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    from recipes.core.spec import digest_of

    lines = []
    for line in (place.out / "records.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["kind"] == "score":
            row["weights_hash"] = "0" * 64
        row.pop("check")
        lines.append(json.dumps(row | {"check": digest_of(row)}))
    (out / "records.jsonl").write_text("\n".join(lines) + "\n")
    done = place.command("verify", "--suite", "smoke", "--out", out, "--recipes", "vanilla")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "other weights: on the same processor, with the same packages" in " ".join(done.stdout.split())
    assert place.command("verify", "--suite", "smoke", "--out", out, "--recipes", "sra").returncode == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "it is not there"),
        ("x = 1\n", "it defines no recipe; derive a class from one"),
        ("import nothing_of_that_name\n", "line 1: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("a = 1\nclass Mine(:\n", "line 2: SyntaxError"),
        (
            "from recipes.vanilla import Vanilla\n\nclass Repa(Vanilla):\n    pass\n",
            "'repa' is the name of a recipe of this tree",
        ),
        (
            "from recipes.base import Needs\nfrom recipes.vanilla import Vanilla\n\n\nclass Mine(Vanilla):\n"
            "    @classmethod\n    def needs(cls, options, number=0):\n        return Needs(perceptual=True)\n",
            "has no GAN and no LPIPS",
        ),
        (
            "from recipes.vanilla import Vanilla\n\n\nclass Mine(Vanilla):\n    def extra_loss(self, seen, step):\n"
            "        return step.batch.features[0].sum(), {}\n",
            "IndexError",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(text, sentence, place, tmp_path):
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    done = place.command("check-recipe", file) if sentence == "IndexError" else place.run("--recipe-file", file)
    assert "Traceback" not in done.stderr
    assert done.returncode == (1 if sentence == "IndexError" else 2)
    assert sentence in done.stderr + done.stdout


BROKEN = {
    "randomness comes through step.draws alone": "def extra_loss(self, seen, step):\n"
    "        return torch.randn(()) * seen.out.velocity.sum(), {}",
    "losses are finite scalars, each for its own network": "def extra_loss(self, seen, step):\n"
    "        return seen.out.velocity.flatten(1).mean(1), {}",
    "any micro-batch gives the same": "def extra_loss(self, seen, step):\n"
    "        return seen.out.velocity.flatten(1).var(0).mean(), {}",
    "resuming is exact": "seen_so_far = 0\n\n    def extra_loss(self, seen, step):\n"
    "        self.seen_so_far += 1\n        return self.seen_so_far * seen.out.velocity.square().mean(), {}",
    "FLOPs are counted, and what stops stops costing": "@classmethod\n    def needs(cls, options, number=0):\n"
    "        return Needs(features=number < 100)",
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_named(rule, tmp_path):
    from harness.checks.conformance import conform
    from recipes.registry import find_recipe

    file = tmp_path / "mine.py"
    head = "import torch\nfrom recipes.base import Needs\nfrom recipes.vanilla import Vanilla\n\n\n"
    file.write_text(f"{head}class Mine(Vanilla):\n    {BROKEN[rule]}\n")
    use_files([file])
    assert list(outside_recipes()) == ["mine"]
    faults = [c.rule for c in conform(find_recipe("mine", {}, where="mine")) if c.fault]
    assert rule in faults


def test_an_installed_recipe_that_cannot_be_loaded_is_one_sentence(monkeypatch):
    from importlib.metadata import EntryPoint

    from recipes import recipe_files

    broken = EntryPoint("gone", "no_such_package.recipes:Gone", recipe_files.ENTRY_POINTS)
    monkeypatch.setattr(recipe_files, "_installed", lambda: (broken,))
    with pytest.raises(UserError, match=r"'gone' .* cannot be loaded: ModuleNotFoundError: .* take it away"):
        outside_recipes()


def test_an_installed_package_is_one_too(place, tmp_path):
    site = tmp_path / "site"
    (site / "mine-1.dist-info").mkdir(parents=True)
    (site / "mine-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (site / "mine-1.dist-info" / "entry_points.txt").write_text("[repa_bench.recipes]\nfaint = faint_recipe:Faint\n")
    (site / "faint_recipe.py").write_text(
        'from recipes.vanilla import Vanilla\n\n\nclass Faint(Vanilla):\n    """Vanilla under another name."""\n'
    )
    import sys

    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from harness.cli.start import main; main()"
    import os

    done = subprocess.run(
        [sys.executable, "-c", code, str(site), "run", "--suite", "smoke", "--out", place.out, "--recipes", "faint",
         "--cache", place.cache],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    vanilla = {r["step"]: r["metrics"]["fid"] for r in place.scores() if r["variant"] == "vanilla"}
    faint = {r["step"]: r["metrics"]["fid"] for r in place.scores() if r["variant"] == "faint"}
    assert faint == {step: vanilla[step] for step in faint}
    assert len(faint) == 3
