"""Other packages of our packages' names."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize("name", ["recipes", "baselines", "reports"])
@pytest.mark.parametrize("kind", ["package", "module"])
def test_a_package_that_shadows_ours_is_named(name, kind, tmp_path):
    place = tmp_path / name / "__init__.py" if kind == "package" else tmp_path / f"{name}.py"
    place.parent.mkdir(exist_ok=True)
    place.write_text("raise ImportError('not for you')\n")
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", "--version"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    found = place.parent if kind == "package" else place
    assert done.stderr.startswith(f"Error: the package '{name}' is looked up in {found}, not in {ROOT / name}: ")
    assert len(done.stderr.splitlines()) == 1
