"""What a notebook calls gives what the commands give."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from multiprocessing.spawn import get_preparation_data
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import ROOT
from tests_support import Toy, pictures, write_sets

import harness
from harness.assets import networks
from harness.cli.app import main
from harness.pipeline import parallel
from recipes.core.content import CACHE_VARIABLE
from reports.build import results_csv

EXAMPLE = ROOT / "reports" / "examples" / "digits"


@pytest.fixture
def command(monkeypatch, capsys):
    """A command line in this process; returns the JSON that it prints."""

    def call(*arguments: object) -> dict:
        monkeypatch.setattr("sys.argv", ["repa-bench", *map(str, arguments), "--json"])
        with pytest.raises(SystemExit) as left:
            main()
        assert not left.value.code
        return json.loads(capsys.readouterr().out)

    return call


@pytest.fixture(scope="module")
def results():
    return harness.load(EXAMPLE)


def test_importing_it_imports_no_torch():
    code = (
        "import sys, harness, harness.cli.app; harness.UserError; assert 'torch' not in sys.modules\n"
        "assert {'evaluate', 'load', 'run', 'speedup'} <= set(dir(harness))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'speedups'"):
        _ = harness.speedups


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({}, ""),
        ({"recipes": "repa_e"}, "--recipes repa_e"),
        ({"recipes": ["repa", "naive_e2e"], "seeds": [10, np.int64(12)]}, "--recipes repa naive_e2e --seeds 10 12"),
        ({"recipes": "repa_e", "baseline": "repa", "until": 750}, "--recipes repa_e --baseline repa --until 750"),
        ({"target": 6.5}, "--target 6.5"),
    ],
)  # fmt: skip
def test_a_speedup_is_the_commands(results, command, given, flags):
    found = harness.speedup(results, **given)
    wanted = command("speedup", EXAMPLE, *flags.split())
    assert json.loads(json.dumps(found.as_dict())) == wanted
    rows = [(row["recipe"], row["currency"], row["interval"]) for row in found.rows]
    assert rows == [
        (recipe, currency, told["interval"])
        for recipe, by in wanted["speedups"].items()
        for currency, told in by.items()
    ]
    label = results.recipes[rows[0][0]]
    assert f"| {label} | iterations |" in found._repr_markdown_()
    assert f"\n{label} " in repr(found)


def test_records_are_the_lines_of_results_csv(results):
    lines = list(csv.DictReader(io.StringIO(results_csv(results.comparison))))
    told = [{key: "" if value is None else str(value) for key, value in row.items()} for row in results.records]
    assert told == lines
    assert len(lines) > 100
    assert {row["variant"] for row in lines} == set(results.recipes)
    assert results.protocol in {row["protocol"] for row in lines}
    for shown in (repr(results), results._repr_markdown_()):
        assert [title in shown for title in ("FID by iterations", "Speedup to", "Cost of training")] == [True] * 3


def test_an_evaluation_is_the_commands(tmp_path, monkeypatch, command):
    """Of a tensor as of the same images in files, and nothing of it stays behind in the process."""
    monkeypatch.setitem(networks.NETWORKS, "inception", lambda weights, device: Toy())
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    images = pictures(1, 20)
    write_sets(tmp_path, real=pictures(0, 24), fake=images)
    weights, reference = tmp_path / "real.npz", tmp_path / "real"
    common = {"metrics": ["fid", "is", "kid", "recall"], "weights": weights, "cache": tmp_path / "cache", "quiet": True}
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    found = [
        harness.evaluate(given, reference, **common) for given in (tensor, tmp_path / "fake", f"{tmp_path}/fake.npz")
    ]
    assert CACHE_VARIABLE not in os.environ
    wanted = command(
        "score", "--samples", tmp_path / "fake.npz", "--reference", reference, "--metrics", "fid,is,kid,recall",
        "--weights", weights, "--cache", tmp_path / "cache",
    )  # fmt: skip
    assert {"fid", "fid_floor", "is_se", "kid_se", "digests"} <= wanted.keys()
    assert json.loads(json.dumps(found)) == [wanted] * 3
    darker = harness.evaluate(tensor // 2, reference, **common)
    assert darker["digests"]["samples"] != wanted["digests"]["samples"]
    assert darker["fid"] != wanted["fid"]


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (torch.zeros(4, 3, 8, 8), r"torch.float32 and shape \(4, 3, 8, 8\); .*round\(\).*if x is in 0..1"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.int64), r"torch.int64 .* x.to\(torch.uint8\) if its values"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), r"channels come last: x.permute\(0, 3, 1, 2\)"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), r"grey: x.expand\(-1, 3, -1, -1\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"one image: x\[None\]"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "holds no image"),
        (np.zeros((4, 8, 8, 3), np.uint8), r"a ndarray; give a path, or .*from_numpy"),
        ("nowhere", "--samples nowhere: there is no such file"),
    ],
)
def test_images_that_cannot_be_scored(tmp_path, monkeypatch, images, told):
    monkeypatch.setitem(networks.NETWORKS, "inception", lambda weights, device: Toy())
    (tmp_path / "weights").touch()
    with pytest.raises(harness.UserError, match=told):
        harness.evaluate(images, tmp_path, weights=tmp_path / "weights", cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (harness.load, "name a results folder"),
        (lambda: harness.load("nowhere"), "nowhere holds no scores"),
        (lambda: harness.speedup(harness.load(EXAMPLE), "repae"), "--recipes: there is no recipe 'repae'. Did"),
        (lambda: harness.speedup(harness.load(EXAMPLE), []), "--recipes names none"),
        (lambda: harness.speedup(harness.load(EXAMPLE), until=0), "--until 0: a whole number from 1"),
        (lambda: harness.run("digit"), "--suite: there is no suite 'digit'. Did you mean 'digits'"),
        (lambda: harness.run("smoke", "repae"), "--recipes: suite smoke has no recipe 'repae'. Did you mean"),
        (lambda: harness.run("smoke", steps=0), "--steps 0: a whole number from 1"),
        (lambda: harness.run("smoke", steps=1.5), "--steps 1.5: a whole number"),
        (lambda: harness.run("smoke", seeds=[-1]), "--seeds -1: a whole number from 0"),
        (lambda: harness.run("smoke", seeds=[]), "--seeds names none"),
        (lambda: harness.run("smoke", score_every=0), "--score-every 0: a whole number from 1"),
        (lambda: harness.run("smoke", jobs=0), "--jobs 0: a whole number from 1"),
        (lambda: harness.run("smoke", overrides={"sit.dept": 1}), "--set sit.dept: sit has no key 'dept'. Did"),
        (lambda: harness.run("smoke", data="tree"), "--data: suite smoke makes its own data"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_anything_is_done(tmp_path, monkeypatch, call, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    with pytest.raises(harness.UserError) as error:
        call()
    assert told in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_worker_processes_do_not_import_the_script_that_began_them(monkeypatch):
    """Which would call `run` again, where it has no guard."""
    script = ModuleType("__main__")
    script.__file__ = "/nowhere/script.py"
    monkeypatch.setitem(sys.modules, "__main__", script)
    ours = {"init_main_from_name", "init_main_from_path"}
    assert ours & get_preparation_data("worker").keys()
    with parallel._nameless():
        assert not ours & get_preparation_data("worker").keys()
    assert ours & get_preparation_data("worker").keys()
