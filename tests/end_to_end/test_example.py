"""The committed example: its report is what its records give, and the ledger's proxy verdicts are its."""

from __future__ import annotations

import json
import re

from conftest import ROOT

from baselines.claims import ledger
from harness import records
from harness.claims import judge
from harness.compare import load
from reports.build import Wanted, check

EXAMPLE = ROOT / "reports" / "examples" / "digits"


def test_the_report_is_what_the_records_give():
    assert check(Wanted([EXAMPLE]), EXAMPLE / "report") == []


def test_every_line_carries_its_digest():
    lines = (EXAMPLE / records.FILE).read_text().splitlines()
    assert all("check" in json.loads(line) for line in lines)
    assert len(list(records.read(EXAMPLE / records.FILE))) == len(lines)


def test_no_verdict_on_a_claim_has_changed():
    found = judge(ledger(), [load([EXAMPLE])])
    assert [j.claim.id for j in found if j.changed] == []
    proxies = {j.claim.id: j.verdict for j in found if j.level == "proxy suite"}
    assert proxies["naive-collapse"] == "seen in the proxy"
    assert len(proxies) == 6


def test_the_readme_says_what_the_records_say():
    """Every FID and speedup of the README's table."""
    text, comparison = (ROOT / "README.md").read_text(), load([EXAMPLE])
    rows = re.findall(r"^\| (?:vanilla \(SiT\)|REPA|REPA-E|control: [^|]*) \|.*$", text, re.M)
    assert len(rows) == len(comparison.arms) == 5
    speedups = {(s.recipe, s.currency): s.estimate for s in comparison.speedups}
    for row, arm in zip(rows, comparison.arms, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
        for cell, step in zip(cells, (500, 1000, 1500), strict=False):
            found = comparison.fid_at(arm, step)
            assert found is not None
            assert cell == f"{found.mean:.2f} ± {found.sd:.2f}"
        for cell, currency in zip(cells[3:], ("iterations", "flops", "device_seconds"), strict=True):
            if arm == "vanilla" or cell.startswith("<"):
                continue
            e = speedups[arm, currency]
            assert cell == f"{e.point.loglog:.2f} ({e.interval[0]:.2f} to {e.interval[1]:.2f})"
