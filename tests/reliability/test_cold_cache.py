"""Several first starts at once: into one empty cache and one results folder."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from imagenet_tree import write_tree

from harness.records.file import RecordFile
from harness.records.schema import AnyRecord, ScoreRecord, StageRecord

CELLS = list(itertools.product(("repa_e", "repa", "vanilla"), (0, 1, 2)))
STEPS = 2


def start(place: Path, work: str, variant: str, seed: int) -> subprocess.Popen[str]:
    """One command, as a job of a grid runs it."""
    command = [sys.executable, "-m", "harness.cli", work, "--suite", "imagenet-smoke", "--data", place / "tree"]
    command += ["--cache", place / "cache", "--out", place / "out", "--recipes", variant, "--seeds", seed]
    command += ["--steps", STEPS, "--score-every", STEPS, "--threads", 1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("REPA_BENCH_CACHE", None)
    with (place / f"{variant}-{seed}.log").open("w") as said:
        return subprocess.Popen([*map(str, command)], cwd=ROOT, env=environment, stdout=said, stderr=said, text=True)


def begin_together(place: Path, work: str, cells: list[tuple[str, int]]) -> list[AnyRecord]:
    """All of them: each is done, no asset is made twice, and nothing of a writer is left. Returns the records."""
    write_tree(place / "tree")
    running = {cell: start(place, work, *cell) for cell in cells}
    for (variant, seed), process in running.items():
        assert process.wait(timeout=600) == 0, (place / f"{variant}-{seed}.log").read_text()
    records = RecordFile(place / "out").all()
    stages = [r for r in records if isinstance(r, StageRecord)]
    assert {(r.variant, r.seed) for r in stages if r.stage == "train"} == set(cells)
    made = [r.stage for r in stages if r.stage.startswith("prepare ") and r.stage != "prepare images"]
    assert made
    assert len(made) == len(set(made))
    assert [p for p in place.rglob(".*") if p.name.endswith((".tmp", ".lock", ".claim"))] == []
    return records


def test_three_first_starts_at_once(tmp_path):
    begin_together(tmp_path, "train", [CELLS[0], CELLS[3], CELLS[4]])


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_nine_first_starts_at_once_twenty_times(tmp_path):
    for turn in range(20):
        records = begin_together(tmp_path / f"{turn}", "run", CELLS)
        scores = [r for r in records if isinstance(r, ScoreRecord)]
        assert {(r.variant, r.seed) for r in scores} == set(CELLS)
        assert len({r.key() for r in scores}) == len(scores)
        assert len({tuple(sorted(r.assets.items())) for r in scores}) == 1
