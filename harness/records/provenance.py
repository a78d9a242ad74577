"""The code, packages and hardware that a record is of."""

from __future__ import annotations

import os
import platform
import resource
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from harness.records import code
from recipes.core.spec import Spec

#: Among the versions: the hash of the code that ran, which an installed package has too.
SOURCE = "repa-bench source"
PACKAGES = (
    "torch", "torchvision", "diffusers", "timm", "lpips", "datasets", "numpy", "scikit-learn", "torch-fidelity",
    "clean-fid",
)  # fmt: skip


class Provenance(Spec):
    """Where a number came from."""

    created: str
    """UTC, ISO 8601."""
    commit: str | None
    """Of our own repository; none for installed packages, which `SOURCE` among the versions identifies."""
    dirty: bool | None
    """Whether tracked files differed from the commit."""
    versions: dict[str, str]
    device: str
    processor: str
    cores: int
    threads: int
    system: str


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


@lru_cache(maxsize=1)
def _surroundings() -> dict[str, object]:
    commit, dirty = code.commit()
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": {"python": platform.python_version(), "repa-bench": _version("repa-bench"), SOURCE: code.digest()}
        | {package: _version(package) for package in PACKAGES},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "system": platform.platform(),
    }


def provenance() -> Provenance:
    """Commit, versions and hardware of this process, now."""
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    return Provenance.parse({"created": now, "threads": torch.get_num_threads(), **_surroundings()}, where="provenance")


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
