"""GPU tests and benchmarks on a bare machine, in parts: `python tests/gpu/bench.py OUT [--stand-in]`; see README.md.

Needs Python 3.12, torch and the folder that `wheels.py` filled. OUT/benchmarks.json has the form of
baselines/performance. It is written after every part, and the parts that it holds are not run again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO, Any

ROOT = Path(__file__).parents[2]
#: The recipes that have a plain loop, and the others.
FIRST = ("repa", "vanilla", "repa_e")
LATER = ("reg", "haste", "irepa", "sra", "contrastive", "layersync", "dispersive")
#: Of one command: ten minutes, less what its end takes.
SECONDS = 560
#: In which a process has imported everything.
IMPORT = 120
#: lpips imports a function that only its trainer calls, of a package as large as all other wheels together.
SCIPY = '''"""Not SciPy: what lpips imports, for a machine without it."""


def zoom(*_: object) -> None:
    raise ImportError("SciPy is not installed here")
'''


@dataclass(frozen=True)
class Part:
    """Something that is run once, and its time limit."""

    name: str
    kind: str
    limit: int
    """Seconds, beside those in which everything is imported."""
    settings: dict[str, Any] = field(default_factory=dict)


def tests(name: str, limit: int, *arguments: str) -> Part:
    return Part(f"tests: {name}", "tests", limit, {"arguments": arguments})


def step(size: str, recipe: str, how: str = "core, compiled") -> Part:
    settings = {"size": size, "recipe": recipe, "how": how}
    return Part(f"step of SiT-{size}/2, {recipe}, {how}", "step", 90 if size == "B" else 150, settings)


def parts() -> list[Part]:
    """All, the most telling first: a session that ends early has the beginning of the list."""
    precision = "tests/gpu/test_cuda_precision.py"
    compiled = "compiled or waits"
    return [
        tests("core and metrics", 90, "tests/gpu/test_cuda.py", "tests/gpu/test_cuda_metrics.py"),
        *(step("XL", recipe, how) for recipe in FIRST for how in ("core, compiled", "plain")),
        *(Part(f"samples of SiT-XL/2, {how}", "samples", 120, {"how": how}) for how in ("core", "plain")),
        Part("features of Inception", "features", 60),
        tests("number formats", 120, precision, "-k", f"not ({compiled})"),
        *(step("XL", recipe) for recipe in LATER),
        *(step("XL", recipe, how) for recipe in FIRST for how in ("core, eager", "core, compiled, DDP")),
        *(step("B", recipe, how) for recipe in FIRST for how in ("core, compiled", "plain")),
        tests("compiled", 240, precision, "-k", compiled),
        *(step("B", recipe) for recipe in LATER),
        *(step("B", recipe, how) for recipe in FIRST for how in ("core, eager", "core, compiled, DDP")),
        *(step("XL", recipe, how) for recipe in FIRST for how in ("plain, foreach", "core, eager, DDP")),
        *(step("XL", recipe, "core, eager") for recipe in LATER),
    ]


def of(machine: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """What all entries of a file share: the card, and the versions, among which is the hash of our source."""
    return machine["gpu"], machine["provenance"]["versions"]


class Results:
    """OUT/benchmarks.json: what has been measured, tested and refused so far."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.log = folder / "benchmarks.json", folder / "log.txt"
        empty: dict[str, Any] = {"machine_info": {}, "commit_info": {}, "benchmarks": [], "tests": {}, "failed": {}}
        self.data: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else empty

    def missing(self) -> list[Part]:
        """What is to be done, in order: what has failed before comes last."""
        done = {entry["name"] for entry in self.data["benchmarks"]} | self.data["tests"].keys()
        missing = [part for part in parts() if part.name not in done]
        return sorted(missing, key=lambda part: part.name in self.data["failed"])

    def keep(self, part: Part, told: dict[str, Any]) -> None:
        """Write what a part gave: an entry or tests, or why there is none."""
        self.data["failed"].pop(part.name, None)
        if "why" in told:
            self.data["failed"][part.name] = told["why"]
        elif part.kind == "tests":
            self.data["tests"][part.name] = told
        else:
            machine = told.pop("machine")
            if self.data["machine_info"] and of(machine["machine_info"]) != of(self.data["machine_info"]):
                raise SystemExit(f"{self.path} is of another card, torch or code; give another folder.")
            self.data |= machine
            self.data["benchmarks"].append(told)
        self.data["datetime"] = datetime.now(UTC).isoformat()
        waiting = self.path.with_suffix(".part")
        waiting.write_text(json.dumps(self.data, indent=1) + "\n")
        waiting.replace(self.path)


