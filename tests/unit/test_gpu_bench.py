"""What runs the GPU benchmarks, tried with stand-in sizes: their order, their limits, and that none is run again."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from gpu import bench, measurements

from recipes.registry import RECIPES

#: Reads parts as the real one does. By their kinds it answers, hangs or dies.
WORKER = """
import json, sys, time
print("{}", flush=True)
for text in sys.argv[1:]:
    part = json.loads(text)
    if part["kind"] == "hangs":
        time.sleep(60)
    if part["kind"] == "dies":
        sys.exit(7)
    extra = {"images_per_second": 1.0, "utilisation": None, "peak_gib": None}
    machine = {"machine_info": {"gpu": part["settings"].get("gpu", "a"), "provenance": {"versions": {}}}}
    print(json.dumps({"name": part["name"], "extra_info": extra, "machine": machine}), flush=True)
"""


def runner(folder: Path, seconds: float = 30) -> bench.Runner:
    found = bench.Runner(bench.Results(folder), end=time.monotonic() + seconds, stand_in=False)
    found.worker = (sys.executable, "-c", WORKER)
    return found


def test_the_most_telling_comes_first_and_nothing_is_left_out():
    names = [part.name for part in bench.parts()]
    assert len(set(names)) == len(names)
    assert names[1:3] == [f"step of SiT-XL/2, repa, {how}" for how in ("core, compiled", "plain")]
    for size in ("B", "XL"):
        assert {f"step of SiT-{size}/2, {recipe}, core, compiled" for recipe in RECIPES} <= set(names)
    assert all(part.limit < bench.SECONDS for part in bench.parts())  # else a part could never be refused


def test_a_part_is_measured_and_not_again(tmp_path):
    part = next(part for part in bench.parts() if part.kind == "step")
    told = measurements.measure(part, stand_in=True)
    assert told["extra_info"]["utilisation_of"] == "unknown"
    assert told["extra_info"]["images_per_second"] == pytest.approx(
        told["extra_info"]["batch"] / min(told["stats"]["data"])
    )
    bench.Results(tmp_path).keep(part, told)
    again = bench.Results(tmp_path)
    assert [p.name for p in again.missing()] == [p.name for p in bench.parts() if p != part]
    stored = json.loads(next((ROOT / "baselines" / "performance").rglob("*.json")).read_text())
    assert stored.keys() - {"version"} <= again.data.keys()
    assert stored["benchmarks"][0].keys() <= again.data["benchmarks"][0].keys()
    assert stored["benchmarks"][0]["stats"].keys() <= again.data["benchmarks"][0]["stats"].keys()


def test_a_failure_is_kept_and_stops_nothing(tmp_path, monkeypatch):
    kinds = ("answers", "hangs", "answers", "dies", "answers")
    parts = [bench.Part(f"{k} {kind}", kind, 1 if kind == "hangs" else 20) for k, kind in enumerate(kinds)]
    monkeypatch.setattr(bench, "parts", lambda: parts)
    assert runner(tmp_path).run()
    results = bench.Results(tmp_path)
    assert [entry["name"] for entry in results.data["benchmarks"]] == ["0 answers", "2 answers", "4 answers"]
    assert results.data["failed"] == {
        "1 hangs": "stopped after its 1 s",
        "3 dies": "its process ended with 7; see log.txt",
    }
    parts.append(bench.Part("new", "answers", 20))
    assert [part.name for part in results.missing()] == ["new", "1 hangs", "3 dies"]


def test_what_the_command_had_no_time_for_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "parts", lambda: [bench.Part("hangs", "hangs", 20)])
    assert not runner(tmp_path, seconds=1).run()
    assert bench.Results(tmp_path).data["failed"] == {}


def test_another_card_gets_another_file(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "parts", lambda: [bench.Part(g, "answers", 20, {"gpu": g}) for g in ("a", "b")])
    with pytest.raises(SystemExit, match="another card"):
        runner(tmp_path).run()
    assert [entry["name"] for entry in bench.Results(tmp_path).data["benchmarks"]] == ["a"]
