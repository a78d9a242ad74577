"""Tables of curves as spreadsheets, dashboards and people save them: the right numbers, or what stands there."""

from __future__ import annotations

import gzip

import pytest

from harness.results import curve_csv
from harness.results.curve_csv import read_csv
from harness.results.curves import compare
from recipes.core.errors import UserError

HEADER = "recipe,seed,generation_seed,step,fid"
FIDS = {"SiT": (40.7, 20.9, 12.8), "mine": (21.6, 12.9, 12.1)}
ROWS = [f"{r},0,0,{s},{fid}" for r, fids in FIDS.items() for s, fid in zip((100000, 200000, 400000), fids, strict=True)]
TEXT = "\n".join([HEADER, *ROWS]) + "\n"
#: By hand: 4 / (200/100)^x with x = 1 + log(12.9 / 12.8) / log(12.9 / 12.1).
RIGHT = 1.8383934611428727


@pytest.fixture
def file(tmp_path):
    def written(content: str | bytes):
        path = tmp_path / "curves.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return written


def speedup(path) -> float | None:
    (found,) = [s for s in compare(read_csv(path), "SiT") if s.currency == "iterations"]
    return found.estimate.point.loglog


SAVED = {
    "plain": TEXT,
    "a byte order mark": TEXT.encode("utf-8-sig"),
    "two byte order marks": "\ufeff\ufeff" + TEXT,
    "carriage returns and a mark": TEXT.replace("\n", "\r\n").encode("utf-8-sig"),
    "carriage returns alone": TEXT.replace("\n", "\r"),
    "no last line end": TEXT.rstrip("\n"),
    "semicolons": TEXT.replace(",", ";"),
    "tabs": TEXT.replace(",", "\t"),
    "bars": TEXT.replace(",", " | "),
    "sep": "sep=;\n" + TEXT.replace(",", ";"),
    "sep of tabs, with carriage returns": ("sep=\t\n" + TEXT.replace(",", "\t")).replace("\n", "\r\n"),
    "sep, quoted, after a mark": '\ufeff"sep=;"\n' + TEXT.replace(",", ";"),
    "UTF-16": TEXT.replace(",", "\t").encode("utf-16"),
    "UTF-16, the other way round": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "UTF-32": TEXT.encode("utf-32"),
    "capitals": TEXT.replace("recipe", "Recipe").replace("fid", "FID").replace("seed", "SEED"),
    "names with spaces": TEXT.replace("generation_seed", " Generation Seed "),
    "comments": "# exported 2026-11-25\n#\n" + TEXT.replace("mine", "# from here: mine\nmine", 1),
    "empty rows": "\n,,,,\n" + TEXT + ",,,,\n\n;;;\n , , \n".replace(";;;\n", ""),
    "empty cells after the last": TEXT.replace(HEADER, HEADER + ",,").replace("\nmine", ",,\nmine"),
    "quotes": TEXT.replace("mine", '"mine"').replace("12.8", '"12.8"'),
    "a separator in quotes": TEXT.replace("mine", '"mine, again"'),
    "spaces": TEXT.replace(",", " , "),
    "powers of ten": TEXT.replace("00000,", "e5,"),
    "whole numbers as floats": TEXT.replace("00000,", "00000.0,").replace(",0,0,", ",0.0,0.0,"),
    "other order": "\n".join([HEADER, *reversed(ROWS)]),
}


@pytest.mark.parametrize("name", SAVED)
def test_the_same_table_however_it_was_saved(name, file):
    assert speedup(file(SAVED[name])) == pytest.approx(RIGHT, rel=1e-12)


SEEDS = (1798406481619217041, 1798406481619217042, 9007199254740992, 9007199254740993, 2**63 - 1, 0)


def test_seeds_are_what_stands_there(file):
    text = "\n".join([HEADER, *(f"{r},{seed},{seed},1,{9 + (r == 'a')}" for r in "ab" for seed in SEEDS)])
    found = read_csv(file(text))
    assert [o.seed for o in found] == [o.generation_seed for o in found] == [*SEEDS, *SEEDS]


def one(row: str, header: str = HEADER) -> str:
    """A table with a row besides; its line is 8."""
    return "\n".join([header, *(line + ",1" * header.count("_seconds") for line in ROWS), row])


