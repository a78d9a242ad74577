"""From records to a comparison: which records count, what a step cost, what is said."""

from __future__ import annotations

import json

import pytest
from test_claims import comparison, score

from harness.cli.app import main
from harness.records.file import RecordFile
from harness.records.schema import ScoreRecord
from harness.results.comparison import load
from harness.results.curve_csv import foreign
from harness.results.curves import Selection
from harness.results.speedup import Spread
from recipes.core.errors import UserError
from reports.build import Wanted, render
from reports.tables import fid_table, metrics_table

STEPS = (250, 500, 750, 1000)


def run_of(
    variant: str, seed: int, fid: float, *, end: int = 1000, seconds: dict[int, float] | None = None, **more: object
):
    """Scores of one run, FID as budget^-1; `seconds` of a stretch of 250 steps where it is not 10."""
    clock, out = 0.0, []
    for step in STEPS:
        clock += (seconds or {}).get(step, 10.0)
        fields = {"train_seconds": clock, "device_seconds": clock, **more}
        out.append(score(variant, seed, step, fid * 1000 / step * (1 + 0.01 * seed)).model_copy(update=fields))
    return [r for r in out if r.step <= end]


def whole(seeds: int = 3, **more: object) -> list[ScoreRecord]:
    return [
        r
        for variant, fid in (("vanilla", 8.0), ("repa", 5.0))
        for s in range(seeds)
        for r in run_of(variant, s, fid, **more)
    ]


def write(path, records):
    for r in records:
        RecordFile(path).append(r)
    return path


def device_seconds(records: list[ScoreRecord]):
    found = comparison(*records).speedups
    return next(s.estimate.point for s in found if s.currency == "device_seconds"), found.notes


def test_one_disturbed_stretch_moves_no_number_and_is_said():
    """A segment of 20.4 s among neighbours of 10, as the demo had one."""
    usual, notes = device_seconds(whole())
    assert notes == ()
    disturbed = [r for r in whole() if (r.variant, r.seed) != ("repa", 1)] + run_of("repa", 1, 5.0, seconds={750: 20.4})
    found, notes = device_seconds(disturbed)
    assert found == usual
    assert notes == ("repa, seed 1: steps 500 to 750 took 2.0 times the median step; the median counts",)


def test_a_pace_that_was_measured_apart_counts_instead_of_the_clock():
    records = [r.model_copy(update={"step_seconds": 0.1 if r.variant == "repa" else 0.05}) for r in whole()]
    records = [r.model_copy(update={"device_seconds": 2 * r.train_seconds}) for r in records]  # two devices
    usual, _ = device_seconds(whole())
    found, _ = device_seconds(records)
    assert found.loglog == pytest.approx(usual.loglog / 2)
    assert comparison(*records).budget(records[0], "device_seconds") == pytest.approx(250 * 0.05 * 2)


def test_a_run_that_was_slow_from_beginning_to_end_is_said():
    """No stretch of its own tells, its other seeds do: three times as long in a quiet stretch that was none."""
    paces = {("repa", 1): 0.15}
    records = [r.model_copy(update={"step_seconds": paces.get((r.variant, r.seed), 0.05)}) for r in whole()]
    _, notes = device_seconds(records)
    assert "repa, seed 1: a step took 3.0 times the median of its seeds: had it the machine to itself?" in notes
    _, notes = device_seconds([r for r in records if r.seed < 2])
    assert any(n.startswith("repa, seeds 0 and 1: a step took 0.05 and 0.15 s") for n in notes)


def test_a_recipe_that_was_only_sampled_with_guidance_takes_nothing_away(tmp_path, capsys):
    """After `score` of the others and `guidance` of it: no row, and that is said."""
    guided = whole()[0].protocol.guided(1.5)
    only = {"protocol": guided, "protocol_digest": "guided"}
    kept = [r for r in whole() if r.variant != "repa"] + run_of("third", 0, 6.0) + run_of("third", 1, 6.0)
    records = kept + [r.model_copy(update=only) for r in whole() if r.variant == "repa" and r.step == 1000]
    found = load([write(tmp_path, records)])
    assert {s.recipe for s in found.speedups} == {"third"}
    assert any(note.startswith("repa: it has no score under") for note in found.speedups.notes)
    assert "report.md" in render(Wanted([tmp_path]))
    with pytest.raises(UserError, match=r"--baseline repa: it has no score under .*; score it, or name another"):
        found.against("repa")


