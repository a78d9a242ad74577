"""A grid on lanes of this machine: the results of one process, watched from outside, and again after a failure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from campaign import state_of
from conftest import ROOT

from harness.pipeline.jobs import JobFile, JobFiles

GRID = ["run", "--suite", "smoke", "--recipes", "vanilla", "repa_e", "--seeds", "0"]


def command(*words: str | Path, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "REPA_BENCH_CACHE": str(cache)}
    line = [sys.executable, "-m", "harness.cli", *map(str, words)]
    return subprocess.run(
        line, cwd=cache.parent, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def results_of(out: Path) -> dict[str, Any]:
    found = state_of(out)
    for value in (value for key, value in found.items() if key.startswith("record")):
        value.pop("step_seconds_from", None)
    return found


def until(happened: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The grid in one process: (results, cache)."""
    root = tmp_path_factory.mktemp("serial")
    done = command(*GRID, "--out", root / "out", cache=root / "cache")
    assert done.returncode == 0, done.stderr
    return root / "out", root / "cache"


@pytest.fixture(scope="module")
def lanes(serial, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The grid on two lanes: results, and what was said while it was watched."""
    out = tmp_path_factory.mktemp("lanes") / "out"
    done = command(*GRID, "--out", out, "--on", "local:2", "--wait", cache=serial[1])
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_two_lanes_give_what_one_process_gives(serial, lanes):
    assert results_of(lanes[0]) == results_of(serial[0])
    assert (lanes[0] / "report" / "index.html").is_file()


def test_the_grid_is_watched(lanes, serial):
    out, told = lanes
    assert "4 jobs submitted" in told
    lines = [line.split()[:2] for line in told.splitlines() if len(line.split()) > 1]
    for name in ("prepare", "vanilla-seed0", "repa_e-seed0", "report"):
        states = [state for first, state in lines if first == name]
        assert states[0] == "waiting"
        assert "running" in states or "scoring" in states
        assert states[-1] == "done"
    found = json.loads(command("status", out, "--json", cache=serial[1]).stdout)
    cells = {cell["name"]: cell for cell in found["cells"]}
    assert list(cells) == ["prepare", "vanilla-seed0", "repa_e-seed0", "report"]
    assert {cell["state"] for cell in cells.values()} == {"done"}
    assert [step for step, _ in cells["repa_e-seed0"]["fids"]] == [8, 16, 24]
    assert cells["repa_e-seed0"]["losses"]["vae_align"] < 0
    assert found["device_seconds"] > 0


def test_a_grid_without_jobs_is_watched_too(serial):
    done = command("status", serial[0], cache=serial[1])
    assert done.returncode == 0, done.stdout
    assert "2 of 2 done" in done.stdout


def test_the_same_command_submits_nothing_twice(serial, lanes):
    done = command(*GRID, "--out", lanes[0], "--on", "local:2", cache=serial[1])
    assert "0 jobs submitted" in done.stdout, done.stdout + done.stderr
    assert "vanilla-seed0: done" in done.stdout


def test_a_dry_run_prints_the_jobs_and_writes_nothing(serial, tmp_path):
    done = command(*GRID, "--out", tmp_path / "out", "--on", "local:2", "--dry-run", cache=serial[1])
    assert done.returncode == 0, done.stderr
    assert "repa-bench run --suite smoke" in done.stdout
    assert "--cell repa_e:0" in done.stdout
    assert not (tmp_path / "out").exists()
    script = command(*GRID, "--out", tmp_path / "out", "--on", "slurm", "--dry-run", "--gpus", "8", "--time", "60",
                     "--partition", "long", "--flag", "qos=high", cache=serial[1])  # fmt: skip
    for line in ("#SBATCH --gpus-per-node=8", "#SBATCH --time=60", "#SBATCH --partition=long", "#SBATCH --qos=high",
                 "#SBATCH --array=0-1%2", "#SBATCH --signal=USR2@180", "# report: repa-bench report"):  # fmt: skip
        assert line in script.stdout, script.stdout + script.stderr


def job(out: Path, name: str) -> JobFile:
    found = JobFiles(out).read(name)
    assert found is not None
    return found


@pytest.mark.soak  # of a preempted job: test_slurm.py
def test_a_lane_that_is_ended_saves_and_the_same_command_goes_on(serial, tmp_path):
    out, long = tmp_path / "out", [*GRID, "--steps", "400", "--save-every", "5", "--out", tmp_path / "out"]
    assert command(*long, "--on", "local", cache=serial[1]).returncode == 0
    until(lambda: bool([*out.glob("runs/vanilla-*/checkpoints/0*")]), "nothing is trained")
    os.kill(int(job(out, "vanilla-seed0").number), signal.SIGTERM)
    until(lambda: job(out, "vanilla-seed0").state == "stopped", "it does not stop")
    done = command("status", out, cache=serial[1])
    assert done.returncode == 1
    assert "stopped" in done.stdout
    assert command(*long, "--on", "local:2", "--wait", cache=serial[1]).returncode == 0
    again = job(out, "vanilla-seed0")
    assert (again.state, job(out, "report").state) == ("done", "done")
    steps = [json.loads(row)["step"] for row in next(out.glob("runs/vanilla-*/log.jsonl")).read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 400


@pytest.mark.soak
def test_a_job_that_fails_says_why_and_is_submitted_again(serial, tmp_path):
    out = tmp_path / "out"
    bad = [*GRID, "--set", "max_rfid=1e-9", "--out", out, "--on", "local:2"]
    done = command(*bad, "--wait", cache=serial[1])
    assert done.returncode == 1
    assert "rFID" in done.stdout, done.stdout
    assert "4 jobs submitted" in command(*bad, cache=serial[1]).stdout
