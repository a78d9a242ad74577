"""Tables of curves that others made."""

from __future__ import annotations

import json
import math

import pytest

from harness.cli import main
from harness.curves import EPOCH, WITH_TOKENIZER, as_dict, compare, currencies, epochs_to, panel, read_csv
from recipes.core.errors import UserError

HEADER = "recipe,seed,generation_seed,step,fid"
#: Two recipes, two training seeds, FIDs that fall as budget^-1; `fast` needs half the steps at three times the FLOPs.
FASTER, DEARER = {"slow": 2, "fast": 1}, {"slow": 1, "fast": 3}
ROWS = [
    (recipe, seed, g, step, 1000 * FASTER[recipe] / step * (1 + 0.01 * seed) * 1.02 ** (2 * g - 1), step * 256,
     step * DEARER[recipe])
    for recipe in ("slow", "fast")
    for seed in (0, 1)
    for g in (0, 1)
    for step in (100, 200, 400)
]  # fmt: skip


def write(tmp_path, rows=ROWS, header=HEADER + ",images,flops"):
    path = tmp_path / "curves.csv"
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def test_by_hand(tmp_path):
    found = as_dict(read_csv(write(tmp_path)), "slow", ep_fid=5.0)
    assert set(found["speedups"]) == {"fast"}
    assert list(found["speedups"]["fast"]) == ["iterations", "images", "flops"]
    steps, flops = found["speedups"]["fast"]["iterations"], found["speedups"]["fast"]["flops"]
    assert steps["target_fid"] == pytest.approx(5 * math.sqrt(1.01))
    assert steps["first_checkpoint"] == pytest.approx(2.0)
    assert steps["loglog"] == pytest.approx(2.0)
    assert steps["bracket"] == pytest.approx([2.0, 4.0])
    assert flops["loglog"] == pytest.approx(2 / 3)
    assert (steps["censored"], steps["bound"], steps["seeds"]) == (False, None, 2)
    assert (steps["verdict"], flops["verdict"]) == ("better", "worse")
    assert set(steps["by_seed"]) == {"0", "1"}
    epochs = found["ep_fid"]["epochs"]
    assert epochs["fast"]["loglog"] == pytest.approx(200 * math.sqrt(1.01) * 256 / EPOCH, rel=1e-6)
    assert epochs["slow"]["loglog"] is None  # 5 * sqrt(1.01) is its last


def test_generation_seeds_are_averaged_where_every_step_has_them(tmp_path):
    extra = ("fast", 0, 7, 400, 9e9, 400 * 256, 1200)
    whole, more = (panel(read_csv(write(tmp_path, rows)), "fast", "iterations") for rows in (ROWS, [*ROWS, extra]))
    assert whole == more
    assert [p.fid for p in whole[0]] == pytest.approx([10, 5, 2.5])


def test_tokenizer_training_is_counted_or_not(tmp_path):
    rows = [(*row, 0 if row[0] == "slow" else 200) for row in ROWS]
    found = read_csv(write(tmp_path, rows, HEADER + ",images,flops,tokenizer_flops"))
    assert currencies(found) == ["iterations", "images", "flops", "flops" + WITH_TOKENIZER]
    by = {s.currency: s.estimate.point for s in compare(found, "slow")}
    assert by["flops"].loglog == pytest.approx(400 / 600)
    assert by["flops" + WITH_TOKENIZER].low == pytest.approx(400 / (600 + 200))


def test_a_single_seed_that_does_not_reach_is_a_bound(tmp_path):
    rows = [("a", 0, 0, 100, 9.0), ("a", 0, 0, 200, 8.0), ("b", 0, 0, 100, 20.0), ("b", 0, 0, 250, 8.5)]
    told = as_dict(read_csv(write(tmp_path, rows, HEADER)), "a")["speedups"]["b"]["iterations"]
    assert (told["first_checkpoint"], told["linear"], told["loglog"], told["bracket"]) == (None, None, None, None)
    assert (told["censored"], told["bound"], told["verdict"]) == (True, "< 0.8", "inconclusive")
    assert told["evidence"].startswith("single seed")


@pytest.mark.parametrize(
    ("header", "rows", "sentence"),
    [
        ("recipe,seed,step,fid", [("a", 0, 1, 2)], "there is no column 'generation_seed'"),
        (HEADER + ",flop", [("a", 0, 0, 1, 2, 3)], r"unknown column 'flop'\. Did you mean 'flops'"),
        (HEADER, [], "has no row"),
        (HEADER, [("a", 0, 0, 1, "x")], "line 2: fid is 'x', not a positive number"),
        (HEADER, [("a", 0, 0, 1, "nan")], "line 2: fid is 'nan'"),
        (HEADER, [("a", 0, 0, 1, -3)], "line 2: fid is '-3'"),
        (HEADER, [("a", 0, 0, 1.5, 3)], "line 2: step is '1.5', not a whole number"),
        (HEADER, [("", 0, 0, 1, 3)], "line 2: recipe is empty"),
        (HEADER, [("a", 0, 0, 1, 3), ("a", 0, 0, 1, 4)], "stands twice"),
        (HEADER + ",tokenizer_flops", [("a", 0, 0, 1, 3, 4)], "tokenizer_flops needs the column flops"),
        (HEADER, [("a", 0, 0)], "line 2: step is ''"),
    ],
)
def test_tables_that_are_wrong_are_sentences(tmp_path, header, rows, sentence):
    with pytest.raises(UserError, match=sentence):
        read_csv(write(tmp_path, rows, header))


def test_what_cannot_be_compared_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"--baseline: there is no recipe 'slw'\. Did you mean 'slow'"):
        compare(read_csv(write(tmp_path)), "slw")
    rows = [("a", 0, 0, 1, 3), ("a", 1, 0, 2, 3), ("b", 0, 0, 1, 3), ("b", 1, 0, 1, 3)]
    with pytest.raises(UserError, match="b and a cannot be compared"):
        compare(read_csv(write(tmp_path, rows, HEADER)), "a")
    with pytest.raises(UserError, match="--ep-fid counts epochs"):
        epochs_to(read_csv(write(tmp_path, rows, HEADER)), 2.0)
    with pytest.raises(UserError, match="cannot be read as CSV"):
        read_csv(tmp_path / "nowhere.csv")


def run(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["repa-bench", "speedup", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def test_the_command(tmp_path, monkeypatch, capsys):
    path = write(tmp_path)
    assert run(monkeypatch, "--curves", path, "--baseline", "slow", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    fields = {"first_checkpoint", "bracket", "linear", "loglog", "interval", "censored", "verdict"}
    assert fields <= set(told["speedups"]["fast"]["iterations"])
    assert run(monkeypatch, "--curves", path, "--baseline", "slow", "--ep-fid", 4) == 0
    shown = capsys.readouterr().out
    assert "better" in shown
    assert "Epochs to an unguided FID of 4" in shown
    assert run(monkeypatch, "--curves", path) == 2
    assert "there is no recipe 'vanilla'" in capsys.readouterr().err
    assert run(monkeypatch) == 2
    assert "name what to compare" in capsys.readouterr().err
