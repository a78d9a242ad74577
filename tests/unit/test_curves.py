"""Tables of curves that others made."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from harness.cli.app import main
from harness.results.confidence import SeedNoise
from harness.results.curve_csv import read_csv
from harness.results.curves import (
    WITH_TOKENIZER,
    Observation,
    Selection,
    as_dict,
    compare,
    currencies,
    epochs_to,
    panel,
    select,
)
from harness.suites.base import IMAGENET_TRAIN
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


def told(path, baseline, **more):
    return as_dict(compare(read_csv(path), baseline, **more))


def test_by_hand(tmp_path):
    found = told(write(tmp_path), "slow")
    assert set(found["speedups"]) == {"fast"}
    assert list(found["speedups"]["fast"]) == ["iterations", "images", "flops"]
    assert (found["target_fid"], found["target_step"]) == (pytest.approx(5 * math.sqrt(1.01)), 400)
    steps, flops = found["speedups"]["fast"]["iterations"], found["speedups"]["fast"]["flops"]
    assert steps["target_fid"] == pytest.approx(5 * math.sqrt(1.01))
    assert steps["first_checkpoint"] == pytest.approx(2.0)
    assert steps["loglog"] == pytest.approx(2.0)
    assert steps["bracket"] == pytest.approx([2.0, 4.0])
    assert flops["loglog"] == pytest.approx(2 / 3)
    assert (steps["censored"], steps["bound"], steps["seeds"], steps["baseline_seeds"]) == (False, None, 2, 2)
    assert (steps["verdict"], flops["verdict"]) == ("better", "worse")
    assert set(steps["by_seed"]) == {"0", "1"}
    epochs = epochs_to(read_csv(write(tmp_path)), 5.0)
    assert epochs["fast"]["loglog"] == pytest.approx(200 * math.sqrt(1.01) * 256 / IMAGENET_TRAIN, rel=1e-6)
    assert epochs["slow"]["loglog"] is None  # 5 * sqrt(1.01) is its last


def test_generation_seeds_are_averaged_where_every_step_has_them(tmp_path):
    extra = ("fast", 0, 7, 400, 9e9, 400 * 256, 1200)
    whole, more = (panel(read_csv(write(tmp_path, rows)), "fast", "iterations") for rows in (ROWS, [*ROWS, extra]))
    assert whole == more
    assert [p.fid for p in whole[0]] == pytest.approx([10, 5, 2.5])
    single = [("a", 0, 0, 100, 9.0), ("a", 0, 1, 100, 3.0), ("a", 1, 0, 100, 9.0)]  # the first seed is drawn twice
    assert [
        c[0].fid for c in panel(read_csv(write(tmp_path, single, HEADER)), "a", "iterations").values()
    ] == pytest.approx([9, 9])


def test_tokenizer_training_is_counted_or_not(tmp_path):
    rows = [(*row, 0 if row[0] == "slow" else 200) for row in ROWS]
    found = read_csv(write(tmp_path, rows, HEADER + ",images,flops,tokenizer_flops"))
    assert currencies(found) == ["iterations", "images", "flops", WITH_TOKENIZER["flops"]]
    by = {s.currency: s.estimate.point for s in compare(found, "slow")}
    assert by["flops"].loglog == pytest.approx(400 / 600)
    assert by[WITH_TOKENIZER["flops"]].low == pytest.approx(400 / (600 + 200))


SHORT = [("a", 0, 0, 100, 9.0), ("a", 0, 0, 200, 8.0), ("b", 0, 0, 100, 20.0), ("b", 0, 0, 250, 8.5)]


def test_a_single_seed_that_does_not_reach_is_a_bound(tmp_path):
    one = told(write(tmp_path, SHORT, HEADER), "a")["speedups"]["b"]["iterations"]
    assert (one["first_checkpoint"], one["linear"], one["loglog"], one["bracket"]) == (None, None, None, None)
    assert (one["censored"], one["bound"], one["verdict"], one["p"]) == (True, "< 0.8", None, None)


def test_a_single_seed_has_an_interval_only_where_the_spread_over_seeds_is_known(tmp_path):
    """FID falls as budget^-2, so half of the target's interval in budget."""
    rows = [("a", 0, 0, 400, 8.0), ("b", 0, 0, 100, 16.0), ("b", 0, 0, 200, 4.0)]
    path = write(tmp_path, rows, HEADER)
    unknown = told(path, "a")["speedups"]["b"]["iterations"]
    assert (unknown["interval"], unknown["verdict"]) == ([None, None], None)
    assert "not known" in unknown["evidence"]
    noise = SeedNoise(cv=0.013, freedom=0, slope=1.0, source="somebody")
    known = told(path, "a", noise=noise)["speedups"]["b"]["iterations"]
    half, centre = noise.half(1, 1) / 2, 400 / (100 * math.sqrt(2))
    assert known["interval"] == pytest.approx([centre * math.exp(-half), centre * math.exp(half)], rel=1e-6)
    assert known["verdict"] is None
    assert "supposes that FID spreads by 1.3% over seeds (somebody)" in known["evidence"]


