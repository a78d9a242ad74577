"""What a results folder holds, and how a run is taken away."""

from __future__ import annotations

import json

import pytest
from test_claims import score

from harness.cli.app import main
from harness.records.file import FILE, RecordFile, read
from harness.records.schema import StageRecord
from harness.results.comparison import load
from harness.results.run_folders import entries, remove, set_aside
from harness.runtime.locks import held
from recipes.core.errors import UserError


def results(path):
    for variant in ("vanilla", "repa"):
        for seed in (0, 1):
            for step in (100, 200):
                RecordFile(path).append(score(variant, seed, step, 8.0 * 100 / step))
    samples = path / "samples" / "repa-seed1-repa1"
    samples.mkdir(parents=True)
    (samples / "x.png").write_text("picture")
    return path


def test_a_run_says_which_version_of_its_file_it_is_of(tmp_path):
    for source in ("a" * 64, "b" * 64):
        made = score("mine", 0, 100, 8.0).model_copy(update={"source": source, "run": source})
        RecordFile(tmp_path).append(made)
    assert [e.notes for e in entries(tmp_path)] == [(f"its file: SHA-256 {s * 8}",) for s in "ab"]


def test_a_folder_lists_its_runs(tmp_path):
    found = entries(results(tmp_path))
    assert [(e.name, e.seed, e.step, e.scored) for e in found] == [
        (f"{variant}-seed{seed}-{variant}{seed}", seed, 200, (100, 200))
        for variant in ("repa", "vanilla")
        for seed in (0, 1)
    ]
    with pytest.raises(UserError, match="holds no runs"):
        entries(tmp_path / "nowhere")


def test_a_run_goes_to_the_trash_with_all_that_is_its_own(tmp_path):
    before = set((results(tmp_path) / FILE).read_text().splitlines())
    trash = remove(tmp_path, "repa-seed1")
    assert trash.parent == tmp_path / "trash"
    assert [e.name for e in entries(tmp_path)] == [
        "repa-seed0-repa0",
        "vanilla-seed0-vanilla0",
        "vanilla-seed1-vanilla1",
    ]
    assert load([tmp_path]).seeds("repa") == [0]
    assert {(r.variant, r.seed) for r in read(trash / FILE)} == {("repa", 1)}
    assert (trash / "samples" / "repa-seed1-repa1" / "x.png").read_text() == "picture"
    after = [*(tmp_path / FILE).read_text().splitlines(), *(trash / FILE).read_text().splitlines()]
    assert set(after) == before  # byte for byte, and none twice
    assert len(after) == len(before)


def test_what_cannot_be_removed_is_a_sentence(tmp_path):
    results(tmp_path)
    with pytest.raises(UserError, match=r"holds several runs 'repa\.\.\.': repa-seed0-repa0, repa-seed1-repa1"):
        remove(tmp_path, "repa")
    with pytest.raises(UserError, match=r"holds no run 'rapa-seed0-repa0'\. Did you mean 'repa-seed0-repa0'"):
        remove(tmp_path, "rapa-seed0-repa0")
    place = tmp_path / "runs" / "repa-seed0-repa0"
    place.mkdir(parents=True)
    with held(place), pytest.raises(UserError, match="being worked on"):
        remove(tmp_path, "repa-seed0")
    assert load([tmp_path]).seeds("repa") == [0, 1]
    assert not list((tmp_path / "trash").glob("*"))


def test_a_run_takes_no_other_run_along(tmp_path):
    """Names that begin alike, and names that are patterns."""
    names = ("imported", "imported-2", "odd[1]-seed0-aaaaaaaa")
    for name in names:
        for kind in ("runs", "samples"):
            (tmp_path / kind / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "spec.json").write_text("{")  # damaged: it can be taken away all the same
        (tmp_path / "reconstructions").mkdir(exist_ok=True)
        (tmp_path / "reconstructions" / f"{name}-0000100.png").write_text("picture")
    results(tmp_path)
    listed = {e.name: e for e in entries(tmp_path)}
    assert "spec.json cannot be read" in listed["imported"].notes[0]
    for name in names:
        trash = remove(tmp_path, name)
        kept = [other for other in names if (tmp_path / "runs" / other).exists()]
        assert name not in kept
        assert (trash / "runs" / name / "spec.json").exists()
        assert [p.name for p in (trash / "reconstructions").iterdir()] == [f"{name}-0000100.png"]
        assert kept == list(names[names.index(name) + 1 :])
    assert len(entries(tmp_path)) == 4


def test_the_command(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["repa-bench", "runs", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0)

    results(tmp_path)
    assert run(tmp_path, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 4
    assert run("remove", tmp_path, "vanilla-seed0", "vanilla-seed1") == 0
    capsys.readouterr()
    assert run("list", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "repa" in shown
    assert "vanilla" not in shown
    assert run("remove", tmp_path, "vanilla-seed0") == 2
    assert run(tmp_path / "nowhere") == 2


def test_a_folder_that_is_none_leads_to_those_that_are(tmp_path):
    for name in ("digits", "deep/er/digits", "digits/trash/old"):
        results(tmp_path / "runs" / name)
    (tmp_path / "runs" / "digits" / "report").mkdir()
    (tmp_path / "empty").mkdir()
    wanted = f"in {tmp_path}/runs/digits, {tmp_path}/runs/deep/er/digits: name one or several"
    for look in (load_one, entries):
        with pytest.raises(UserError) as told:
            look(tmp_path / "runs")
        assert wanted in str(told.value)
        with pytest.raises(UserError, match=f"it lies in the results folder {tmp_path}/runs/digits: name that"):
            look(tmp_path / "runs" / "digits" / "report")
        with pytest.raises(UserError, match=r"there is no such folder, and `repa-bench run --out .*nowhere` makes one"):
            look(tmp_path / "nowhere")
        with pytest.raises(UserError, match=r"`repa-bench run --out .*empty` makes some"):
            look(tmp_path / "empty")


def load_one(folder):
    return load([folder])


def test_what_was_only_prepared_is_put_aside(tmp_path):
    made = score("vanilla", 0, 100, 8.0)
    facts = {"suite": made.suite, "notice": made.notice, "provenance": made.provenance}
    cost = {"seconds": 1.0, "peak_memory_bytes": 1}
    prepared = StageRecord(**facts, **cost, suite_digest="a" * 64, stage="prepare data", variant=None, seed=None)
    RecordFile(tmp_path).append(prepared)
    assert set_aside(tmp_path, "a" * 64) == []
    (told,) = set_aside(tmp_path, "b" * 64)
    assert "is now in" in told
    assert list(read(tmp_path / FILE)) == []
    (trash,) = (tmp_path / "trash").iterdir()
    assert list(read(trash / FILE)) == [prepared]
    trained = StageRecord(**facts, **cost, suite_digest="a" * 64, stage="train", variant="vanilla", seed=0)
    for record in (trained, made):  # what a run cost or gave stays, and the next suite is refused
        folder = tmp_path / record.kind
        RecordFile(folder).append(prepared)
        RecordFile(folder).append(record)
        assert set_aside(folder, "b" * 64) == []
        assert len(list(read(folder / FILE))) == 2