def test_a_short_seed_is_left_out_of_the_report_too(tmp_path):
    short = [r for r in whole() if (r.variant, r.seed) != ("vanilla", 2)] + run_of("vanilla", 2, 8.0, end=500)
    found = load([write(tmp_path, short)])
    assert found.speedups.target == pytest.approx(8.0 * (1.01) ** 0.5)
    assert any("vanilla: seed 2 ends at step 500, before 1,000" in note for note in found.speedups.notes)
    cells = {row[0]: row for row in fid_table(found).rows}["vanilla"]
    assert "±" in cells[1]
    assert cells[-1].endswith("(2 seeds)")
    (last,) = [row for row in metrics_table(found).rows if row[0] == "vanilla"]
    assert last[2] == "1,000 (2 seeds)"
    files = render(Wanted([tmp_path]))
    assert "left out" in files["report.md"].decode()


def test_nobodys_run_of_other_steps_takes_the_report_away(tmp_path, monkeypatch, capsys):
    write(tmp_path, [*whole(), score("repa_e", 0, 7, 99.0), *(score("vanilla", 9, s, 50.0) for s in (3, 7))])
    for command in ("report", "speedup", "claims"):
        monkeypatch.setattr("sys.argv", ["repa-bench", command, str(tmp_path)])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code in (0, None)
    assert "vanilla: seed 9 ends at step 7, before 1,000, and is left out" in " ".join(capsys.readouterr().out.split())


def test_a_selection_of_records(tmp_path):
    write(tmp_path, [*whole(), *run_of("repa_e", 0, 4.0)])
    found = load([tmp_path], Selection(("repa",), (0, 1), 500))
    assert list(found.variants) == ["vanilla", "repa"]  # the baseline stays
    assert (found.seeds("repa"), found.steps()) == ([0, 1], [250, 500])
    assert list(load([tmp_path], Selection(("repa_e",)), baseline="repa").variants) == ["repa", "repa_e"]
    with pytest.raises(UserError, match=r"--recipes: there is no recipe 'reap'\. Did you mean 'repa'"):
        load([tmp_path], Selection(("reap",)))
    with pytest.raises(UserError, match="leave no checkpoint of the baseline 'repa_e'"):
        load([tmp_path], Selection(("repa_e",), (2,)), baseline="repa_e")


def test_one_specification_trained_in_two_folders_is_two_trainings_of_one_seed(tmp_path):
    """Their mean counts, and it is said; a copy of a folder counts once."""
    again = [
        r.model_copy(
            update={"weights_hash": "other", "metrics": r.metrics.model_copy(update={"fid": 1.21 * r.metrics.fid})}
        )
        for r in whole(1)
    ]
    folders = [write(tmp_path / name, records) for name, records in (("a", whole(1)), ("b", again), ("copy", whole(1)))]
    found = load(folders)
    assert found.fids("vanilla", 1000) == {0: pytest.approx(8.0 * 1.1)}
    assert any("vanilla: seed 0 was trained 2 times" in note for note in found.speedups.notes)
    assert found.fid_at("vanilla", 1000) == Spread(pytest.approx(8.8), None, (pytest.approx(8.8),))
    alone = load([folders[0], folders[2]])
    assert alone.fids("vanilla", 1000) == {0: pytest.approx(8.0)}
    assert not alone.speedups.notes


def test_curves_that_are_not_ours_stand_beside_runs_without_a_verdict(tmp_path):
    table = tmp_path / "theirs.csv"
    table.write_text("recipe,seed,step,fid\n" + "".join(
        f"REPA,{seed},{step},{5.5 * 1000 / step * (1 + 0.01 * seed)}\n" for seed in range(3) for step in STEPS
    ))  # fmt: skip
    others = foreign(table)
    found = load([write(tmp_path / "runs", whole())], others=others).speedups
    theirs = [s for s in found if s.recipe == "REPA (not ours: theirs.csv)"]
    assert [s.currency for s in theirs] == ["iterations"]
    assert (theirs[0].estimate.verdict, theirs[0].estimate.p) == (None, None)
    assert theirs[0].estimate.point.loglog == pytest.approx(8 / 5.5)
    ours = next(s for s in found if s.recipe == "repa" and s.currency == "iterations")
    assert (ours.family, ours.estimate.verdict) == (1, "better")
    files = render(Wanted([tmp_path / "runs"], others=others))
    assert b"REPA (not ours: theirs.csv)" in files["report.md"]
    assert b"not ours" in files["index.html"]
    assert b"not ours" not in render(Wanted([tmp_path / "runs"]))["report.md"]


def test_another_baseline(tmp_path, monkeypatch, capsys):
    write(tmp_path, whole())
    monkeypatch.setattr("sys.argv", ["repa-bench", "speedup", str(tmp_path), "--baseline", "repa", "--json"])
    with pytest.raises(SystemExit):
        main()
    told = json.loads(capsys.readouterr().out)
    assert told["speedups"]["vanilla"]["iterations"]["verdict"] == "worse"
    assert told["speedups"]["vanilla"]["iterations"]["bound"] == "< 1"
    with pytest.raises(UserError, match="--baseline: there is no recipe 'nothing'"):
        Wanted([tmp_path], baseline="nothing").load()
