"""CONTRIBUTING names files and definitions: they are there."""

from __future__ import annotations

import re

from conftest import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def test_every_path_is_there():
    named = set(re.findall(r"`((?:recipes|harness|reports|tests|baselines)/[\w/.]*)", TEXT))
    assert len(named) > 40
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_definition_is_where_it_is_said_to_be():
    for path, name in re.findall(r"`([\w/]+\.py): (\w+)(?:\.\w+)?`", TEXT):
        found = [p for p in ROOT.glob(f"*/**/{path.rsplit('/', 1)[-1]}") if str(p).endswith(path)]
        assert any(re.search(rf"(def|class) {name}\b", p.read_text()) for p in found), f"{path}: {name}"
