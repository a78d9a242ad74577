"""Names that records and tables bring along are text: in every file of a report, on a terminal and in a shell."""

from __future__ import annotations

import csv
import io
import re
import shlex
import sys

import pytest
from conftest import ROOT
from markdown_it import MarkdownIt

sys.path.append(str(ROOT / "tests" / "unit"))
from test_comparison import whole

from harness.cli.app import main
from harness.records.file import FILE
from harness.records.schema import ScoreRecord
from harness.results.comparison import load
from harness.results.run_folders import entries
from recipes.core.errors import UserError, visible
from reports.build import FORMULAS, Wanted, render
from reports.table import plain


def written(path, **fields: str):
    """Scores with other texts; labels end with the variant's name, which tells them apart."""
    path.mkdir(exist_ok=True)
    records: list[ScoreRecord] = []
    for r in whole(2):
        texts = {name: f"{text} {r.variant}" if name == "label" else text for name, text in fields.items()}
        records.append(r.model_copy(update=texts))
    (path / FILE).write_text("".join(r.model_dump_json() + "\n" for r in records))
    return path


LINKS = (
    "![x](http://evil.example/a.png)",
    "[x](javascript:alert(1))",
    "[x]: javascript:alert(1)",
    "[x][y] [y]: //evil.example",
    "<javascript:alert(1)>",
    "http://evil.example",
    "HTTPS://evil.example",
    "ftp://evil.example",
    "www.evil.example",
    "WWW.evil.example",
    "somebody@evil.example",
    "mailto:somebody@evil.example",
    "[x\n](http://evil.example)",
    "\\[x](http://evil.example)",
    "[x]\\\\(http://evil.example) ![y](//e)",
    "`a` [x](//evil.example) `b`",
    "<img src=x> &lt;b&gt; | [x](//evil.example) |",
)
#: What GitHub makes a link of without brackets.
BARE = re.compile(r"(https?|ftp)://|www\.|\w@\w+\.\w|mailto:", re.IGNORECASE)


@pytest.mark.parametrize("text", LINKS)
def test_nothing_in_markdown_is_a_link(text):
    for line in (plain(text), f"- {plain(text)}", f"| {plain(text)} |\n| --- |\n| {plain(text)} |\n\n[x] [y]"):
        tokens = MarkdownIt("commonmark").enable("table").parse(line)
        kinds = {t.type for token in tokens for t in (token, *(token.children or ()))}
        assert not kinds & {"link_open", "image", "html_inline", "html_block"}, line
        assert not BARE.search(line), line


def test_a_report_has_no_link_of_a_record(tmp_path):
    text = " ".join(LINKS)
    files = render(Wanted([written(tmp_path, label=text, notice=text, about=text)]), ["md", "html"])
    tokens = MarkdownIt("commonmark").enable("table").parse(files["report.md"].decode())
    links = [t.attrs for token in tokens for t in (token.children or ()) if t.type in ("link_open", "image")]
    assert links == [{"src": "figures/fid.png", "alt": ""}]
    assert not re.search(r"<a [^>]*href=\"(?!#run-)", files["index.html"].decode())


@pytest.mark.parametrize("text", ["\x1b[31mred\x07", "a\x00b", "\x9b2J", "up\x08", "\u202eright to left"])
def test_a_page_holds_nothing_that_a_terminal_obeys(text, tmp_path):
    files = render(Wanted([written(tmp_path, label=text, notice=text, about=text)]), ["md", "html", "tex", "csv"])
    for name in ("index.html", "report.md", "tables.tex", "results.csv"):
        shown = files[name].decode()
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown), name


STARTS = ("=", "+", "-", "@", "\t=", "\r=", "\n@", " =", "＝", "\u00a0=")


