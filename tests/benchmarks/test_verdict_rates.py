"""Coverage, false verdicts and power of the rule, over thousands of simulated comparisons: `nox -s bench`.

The tables in docs/speedups.md are what `python tests/benchmarks/test_verdict_rates.py FILE.json` prints of the kept
figures.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from simulation import (
    DESIGNS,
    GROWING,
    NOISES,
    OTHER_STEPS,
    SPARSE_STEPS,
    STEPS,
    Noise,
    estimates,
    in_seconds,
    observations,
    rates,
)

from harness.results.curves import compare

FACTORS = (1.0, 1.2, 1.5, 2.0)
GRIDS = {"equal": STEPS, "unequal": OTHER_STEPS}
#: Comparisons of each setting; more where a rate of false verdicts is held to 6 %.
MANY, FEW = 10_000, 5000


def _row(noise: Noise, seeds: int, factor: float, count: int, **more: Any) -> dict[str, float]:
    found = rates(estimates(count, round(1000 * factor) + seeds, noise, seeds, factor, **more), factor)
    return {"factor": factor, "covered": found.covered, "better": found.better, "worse": found.worse}


@pytest.mark.benchmark(group="error rates of the rule")
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("noise", NOISES)
def test_coverage_false_verdicts_and_power(benchmark, noise, design):
    rows = []

    def run() -> None:
        for seeds in (2, 3, 5):
            for grid, steps in GRIDS.items():
                for factor in FACTORS:
                    count = MANY if factor == 1 else FEW
                    setting = {"noise": noise, "design": design, "seeds": seeds, "grid": grid}
                    shared = DESIGNS[design](seeds)
                    rows.append(setting | _row(NOISES[noise], seeds, factor, count, shared=shared, steps=steps))

    benchmark.pedantic(run, rounds=1)
    benchmark.extra_info["rows"] = rows
    for row in rows:
        assert 0.93 <= row["covered"] <= (0.98 if row["seeds"] == 2 else 0.97), row
        if row["factor"] == 1:
            assert row["better"] + row["worse"] <= 0.06, row
        else:
            assert row["worse"] <= 0.03, row


@pytest.mark.benchmark(group="error rates of the rule")
def test_situations_that_hurt(benchmark):
    """Never reached, ended early, unequal noise, unequal numbers of seeds, clocks that vary, families."""
    rows: list[dict[str, Any]] = []
    digits, quiet = NOISES["digits"], NOISES["literature"]
    twin = Noise(0.04, 0.0, shared=0.9)

    def clocked(what: str, seeds: int, factor: float, pace: float, shared: int) -> None:
        found = rates(in_seconds(MANY, digits, seeds, factor, pace=pace, shared=shared), factor)
        about = {"what": what, "seeds": seeds, "factor": factor}
        rows.append(about | {"covered": found.covered, "better": found.better, "worse": found.worse})

    def add(what: str, seeds: int, factor: float, noise: Noise = digits, **more: Any) -> None:
        rows.append({"what": what, "seeds": seeds} | _row(noise, seeds, factor, MANY, **more))

    def run() -> None:
        for seeds in (2, 3, 5):
            add("never reached: the recipe needs 1.5 times as much", seeds, 1 / 1.5)
            add("the recipe ends at half the budget, equal", seeds, 1.0, steps=STEPS[:3])
            add("the recipe ends at half the budget, 3 times faster", seeds, 3.0, steps=STEPS[:3])
            add("the recipe's noise is 5 times the baseline's, equal, paired", seeds, 1.0, louder=5.0)
            add("the recipe's noise is 5 times the baseline's, equal, unpaired", seeds, 1.0, louder=5.0, shared=0)
            add("7 seeds of the recipe, none shared, equal", seeds, 1.0, shared=0, others=7)
            for design, shared in (("paired", seeds), ("unpaired", 0)):
                add(
                    f"noise grows with the step, by its power of 1.5, equal, {design}",
                    seeds,
                    1.0,
                    GROWING,
                    shared=shared,
                )
                clocked(f"equal, in seconds, paces of runs vary by 10 %, {design}", seeds, 1.0, 0.1, shared)
            clocked("0.6x, in seconds, paces of runs vary by 3 %", seeds, 0.6, 0.03, seeds)
            for steps in SPARSE_STEPS:
                listed = ", ".join(map(str, steps))
                add(
                    f"the recipe is scored at {listed} alone, equal, noise of the literature",
                    seeds,
                    1.0,
                    quiet,
                    steps=steps,
                )
            more = {"shared": seeds, "others": seeds + 3}
            add(
                "3 seeds more of the recipe, the others shared, noise 9 tenths in common, equal",
                seeds,
                1.0,
                twin,
                **more,
            )
            rows.append({"what": "4 equal recipes x 3 currencies", "seeds": seeds} | _families(seeds))

    benchmark.pedantic(run, rounds=1)
    benchmark.extra_info["rows"] = rows
    for row in rows:
        if row["factor"] == 1:
            assert row["better"] + row["worse"] <= 0.065, row


def _families(seeds: int, count: int = 3000) -> dict[str, float]:
    """How often any of four equal recipes gets a verdict, in one currency."""
    rng, any_false = np.random.default_rng(seeds), 0
    for _ in range(count):
        found = compare(observations(rng, NOISES["digits"], seeds, 4), "0")
        any_false += any(s.estimate.verdict != "inconclusive" for s in found if s.currency == "flops")
    return {"factor": 1.0, "covered": math.nan, "better": any_false / count, "worse": 0.0}


@pytest.mark.benchmark(group="speedups of many curves")
def test_ten_seeds_fifty_checkpoints_twenty_recipes(benchmark):
    rng = np.random.default_rng(0)
    steps = tuple(range(1000, 51_000, 1000))
    found = []
    for recipe in range(21):
        for seed in range(10):
            for step in steps:
                fid = 60 * ((1 + 0.05 * recipe) * step) ** -0.3 * math.exp(0.02 * rng.normal())
                budgets = {"iterations": step, "images": 256 * step, "flops": 1e9 * step, "device_seconds": 0.1 * step}
                found.append((str(recipe), seed, step, fid, budgets))
    from harness.results.curves import Observation

    many = [Observation(recipe, seed, 0, step, fid, budgets) for recipe, seed, step, fid, budgets in found]
    benchmark(lambda: compare(many, "0"))


def markdown(path: Path) -> str:
    """The tables of docs/speedups.md."""
    benchmarks = json.loads(path.read_text())["benchmarks"]
    rows = [row for b in benchmarks for row in b["extra_info"].get("rows", ())]
    main, hurt = [r for r in rows if "design" in r], [r for r in rows if "what" in r]
    out = ["| noise | seeds | n | " + " | ".join(f"{f:g}x" for f in FACTORS) + " |", "| --- " * 3 + "| ---: " * 4 + "|"]
    for key in dict.fromkeys((r["noise"], r["design"], r["seeds"]) for r in main):
        cells = []
        for factor in FACTORS:
            group = [r for r in main if (r["noise"], r["design"], r["seeds"], r["factor"]) == (*key, factor)]
            low, high = min(r["covered"] for r in group), max(r["covered"] for r in group)
            covered = f"{100 * low:.1f} to {100 * high:.1f}"
            shown = max(r["better"] + (r["worse"] if factor == 1 else 0) for r in group)
            cells.append(f"{covered}; {100 * shown:.1f}")
        out.append(f"| {key[0]} | {key[1]} | {key[2]} | " + " | ".join(cells) + " |")
    out += ["", "| situation | n | held | better | worse |", "| --- | --- | ---: | ---: | ---: |"]
    for r in hurt:
        held = "–" if math.isnan(r["covered"]) else f"{100 * r['covered']:.1f}"
        out.append(f"| {r['what']} | {r['seeds']} | {held} | {100 * r['better']:.1f} | {100 * r['worse']:.1f} |")
    return "\n".join(out)


if __name__ == "__main__":
    print(markdown(Path(sys.argv[1])))
