"""Nothing is lost when a process dies, at whatever moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from campaign import Campaign, state_of
from conftest import ROOT


def chosen_seed() -> int:
    """$REPA_BENCH_KILL_SEED repeats a campaign; otherwise every one is another."""
    return int(os.environ.get("REPA_BENCH_KILL_SEED") or random.SystemRandom().randint(0, 10**6))


def campaign(tmp_path: Path, kills: int, *more: str) -> int:
    """Fails where something was lost; how many processes were killed."""
    seed = chosen_seed()
    print(f"REPA_BENCH_KILL_SEED={seed}")
    made = Campaign(tmp_path, seed, ("--suite", "smoke", "--save-every", "5", *more))
    made.go(kills)
    told = ", ".join(f"{at} ({stage})" for at, stage in made.where)
    print(f"{made.kills} kills in {made.chains} runs, nothing lost: {told}")
    print(", ".join(f"{stage} {n}" for stage, n in Counter(stage for _, stage in made.where).most_common()))
    return made.kills


def test_two_kills_lose_nothing(tmp_path):
    assert campaign(tmp_path, 2, "--recipes", "repa_e") == 2


@pytest.mark.soak
@pytest.mark.timeout(3 * 3600)
def test_fifty_kills_lose_nothing(tmp_path):
    kills = int(os.environ.get("REPA_BENCH_KILLS") or 50)
    assert campaign(tmp_path, kills) == kills


def _children(pid: int) -> list[int]:
    """Running children of a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if fields[1] == str(pid) and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return sorted(found)


def _torchrun(out: Path, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "2", "-m", "harness.cli", "run", "--suite", "smoke", "--recipes", "repa_e"]
    return subprocess.Popen(
        [*command, "--out", str(out), "--cache", str(cache)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run by two processes, and its cache."""
    root = tmp_path_factory.mktemp("torchrun")
    with _torchrun(root / "out", root / "cache") as process:
        told, _ = process.communicate(timeout=600)
    assert process.returncode == 0, told
    return root / "out", root / "cache"


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_torchrun_starts_again_after_one_of_two_processes_was_killed(rank, undisturbed, tmp_path):
    out = tmp_path / "out"
    with _torchrun(out, undisturbed[1]) as process:
        deadline = time.monotonic() + 300
        while not list(out.glob("runs/*/checkpoints/[0-9]*/manifest.json")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(_children(process.pid)[rank], signal.SIGKILL)
        told, _ = process.communicate(timeout=600)
    assert process.returncode == 0, told
    assert "SIGKILL" in told or "Signal 9" in told or "exitcode: -9" in told or "exitcode  : -9" in told, told
    assert state_of(out) == state_of(undisturbed[0])
