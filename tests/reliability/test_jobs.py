"""Several runs at a time: the same results, and nothing lost, whoever of the processes dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from campaign import state_of
from conftest import ROOT

from harness.pipeline.parallel import _portable
from harness.runtime.locks import held
from recipes.core.errors import DamagedError, Stopped

VARIANTS, SEEDS = ("vanilla", "repa_e"), (3, 4)
GRID = ["run", "--suite", "smoke", "--recipes", *VARIANTS, "--seeds", *map(str, SEEDS), "--steps", "40"]
GRID += ["--score-every", "40", "--save-every", "10"]


def start(out: Path, cache: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "harness.cli", *GRID, *more, "--out", str(out), "--cache", str(cache)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "500"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(out: Path, cache: Path, *more: str) -> tuple[int, str]:
    with start(out, cache, *more) as process:
        _, told = process.communicate(timeout=600)
    assert "Traceback" not in told, told
    return process.returncode, told


def results_of(out: Path) -> dict[str, Any]:
    """`state_of`, without where the time of a step is from, and without what is logged because a signal came."""
    found = state_of(out)
    for key, value in found.items():
        if key.startswith("record"):
            value.pop("step_seconds_from", None)
        if key.startswith("log"):
            found[key] = [row for row in value if row["step"] in (1, 25) or row["step"] % 10 == 0]
    return found


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The grid, one run after the other: (results, cache)."""
    root = tmp_path_factory.mktemp("one")
    code, told = finish(root / "out", root / "cache", "--jobs", "1")
    assert code == 0, told
    return root / "out", root / "cache"


@pytest.fixture(scope="module")
def two(one: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The grid, two runs at a time."""
    out = tmp_path_factory.mktemp("two") / "out"
    code, told = finish(out, one[1], "--jobs", "2")
    assert code == 0, told
    return out


def test_two_at_a_time_give_what_one_gives(one, two):
    assert results_of(two) == results_of(one[0])
    stages = Counter(
        (r["stage"], r["variant"], r["seed"]) for r in rows_of(two) if r["kind"] == "stage" and r["variant"]
    )
    assert stages == {
        (stage, variant, seed): 1 for stage in ("pace", "train", "score") for variant in VARIANTS for seed in SEEDS
    }
    assert {r["provenance"]["threads"] for out in (one[0], two) for r in rows_of(out) if r["kind"] == "score"} == {1}


def test_the_time_of_a_step_is_quiet_where_the_machine_is_shared(one, two):
    for out, source in ((one[0], "median of the log"), (two, "quiet stretch")):
        scores = [r for r in rows_of(out) if r["kind"] == "score"]
        assert {r["step_seconds_from"] for r in scores} == {source}
        for r in scores:
            assert 0 < r["step_seconds"] * r["step"] < 3 * r["train_seconds"]
    quiet = {(r["variant"], r["seed"]): r["step_seconds"] for r in rows_of(two) if r["kind"] == "score"}
    assert len(set(quiet.values())) == len(VARIANTS) * len(SEEDS)
    assert quiet["repa_e", 3] > quiet["vanilla", 3]


def test_only_the_first_seed_s_last_checkpoint_is_drawn_twice(one):
    twice = {(r["seed"], r["step"]) for r in rows_of(one[0]) if r["kind"] == "score" and r["generation_seed"]}
    assert twice == {(3, 40)}


def test_again_does_nothing_again(one, two):
    before = (two / "records.jsonl").read_text()
    code, told = finish(two, one[1], "--jobs", "2")
    assert code == 0
    assert (two / "records.jsonl").read_text() == before
    assert "pace" not in told


def children(pid: int) -> list[int]:
    """Workers of a process: python processes that it spawned to compute."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
            if parent == str(pid) and "spawn_main" in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def until(happened: Callable[[], bool], process: subprocess.Popen[str] | None = None, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None
        time.sleep(0.02)


def interrupted(out: Path, cache: Path, two: Path, strike: Callable[[subprocess.Popen[str]], None]) -> tuple[int, str]:
    """Let two runs train for a while, then do something to the processes; exit code and what was said."""
    for quiet in two.glob("runs/*/pace.json"):
        place = out / quiet.relative_to(two)
        place.parent.mkdir(parents=True)
        shutil.copy(quiet, place)
    with start(out, cache, "--jobs", "2") as process:
        until(lambda: len({path.parent for path in out.glob("runs/repa_e-*/checkpoints/0*")}) == 2, process)
        workers = children(process.pid)
        assert len(workers) == 2
        strike(process)
        _, told = process.communicate(timeout=120)
    until(lambda: all(map(gone, workers)), seconds=20)
    assert "Traceback" not in told, told
    return process.returncode, told


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.soak)]
)
def test_a_signal_saves_every_run_and_the_same_command_continues(number, code, one, two, tmp_path):
    out = tmp_path / "out"
    found, told = interrupted(out, one[1], two, lambda process: process.send_signal(number))
    assert found == code, told
    assert told.count("is saved at step") == 2, told
    assert told.count("same command continues") == 1
    assert not list(out.rglob(".lock"))
    if number == signal.SIGTERM:
        assert finish(out, one[1], "--jobs", "2")[0] == 0
        assert results_of(out) == results_of(one[0])