def test_seeds_of_64_bits_are_exact_and_a_byte_order_mark_is_no_name(tmp_path):
    rows = [("a", 2**53 + k, 0, 1, 9) for k in range(3)]
    path = write(tmp_path, rows, HEADER)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [o.seed for o in read_csv(path)] == [2**53, 2**53 + 1, 2**53 + 2]


def test_tables_without_seeds_are_of_one(tmp_path):
    rows = [("a", 100, 9.0), ("a", 200, 8.0), ("b", 100, 8.0)]
    found = read_csv(write(tmp_path, rows, "recipe,step,fid"))
    assert {(o.seed, o.generation_seed) for o in found} == {(0, 0)}


# --- seeds that are not alike -----------------------------------------------------------------------------------------

#: Thousands of steps.
SEEDED = {"SiT": {100: 40.0, 200: 30.0, 300: 22.0, 400: 16.0}, "mine": {100: 30.0, 200: 20.0, 300: 15.0, 400: 12.0}}


def seeded(ends: dict[tuple[str, int], int] | None = None, count: int = 3, shift: int = 0) -> list[Observation]:
    """Curves of SEEDED for each seed, to its end in `ends`; the steps of seed 2 of `mine` are moved by `shift`."""
    return [
        Observation(
            recipe, seed, 0, at := 1000 * step + shift * (recipe == "mine" and seed == 2),
            fid * (1 + 0.01 * (seed if recipe == "SiT" else seed * seed / 2)), {"iterations": float(at)},
        )
        for recipe, curve in SEEDED.items()
        for seed in range(count)
        for step, fid in curve.items()
        if step <= (ends or {}).get((recipe, seed), 400)
    ]  # fmt: skip


def test_a_baseline_seed_that_stopped_early_is_named_and_does_not_move_the_target():
    whole, short = compare(seeded(), "SiT"), compare(seeded({("SiT", 2): 200}), "SiT")
    assert whole.notes == ()
    assert (short.step, short.target) == (400_000, pytest.approx(16 * math.sqrt(1.01)))
    (one,) = short
    assert (one.estimate.seeds, one.estimate.baseline_seeds) == (3, 2)
    assert one.estimate.point.loglog == pytest.approx(1.45, abs=0.01)  # not > 2
    assert any("SiT: seed 2 ends at step 200,000, before 400,000, and is left out" in note for note in short.notes)


def test_a_recipe_seed_that_stopped_early_is_named_and_left_out():
    found = compare(seeded({("mine", 2): 200}), "SiT")
    (one,) = found
    assert (found.target, one.estimate.seeds) == (pytest.approx(16 * math.exp(math.log(1.01 * 1.02) / 3)), 2)
    assert one.estimate.point.bound is None
    assert any("mine: seed 2 ends at step 200,000" in note for note in found.notes)


def test_a_run_of_other_steps_takes_nothing_from_the_others():
    extra = [Observation("third", 0, 0, 7000, 50.0, {"iterations": 7000.0})]
    found = compare([*seeded(), *extra], "SiT")
    by = {s.recipe: s.estimate for s in found}
    alone = next(iter(compare(seeded(), "SiT"))).estimate
    assert by["mine"] == alone  # one recipe with a verdict, one family
    assert (by["third"].verdict, by["third"].point.bound) == (None, pytest.approx(400 / 7))
    assert "third: it ends at step 7,000, before 400,000" in found.notes


def test_steps_that_differ_a_little_are_interpolated_and_said():
    found, plain = compare(seeded(shift=1000), "SiT"), compare(seeded(), "SiT")
    (one,), (other,) = found, plain
    assert one.estimate.point.loglog == pytest.approx(other.estimate.point.loglog, rel=5e-3)
    assert any("mine: not every seed was scored at step 101,000, 200,000" in note for note in found.notes)


