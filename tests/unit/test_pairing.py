"""Two results folders paired by training seed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from test_claims import score

from harness.records.file import RecordFile
from harness.results.comparison import load
from harness.results.noise import NOISE
from harness.results.paired_folders import compare_folders
from recipes.core.errors import UserError


def folder(path: Path, factor: float, seeds: int, *, noise: float = 0.0, protocol: str = "digits-ode25") -> Path:
    for seed in range(seeds):
        for step, fid in ((100, 8.0), (200, 4.0)):
            moved = fid * (1 + 0.02 * seed) * factor * math.exp(noise * (-1) ** seed)
            RecordFile(path).append(score("repa", seed, step, moved, protocol=protocol))
    return path


def test_pairs_cancel_what_seeds_share(tmp_path):
    """Seeds differ by 2 % and the change is 1 %: unpaired it would be lost."""
    a, b = folder(tmp_path / "a", 1.0, 3), folder(tmp_path / "b", 0.99, 3)
    found = compare_folders(a, b)
    assert [(p.variant, p.step, p.seeds) for p in found] == [("repa", 100, 3), ("repa", 200, 3)]
    for p in found:
        assert p.ratio == pytest.approx(0.99)
        assert p.interval == pytest.approx((0.99, 0.99))
        assert p.verdict == "better"
    assert [p.verdict for p in compare_folders(b, a)] == ["worse", "worse"]
    assert json.dumps([p.as_dict() for p in found])


def test_noise_is_inconclusive_and_a_single_seed_has_no_verdict(tmp_path):
    a = folder(tmp_path / "a", 1.0, 4)
    assert {p.verdict for p in compare_folders(a, folder(tmp_path / "noisy", 0.99, 4, noise=0.05))} == {"inconclusive"}
    (p, _) = compare_folders(a, folder(tmp_path / "one", 0.5, 1))
    assert (p.seeds, p.verdict) == (1, None)
    assert p.interval[1] / p.ratio == pytest.approx(math.exp(NOISE["digits"].half(1, 1)))


def test_what_does_not_compare_is_a_sentence(tmp_path):
    a = folder(tmp_path / "a", 1.0, 1)
    with pytest.raises(
        UserError, match=r"different protocols \(solver ode_euler and sde_euler_maruyama, steps 25 and 50"
    ):
        compare_folders(a, folder(tmp_path / "sde", 1.0, 1, protocol="digits-sde50"))
    before = score("repa", 0, 100, 3.0)
    older = before.protocol.model_copy(update={"version": 1})
    RecordFile(tmp_path / "old").append(before.model_copy(update={"protocol": older, "protocol_digest": "old"}))
    with pytest.raises(UserError, match=r"different protocols \(version 2 and 1\)"):
        compare_folders(a, tmp_path / "old")
    with pytest.raises(UserError, match=r"numbers under digits-ode25@1 are not comparable \(version 2 and 1\)"):
        load([a, tmp_path / "old"])
    assert load([tmp_path / "old"]).scores[0].protocol.label == "digits-ode25@1"
    RecordFile(tmp_path / "other").append(score("repa", 7, 100, 3.0))
    with pytest.raises(UserError, match="no recipe, training seed and step in common"):
        compare_folders(a, tmp_path / "other")
