"""Records of one folder or several as one set: what counts once, what is refused, what is said."""

from __future__ import annotations

import pytest
from test_claims import PROVENANCE, tokenizer
from test_comparison import whole, write

from harness.records.file import FILE, LOCK
from harness.records.schema import AlignmentRecord, FloorRecord, ScoreRecord, StageRecord
from harness.results.comparison import load
from harness.results.curves import Selection
from harness.results.run_folders import remove
from harness.runtime.locks import alone
from harness.sampling.protocol import find_protocol
from harness.suites import suite
from recipes.core.errors import UserError
from reports.build import Wanted, render
from reports.summary import CurveSummary, summarize_runs
from reports.tables import alignment_table, cost_table, fid_table, metrics_table, stage_table, tokenizer_table

CURRENT = suite("digits").identity()
COMMON = {"suite": "digits", "suite_digest": CURRENT, "notice": "n", "provenance": PROVENANCE}


def times(records: list[ScoreRecord], factor: float, **fields: object) -> list[ScoreRecord]:
    """The same scores with FIDs so many times as high."""
    return [
        r.model_copy(update={"metrics": r.metrics.model_copy(update={"fid": factor * r.metrics.fid}), **fields})
        for r in records
    ]


def stage(seconds: float, created: str) -> StageRecord:
    made = PROVENANCE.model_copy(update={"created": created})
    return StageRecord(**COMMON | {"provenance": made}, stage="prepare tokenizer", seconds=seconds, peak_memory_bytes=1)


def with_tokenizer(found: CurveSummary) -> float | None:
    told = found.as_dict()["speedups"]["repa"]["device_seconds+tokenizer"]
    return told["loglog"]


def test_two_specifications_of_one_seed_are_refused_by_name(tmp_path):
    """As after a tokenizer was made again: in one folder, and in two."""
    again = times([r for r in whole(2) if r.variant == "repa" and r.seed == 1], 1.001, run="remade00", weights_hash="v")
    one = write(tmp_path / "one", [*whole(2), *again])
    two = [write(tmp_path / "a", whole(2)), write(tmp_path / "b c", again)]
    for folders, place in (([one], "one"), (two, "'.*b c'")):
        with pytest.raises(
            UserError, match=f"repa, seed 1, was trained by two .*repa-seed1-repa1 .*{place} repa-seed1-rem"
        ):
            load(folders)
    remove(one, "repa-seed1-remade00")
    assert len(load([one]).scores) == len(whole(2))
    other = times([r for r in again if r.seed == 1], 1.0, seed=7)
    assert load([two[0], write(tmp_path / "other", other)]).seeds("repa") == [0, 1, 7]


def test_two_trainings_of_one_seed_are_one_value_in_every_table(tmp_path):
    """And that is said beside it."""
    again = times(whole(1), 1.21, weights_hash="other", train_seconds=80.0, device_seconds=80.0)
    found = load([write(tmp_path / "a", whole(1)), write(tmp_path / "b", again)])
    for table in (fid_table(found), metrics_table(found), cost_table(found)):
        assert "±" not in str(table.rows), table.title
    assert metrics_table(found).rows[0][3] == fid_table(found).rows[0][-1] == "8.80"
    assert "vanilla, seed 0, was trained 2 times, which counts as one seed, by their mean." in fid_table(found).note


