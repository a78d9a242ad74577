"""What people see of the work."""

from __future__ import annotations

import io
import subprocess
import sys

from conftest import ROOT
from rich.console import Console

from harness.runtime.progress import Reporter


def on_a_terminal() -> Reporter:
    return Reporter(Console(file=io.StringIO(), force_terminal=True, width=120, markup=False))


def told(reporter: Reporter) -> str:
    assert isinstance(reporter.console.file, io.StringIO)
    return reporter.console.file.getvalue()


def test_stages_at_once_share_one_display():
    reporter = on_a_terminal()
    with reporter.together() as bars, reporter.bar("all 2 runs (%)", 100) as whole:
        with reporter.stage("train one", 10) as one, reporter.bar("train two", 10) as two:
            one(3)
            two(5)
            whole(40)
            assert bars is not None
            assert [(task.description, task.completed) for task in bars.tasks] == [
                ("all 2 runs (%)", 40),
                ("train one", 3),
                ("train two", 5),
            ]
        assert len(bars.tasks) == 1
    assert "  train one: 0.0 s" in told(reporter)
    with reporter.stage("alone again", 1) as tell:
        tell(1)


def test_a_run_moves_the_bar_of_all_runs_on():
    reporter = on_a_terminal()
    with reporter.whole("all 2 runs (steps)", 20, on=True) as begin, reporter.together() as bars:
        assert bars is not None
        for number in range(2):
            begin(10 * number)
            with reporter.stage(f"train {number}", 10) as on_step:
                reporter.part(on_step)(4)
                assert [task.completed for task in bars.tasks] == [10 * number + 4, 4]
    with reporter.whole("one run", 10, on=False) as begin:
        begin(0)
        reporter.part(lambda done: None)(3)


def test_elsewhere_a_stage_is_a_line():
    reporter = Reporter(Console(file=io.StringIO(), width=120, markup=False))
    with reporter.together(), reporter.stage("train", 10) as tell:
        tell(10)
    assert told(reporter) == "  train: 0.0 s\n"


def test_a_worker_can_choose_its_threads_before_pytorch_is_loaded():
    code = "import sys, harness.pipeline.parallel; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