def install(wheels: Path, site: Path) -> None:
    """Put the carried wheels beside what Python has; a torchvision that is there fits its torch and stays."""
    found = [w for w in sorted(wheels.glob("*.whl")) if not (w.name.startswith("torchvision-") and _has("torchvision"))]
    if not found:
        raise SystemExit(
            f"{wheels} holds no wheels; fill it where there is a network: python tests/gpu/wheels.py {wheels}"
        )
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", str(site), *map(str, found)], check=True)
    if not _has("scipy"):
        (site / "scipy").mkdir()
        (site / "scipy" / "__init__.py").touch()
        (site / "scipy" / "ndimage.py").write_text(SCIPY)


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def stop(process: subprocess.Popen[str]) -> None:
    """Kill a process and those that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Runner:
    """Runs parts in processes of their own, each within its limit and all within the command's."""

    worker: Sequence[str] = (sys.executable, "-u", "-m", "gpu.measurements")

    def __init__(self, results: Results, *, end: float, stand_in: bool, site: str = "") -> None:
        self.results, self.end, self.stand_in = results, end, stand_in
        paths = (site, str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", ""))
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}

    def start(self, command: Sequence[str], log: IO[str]) -> tuple[subprocess.Popen[str], SimpleQueue[str | None]]:
        """A process, and its lines as they come; None is the end."""
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment,
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        lines: SimpleQueue[str | None] = SimpleQueue()

        def read() -> None:
            assert process.stdout is not None
            with process.stdout as told:
                for line in told:
                    lines.put(line)
            lines.put(None)

        Thread(target=read, daemon=True).start()
        return process, lines

    def run(self) -> bool:
        """Every part that is missing, in order, as far as the time goes; whether that was all."""
        todo = self.results.missing()
        while todo and time.monotonic() < self.end:
            if todo[0].kind == "tests":
                self.test(todo.pop(0))
            else:
                until = next((k for k, part in enumerate(todo) if part.kind == "tests"), len(todo))
                todo = self.measure(todo[:until]) + todo[until:]
        return all(part.name in self.results.data["failed"] for part in self.results.missing())

    def measure(self, todo: list[Part]) -> list[Part]:
        """Parts in one process, for loading takes long; those that are left when it has died or been stopped."""
        command = [*self.worker, *(["--stand-in"] if self.stand_in else [])]
        with self.results.log.open("a") as log:
            process, lines = self.start([*command, *(json.dumps(asdict(part)) for part in todo)], log)
            limit, ready = time.monotonic() + IMPORT, False
            try:
                while todo:
                    line = lines.get(timeout=max(0.0, min(limit, self.end) - time.monotonic()))
                    if line is None and not ready:
                        raise SystemExit(f"nothing can be measured here: {self.results.log} ends with the reason.")
                    if line is None:
                        self.report(todo[0], {"why": f"its process ended with {process.wait()}; see log.txt"})
                        return todo[1:]
                    if not line.startswith("{"):
                        log.write(line)
                        continue
                    if ready:
                        self.report(todo[0], json.loads(line))
                        todo = todo[1:]
                    ready, limit = True, time.monotonic() + (todo[0].limit if todo else 0)
            except Empty:
                if time.monotonic() >= self.end:  # its next command begins with this part
                    return todo
                self.report(todo[0], {"why": f"stopped after its {todo[0].limit} s"})
                return todo[1:]
            finally:
                stop(process)
        return todo

    def report(self, part: Part, told: dict[str, Any]) -> None:
        self.results.keep(part, told)
        print(f"{part.name}: {told.get('why') or summary(told)}", flush=True)

    def test(self, part: Part) -> None:
        """A part of the GPU tests, counted line by line, so that a limit leaves what was known."""
        found: dict[str, list[str]] = {"PASSED": [], "FAILED": [], "ERROR": [], "SKIPPED": []}
        options = ["-m", "gpu", "-v", "--tb=short", "--color=no", "-p", "no:cacheprovider", "--maxprocesses=4"]
        command = [sys.executable, "-u", "-m", "pytest", *part.settings["arguments"], *options, "--numprocesses=auto"]
        began, limit, whole = time.monotonic(), time.monotonic() + part.limit, False
        with self.results.log.open("a") as log:
            process, lines = self.start(command, log)
            try:
                while (line := lines.get(timeout=max(0.0, min(limit, self.end) - time.monotonic()))) is not None:
                    log.write(line)
                    if told := re.match(r"\[gw\d+\] \[ *\d+%\] (\w+) (\S.*)", line):
                        found.setdefault(told[1], []).append(told[2].strip())
                whole = True
            except Empty:
                if limit > self.end:
                    return
            finally:
                stop(process)
        counts = {kind.lower(): len(names) for kind, names in found.items()}
        if whole and not sum(counts.values()):
            self.report(part, {"why": f"pytest ended with {process.returncode} and ran nothing; see log.txt"})
            return
        told_of = {**counts, "which_failed": sorted(found["FAILED"] + found["ERROR"]), "came_to_its_end": whole}
        self.report(part, told_of | {"seconds": round(time.monotonic() - began, 1)})


def summary(told: dict[str, Any]) -> str:
    """A line for people."""
    if "extra_info" not in told:
        return ", ".join(f"{value} {key}" for key, value in told.items() if value and key != "which_failed")
    extra = told["extra_info"]
    share, peak = extra["utilisation"], extra["peak_gib"]
    ends = [f"{extra['images_per_second']:.4g} images/s"]
    ends += [f"{share:.1%} of {extra['utilisation_of']}"] if share is not None else ["utilisation unknown"]
    ends += [f"{peak:.1f} GiB"] if peak is not None else []
    return ", ".join(ends)


def main() -> int:
    """0: everything is there. 3: the same command goes on. 1: something failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--wheels", type=Path, default=ROOT / ".wheels", help="what wheels.py filled")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="then stop, and go on in the next command")
    parser.add_argument("--stand-in", action="store_true", help="tiny networks on the CPU, to try all of this")
    chosen = parser.parse_args()
    end = time.monotonic() + chosen.seconds
    results = Results(chosen.out)
    with tempfile.TemporaryDirectory() as site:
        install(chosen.wheels.resolve(), Path(site))
        print(f"installed in {chosen.seconds - end + time.monotonic():.0f} s", flush=True)
        whole = Runner(results, end=end, stand_in=chosen.stand_in, site=site).run()
    failed = [
        name for name, told in results.data["tests"].items() if told["which_failed"] or not told["came_to_its_end"]
    ]
    failed += list(results.data["failed"])
    print(f"{results.path}: {len(results.data['benchmarks'])} measured, {len(failed)} failed: {failed or 'none'}")
    return 1 if whole and failed else 0 if whole else 3


if __name__ == "__main__":
    sys.exit(main())