@pytest.mark.parametrize("recipe", ["SiT", "mine"])
def test_a_seed_that_goes_on_longer_harms_nobody(recipe):
    longer = Observation(recipe, 0, 0, 800_000, 9.0, {"iterations": 800_000.0})
    found = compare([*seeded(), longer], "SiT")
    (one,), (other,) = found, compare(seeded(), "SiT")
    assert one.estimate == other.estimate
    assert found.step == 400_000
    assert any(f"{recipe}: seed 0 goes on to step 800,000, the others end at 400,000" in note for note in found.notes)


def test_a_seed_that_was_scored_where_the_others_end_is_left_out():
    late = [Observation("SiT", 9, 0, 402_000, 16.0, {"iterations": 402_000.0})]
    (one,), (other,) = compare([*seeded(), *late], "SiT"), compare(seeded(), "SiT")
    assert one.estimate.point.loglog == pytest.approx(other.estimate.point.loglog)
    assert one.estimate.baseline_seeds == 3


def test_a_target_does_not_need_what_comes_after_it():
    (one,) = compare(seeded({("mine", 0): 200, ("mine", 1): 200}), "SiT", target=30.0)
    assert one.estimate.seeds == 3


def test_seeds_that_are_alike_to_the_last_digit_are_said():
    same = [Observation(o.recipe, s, 0, o.step, o.fid, o.budgets) for o in seeded(count=1) for s in range(3)]
    found = compare(same, "SiT")
    assert sum("its 3 training seeds have one FID, as copies have" in note for note in found.notes) == 2
    (one,) = found
    assert (one.estimate.verdict, one.estimate.interval, one.estimate.p) == (None, (None, None), None)
    assert any("mine: no verdict in iterations: the training seeds of one side have one FID" in n for n in found.notes)


def test_a_recipe_without_a_test_takes_nothing_from_anothers_verdict():
    """Ended at a quarter of the budget, and not ahead: its family is one smaller."""
    third = [
        Observation("third", o.seed, 0, o.step, o.fid * 1.5, o.budgets)
        for o in seeded()
        if o.recipe == "mine" and o.step <= 100_000
    ]
    alone, beside = compare(seeded(), "SiT"), compare([*seeded(), *third], "SiT")
    by = {s.recipe: s for s in beside}
    assert by["mine"].estimate == next(iter(alone)).estimate
    assert (by["mine"].family, by["third"].estimate.verdict) == (1, None)
    assert any(n.startswith("third: no verdict in iterations: no budget from half") for n in beside.notes)


def test_a_recipe_that_ends_short_is_judged_there_and_that_is_said():
    def shortened(steps: int) -> list[Observation]:
        return [
            replace(o, step=steps, budgets={"iterations": float(steps)})
            if (o.recipe, o.step) == ("mine", 400_000)
            else o
            for o in seeded()
        ]

    near, far = compare(shortened(394_000), "SiT"), compare(shortened(320_000), "SiT")
    assert (next(iter(near)).estimate.verdict, near.notes) == ("better", ())
    assert next(iter(far)).estimate.verdict == "better"
    assert "mine: it ends at step 320,000, before 400,000" in far.notes
    assert any("in iterations it is judged by FID at 80% of the baseline's budget" in note for note in far.notes)


def test_the_paces_of_a_baseline_count_with_other_seeds_too():
    """The same clocks, once with equal seed numbers, once not: both leave it open in seconds."""
    paces = {0: 0.6, 1: 0.8, 2: 1.25, 3: 1.667}

    def clocked(moved: int) -> list[Observation]:
        out = []
        for o in seeded(count=4):
            pace, seed = (paces[o.seed], o.seed) if o.recipe == "SiT" else (1.0, o.seed + moved)
            budgets = o.budgets | {"device_seconds": o.step * pace}
            out.append(Observation(o.recipe, seed, 0, o.step, o.fid * math.exp(0.01 * (o.seed % 2)), budgets))
        return out

    for moved in (0, 10):
        by = {s.currency: s.estimate for s in compare(clocked(moved), "SiT")}
        assert by["iterations"].verdict == "better"
        assert by["device_seconds"].verdict == "inconclusive"
        low, high = by["device_seconds"].interval
        assert low is None or low < 1
        assert high is None or high > 2


def test_what_is_not_ours_has_neither_our_noise_nor_our_seeds():
    noise = SeedNoise(cv=0.013, freedom=0, slope=1.0, source="somebody")
    found = compare(seeded(), "SiT", noise=noise, unjudged={"mine"})
    (one,) = found
    assert one.estimate.evidence == "Scheffé's t over 3 training seeds and 3 of the baseline, 0 shared"
    assert (one.estimate.by_seed, one.estimate.verdict) == ({}, None)
    single = [o for o in seeded() if o.recipe == "SiT" or o.seed == 0]
    (one,) = compare(single, "SiT", noise=noise, unjudged={"mine"})
    assert one.estimate.interval == (None, None)