@pytest.mark.soak  # of one process: test_faults.py
def test_a_second_ctrl_c_stops_at_once(one, two, tmp_path):
    def strike(process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGSTOP)  # two at once: the step that the first lets end takes milliseconds
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.01)
        process.send_signal(signal.SIGINT)

    code, told = interrupted(tmp_path / "out", one[1], two, strike)
    assert code == 130, told


@pytest.mark.soak
def test_workers_do_not_outlive_their_parent(one, two, tmp_path):
    out = tmp_path / "out"
    code, _ = interrupted(out, one[1], two, lambda process: process.kill())
    assert code == -signal.SIGKILL
    assert not list(out.rglob(".lock"))  # they saved and let go
    assert finish(out, one[1], "--jobs", "2")[0] == 0
    assert results_of(out) == results_of(one[0])


def test_a_worker_that_is_killed_ends_the_others_in_order(one, two, tmp_path):
    out = tmp_path / "out"
    code, told = interrupted(out, one[1], two, lambda process: os.kill(children(process.pid)[0], signal.SIGKILL))
    assert code == 2, told
    assert "the process that worked on repa_e, seed " in told
    assert "was killed (signal 9); if memory ran out, give a smaller --jobs" in told
    assert len(list(out.rglob(".lock"))) <= 1  # the killed one's, which binds nobody


@pytest.mark.soak  # another error of a worker: the training that explodes
def test_a_mistake_in_a_worker_is_one_sentence(one, two, tmp_path):
    out = tmp_path / "out"
    folder = out / next(two.glob("runs/vanilla-seed4-*")).relative_to(two)
    shutil.copytree(two / "runs", out / "runs", ignore=lambda place, names: {"checkpoints", "log.jsonl"} & {*names})
    with held(folder):
        code, told = finish(out, one[1], "--jobs", "2")
    assert code == 2
    assert told.count("Error: ") == 1
    assert f"is being worked on by process {os.getpid()}" in told


def test_a_training_that_explodes_ends_with_its_own_code(one, tmp_path):
    code, told = finish(tmp_path, one[1], "--jobs", "2", "--set", "sit_optimizer.lr=1e30")
    assert code == 3
    assert told.count("the gradient was not finite (batch") == 1


def test_what_is_no_mistake_keeps_its_traceback():
    def bug() -> None:
        raise KeyError("no such thing")

    with pytest.raises(KeyError) as raised:
        bug()
    sent = _portable(raised.value)
    assert str(sent) == "KeyError: 'no such thing'"
    assert "in bug\n" in sent.__notes__[0]
    for error in (DamagedError("a file"), Stopped("saved", 15)):
        assert _portable(error) is error


@pytest.mark.parametrize("arguments", [["--suite", "imagenet256"], ["--suite", "imagenet-smoke", "--data", "x"]])
def test_one_run_that_has_the_whole_machine_is_not_split(arguments, tmp_path, monkeypatch, capsys):
    from harness.cli import app

    monkeypatch.setattr(sys, "argv", ["repa-bench", "run", *arguments, "--jobs", "2", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert "--jobs decides nothing here; it goes with a suite whose runs have one thread each" in told
    assert not (tmp_path / "out").exists()
