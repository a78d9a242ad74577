"""A grid on a real SLURM, with jobs that lose their place: the results of one process, to the bit."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from campaign import state_of
from conftest import ROOT
from imagenet_tree import write_tree
from real_slurm import Slurm, missing, running, until

from harness.pipeline.jobs import JobFile, JobFiles, cell_name

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@dataclass(frozen=True)
class Grid:
    """A comparison of ImageNet's smoke suite, in a folder of its own."""

    place: Path
    recipes: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int

    def run(self, name: str, *more: str, environment: dict[str, str] | None = None, processes: int = 1) -> str:
        """`repa-bench run` from a cache and into a folder of that name; what it prints."""
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(torchrun if processes > 1 else []), "-m", "harness.cli", "run"]
        command += ["--suite", "imagenet-smoke", "--threads", "1"]
        command += ["--data", str(self.place / "tree"), "--recipes", *self.recipes, "--seeds", *map(str, self.seeds)]
        command += ["--steps", str(self.steps), "--score-every", str(self.steps), "--save-every", "5"]
        command += ["--cache", str(self.place / f"cache-{name}"), "--out", str(self.place / name), *more]
        own = (environment or dict(os.environ)) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        own.pop("REPA_BENCH_CACHE", None)
        done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=3000, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def cells(self) -> list[str]:
        """Names of the jobs that train and score."""
        return [cell_name(*cell) for cell in itertools.product(self.recipes, self.seeds)]

    def result(self, name: str) -> dict[str, Any]:
        """What a results folder says, without what is logged and saved because somebody had to leave."""
        found = state_of(self.place / name, told=True)
        last = f"{self.steps:07d}"
        found = {key: value for key, value in found.items() if not key.startswith("weights") or key.endswith(last)}
        for key, value in found.items():
            if key.startswith("log"):
                found[key] = [row for row in value if row["step"] in (1, self.steps) or row["step"] % 5 == 0]
            elif key.startswith("record"):
                value.pop("step_seconds_from", None)
        return found


@dataclass
class OnSlurm:
    """The same grid as jobs."""

    grid: Grid
    slurm: Slurm
    gpus: int = 0

    @property
    def out(self) -> Path:
        return self.grid.place / "slurm"

    def submit(self, *more: str) -> str:
        asked = ["--gpus", str(self.gpus), "--cpus", str(max(1, self.gpus))]
        return self.grid.run("slurm", "--on", "slurm", *asked, *more, environment=self.slurm.environment)

    def jobs(self) -> dict[str, JobFile]:
        return {job.name: job for job in JobFiles(self.out).all()}

    def training(self) -> list[JobFile]:
        """Cells that are in the middle of their training, with a checkpoint of this start or another."""
        found = []
        for job in self.jobs().values():
            places = [*self.out.glob(f"runs/{job.name}-*/checkpoints/0*")]
            if job.variant and job.state == "running" and len(places) > 0 and not self.over(job.name):
                found.append(job)
        return found

    def over(self, name: str) -> bool:
        return bool([*self.out.glob(f"runs/{name}-*/checkpoints/{self.grid.steps:07d}")])

    def wait(self, happened: Callable[[], object], what: str, seconds: float = 600) -> None:
        """Wait, and let requeued jobs begin at once."""

        def look() -> bool:
            self.slurm.hurry()
            failed = [job for job in self.jobs().values() if job.state == "failed"]
            assert not failed, failed
            return bool(happened())

        until(look, f"{what}: {self.jobs()}", seconds)

    def preempt(self) -> None:
        """A job that takes the whole node comes to the other partition."""
        self.slurm.call("sbatch", "--partition=high", "--cpus-per-task=2", "--output=/dev/null", "--wrap", "sleep 2")


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    with running(tmp_path / "daemons") as found:
        yield found


def check(on: OnSlurm, serial: Future[str]) -> None:
    """All is done, equal to a serial run from a cold cache, and not submitted again."""
    on.wait(lambda: on.jobs()["report"].ended is not None and not on.slurm.queue(), "the report does not come", 1800)
    jobs = on.jobs()
    assert {name: job.state for name, job in jobs.items()} == dict.fromkeys(
        ("prepare", *on.grid.cells, "report"), "done"
    )
    assert (on.out / "report" / "index.html").is_file()
    assert "0 jobs submitted" in on.submit()
    serial.result()
    assert on.grid.result("slurm") == on.grid.result("serial")


def test_a_cell_that_is_preempted_is_a_serial_run_to_the_bit(slurm, tmp_path):
    write_tree(tmp_path / "tree")
    on = OnSlurm(Grid(tmp_path, ("repa_e",), (0,), 16), slurm)
    with ThreadPoolExecutor(1) as meanwhile:
        assert "3 jobs submitted" in on.submit()
        serial = meanwhile.submit(on.grid.run, "serial")
        on.wait(on.training, "no cell trains")
        on.preempt()
        on.wait(lambda: on.jobs()["repa_e-seed0"].starts == 2, "nobody is preempted and begins again")
        check(on, serial)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_job_of_two_processes_saves_and_goes_on(tmp_path):
    """Under torchrun, on two pretended GPUs: there is no device, so the suite runs on the CPU."""
    with running(tmp_path / "daemons", gpus=2) as slurm:
        write_tree(tmp_path / "tree")
        on = OnSlurm(Grid(tmp_path, ("repa_e",), (0,), 30), slurm, gpus=2)
        on.submit()
        on.wait(on.training, "no cell trains")
        on.preempt()
        on.wait(lambda: on.jobs()["repa_e-seed0"].starts == 2, "nobody is preempted and begins again")
        with ThreadPoolExecutor(1) as now:
            check(on, now.submit(on.grid.run, "serial", processes=2))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_nine_cells_that_lose_their_place_four_times(slurm, tmp_path):
    write_tree(tmp_path / "tree")
    (tmp_path / "cluster.toml").write_text("time = 3\nnotice = 60\npartition = 'low'\n")
    on = OnSlurm(Grid(tmp_path, ("repa_e", "repa", "vanilla"), (0, 1, 2), 60), slurm)
    on.submit("--cluster", str(tmp_path / "cluster.toml"))
    on.wait(on.training, "no cell trains")
    on.preempt()
    on.wait(lambda: any(job.starts > 1 for job in on.jobs().values()), "nobody is preempted and begins again")
    on.wait(on.training, "no cell trains")
    on.slurm.call("scontrol", "requeue", on.training()[0].number)
    on.wait(on.training, "no cell trains after that")
    on.slurm.kill_node()
    on.slurm.start_node()
    with ThreadPoolExecutor(1) as now:
        check(on, now.submit(on.grid.run, "serial"))