def test_one_file_with_two_trainings_is_refused(tmp_path):
    again = times(whole(1), 1.21, weights_hash="other")
    (tmp_path / "records.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in (*whole(1), *again)))
    with pytest.raises(UserError, match=r"holds run vanilla0 with two weights at step 250: it is two folders' records"):
        load([tmp_path])


@pytest.mark.parametrize("factor", [1.0, 1.004, 1.5])
def test_folders_that_contradict_each_other(factor, tmp_path):
    """Whichever is named last: equal counts once, a little apart is said, more is refused."""
    a, b = write(tmp_path / "a", whole()), write(tmp_path / "b", times(whole(), factor))
    for folders in ((a, b), (b, a)):
        if factor == 1.5:
            with pytest.raises(
                UserError, match=r"contradict each other: vanilla, seed 0, step 250.* have fid 32 and 48|48 and 32"
            ):
                load(folders)
            continue
        found = load(folders)
        assert found.fids("vanilla", 1000) == load(folders[:1]).fids("vanilla", 1000)
        assert [f"between {folders[0]} and {folders[1]}" in told for told in found.warnings] == [True] * (factor > 1)
        assert summarize_runs(folders, "vanilla", Selection()).as_dict()["warnings"] == list(found.warnings)


def test_suites_do_not_mix(tmp_path):
    smoke = [
        r.model_copy(
            update={"suite": "smoke", "protocol": r.protocol.model_copy(update={"name": "other"}), "variant": "x"}
        )
        for r in times(whole(1), 1.0, protocol_digest="other")
    ]
    with pytest.raises(UserError, match=r"of several suites, digits \(.*\) and smoke"):
        load([write(tmp_path / "a", whole()), write(tmp_path / "b", smoke)])


def test_a_tokenizer_is_paid_for_once(tmp_path):
    """Whether a folder is a copy, or it was made by each of two folders, or by two sessions of one."""
    alone = summarize_of(tmp_path / "alone", stage(30.0, "1"))
    assert with_tokenizer(alone) == pytest.approx((40 + 30) / (40 * 5 / 8 + 30), rel=0.01)
    for name, stages in {"copy": [stage(30.0, "1")], "again": [stage(30.0, "1"), stage(30.0, "2")]}.items():
        found = summarize_of(tmp_path / name, *stages)
        assert with_tokenizer(found) == pytest.approx(with_tokenizer(alone))
        again = [f"the tokenizer was made {len(stages)} times, in 30.0 to 30.0 s: the mean counts"] * (len(stages) > 1)
        assert found.as_dict()["warnings"] == again
    both = load([tmp_path / "alone", tmp_path / "copy"])
    assert stage_table(both).rows[-1][1] == "30.0"


def summarize_of(path, *stages):
    return summarize_runs([write(path, [*whole(), *stages])], "vanilla", Selection())


def test_tokenizers_of_one_name_that_differ_stand_side_by_side_and_are_said(tmp_path):
    floors = [FloorRecord(**COMMON, name="halves", fid=fid, n_fake=5, n_real=5) for fid in (0.2, 0.3)]
    a = write(tmp_path / "a", [*whole(), tokenizer(None, None, 0.2, 1.0, 15.0), floors[0]])
    b = write(tmp_path / "b", [*whole(), tokenizer(None, None, 0.4, 1.0, 15.0), floors[1]])
    found = load([a, b])
    assert [row[1] for row in tokenizer_table(found).rows] == ["0.300"]  # the mean, and no spread over seeds
    assert any(
        told.startswith("tokenizer tokenizer has rfid 0.2 in") and " and 0.4 in" in told for told in found.warnings
    )
    assert any("floor halves has fid 0.2 in" in told for told in found.warnings)
    assert load([a, a]).warnings == ()
    assert "rfid 0.2 in" in render(Wanted([a, b]), ["md"])["report.md"].decode()


def test_alignment_of_two_trainings_is_one_value(tmp_path):
    def aligned(value: float) -> AlignmentRecord:
        return AlignmentRecord(
            **COMMON, variant="repa", label="REPA", seed=0, run="repa0", step=1000, cknna=[value], aligned_depth=1,
            time=0.5, count=8,
        )  # fmt: skip

    found = load([write(tmp_path / name, [*whole(1), aligned(v)]) for name, v in (("a", 0.2), ("b", 0.4))])
    assert alignment_table(found).rows[0][1:] == ("0.300", "0.300")


def test_a_sweep_with_many_generation_seeds_is_not_the_curve(tmp_path):
    """Ten sample sets of the last checkpoint under guidance are one checkpoint, the curve has four."""
    guided = find_protocol("digits-ode25").guided(2.0)
    swept = [
        r.model_copy(update={"protocol": guided, "protocol_digest": "guided", "generation_seed": g})
        for r in times([r for r in whole() if r.step == 1000], 0.5)
        for g in range(10)
    ]
    usual, found = load([write(tmp_path / "a", whole())]), load([write(tmp_path / "b", [*swept, *whole()])])
    assert found.curve_digest == usual.curve_digest == "digits-ode25"
    points = [[(s.recipe, s.currency, s.estimate) for s in c.speedups] for c in (usual, found)]
    assert points[0] == points[1]


def test_every_machine_is_named(tmp_path):
    made = PROVENANCE.model_copy(
        update={"created": "2026-01-01T00:00:00", "device": "H100", "versions": {"torch": "2.11.0", "lpips": "1"}}
    )
    first = PROVENANCE.model_copy(update={"created": "2026-02-01T00:00:00", "versions": {"torch": "2.14.1"}})
    records = [r.model_copy(update={"provenance": made if r.seed else first}) for r in whole(2)]
    text = render(Wanted([write(tmp_path, records)]), ["md"])["report.md"].decode()
    assert "- hardware: cpu; x, 1 cores, 1 threads; and H100; x, 1 cores, 1 threads" in text
    assert "- versions: lpips absent and 1, torch 2.14.1 and 2.11.0" in text
    assert "- measured: 2026-01-01T00:00:00 to 2026-02-01T00:00:00 UTC" in text


def at(records: list[ScoreRecord], created: str, **fields: object) -> list[ScoreRecord]:
    made = PROVENANCE.model_copy(update={"created": created})
    return [r.model_copy(update={"provenance": made, **fields}) for r in records]


def test_of_two_versions_of_a_recipe_s_file_the_one_that_ran_last_is_shown_whatever_the_order(tmp_path):
    vanilla = [r for r in whole(2) if r.variant == "vanilla"]
    mine = [r.model_copy(update={"variant": "mine"}) for r in whole(2) if r.variant == "repa"]
    old = at(mine, "2026-01-01T00:00:00.0+00:00", source="a" * 64, run="older000")
    new = at(times(mine, 1.3), "2026-01-02T00:00:00.0+00:00", source="b" * 64, run="newer000")
    one, two = write(tmp_path / "one", [*vanilla, *old]), write(tmp_path / "two", new)
    for folders in ([one, two], [two, one]):
        found = load(folders)
        assert {r.run for r in found.scores if r.variant == "mine"} == {"newer000"}
        assert any(
            "ran last (SHA-256 bbbbbbbb), and 1 run(s) of others are left out" in note for note in found.contradictions
        )
    begun = StageRecord(
        **COMMON | {"provenance": PROVENANCE.model_copy(update={"created": "2026-01-03T00:00:00.0+00:00"})},
        stage="note", variant="mine", source="c" * 64, seconds=0.0, peak_memory_bytes=1,
    )  # fmt: skip
    found = load([write(tmp_path / "three", [*vanilla, *old, begun])])  # type: ignore[list-item]
    assert {r.run for r in found.scores if r.variant == "mine"} == {"older000"}
    assert any(
        "(SHA-256 cccccccc) has no scores; shown is one before it (SHA-256 aaaaaaaa)" in n for n in found.contradictions
    )
    back = begun.model_copy(
        update={
            "source": "a" * 64,
            "provenance": PROVENANCE.model_copy(update={"created": "2026-01-04T00:00:00.0+00:00"}),
        }
    )
    assert load([write(tmp_path / "three", [back])]).warnings == ()  # the old file again, all of whose scores are there


def test_of_one_training_done_twice_the_first_pace_counts_however_folders_are_named(tmp_path):
    late = PROVENANCE.model_copy(update={"created": "o"})  # after PROVENANCE's
    slow = [r.model_copy(update={"device_seconds": 2 * r.device_seconds, "provenance": late}) for r in whole()]
    a, b = write(tmp_path / "a", whole()), write(tmp_path / "b", slow)
    for folders in ([a, b], [b, a]):
        found = load(folders)
        assert cost_table(found).rows == cost_table(load([a])).rows
        assert [f"seconds of the same weights differ between {a} and {b}" in told for told in found.warnings] == [True]


def test_a_line_cut_short_is_said_beside_the_numbers_unless_it_is_being_written(tmp_path):
    path = write(tmp_path, whole()) / FILE
    text = path.read_text()
    path.write_text(text[:-40])
    told = f"the last line of {path} was cut short and is left out"
    assert told in fid_table(load([tmp_path])).note
    assert told in summarize_runs([tmp_path], "vanilla", Selection()).text_tables()[0].note
    with alone(tmp_path / LOCK):
        assert load([tmp_path]).warnings == ()
    path.write_text(text)
    assert load([tmp_path]).warnings == ()
