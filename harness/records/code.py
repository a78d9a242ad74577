"""Identifies the running code: git commit (in our own checkout) and a hash of the package files."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: What `pyproject.toml` puts into a wheel.
PACKAGES = ("baselines", "harness", "recipes", "reports")
#: File types included in the hash.
SUFFIXES = (".py", ".yaml", ".html")


def commit(root: Path = ROOT) -> tuple[str | None, bool | None]:
    """The commit that is checked out, and whether tracked files differ from it.

    An installed copy inside another repository (e.g. a venv) has no commit: the git root must be our root, track this
    file, and its pyproject must name repa-bench.

    Returns:
        (None, None) where there is no such tree, or git cannot say.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root or not _ours(root):
        return None, None
    if _git(root, "ls-files", "--error-unmatch", "--", Path(__file__).resolve().relative_to(ROOT).as_posix()) is None:
        return None, None
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    return _git(root, "rev-parse", "HEAD"), None if status is None else bool(status)


def _ours(root: Path) -> bool:
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text()).get("project", {})
    except (OSError, ValueError):
        return False
    return bool(project.get("name") == "repa-bench")


def _git(root: Path, *arguments: str) -> str | None:
    # A hook of another repository names that one in the environment.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        # git is wherever the user's path has it
        result = subprocess.run(  # nosec B607
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True, env=clean
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return result.stdout.strip()


def digest(root: Path = ROOT) -> str:
    """SHA-256, in hex, of our packages' files by name: equal for a checkout and for the wheel that is built of it."""
    out = hashlib.sha256()
    files = {p.relative_to(root): p for package in PACKAGES for p in (root / package).rglob("*") if p.is_file()}
    for name in sorted(files):
        if name.suffix in SUFFIXES and "examples" not in name.parts:  # these are not packed
            out.update(f"{name.as_posix()}\0".encode() + hashlib.sha256(files[name].read_bytes()).digest())
    return out.hexdigest()
