"""Whose commit a record names."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from harness.records import code, file, provenance


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def packages(root: Path) -> Path:
    """As a wheel puts them there."""
    for name in code.PACKAGES:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "examples"))
    return root


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Somebody's repository, with a commit."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "pyproject.toml").write_text('[project]\nname = "theirs"\n')
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "theirs")
    return folder


def ours(folder: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", folder / "pyproject.toml")


def test_a_repository_of_ours_is_named(theirs):
    packages(theirs)
    ours(theirs)
    git(theirs, "add", "-A")
    git(theirs, "commit", "-qm", "ours")
    head = git(theirs, "rev-parse", "HEAD")
    assert code.commit(theirs) == (head, False)
    (theirs / "harness" / "records" / "code.py").write_text("# changed\n")
    assert code.commit(theirs) == (head, True)


def _installed(theirs: Path) -> Path:
    """In an environment below somebody's repository."""
    return packages(theirs / ".venv" / "lib" / "python3.11" / "site-packages")


def _vendored(theirs: Path) -> Path:
    """Copied into a folder of somebody's repository, with everything, and committed."""
    root = packages(theirs / "vendor")
    ours(root)
    git(theirs, "add", "-A")
    git(theirs, "commit", "-qm", "vendored")
    return root


def _beside(theirs: Path) -> Path:
    """At the top of somebody's repository, committed."""
    packages(theirs)
    git(theirs, "add", "-A")
    git(theirs, "commit", "-qm", "beside")
    return theirs


def _untracked(theirs: Path) -> Path:
    """At the top of somebody's repository, which does not track them."""
    ours(packages(theirs))
    return theirs


def _nowhere(theirs: Path) -> Path:
    root = packages(theirs.parent / "plain")
    ours(root)
    return root


@pytest.mark.parametrize("place", [_installed, _vendored, _beside, _untracked, _nowhere])
def test_somebody_elses_commit_is_not_ours(place, theirs, monkeypatch):
    root = place(theirs)
    assert code.commit(root) == (None, None)
    for name, value in (("GIT_DIR", theirs / ".git"), ("GIT_WORK_TREE", root)):  # as in a hook of theirs
        monkeypatch.setenv(name, str(value))
    assert code.commit(root) == (None, None)
    assert code.digest(root) == code.digest(ROOT)


def test_without_git_the_code_is_known_by_its_hash(theirs, monkeypatch):
    root = packages(theirs / "site-packages")
    before = code.digest(root)
    (root / "harness" / "__pycache__").mkdir()
    (root / "harness" / "__pycache__" / "x.pyc").write_bytes(b"x")
    (root / "harness" / "notes.txt~").write_text("x")
    assert code.digest(root) == before
    for name in ("recipes/repa.py", "baselines/claims.yaml", "reports/templates/report.html"):
        whole = (root / name).read_bytes()
        (root / name).write_bytes(whole + b"\n")
        assert code.digest(root) != before
        (root / name).write_bytes(whole)
    (root / "harness" / "records" / "code.py").rename(root / "harness" / "records" / "edoc.py")
    assert code.digest(root) != before
    monkeypatch.setenv("PATH", "")
    assert code.commit(root) == (None, None)


def test_every_record_says_which_code_it_was():
    here = provenance.provenance()
    assert here.versions[provenance.SOURCE] == code.digest()
    assert (here.commit, here.dirty) == code.commit()


def test_records_of_before_are_read():
    """They name no hash of the code."""
    found = list(file.read(ROOT / "reports" / "examples" / "digits" / file.FILE))
    assert len(found) > 100
    assert all(provenance.SOURCE not in record.provenance.versions for record in found)