def test_trainings_under_one_seed_number_count_as_one_seed():
    """Ten trainings that share initialisation, data order and noise are no ten seeds; none is ignored."""
    many = [
        Observation("SiT", 0, 0, o.step, o.fid * math.exp(0.01 * k), o.budgets, f"training {k}")
        for o in seeded(count=1)
        if o.recipe == "SiT"
        for k in range(-5, 5)
    ]
    found = compare([*many, *(o for o in seeded(count=1) if o.recipe == "mine")], "SiT")
    (one,) = found
    assert found.target == pytest.approx(16 * math.exp(-0.005))
    assert (one.estimate.baseline_seeds, one.estimate.verdict) == (1, None)
    assert any("SiT: seed 0 was trained 10 times, which counts as one seed" in note for note in found.notes)


def test_seeds_that_are_shared_in_part_are_not_paired():
    ours = [o for o in seeded() if o.recipe == "SiT"]
    theirs = [Observation("mine", o.seed + 2, 0, o.step, o.fid, o.budgets) for o in seeded() if o.recipe == "mine"]
    (one,) = compare([*ours, *theirs], "SiT")
    assert one.estimate.evidence == "Scheffé's t over 3 training seeds and 3 of the baseline, 1 shared"
    assert set(one.estimate.by_seed) == {2}


def test_unusual_noise_is_said():
    loud = [
        Observation(o.recipe, o.seed, 0, o.step, o.fid * math.exp(0.3 * (o.seed - 1)), o.budgets)
        if o.recipe == "mine"
        else o
        for o in seeded()
    ]
    noise = SeedNoise(cv=0.013, freedom=0, slope=1.0, source="somebody")
    (said,) = [note for note in compare(loud, "SiT", noise=noise).notes if "unusual" in note]
    assert said.startswith("mine: FID spreads by 31.0% over 3 training seeds, which is unusual: 1.3% is")
    assert not any("unusual" in note for note in compare(seeded(), "SiT", noise=noise).notes)


def test_a_target_of_ones_own():
    """SiT passes 22 at step 300,000, mine between 100,000 and 200,000."""
    found = compare(seeded(count=1), "SiT", target=22.0)
    assert (found.step, found.target) == (pytest.approx(300_000), pytest.approx(22.0))
    (one,) = found
    share = math.log(30 / 22) / math.log(30 / 20)
    assert one.estimate.point.loglog == pytest.approx(300 / (100 * 2**share))
    with pytest.raises(
        UserError, match=r"--target 5: SiT does not come down through it; its FID goes from 40 .* to 16"
    ):
        compare(seeded(count=1), "SiT", target=5.0)


def test_verdicts_count_the_family():
    """Equal evidence for each of four recipes: enough for one alone, not for any of four."""
    noise = {0: 0.0, 1: 0.02, 2: -0.035}
    one = [o for o in seeded(count=3) if o.recipe == "SiT"]
    for k in range(4):
        one += [
            Observation(f"r{k}", o.seed, 0, o.step, o.fid * 0.94 * math.exp(noise[o.seed]), o.budgets)
            for o in seeded(count=3)
            if o.recipe == "SiT"
        ]
    alone = next(s for s in compare([o for o in one if o.recipe in ("SiT", "r0")], "SiT"))
    together = next(s for s in compare(one, "SiT"))
    assert together.estimate.p == alone.estimate.p
    assert together.estimate.interval == alone.estimate.interval
    assert together.estimate.p_family == pytest.approx(4 * alone.estimate.p)
    assert (alone.family, together.family) == (1, 4)


def test_a_selection():
    found = select(seeded(), Selection(("mine",), (0, 1), 300_000), "SiT")
    assert {(o.recipe, o.seed) for o in found} == {(r, s) for r in ("SiT", "mine") for s in (0, 1)}
    assert max(o.step for o in found) == 300_000
    for wrong, sentence in (
        (Selection(("min",)), "--recipes: there is no recipe 'min'. Did you mean 'mine'"),
        (Selection(seeds=(7,)), "--seeds: there is no training seed 7; there are 0, 1, 2, 3"),
        (Selection(until=5), "--until 5: the first scored step is 100000"),
        (Selection(seeds=(3,)), "--seeds and --until leave no checkpoint of the baseline 'SiT'"),
    ):
        with pytest.raises(UserError, match=sentence):
            select([*seeded(), Observation("mine", 3, 0, 100_000, 9.0, {"iterations": 1e5})], wrong, "SiT")
    with pytest.raises(UserError, match="there is nothing but the baseline 'SiT' to compare"):
        compare([o for o in seeded() if o.recipe == "SiT"], "SiT")


