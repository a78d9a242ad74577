"""Download the wheels that `bench.py` installs on a machine without a network: `python tests/gpu/wheels.py FOLDER`.

For CPython 3.12 on Linux x86_64 beside torch 2.11, which the machine has. Needs nothing but pip.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYTHON, TORCHVISION = "3.12", "torchvision==0.26.0"  # the torchvision of torch 2.11
GLIBC = 39  # of Ubuntu 24.04, which has Python 3.12
MOST_MIB = 60
#: What the GPU tests and the benchmarks import, in the ranges of pyproject.toml; what these require comes too.
PACKAGES = (
    "numpy", "pillow", "safetensors", "pydantic", "pyyaml", "rich", "typer", "diffusers", "timm", "lpips",
    "torch-fidelity", "pytest", "pytest-benchmark", "pytest-timeout", "pytest-xdist", "hypothesis",
)  # fmt: skip
#: The machine's own; required but not used, and large; only for downloads.
LEFT_OUT = {"torch", "scipy", "hf-xet"}
MACHINE = {
    "extra": "", "python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "implementation_name": "cpython",
    "sys_platform": "linux", "os_name": "posix", "platform_system": "Linux", "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
}  # fmt: skip


def asked_for() -> dict[str, str]:
    """Each of `PACKAGES` with the range that pyproject.toml has for it, by its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    ranges = {re.split(r"[<>=]", text)[0]: text for text in listed}
    return {"torchvision": TORCHVISION} | {name: ranges[name] for name in PACKAGES}


def required(wheel: Path) -> dict[str, str]:
    """What a wheel requires on the machine, by name."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        told = Parser().parsestr(archive.read(name).decode())
    found = map(Requirement, told.get_all("Requires-Dist") or [])
    needed = [r for r in found if r.marker is None or r.marker.evaluate(MACHINE)]
    return {canonicalize_name(r.name): f"{r.name}{r.specifier}" for r in needed}


def download(folder: Path, requirements: list[str]) -> None:
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in range(GLIBC, 4, -1)]
    platforms += ["--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64"]
    target = ["--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp", *platforms]
    pip = [sys.executable, "-m", "pip", "download", "-qqq", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, *target, "--dest", str(folder), *requirements], check=True)


def pack(wheel: Path) -> None:
    """Write a wheel anew with LZMA, which pip reads too, and which makes NumPy's a third smaller."""
    smaller = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(smaller, "w", zipfile.ZIP_LZMA) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    smaller.replace(wheel)


def main(folder: Path) -> int:
    """Fill the folder; the exit code is 1 where the wheels are too large to be carried."""
    shutil.rmtree(folder, ignore_errors=True)
    known, missing = set(LEFT_OUT), asked_for()
    while missing:
        download(folder, list(missing.values()))
        known |= missing.keys()
        needed = {name: text for wheel in folder.glob("*.whl") for name, text in required(wheel).items()}
        missing = {name: text for name, text in needed.items() if name not in known}
    for wheel in folder.glob("*.whl"):
        if wheel.stat().st_size > 2**20:
            pack(wheel)
    sizes = {wheel.name: wheel.stat().st_size / 2**20 for wheel in folder.glob("*.whl")}
    for name in sorted(sizes, key=lambda name: -sizes[name])[:5]:
        print(f"{sizes[name]:6.1f} MiB  {name}")
    total = sum(sizes.values())
    print(f"{total:6.1f} MiB  {len(sizes)} wheels; at most {MOST_MIB} can be carried")
    return int(total > MOST_MIB)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("python tests/gpu/wheels.py FOLDER")
    sys.exit(main(Path(sys.argv[1])))
