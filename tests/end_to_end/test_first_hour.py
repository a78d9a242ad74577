"""What somebody new runs first: the path on their own pictures, a refusal and its remedy, a plan, the cache."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from harness.cli.app import main
from harness.records.file import FILE, read

SMOKE = ("--suite", "smoke")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A command line in this process; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["repa-bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0)

    return call


def test_a_tree_may_have_any_number_of_classes(run, tmp_path, capsys):
    """One, two, or more than the tiny suite once had."""
    generator = np.random.default_rng(0)
    for classes in (1, 2, 5):
        for k in range(10):
            path = tmp_path / f"tree{classes}" / f"class{k % classes}" / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (80, 90, 3), dtype=np.uint8)).save(path)
        chosen = ("--suite", "imagenet-smoke", "--data", tmp_path / f"tree{classes}", "--recipes", "vanilla")
        place = ("--cache", tmp_path / "cache", "--out", tmp_path / f"out{classes}")
        assert run("train", *chosen, *place, "--steps", 1, "--score-every", 1) == 0, capsys.readouterr().err
        assert list((tmp_path / f"out{classes}" / "runs").glob("vanilla-seed0-*/checkpoints/0000001"))


def test_a_remedy_works_where_it_was_told(run, tmp_path, capsys):
    """A refusal after something was prepared names what to change; the same command with that change goes on. What the
    cache then holds is all the suite's, and a plan counts it as there.
    """
    place = ("--cache", tmp_path / "cache", "--out", tmp_path / "out")
    assert run("prepare", *SMOKE, *place, "--set", "max_rfid=1e-6") == 2
    assert "over the gate of 1e-06" in capsys.readouterr().err
    (refused,) = {record.suite_digest for record in read(tmp_path / "out" / FILE)}
    assert run("prepare", *SMOKE, *place) == 0
    assert "is now in" in capsys.readouterr().err
    digests = {record.suite_digest for record in read(tmp_path / "out" / FILE)}
    assert refused not in digests
    assert len(digests) == 1
    (trash,) = (tmp_path / "out" / "trash").iterdir()
    assert {record.suite_digest for record in read(trash / FILE)} == {refused}

    assert run("cache", "list", "--json", "--cache", tmp_path / "cache") == 0
    found = json.loads(capsys.readouterr().out)["items"]
    assert [(item["kind"], item["suites"], item["spare"]) for item in found] == [("made", ["smoke"], False)] * 8
    assert run("cache", "verify", "--cache", tmp_path / "cache") == 0
    capsys.readouterr()

    assert run("plan", *SMOKE, *place, "--recipes", "vanilla,repa_e", "--probe", "0.1", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    whole = told["whole"]
    assert set(whole["cached"]) == {item["name"].removeprefix("digits-").rpartition("-")[0] for item in found}
    assert list(whole["seconds"]) == [
        "start", "preparation", "tokenizer and noise floor", "training and scoring", "report",
    ]  # fmt: skip
    assert whole["seconds"]["preparation"] == 0
    assert min(whole["seconds"][name] for name in ("training and scoring", "report")) > 0
    device = 3600 * told["device_hours"]
    tuned = whole["seconds"]["tokenizer and noise floor"]
    assert whole["seconds"]["training and scoring"] == pytest.approx(device + tuned)
    assert run("plan", *SMOKE, *place, "--probe", "0.1", "--recipes", "vanilla") == 0
    text = capsys.readouterr().out
    assert "start to report: about" in text
    assert "cached)" in text
