"""Logs and notes: one damaged line stops nothing, and is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_run import make_inputs, make_spec

from harness.pipeline.pace import pace_of, quiet
from recipes.core.json_lines import append_row, read_rows, row_text
from recipes.training.run_folder import Run
from recipes.training.train import TrainingOptions, train_run


def _torn(lines: list[bytes]) -> bytes:
    """A line of a killed process, to which an older version appended."""
    return b"".join([lines[0], lines[1][:-9], *lines[2:]])


LINES = {
    "bit": lambda lines: b"".join([lines[0], lines[1].replace(b"2", b"3", 1), *lines[2:]]),
    "torn": _torn,
    "not text": lambda lines: b"".join([lines[0], b"\xff\xfe\x00" + lines[1], *lines[2:]]),
    "empty": lambda lines: b"".join([lines[0], b"\n", *lines[2:]]),
    "no object": lambda lines: b"".join([lines[0], b"[1, 2]\n", *lines[2:]]),
    "a number": lambda lines: b"".join([lines[0], b"7\n", *lines[2:]]),
    "deep": lambda lines: b"".join([lines[0], b'{"step": ' + b"[" * 5000 + b"}\n", *lines[2:]]),
    "deep and whole": lambda lines: b"".join([lines[0], b'{"step": ' + b"[" * 300 + b"]" * 300 + b"}\n", *lines[2:]]),
    "no step": lambda lines: b"".join([lines[0], b"{}\n", *lines[2:]]),
    "step in words": lambda lines: b"".join([lines[0], b'{"step": "two", "seconds": 1}\n', *lines[2:]]),
}


def _log(path: Path) -> list[bytes]:
    for step in range(1, 5):
        append_row(path, {"step": step, "seconds": 0.1 * step, "loss": 2.0})
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("kind", LINES)
def test_a_damaged_line_of_a_log_costs_that_line(kind, tmp_path):
    run = Run(make_spec("vanilla"), tmp_path)
    lines = _log(run.log_path)
    run.log_path.write_bytes(LINES[kind](lines))
    kept = [1, 4] if kind == "torn" else [1, 3, 4]
    pace = pace_of(run, 4)
    assert pace.step_seconds == pytest.approx(0.1)
    assert pace.notes == ["1 line of log.jsonl was damaged and is left out"]
    run.trim_log(4)
    assert [row["step"] for row in read_rows(run.log_path)[0]] == kept
    assert run.notes() == pace.notes
    assert pace_of(run, 4).notes == []


@pytest.mark.parametrize("kind", [k for k in LINES if k != "step in words"])
def test_a_damaged_remark_costs_that_remark(kind, tmp_path):
    run = Run(make_spec("vanilla"), tmp_path)
    for number in "1234":
        run.note(f"note {number}")
    lines = run.notes_path.read_bytes().splitlines(keepends=True)
    run.notes_path.write_bytes(LINES[kind](lines))
    told = run.notes()
    kept = ["note 1", "note 4"] if kind == "torn" else ["note 1", "note 3", "note 4"]
    assert told == [*kept, "1 line of notes.jsonl was damaged and is left out"]
    run.note("after")
    assert run.notes() == [*kept, "after", told[-1]]


def test_a_line_cut_short_by_a_kill_is_passed_over_and_ended(tmp_path):
    path = tmp_path / "rows"
    append_row(path, {"step": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:7])
    assert read_rows(path) == ([{"step": 1}], 0)
    append_row(path, {"step": 2})
    assert read_rows(path) == ([{"step": 1}, {"step": 2}], 1)


def test_lines_of_before_have_no_digest_and_are_read(tmp_path):
    run = Run(make_spec("vanilla"), tmp_path)
    rows = [{"step": step, "seconds": 0.1 * step} for step in range(1, 5)]
    run.log_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_rows(run.log_path) == (rows, 0)
    run.trim_log(3)
    assert run.log_path.read_text() == "".join(map(row_text, rows[:3]))


@pytest.mark.parametrize("value", ["null", "NaN", "Infinity", "-1", "0", '"fast"', "[" * 3000, "true"])
def test_a_damaged_pace_is_measured_again(value, tmp_path):
    (tmp_path / "pace.json").write_text(f'{{"step_seconds": {value}, "steps": 25}}\n')
    assert quiet(Run(make_spec("vanilla"), tmp_path)) is None


def test_a_run_whose_log_and_remarks_are_damaged_goes_on(tmp_path):
    run, inputs = Run(make_spec("vanilla"), tmp_path), make_inputs()
    train_run(run, inputs, [2], TrainingOptions(log_every=1))
    run.log_path.write_bytes(b"\xff" + run.log_path.read_bytes() + b'{"step": 3, "sec')
    run.notes_path.write_bytes(b'{"text": "torn{"text": "x"}\n')
    train_run(run, inputs, [2, 4], TrainingOptions(log_every=1))
    assert [row["step"] for row in read_rows(run.log_path)[0]] == [2, 3, 4]
    assert run.notes() == [
        "1 line of log.jsonl was damaged and is left out",
        "1 line of notes.jsonl was damaged and is left out",
    ]
