"""The notebook of docs/ runs from an empty cache, and what it measured is what the commands say."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT
from notebook import executed

import harness
from harness.cli.app import main

TOLD = """
import json, shutil
shutil.copytree(place, os.environ["KEPT"])
print(json.dumps(harness.speedup(harness.load(place / "smoke"), "repa").as_dict()))
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder that the notebook worked in, and the speedup that it found."""
    kept = tmp_path_factory.mktemp("notebook") / "place"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("KEPT", str(kept))
        last = executed("import os" + TOLD).cells[-1]
    return kept, json.loads(last.outputs[0].text)


def test_its_speedup_is_the_commands(ran, monkeypatch, capsys):
    folder, told = ran
    monkeypatch.setattr("sys.argv", ["repa-bench", "speedup", f"{folder}/smoke", "--recipes", "repa", "--json"])
    with pytest.raises(SystemExit):
        main()
    assert told == json.loads(capsys.readouterr().out)
    assert told["speedups"]["repa"]["iterations"]["seeds"] == 2


def test_its_run_is_the_commands(ran, monkeypatch, capsys):
    """The command finds nothing left to do where the function was, nor the function where the command was."""
    folder, _ = ran
    place = {"out": folder / "smoke", "cache": folder / "cache"}
    before = harness.load(place["out"]).records
    words = "run --suite smoke --recipes vanilla repa --seeds 0 1 --out {out} --cache {cache}".format(**place)
    monkeypatch.setattr("sys.argv", ["repa-bench", *words.split()])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    said = capsys.readouterr().err
    assert said.startswith("smoke (")
    assert "train" not in said
    assert harness.run("smoke", "vanilla,repa", [0, 1], **place).records == before
    assert capsys.readouterr().err == said[: said.index("report:")]
    assert harness.run("smoke", ["repa"], [0], **place, quiet=True).records == before
    assert capsys.readouterr() == ("", "")
