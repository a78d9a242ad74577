"""What is on this machine, what is wrong with it, and the remedy."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from harness.assets import catalogue
from harness.assets.cache import Store
from harness.records.provenance import provenance

#: What the embedded suite wants on disk.
ROOM = 3 * 2**30


@dataclass(frozen=True)
class AssetState:
    """An asset of the catalogue on this machine."""

    name: str
    kind: str
    about: str
    licence: str
    path: str | None
    size: int | None
    sha256: str | None
    remedy: str | None
    """What to do if it is missing or broken."""


@dataclass(frozen=True)
class Health:
    """Everything that `repa-bench doctor` reports."""

    facts: dict[str, str]
    assets: tuple[AssetState, ...]
    made: dict[str, int]
    """Assets that suites made for themselves, in bytes."""
    faults: tuple[str, ...]
    """What is broken, each with its remedy. A merely missing asset is not listed here."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def examine(store: Store, *, verify: bool = False) -> Health:
    """Look at everything; with `verify`, read every byte of every asset."""
    faults: list[str] = []
    facts = _facts(store, faults)
    assets = tuple(_asset(name, source, found, verify, faults) for name, source, found in catalogue.inventory(store))
    return Health(facts, assets, _made(store.root), tuple(faults))


def _facts(store: Store, faults: list[str]) -> dict[str, str]:
    here = provenance()
    facts = {
        "commit": f"{here.commit or 'not a git checkout'}{' (dirty)' if here.dirty else ''}",
        "device": here.device,
        **_gpu(faults),
        "processor": f"{here.processor}, {here.cores} cores, {here.threads} threads",
        "system": here.system,
        **here.versions,
    }
    existing = next((p for p in (store.root, *store.root.parents) if p.exists()), Path.cwd())
    free = shutil.disk_usage(existing).free
    facts["cache"] = f"{store.root} ({free / 2**30:.1f} GiB free)"
    if free < ROOM:
        faults.append(f"less than {ROOM / 2**30:.0f} GiB free for the cache: set --cache or REPA_BENCH_CACHE.")
    if not os.access(existing, os.W_OK):
        faults.append(f"{existing} cannot be written: set --cache or REPA_BENCH_CACHE.")
    return facts


def _gpu(faults: list[str]) -> dict[str, str]:
    """Driver, CUDA and NCCL, and what keeps a GPU from being used."""
    if not torch.cuda.is_available():
        if Path("/proc/driver/nvidia/version").exists():
            faults.append(
                f"an NVIDIA driver is there, but torch {torch.__version__} finds no GPU: install a torch built for the "
                "driver's CUDA version, or update the driver."
            )
        return {}
    facts = {}
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        facts[f"GPU {number}"] = (
            f"{found.name}, {found.total_memory / 2**30:.0f} GiB, compute capability {found.major}.{found.minor}"
        )
    driver = Path("/proc/driver/nvidia/version")
    facts["driver"] = (
        driver.read_text().splitlines()[0].split("Module")[-1].split()[0] if driver.exists() else "unknown"
    )
    facts["CUDA"] = str(torch.version.cuda)
    facts["cuDNN"] = str(torch.backends.cudnn.version())
    if torch.distributed.is_nccl_available():
        facts["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    elif torch.cuda.device_count() > 1:
        faults.append("several GPUs but no NCCL in this torch: install torch from PyPI.")
    if not torch.cuda.is_bf16_supported():
        faults.append("this GPU has no bf16: use --set precision=fp16 or --set precision=fp32.")
    return facts


def _asset(
    name: str,
    source: catalogue.AssetSource,
    found: catalogue.External | str | None,
    verify: bool,
    faults: list[str],
) -> AssetState:
    here = found if isinstance(found, catalogue.External) else None
    remedy = None
    if found is None:
        remedy = f"repa-bench fetch {name}" if source.hub or source.url else source.about
    elif isinstance(found, str):
        remedy = found
        faults.append(found)
    elif verify and source.kind != "data" and not catalogue.verify(found):
        remedy = f"asset {name} at {found.path} is damaged: its SHA-256 has changed; repa-bench fetch {name} again."
        faults.append(remedy)
    return AssetState(
        name=name,
        kind=source.kind,
        about=source.about,
        licence=source.licence,
        path=str(here.path) if here else None,
        size=here.size if here else None,
        sha256=here.content if here else None,
        remedy=remedy,
    )


def _made(root: Path) -> dict[str, int]:
    folders = [p for p in sorted(root.glob("*-*")) if p.is_dir()] if root.exists() else []
    return {p.name: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in folders}
