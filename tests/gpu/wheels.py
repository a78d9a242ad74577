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
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON, TORCHVISION = "3.12", "torchvision==0.26.0"  # the torchvision of torch 2.11
GLIBC = 39  # of Ubuntu 24.04, which has Python 3.12
MOST_MIB = 60
#: What the GPU tests and the benchmarks import, and nothing that these name and do not import.
PACKAGES = (
    "numpy", "pillow", "safetensors", "tqdm", "pyyaml", "packaging",
    "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions",
    "diffusers", "huggingface-hub", "httpx", "httpcore", "h11", "anyio", "idna", "certifi", "requests", "urllib3",
    "charset-normalizer", "regex", "importlib-metadata", "zipp", "filelock", "fsspec", "typer", "click", "rich",
    "timm", "lpips", "torch-fidelity",
    "pytest", "pytest-benchmark", "pytest-timeout", "pytest-xdist", "execnet", "pluggy", "iniconfig", "pygments",
    "py-cpuinfo", "hypothesis", "sortedcontainers",
)  # fmt: skip


def requirements() -> list[str]:
    """Each of `PACKAGES`, with the range that pyproject.toml has for it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    ranges = {re.split(r"[<>=]", text)[0]: text for text in named}
    return [TORCHVISION, *(ranges.get(name, name) for name in PACKAGES)]


def pack(wheel: Path) -> None:
    """Write a wheel anew with LZMA, which pip reads too: SciPy's is a third smaller."""
    smaller = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(smaller, "w", zipfile.ZIP_LZMA) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member), zipfile.ZIP_LZMA)
    smaller.replace(wheel)


def main(folder: Path) -> int:
    """Fill the folder; the exit code is 1 where the wheels are too large to be carried."""
    shutil.rmtree(folder, ignore_errors=True)
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in range(GLIBC, 4, -1)]
    platforms += ["--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64"]
    target = ["--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp", *platforms]
    pip = [sys.executable, "-m", "pip", "download", "-qqq", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*pip, *target, "--dest", str(folder), *requirements()], check=False)
    if done.returncode:
        return done.returncode
    for wheel in folder.glob("*.whl"):
        if wheel.stat().st_size > 2**20:
            pack(wheel)
    wheels = sorted(folder.glob("*.whl"), key=lambda path: -path.stat().st_size)
    for wheel in wheels[:8]:
        print(f"{wheel.stat().st_size / 2**20:6.1f} MiB  {wheel.name}")
    total = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print(f"{total:6.1f} MiB  {len(wheels)} wheels; at most {MOST_MIB} can be carried")
    return int(total > MOST_MIB)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("python tests/gpu/wheels.py FOLDER")
    sys.exit(main(Path(sys.argv[1])))