@pytest.mark.parametrize("start", STARTS)
def test_no_cell_is_a_formula(start, tmp_path):
    text = f'{start}HYPERLINK("http://evil.example")'
    made = render(Wanted([written(tmp_path, suite=text)]), ["csv"])["results.csv"].decode()
    rows = list(csv.reader(io.StringIO(made)))
    assert len(rows) == len(made.splitlines()) == 17  # a line each
    assert [row[0].lstrip("'") for row in rows[1:]] == [text.strip()] * 16
    assert not [cell for row in rows for cell in row if cell.startswith(FORMULAS)]
    negative = [r.model_copy(update={"metrics": r.metrics.model_copy(update={"sfid": -1e-9})}) for r in whole(1)]
    (tmp_path / FILE).write_text("".join(r.model_dump_json() + "\n" for r in negative))
    assert ",-1e-09," in render(Wanted([tmp_path]), ["csv"])["results.csv"].decode()  # a number is a number


@pytest.mark.parametrize("suite", ["a; rm -rf /", "$(id)", "`id`", "a\nid", "a' 'b", "a && b", "x y", "*", "digits"])
def test_what_is_to_be_run_again_is_one_word_each(suite, tmp_path):
    from reports.build import _rerun

    words = shlex.split(_rerun(load([written(tmp_path, suite=suite)])))
    assert words[:5] == ["repa-bench", "run", "--suite", suite.replace("\n", " "), "--recipes"]
    assert "which is no argument" in _rerun(load([written(tmp_path, suite="--out=/")]))


def test_a_folder_in_a_remedy_is_one_word(tmp_path):
    for reads in (load, lambda folders: entries(folders[0])):
        with pytest.raises(UserError) as told:
            reads([tmp_path / "a; rm -rf ~"])
        (command,) = re.findall(r"`(.*)`", str(told.value))
        assert shlex.split(command) == ["repa-bench", "run", "--out", str(tmp_path / "a; rm -rf ~")]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"])
def test_a_name_ends_no_line_of_latex(end, tmp_path):
    text = f"name{end}\\input{{secret}}"
    made = render(Wanted([written(tmp_path, suite=text, notice=text, label=text)]), ["tex"])["tables.tex"].decode()
    assert not [line for line in re.split(r"[\r\n\v\f\x1c\x85\u2028\u2029]", made) if line.startswith("\\input")]
    assert "\\textbackslash{}input" in made


ESCAPES = ("\x1b[31mred", "\x1b]0;owned\x07", "a\rb", "\x9b31m", "\u202egnp.exe", "a\x08b", "\ud800", "\x7f")


@pytest.mark.parametrize("text", ESCAPES)
def test_no_terminal_obeys_a_name(text, tmp_path, monkeypatch, capsys):
    def run(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["repa-bench", *map(str, arguments)])
        with pytest.raises(SystemExit):
            main()
        captured = capsys.readouterr()
        return captured.out + captured.err

    shown = text.encode("utf-8", "replace").decode()
    folder = written(tmp_path / "runs", label=shown, notes=[shown])
    table = tmp_path / "curves.csv"
    table.write_text(f"recipe,step,fid\na,1,9\n{shown}b,1,'8\n", newline="")
    said = run("speedup", folder) + run("runs", folder) + run("speedup", "--curves", table, "--baseline", text)
    assert "vanilla" in said
    assert "line" in said
    assert not set(said) & set("\x1b\x07\x08\x9b\u202e\ud800\x7f\r")


def test_what_is_visible():
    assert visible("a\x1b\ud800\u202e\x85b") == "a\\x1b\\ud800\\u202e\\x85b"
    assert visible("é 图 ± ×\n\t") == "é 图 ± ×\n\t"
    assert str(UserError("a\x1bb")) == "a\\x1bb"


def test_a_record_names_no_run_outside_its_folder(tmp_path):
    with pytest.raises(UserError, match=r"names a run '\.\./\.\./x-seed0-vanilla0', which is no folder's name"):
        entries(written(tmp_path, variant="../../x"))