def test_budgets_that_do_not_grow_are_refused(tmp_path):
    rows = [("a", 0, 0, 100, 9.0, 50.0), ("a", 0, 0, 200, 8.0, 20.0), ("b", 0, 0, 100, 9.0, 10.0)]
    with pytest.raises(
        UserError, match=r"a, seed 0: device-seconds do not grow from step 100 \(50\) to step 200 \(20\)"
    ):
        told(write(tmp_path, rows, HEADER + ",device_seconds"), "a")


@pytest.mark.parametrize(
    ("header", "rows", "sentence"),
    [
        ("recipe,seed,fid", [("a", 0, 2)], "there is no column 'step'"),
        ("recipe,step,fid", [("a", 1, 3), ("a", 1, 4)], "stands twice. A column 'seed' tells trainings apart"),
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
        (HEADER, [("a", 0, 0, 1, 9, 5)], "line 2: more cells than columns; a decimal comma"),
        (HEADER + ",fid", [("a", 0, 0, 1, 9, 5)], "the column 'fid' stands twice"),
        (HEADER, [("a", -1, 0, 1, 9)], "line 2: seed is '-1', not a whole number from 0 to 9223372036854775807"),
        (HEADER, [("a", 2**63, 0, 1, 9)], "line 2: seed is '9223372036854775808'"),
    ],
)
def test_tables_that_are_wrong_are_sentences(tmp_path, header, rows, sentence):
    with pytest.raises(UserError, match=sentence):
        read_csv(write(tmp_path, rows, header))


def test_what_cannot_be_compared_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"--baseline: there is no recipe 'slw'\. Did you mean 'slow'"):
        compare(read_csv(write(tmp_path)), "slw")
    rows = [("a", 0, 0, 1, 3), ("a", 1, 0, 1, 3), ("b", 0, 0, 1, 3), ("b", 1, 0, 2, 3), ("b", 1, 0, 3, 3)]
    found = compare(read_csv(write(tmp_path, rows, HEADER)), "a")
    assert [(s.recipe, s.estimate.seeds) for s in found] == [("b", 1)]
    assert any("b: seed 1 begins at step 2, where others end, and is left out" in note for note in found.notes)
    clocks = [(*row, clock) for row, clock in zip(rows[:2] + rows[3:], (1, 1, 10, 11), strict=True)]
    clocks += [("b", 0, 0, 2, 3, 1e6), ("b", 0, 0, 3, 3, 2e6)]
    found = compare(read_csv(write(tmp_path, clocks, HEADER + ",device_seconds")), "a")
    assert [s.currency for s in found] == ["iterations"]
    assert any("b: not compared in device-seconds, since its training seeds have no budget" in n for n in found.notes)
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
    assert run(monkeypatch, "--curves", path, "--baseline", "slow", "--target", 7, "--json") == 0
    assert json.loads(capsys.readouterr().out)["target_fid"] == pytest.approx(7.0)
    assert run(monkeypatch, "--curves", path, "--baseline", "slow", "--seeds", 0, "--cv", 0.02, "--json") == 0
    assert "supposes" in json.loads(capsys.readouterr().out)["speedups"]["fast"]["iterations"]["evidence"]
    assert run(monkeypatch, "--curves", path, "--baseline", "slow", "--seeds", 0, "--until", 200) == 0
    assert "none" in capsys.readouterr().out
    assert run(monkeypatch, "--curves", path, "--baseline", "slow", "--cv", 0) == 2
    assert run(monkeypatch) == 2
    assert "name what to compare" in capsys.readouterr().err


def test_a_single_seed_against_several_is_said():
    found = compare(seeded({("mine", 1): 0, ("mine", 2): 0}), "SiT")
    assert found.notes == ("mine: one training seed, against all 3 of the baseline",)


def test_a_baseline_that_was_better_before_is_said(tmp_path):
    rows = [("a", 0, 0, step, fid) for step, fid in ((100, 9.0), (200, 5.0), (400, 8.0))]
    rows += [("b", *row[1:]) for row in rows]
    found = compare(read_csv(write(tmp_path, rows, HEADER)), "a")
    assert found.warnings == ("a: FID is 8 at step 400, the target, and was 5 at 200",)
    assert compare(read_csv(write(tmp_path, rows, HEADER)), "a", target=6).warnings == ()
