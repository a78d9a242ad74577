"""The committed example: its report is what its records give, and the ledger's proxy verdicts are its."""

from __future__ import annotations

import json
import math
import re
from statistics import fmean, variance

import pytest
from conftest import ROOT

from baselines.claims import ledger
from harness.records import file
from harness.results.claims import judge
from harness.results.comparison import load
from harness.results.league import league
from harness.results.noise import NOISE
from harness.suites import suite
from recipes.registry import RECIPES
from reports.build import Wanted, check
from reports.league import build_league
from reports.speedup_tables import interval

EXAMPLE = ROOT / "reports" / "examples" / "digits"
LEAGUE = ROOT / "reports" / "examples" / "league"


def test_the_report_is_what_the_records_give():
    assert check(Wanted([EXAMPLE]), EXAMPLE / "report") == []


def test_every_line_carries_its_digest():
    lines = (EXAMPLE / file.FILE).read_text().splitlines()
    assert all("check" in json.loads(line) for line in lines)
    assert len(list(file.read(EXAMPLE / file.FILE))) == len(lines)


def test_no_verdict_on_a_claim_has_changed():
    found = judge(ledger(), [load([EXAMPLE])])
    assert [j.claim.id for j in found if j.changed] == []
    proxies = {j.claim.id: j.verdict for j in found if j.level == "proxy suite"}
    assert proxies["naive-collapse"] == "seen in the proxy"
    assert len(proxies) == 6


def test_the_readme_says_what_the_records_say():
    """Every FID, speedup, interval and verdict of the README's table."""
    text, comparison = (ROOT / "README.md").read_text(), load([EXAMPLE])
    rows = re.findall(r"^\| (?:vanilla \(SiT\)|REPA|REPA-E|control: [^|]*) \|.*$", text, re.M)
    assert len(rows) == len(comparison.variants) == 5
    speedups = {(s.recipe, s.currency): s.estimate for s in comparison.speedups}
    for row, variant in zip(rows, comparison.variants, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
        for cell, step in zip(cells, (500, 750, 1000), strict=False):
            found = comparison.fid_at(variant, step)
            assert found is not None
            assert cell == f"{found.mean:.2f} ± {found.sd:.2f}"
        for cell, currency in zip(cells[3:], ("iterations", "flops", "device_seconds"), strict=True):
            if variant == "vanilla":
                continue
            e = speedups[variant, currency]
            value = e.point.bound_text if e.point.loglog is None else f"{e.point.loglog:.2f} ({interval(e)})"
            assert cell.replace(" (not reached)", "") == f"{value}, {e.verdict}"


def test_the_suites_spread_over_seeds_is_what_the_records_say():
    """Pooled over the recipes that the suite runs by default, at the last step; the slope over its last two."""
    comparison, noise = load([EXAMPLE]), NOISE["digits"]
    before, end = comparison.steps()[-2:]
    logs = [
        [math.log(fid) for fid in comparison.fids(variant, end).values()]
        for variant in suite("digits").default_variants
    ]
    assert noise.cv == pytest.approx(math.sqrt(fmean(variance(values) for values in logs)), abs=5e-4)
    assert noise.freedom == sum(len(values) - 1 for values in logs)
    first, last = (fmean(math.log(fid) for fid in comparison.fids("vanilla", step).values()) for step in (before, end))
    assert noise.slope == pytest.approx((first - last) / math.log(end / before), abs=5e-3)


def test_the_league_is_what_its_records_give(tmp_path):
    comparison = load([LEAGUE])
    build_league(comparison, tmp_path)
    assert (tmp_path / "league.md").read_text() == (LEAGUE / "page" / "league.md").read_text()
    assert not any("provisional" in remark for remark in league(comparison).remarks)
    variants = {r.variant for r in comparison.scores}
    assert {"vanilla", *RECIPES} <= variants
    assert all(len(comparison.seeds(variant)) >= 3 for variant in variants)
    assert len(comparison.seeds("vanilla")) >= 5


def test_no_verdict_on_a_follow_up_has_changed():
    found = judge(ledger(), [load([LEAGUE])])
    assert [(j.claim.id, j.verdict, j.accepted) for j in found if j.changed] == []
    proxies = {j.claim.id for j in found if j.level == "proxy suite"}
    assert {
        "irepa-kernel",
        "haste-stopping-saves",
        "layersync-equal-blocks",
        "sra-cosine",
        "dispersive-gradient",
    } <= proxies
