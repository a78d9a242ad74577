"""What a whole comparison takes, from what a few units of each stage took."""

from __future__ import annotations

import pytest

from harness.cli.plan_printing import _amount, plan_lines
from harness.pipeline.plan import Plan
from harness.pipeline.rehearsal import Costs, Whole, _Made, _scaled, _shortened, rehearse, scoring, whole
from harness.suites import suite
from harness.suites.base import Budget
from recipes.core.spec import Execution

COSTS = Costs({"features": 40.0, "tokenizer": 50.0}, 2.0, {"digits-ode25": 0.0025, "digits-sde50": 0.005}, 7.0)
STEPS = {"vanilla": 0.05, "repa_e": 0.1}
DIGITS = suite("digits")


def stages(**changes) -> dict[str, float]:
    given = {"seeds": 2, "cached": (), "jobs": 1, "start": 3.0} | changes
    return whole(DIGITS, Budget(steps=1000, score_every=250), STEPS, costs=COSTS, **given)


def test_every_stage_is_counted():
    """By hand: 1,024 samples of each of 4 checkpoints; of the first seed one more set, and the final protocol."""
    curve, final = 1024 * 0.0025, 1024 * 0.005
    first, other = 5 * curve + final, 4 * curve
    assert scoring(DIGITS, DIGITS.budget, COSTS, first=True) == pytest.approx(first)
    runs = 2 * (50 + 100 + 2) - 2 * 2 + 2 * (first + other) + 2 * 2  # a tuned tokenizer is looked at as well
    assert stages() == pytest.approx(
        {"start": 3, "preparation": 90, "tokenizer and noise floor": 2, "training and scoring": runs, "report": 7}
    )


def test_what_is_cached_is_not_made_again():
    assert stages(cached=("features",))["preparation"] == 50
    assert stages(cached=("features", "tokenizer"))["preparation"] == 0


def test_runs_at_a_time():
    """Paces are measured and workers start first; then the longest runs begin first."""
    one, two, many = stages(seeds=1), stages(seeds=1, jobs=2), stages(seeds=1, jobs=9)
    longer = 100 + 2 + scoring(DIGITS, DIGITS.budget, COSTS, first=True)
    assert two["training and scoring"] == many["training and scoring"] == pytest.approx(longer)
    assert one["training and scoring"] == pytest.approx(2 * longer - 52)
    assert two["pace"] == pytest.approx(3 * 0.05 + 1.5 + 3 * 0.1 + 20 * 0.1)
    assert two["start of the workers"] == 3
    assert "pace" not in one


def test_a_stage_is_multiplied_by_its_units():
    """400 steps of 0.1 s each, with a slow first one and 0.5 s for 1,024 reference images of 16,000."""
    times = [0.0, 5.0, *(5 + 0.1 * k for k in range(1, 12))]
    made = _Made("features", [*times, times[-1] + 0.5])
    assert _scaled(made, DIGITS) == pytest.approx(400 * 0.1 + 0.5 * 16_000 / 1024)
    assert _scaled(_Made("tokens", [0.0, 0.2, 0.25]), DIGITS) == pytest.approx(0.25 * 16_000 / 1024)


def test_a_rehearsal_is_of_the_same_networks():
    small = _shortened(DIGITS)
    changed = {name for name in type(DIGITS).model_fields if getattr(small, name) != getattr(DIGITS, name)}
    assert changed == {"data", "features", "encoder", "tokenizer", "curve_protocol", "final_protocols", "max_rfid"}
    assert small.tokenizer.autoencoder == DIGITS.tokenizer.autoencoder
    assert small.curve_protocol.nfe == DIGITS.curve_protocol.nfe


def test_a_rehearsal_measures_every_stage_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    smoke, seen = suite("smoke"), []
    found = rehearse(smoke, Execution(device="cpu"), lambda folder: seen.append((folder / "records.jsonl").read_text()))
    assert set(found.preparation) == {
        "data", "reference", "features", "reference-features", "encoder", "tokens", "tokenizer", "latents",
    }  # fmt: skip
    assert all(seconds >= 0 for seconds in found.preparation.values())
    assert found.preparation["features"] > 0
    assert set(found.sample) == {"smoke-ode4", "smoke-sde4"}
    assert min(found.examination, *found.sample.values()) > 0
    assert '"kind": "score"' in seen[0]
    assert not list(tmp_path.glob("repa-bench-*"))


def test_what_a_person_reads():
    plan = Plan(
        (), (), 900.0, {}, {}, "measured", None, Whole(2, {"start": 4.0, "preparation": 86.0}, 2.5, ("data",), 20.0)
    )
    text = "\n".join(plan_lines(plan))
    assert "start to report: about 90 s on this machine when it is quiet, 3.8 min while it is as busy as now" in text
    assert "2 runs at a time" in text
    assert "preparation 86 s (data cached)" in text
    other = "\n".join(plan_lines(Plan((), (), 900.0, {}, {}, "assumed", None, None)))
    assert "loses 15.0 min of training at most" in other


def test_amounts_have_no_exponent():
    assert [_amount(value) for value in (0.0455, 8.731, 711.66, 3771.44, 123456.7)] == [
        "0.0455", "8.73", "711.7", "3,771.4", "123,456.7",
    ]  # fmt: skip
