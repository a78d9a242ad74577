"""Kill real runs of the smoke suite at random moments, run the same command again, and compare with a quiet run."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import ROOT

from recipes.core.atomic import sha256_of
from reports.build import Wanted, check

KILLED = Path(__file__).with_name("killed.py")
#: Of a run that repeats another one, only these may differ.
VOLATILE = {"provenance", "train_seconds", "device_seconds", "step_seconds", "sample_seconds", "check"}
#: A run is killed at most so often before it is let to its end.
CHAIN = 5
#: What a run was at when it died, by the last file that it touched or was about to.
STAGES = {
    "/cache": "assets",
    "/checkpoints/.": "writing a checkpoint",
    "/runs": "training",
    "/shards": "sampling",
    "/samples": "pictures",
    "/reconstructions": "pictures",
    "/records": "records",
    "/report": "report",
}


def state_of(out: Path, *, told: bool = False) -> dict[str, Any]:
    """All that a results folder says, without clocks. Fails if something is there twice, or half, or, unless `told`, if
    a stage has said something about its data.
    """
    state: dict[str, Any] = {}
    for line in (out / "records.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["kind"] == "stage":
            assert told or not row["notes"], row["notes"]
            continue
        key = "record " + " ".join(
            str(row.get(k) if k != "protocol" else row.get("protocol", {}).get("name"))
            for k in ("kind", "name", "variant", "seed", "step", "protocol", "generation_seed")
        )
        assert key not in state, f"measured twice: {key}"
        state[key] = {k: v for k, v in row.items() if k not in VOLATILE}
        if "notes" in row:  # what else the machine did is no matter
            state[key]["notes"] = [note for note in row["notes"] if "times the median step" not in note]
    for manifest in sorted(out.glob("runs/*/checkpoints/*/manifest.json")):
        state[f"weights {manifest.parent.relative_to(out)}"] = json.loads(manifest.read_text())["files"]
    for log in sorted(out.glob("runs/*/log.jsonl")):
        rows = [json.loads(row) for row in log.read_text().splitlines()]
        state[f"log {log.relative_to(out)}"] = [
            {k: v for k, v in row.items() if k not in ("seconds", "check")} for row in rows
        ]
    for picture in sorted([*out.glob("samples/**/*.png"), *out.glob("reconstructions/*.png")]):
        state[f"picture {picture.relative_to(out)}"] = sha256_of(picture)
    left = [p for p in out.rglob("*") if p.suffix == ".tmp" or p.name == ".lock" or p.parent.name == "shards"]
    assert not left, left
    return state


@dataclass
class Campaign:
    """Kills, one after the other."""

    root: Path
    seed: int
    arguments: tuple[str, ...]
    kills: int = 0
    chains: int = 0
    where: list[tuple[str, str]] = field(default_factory=list)
    """When each kill came, and what it interrupted."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        began = time.perf_counter()
        self.touches = int(self._run(self.root / "quiet", self.root / "cache-quiet", 0)[1])
        self.seconds = time.perf_counter() - began
        self.expected = state_of(self.root / "quiet")

    def go(self, kills: int) -> None:
        """Until so many processes were killed; every chain of kills ends in a run to the end and a comparison."""
        while self.kills < kills:
            self.chains += 1
            out, cache = self.root / f"chain{self.chains}", self.root / f"cache{self.chains}"
            if self.chains % 2:  # every other one makes its assets too
                shutil.copytree(self.root / "cache-quiet", cache)
            for _ in range(min(self.random.randint(2, CHAIN), kills - self.kills)):
                if not self._kill(out, cache):
                    break
            code, _ = self._run(out, cache, 0)
            assert code == 0
            self._compare(out)
            print(f"{self.kills} of {kills} kills; run {self.chains} equals the quiet one", flush=True)
            shutil.rmtree(out)
            shutil.rmtree(cache)

    def _compare(self, out: Path) -> None:
        found = state_of(out)
        told = f"seed {self.seed}, chain {self.chains}: {self.where}"
        assert found.keys() == self.expected.keys(), (told, found.keys() ^ self.expected.keys())
        for key, value in self.expected.items():
            assert found[key] == value, (told, key)
        assert check(Wanted([out]), out / "report") == [], told

    def _kill(self, out: Path, cache: Path) -> bool:
        """Whether the process died by it, and was not faster."""
        if self.random.random() < 0.5:
            touch = self.random.randint(1, self.touches)
            code, touched = self._run(out, cache, touch)
            at = f"touch {touch}"
        else:
            moment = self.random.uniform(0.1, 1.0) * self.seconds
            code, touched = self._run(out, cache, 0, moment)
            at = f"second {moment:.1f}"
        if code == 0:
            return False
        assert code == -signal.SIGKILL, code
        self.where.append((at, self._stage(touched)))
        self.kills += 1
        return True

    def _run(self, out: Path, cache: Path, touch: int, moment: float | None = None) -> tuple[int, str]:
        """Exit code; how many files it touched if it came to its end, else the last of them."""
        counter = self.root / "touches"
        counter.unlink(missing_ok=True)
        command = [sys.executable, KILLED, touch, counter, out, cache, "--", "run", *self.arguments]
        with subprocess.Popen(
            [*map(str, command), "--out", str(out), "--cache", str(cache)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                _, errors = process.communicate(timeout=moment)
            except subprocess.TimeoutExpired:
                if moment is None:
                    raise
                process.send_signal(signal.SIGKILL)
                _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
        return process.returncode, counter.read_text().split("\n")[0] if counter.exists() else ""

    def _stage(self, touched: str) -> str:
        if not touched or touched.isdigit():
            return "leaving" if touched else "starting"
        path = touched.removeprefix(str(self.root))
        return next((stage for part, stage in STAGES.items() if part in path), "in between")
