"""The league: which seeds count, what is known of a specification, what is held against a reference."""

from __future__ import annotations

import pytest
from test_comparison import run_of, whole, write

from harness.records.schema import ScoreRecord
from harness.results.comparison import load
from harness.results.league import Entry, League, league
from harness.suites import suite
from recipes.core.atomic import write_text
from recipes.core.errors import UserError
from reports.league import build_league


def entry(found: League, variant: str) -> Entry:
    return next(e for e in found.entries if e.variant == variant)


def changed(records: list[ScoreRecord], **fields: object) -> list[ScoreRecord]:
    return [r.model_copy(update=fields) for r in records]


def test_a_row_counts_the_seeds_that_its_numbers_are_of_and_says_what_speedup_says(tmp_path):
    early = [r for r in whole() if (r.variant, r.seed) != ("repa", 2)] + run_of("repa", 2, 5.0, end=500)
    found = load([write(tmp_path / "a", early)])
    row = entry(league(found), "repa")
    assert (row.seeds, row.of, len(row.fid.values)) == (2, 3, 2)
    assert "2 training seed(s) that count, the rules want 3" in row.remarks
    build_league(found, tmp_path / "page")
    told = (tmp_path / "page" / "league.md").read_text()
    assert "| repa | 2 of 3 |" in told
    assert "repa: seed 2 ends at step 500, before 1,000, and is left out" in told
    assert found.speedups.notes
    assert all(note in told for note in found.speedups.notes)


def test_the_baselines_cell_is_the_target(tmp_path):
    """Of a single checkpoint too, of which the first seed's is drawn twice."""
    once = [r for r in whole() if r.step == 1000]
    twice = changed([r for r in once if r.seed == 0], generation_seed=1)
    twice = [r.model_copy(update={"metrics": r.metrics.model_copy(update={"fid": 1.0})}) for r in twice]
    found = league(load([write(tmp_path, [*once, *twice])]))
    assert entry(found, "vanilla").fid.mean == pytest.approx(found.target)
    assert found.target == pytest.approx(8 * (1 * 1.01 * 1.02) ** (1 / 3))


def with_specs(path, records, overrides):
    """Records with the folders of their runs, under a suite of these settings."""
    made = suite("digits", overrides)
    out = []
    for r in records:
        spec = made.run_spec(r.variant, r.seed, {"data": "d"})
        out.append(r.model_copy(update={"run": spec.digest(), "suite_digest": made.identity()}))
        write_text(path / "runs" / spec.name / "spec.json", spec.model_dump_json())
    return write(path, out)


def test_what_is_not_the_suites_own_stands_in_its_row(tmp_path):
    own = league(load([with_specs(tmp_path / "own", whole(), {})]))
    assert not any("its digest" in told for told in own.remarks)
    assert entry(own, "repa").remarks == ()
    path = with_specs(tmp_path / "set", whole(), {"variants.repa.options.alignment": 0.7, "sit_optimizer.lr": 0.5})
    found = league(load([path]))
    assert any(told.startswith("the suite was changed (--set)") for told in found.remarks)
    assert "train.optimizers.sit.lr 0.5 (the suite's: " in entry(found, "vanilla").remarks[0]
    assert "options" not in entry(found, "vanilla").remarks[0]
    assert "options.alignment 0.7 (the suite's: 0.5)" in entry(found, "repa").remarks[0]
    (path / "runs").rename(path / "elsewhere")
    assert "whether it is the suite's own is not known" in entry(league(load([path])), "repa").remarks[0]


def test_a_grids_variant_says_its_setting(tmp_path):
    records = [*whole(), *changed(run_of("repa", 0, 5.0), variant="repa+alignment=0.1", run="swept")]
    assert (
        "not the suite's own: alignment=0.1 (--grid)"
        in entry(league(load([write(tmp_path, records)])), "repa+alignment=0.1").remarks
    )


def test_what_is_held_against_a_reference_and_what_is_not(tmp_path):
    slow = [*(r for r in whole() if r.variant == "vanilla"), *(r for s in range(3) for r in run_of("repa", s, 7.9))]
    ours, reference = load([write(tmp_path / "a", whole())]), load([write(tmp_path / "slow", slow)])
    assert entry(league(ours, ours), "repa").remarks == ()
    found = league(ours, reference)
    assert entry(found, "repa").remarks[0].startswith("suspicious: it reaches the target after")
    assert "held against the reference: vanilla (3 reruns), repa (3 reruns)" in found.remarks
    never = [*slow[:12], *(r for s in range(3) for r in run_of("repa", s, 9.9))]  # reruns that need more than there is
    assert "suspicious" in entry(league(ours, load([write(tmp_path / "never", never)])), "repa").remarks[0]
    short = [r for r in never if r.step <= 500]  # that reruns have not reached it where they end says nothing of later
    assert not entry(league(ours, load([write(tmp_path / "short", short)])), "repa").remarks
    one = league(ours, load([write(tmp_path / "one", [r for r in slow if r.seed == 0])]))
    assert not entry(one, "repa").remarks
    assert one.remarks[-1].endswith("two reruns of the same: vanilla (1 rerun(s) there), repa (1 rerun(s) there)")
    edited = changed([r for r in slow if r.variant == "repa"], source="s")
    other = league(ours, load([write(tmp_path / "edited", [*slow[:12], *edited])]))
    assert other.remarks[-1].endswith("repa (another version of its file there)")
    for name, fields in {"suite": {"suite": "smoke"}, "set": {"suite_digest": "s"}}.items():
        with pytest.raises(UserError, match=r"^--reference: "):
            league(ours, load([write(tmp_path / name, changed(slow, **fields))]))