MANY = HEADER + ",device_seconds,tokenizer_device_seconds"
WRONG = {
    "decimal commas": (TEXT.replace(".", ","), "line 2: more cells than columns.*It has 6, the header 5"),
    "decimal commas in quotes": (one('x,0,0,1,"9,5"'), "line 8: fid is '9,5'.*Write 9.5, not 9,5"),
    "decimal commas, semicolons": (TEXT.replace(",", ";").replace(".", ","), "line 2: fid is '40,7'.*Write 9.5"),
    "decimal commas, tabs": (TEXT.replace(",", "\t").replace(".", ","), "line 2: fid is '40,7'.*comma"),
    "thousands commas": (TEXT.replace("00000,", "00,000,"), "line 2: more cells than columns"),
    "odd thousands": (TEXT.replace("00000,", "01,050,"), "line 2: more cells than columns.*400000, not 400,000"),
    "thousands in quotes": (one('x,0,0,"400,000",9'), "line 8: step is '400,000'"),
    "thousands points": (TEXT.replace("00000,", "00.000,"), "line 2: step is '100.000': is that 100, or 100000"),
    "thousands points of seconds": (
        "recipe;step;fid;device_seconds\na;100;9;36.000\n", "line 2: device_seconds is '36.000': is that 36, or 36000",
    ),
    "thousands spaces": (one("x,0,0,400 000,9"), "line 8: step is '400 000'"),
    "a note at the end": (one("x,0,0,1,9,rerun"), "line 8: more cells than columns.*It has 6"),
    "numbers of rows": (
        "\n".join([HEADER, *(f"{k},{row}" for k, row in enumerate(ROWS))]), "line 2: more cells than columns",
    ),
    "numbers of rows, a column without name": (
        "\n".join(["," + HEADER, *(f"{k},{row}" for k, row in enumerate(ROWS))]), "line 2: a cell stands in a column",
    ),
    "decimal commas under a column without name": (
        "\n".join([HEADER + ",", *ROWS]).replace("40.7", "40,7"), "line 2: a cell stands in a column without a name",
    ),
    "a list of seeds": (one("x,0,1,2,1,9"), "line 8: more cells than columns"),
    "fid twice": (TEXT.replace("fid", "fid,fid", 1).replace("\n", ",1\n"), "the column 'fid' stands twice"),
    "fid twice, in capitals": (TEXT.replace("fid", "fid,FID", 1), "line 1: the column 'fid' stands twice"),
    "step twice": (TEXT.replace("fid", "fid, step", 1), "the column 'step' stands twice"),
    "recipe twice": (TEXT.replace("fid", "fid,Recipe ", 1), "the column 'recipe' stands twice"),
    "a dashboard's columns": (TEXT.replace("fid", "fid,fid__MIN", 1), "unknown column 'fid__MIN'.*take it out"),
    "a dashboard's table": (
        "Step,SiT - fid,SiT - fid__MIN\n1,9,9\n", "no column 'recipe' in the header 'Step,SiT - fid.*a row for each",
    ),
    "another separator": ("recipe seed step fid\n", "no column 'recipe' in the header 'recipe seed step fid'"),
    "sep that is not true": ("sep=;\n" + TEXT, "line 2: there is no column 'recipe'.*separated by semicolons"),
    "no header": ("\n".join(ROWS), "line 1: there is no column 'recipe' in the header 'SiT,0,0,100000,40.7'"),
    "a header in a comment": ("# " + TEXT, "line 2: there is no column 'recipe' in the header 'SiT,0"),
    "a row taken out by a mark": (one("#x,0,0,1,9"), "line 8: begins with '#'"),
    "latin-1": (TEXT.replace("mine", "méthode").encode("latin-1"), "line 5 has the byte 0xe9.*save it as UTF-8"),
    "UTF-16 without its mark": (TEXT.encode("utf-16-le"), "zero bytes; save it as UTF-8"),
    "UTF-16, cut": (TEXT.encode("utf-16")[:-1], "is not utf-16"),
    "a zero byte": (one("x\0,0,0,1,9"), "zero bytes"),
    "nothing": ("", "has no header"),
    "a mark alone": ("\ufeff", "has no header"),
    "comments alone": ("# a\n\n,,,\n", "has no header"),
    "a header alone": (HEADER + "\n", "no row below its header"),
    "a header and empty rows": (HEADER + "\n,,,,\n", "no row below its header"),
    "two tables one below the other": (TEXT + TEXT, "line 8: step is 'step'"),
    "gzip": (gzip.compress(TEXT.encode()), "is gzip, not text; unpack it"),
    "a spreadsheet": (b"PK\x03\x04" + TEXT.encode(), "is zip or xlsx.*save the table as CSV"),
    "a quote that is not closed": (one('"x,0,0,1,9'), "cannot be read as CSV.*are all quotes closed"),
    "a quote closed rows below": (one('"x,0,0,1,9\nx",0,0,2,9'), "line 9: a cell has a line break in it"),
    "text after a quote": (one('"x"y,0,0,1,9'), "cannot be read as CSV"),
    "fewer cells": (one("x,0,0,1"), "line 8: fid is '', since the line has fewer cells"),
    "an empty cell": (one("x,0,0,1,"), "line 8: fid is ''.*Leave the row out"),
    "an underscore": (one("x,0,0,1_000,9"), "line 8: step is '1_000'"),
    "other digits": (one("x,0,0,١٢,9"), "line 8: step is '١٢'"),
    "a word for a number": (one("x,0,0,1,Infinity"), "line 8: fid is 'Infinity', not a positive number"),
    "too large for a number": (one("x,0,0,1,1e999"), "line 8: fid is '1e999'"),
    "not a number": (one("x,0,0,1,NaN"), "line 8: fid is 'NaN'.*Leave the row out"),
    "fid 0": (one("x,0,0,1,0"), "line 8: fid is '0', not a positive number"),
    "a step below 0": (one("x,0,0,-1,9"), "line 8: step is '-1', not a whole number"),
    "half a step": (one("x,0,0,1.5,9"), "line 8: step is '1.5', not a whole number"),
    "a tokenizer's cost below 0": (one("x,0,0,1,9,1,-1", MANY), "line 8: tokenizer_device_seconds is '-1', not a num"),
    "a seed with a power": (one("x,1e3,0,1,9"), "line 8: seed is '1e3', not a whole number from 0 to"),
    "a seed that was rounded": (one("x,1798406481619217152.0,0,1,9"), "line 8: seed is '1798406481619217152.0'"),
    "a seed that no run takes": (one(f"x,{2**63},0,1,9"), "line 8: seed is '9223372036854775808'"),
    "a seed of other digits": (one("x,٣,0,1,9"), "line 8: seed is '٣'"),
    "a row twice": (one(ROWS[0]), "line 8: recipe SiT, seed 0, step 100000, generation seed 0 stands twice"),
    "recipes apart by capitals": (one("MINE,0,0,1,9"), "line 8: recipe 'MINE', and 'mine' above"),
    "recipes apart by spaces": (TEXT.replace("mine", "a b") + "a  b,0,0,1,9", "line 8: recipe 'a  b', and 'a b' above"),
    "recipes apart by nothing": (one("mi\u200bne,0,0,1,9"), r"line 8: recipe 'mi\\u200bne', and 'mine' above"),
    "two costs of a checkpoint": (
        "recipe,generation_seed,step,fid,flops\na,0,1,9,5\na,1,1,9,6\n", "line 3: recipe a, seed 0, step 1 has cost 6 "
        "flops, and 5 above",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_named(name, file):
    content, sentence = WRONG[name]
    with pytest.raises(UserError, match=f"(?s){sentence}"):
        read_csv(file(content))


def test_what_is_no_file_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere.csv"):
        with pytest.raises(UserError, match=r"cannot be read as CSV.*name a table of curves"):
            read_csv(path)


def test_what_has_no_end_is_not_read_to_it(monkeypatch, file):
    monkeypatch.setattr(curve_csv, "MOST_BYTES", 2**20)
    assert speedup(file(TEXT + "\n" * (2**20 - len(TEXT)))) == pytest.approx(RIGHT)
    with pytest.raises(UserError, match="larger than 1 MiB: no table of curves is"):
        read_csv(file(TEXT + "\n" * (2**20 - len(TEXT) + 1)))


def clocks(mine: tuple[int, ...], base: tuple[int, ...] = (10, 20, 30)) -> str:
    rows = [f"{row},{hours * 3600}" for row, hours in zip(ROWS, (*base, *mine), strict=True)]
    return "\n".join([HEADER + ",device_seconds", *rows])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (clocks((10, 20, 2)), r"mine, seed 0: device-seconds .* step 200,000 \(72000\) to step 400,000 \(7200\)"),
        (clocks((10, 20, 19)), r"mine, seed 0: device-seconds .* \(72000\) to step 400,000 \(68400\)"),
        (clocks((10, 20, 30), (10, 20, 6)), r"SiT, seed 0: .*step 200,000 \(72000\) to step 400,000 \(21600\)"),
        (clocks((10, 10, 10), (10, 10, 10)), r"SiT, seed 0: .*step 100,000 \(36000\) to step 200,000 \(36000\)"),
    ],
)
def test_a_clock_that_began_anew_is_refused(text, told, file):
    with pytest.raises(UserError, match=f"{told}.*Column 'device_seconds'"):
        speedup(file(text))
    assert speedup(file(clocks((10, 20, 30)))) == pytest.approx(RIGHT)
