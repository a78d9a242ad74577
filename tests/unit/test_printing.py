"""Tables on a terminal and in files: numbers are whole, at any width."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
from conftest import ROOT
from rich.console import Console

from baselines.published import load_all
from harness.checks.doctor import AssetState, Health
from harness.cli import printing
from harness.cli.plan_printing import duration, health_lines
from harness.cli.printing import print_table, print_tables
from reports.published import published_table
from reports.summary import summarize

EXAMPLE = ROOT / "reports" / "examples" / "digits"
WIDTHS = (24, 40, 60, 80, 100, 132, 200)


def printed(monkeypatch, width: int, show) -> str:
    """On a terminal so wide."""
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None, markup=False, emoji=False)
    monkeypatch.setattr(printing, "out_console", console)
    show()
    return out.getvalue()


@pytest.mark.parametrize("width", WIDTHS)
def test_every_published_number_is_whole_at_any_width(width, monkeypatch):
    columns, rows, note = published_table(load_all())
    text = printed(monkeypatch, width, lambda: print_table("t", columns, rows, note))
    words = text.replace("│", " ").split()
    for row in rows:
        for cell in row:
            assert cell == "–" or set(cell.split()) <= set(words), cell


@pytest.mark.parametrize("width", WIDTHS)
def test_every_number_of_a_summary_is_whole_at_any_width(width, monkeypatch):
    tables = summarize([EXAMPLE]).text_tables()
    assert len(tables) == 3
    text = printed(monkeypatch, width, lambda: print_tables(tables))
    words = set(text.replace("│", " ").split())
    for table in tables:
        for row in table.rows:
            assert {word for cell in row for word in cell.split()} - {"–"} <= words


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(width, monkeypatch):
    """But for a word that is: that is left whole."""
    columns, rows, note = published_table(load_all())
    text = printed(monkeypatch, width, lambda: print_table("t", columns, rows, note))
    assert max(map(len, text.splitlines())) <= width


def test_a_block_leaves_out_what_is_not_there_and_keeps_brackets_and_colons(monkeypatch):
    row = ("[bold]a[/bold]", "–", "1,234,567.89", ":smile: [red]")
    text = printed(monkeypatch, 20, lambda: print_table("t", ("name", "gone", "number", "text"), [row]))
    assert text.splitlines() == ["t", "[bold]a[/bold]", "  number:", "    1,234,567.89", "  text: :smile:", "    [red]"]


def run(*arguments: str, **environment: str) -> str:
    """What a process writes into a pipe, and which of `MODULES` it has loaded."""
    code = f"import atexit, sys; atexit.register(lambda: print({MODULES!r} & set(sys.modules)))"
    code += f"; sys.argv = ['repa-bench', *{arguments!r}]; from harness.cli.app import main; main()"
    environment = {"PATH": "", "HOME": "/nowhere", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


MODULES = {"torch", "numpy", "diffusers", "matplotlib"}


@pytest.mark.parametrize("environment", [{}, {"COLUMNS": "80"}, {"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_baselines_in_a_pipe_have_all_digits_and_want_no_torch(environment):
    text = run("baselines", "--model", "SiT-B/2", **environment)
    *table, modules = text.splitlines()
    assert modules == "set()"
    assert "\x1b" not in text
    words = set(" ".join(table).replace("│", " ").split())
    rows = json.loads(run("baselines", "--model", "SiT-B/2", "--json").removesuffix("set()\n"))["rows"]
    assert len(rows) > 20
    for row in rows:
        assert {f"{value:.12g}" for value in row["metrics"].values() if isinstance(value, float)} <= words
        assert row["iterations"] is None or f"{row['iterations']:,}" in words
        assert f"{row['file']}:{row['number']}" in words


def test_doctor_prints_no_marks():
    state = AssetState("sd-vae", "tokenizer", "about [it]", "MIT", None, None, None, "fetch it")
    lines = health_lines(Health({"system": "x"}, (state,), {"digits-data-1": 5}, ("[1] is broken",)))
    text = "\n".join(line for line, _ in lines)
    assert not any(mark in text for mark in ("[bold]", "[/bold]", "[red]", "[/red]"))
    assert ("fault: [1] is broken", "red") in lines
    assert ("assets", "bold") in lines


def test_durations():
    found = [duration(seconds) for seconds in (0.21, 9.5, 99, 523, 7200, 9e6)]
    assert found == ["0.21 s", "9.5 s", "99 s", "8.7 min", "2.0 h", "2,500.0 h"]
