"""The report, opened in a browser: on a phone, on a desk, on paper."""

from __future__ import annotations

from pathlib import Path

import look
import pytest
from conftest import ROOT
from PIL import Image

from reports.build import Wanted, build

EXAMPLE = ROOT / "reports" / "examples" / "digits"
pytestmark = pytest.mark.skipif(look.chromium() is None, reason="no Chromium on this machine (apt install chromium)")


def test_nothing_overflows_no_console_error_prints(tmp_path: Path) -> None:
    page = build(Wanted([EXAMPLE]), tmp_path / "report", ["html"])
    assert look.look(page, tmp_path / "seen") == []
    for name, width in look.WIDTHS.items():
        with Image.open(tmp_path / "seen" / f"{name}.png") as picture:
            assert picture.width == width
            assert picture.height > 3000
    assert (tmp_path / "seen" / "paper.pdf").read_bytes().startswith(b"%PDF-")


BROKEN = {
    "over the edge": '<p style="width: 2000px">wide</p>',
    "the page is": '<div class="scroll" style="width: 2000px">wide</div>',
    "console": '<script>console.error("no")</script>',
    "script": "<script>nothing.at.all</script>",
    "network": '<img src="http://127.0.0.1:9/x.png">',
}


@pytest.mark.parametrize("fault", BROKEN)
def test_the_look_sees_faults(fault: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(f"<!doctype html><body>{BROKEN[fault]}</body>")
    assert any(fault in problem for problem in look.look(tmp_path / "page.html", tmp_path / "seen"))
