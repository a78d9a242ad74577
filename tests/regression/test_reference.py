"""The smoke suite against what was accepted: `nox -s regression`."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from harness.results.reference import differences, summarize

ACCEPTED = json.loads((ROOT / "baselines" / "reference" / "smoke.json").read_text())


@pytest.mark.regression
def test_smoke_suite_reproduces_the_accepted_run(tmp_path):
    command = [sys.executable, "-m", "harness.cli", "run", "--suite", "smoke", "--out", str(tmp_path / "out")]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"REPA_BENCH_CACHE": str(tmp_path / "cache")}, check=True)
    assert differences(ACCEPTED, summarize(tmp_path / "out")) == []


def test_a_moved_number_is_named():
    assert differences(ACCEPTED, ACCEPTED) == []
    moved = copy.deepcopy(ACCEPTED)
    moved["runs"]["repa/seed0"]["loss"]["denoising"]["8"] *= 1.02
    moved["runs"]["vanilla/seed0"]["fid"]["24"] *= 1.04
    (difference,) = differences(ACCEPTED, moved)
    assert difference.startswith("runs/repa/seed0/loss/denoising/8")
    del moved["runs"]["repa_e/seed0"]["fid"]["24"]
    assert "runs/repa_e/seed0/fid/24: only on one side" in differences(ACCEPTED, moved)
    faster = copy.deepcopy(ACCEPTED)
    faster["speedup"]["repa_e"] *= 1.5
    assert [d.split(":")[0] for d in differences(ACCEPTED, faster)] == ["speedup/repa_e"]
    other = ACCEPTED | {"suite_digest": "x"}
    assert differences(ACCEPTED, other) == [
        "the suite's specification changed: accept a new reference, with the reason"
    ]
