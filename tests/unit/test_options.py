"""Lists on the command line, help and completion."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest
import typer.main
from conftest import ROOT

from harness.cli import app
from harness.cli.lists import expand_lists

COMMAND = typer.main.get_command(app.app)


def expanded(line: str) -> list[str]:
    return expand_lists(shlex.split(line), COMMAND)


@pytest.mark.parametrize("command", ["run", "train", "guidance", "speedup", "claims", "report", "plan", "analyse"])
@pytest.mark.parametrize(("flag", "values"), [("--seeds", "0 1 2"), ("--recipes", "repa repa_e vanilla")])
def test_spaces_commas_and_repetition_are_the_same(command, flag, values):
    words = values.split()
    wanted = [command, *(part for word in words for part in (flag, word))]
    for text in (
        f"{flag} {values}",
        f"{flag} {','.join(words)}",
        f"{flag} {', '.join(words)}",
        f"{flag}={','.join(words)}",
        f"{flag} {words[0]},{words[1]} {words[2]}",
        f"{flag} {words[0]} {flag} {words[1]},{words[2]},",
    ):
        assert expanded(f"{command} {text}") == wanted, text


@pytest.mark.parametrize(
    ("line", "text"), [("score --samples x --metrics", "fid,kid,is"), ("report x --format", "html,md,png")]
)
def test_what_takes_commas_takes_spaces(line, text):
    *_, flag = line.split()
    wanted = [*line.split(), text]
    one, two, three = text.split(",")
    for values in (text, f"{one} {two} {three}", f"{one}, {two}, {three}", f"{one} {flag} {two},{three}"):
        assert expanded(f"{line} {values}") == wanted, values
    assert expanded(f"{line}={text}") == wanted


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("guidance --scales 1.25,1.5 2", "--scales 1.25 --scales 1.5 --scales 2"),
        ("guidance --intervals 0:1,0:0.7 0.2:1", "--intervals 0:1 --intervals 0:0.7 --intervals 0.2:1"),
        ("guidance --search-seeds 7,8", "--search-seeds 7 --search-seeds 8"),
        ("guidance --generation-seeds 1 2", "--generation-seeds 1 --generation-seeds 2"),
        ("guidance --scales -0.5 1", "--scales -0.5 --scales 1"),
        ("run --set sit.depth=6 sit.heads=2", "--set sit.depth=6 --set sit.heads=2"),
        ("run --set default_variants=[1,2]", "--set default_variants=[1,2]"),
        ("doctor --metrics --images 20", "--metrics --images 20"),
        ("speedup --recipes SiT-XL/2 REPA-XL/2", "--recipes SiT-XL/2 --recipes REPA-XL/2"),
        ("run -- --seeds 1 2", "-- --seeds 1 2"),
        ("run --seeds", "--seeds"),
        ("run --recipes ,", "--recipes ,"),
        ("report x --format ''", "x --format ''"),
    ],
)  # fmt: skip
def test_other_lists(line, wanted):
    assert expanded(line)[1:] == shlex.split(wanted)


def test_a_folder_ends_a_list(tmp_path, monkeypatch):
    """Of a command that takes folders; a word that is no folder is a value, which is refused by its name."""
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    (tmp_path / "repa").mkdir()
    monkeypatch.chdir(tmp_path)
    assert expanded("report --recipes vanilla repa_e runs/digits") == shlex.split(
        "report --recipes vanilla --recipes repa_e runs/digits"
    )
    assert expanded("report --format html runs") == shlex.split("report --format html runs")
    assert expanded("report runs/digits --recipes vanilla repa")[-4:] == shlex.split("--recipes vanilla --recipes repa")
    assert expanded("report --recipes vanilla nowhere/x")[-2:] == shlex.split("--recipes nowhere/x")
    assert expanded("run --recipes vanilla repa")[-2:] == shlex.split("--recipes repa")


def leaves(command=COMMAND, path=()):
    """Every command with the words that name it."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path
    for name in inner or ():
        yield from leaves(inner[name], (*path, name))


@pytest.mark.parametrize("path", [*leaves(), (), ("runs",), ("cache",)], ids=" ".join)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_helps(path, flag, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["repa-bench", *path, flag])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as left:
        app.main()
    assert not left.value.code
    told = " ".join(capsys.readouterr().out.split())
    assert f"Usage: {' '.join(('repa-bench', *path))}" in told
    if path in set(leaves()):
        name = " ".join(path[:-1] if path[-1] == "list" and len(path) > 1 else path)
        assert "Example: " in told
        assert f" {name} " in told.split("Example:")[1]


def test_completion():
    """Of commands and of options, without loading what the commands work with."""
    for words, at, wanted in (("repa-bench ru", 1, {"run", "runs"}), ("repa-bench plan --det", 2, {"--detect"})):
        environment = {"_REPA_BENCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        code = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))"
        code += "; from harness.cli.app import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
        )
        *found, torch = done.stdout.split()
        assert (set(found), torch) == (wanted, "False")
