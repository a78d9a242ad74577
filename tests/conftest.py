"""Fixtures for every test."""

from __future__ import annotations

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is loaded: as many processes as cores, with a thread each
    os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest
import torch

from recipes.core.content import CACHE_VARIABLE
from recipes.recipe_files import VARIABLE

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The first draw imports torch kernels and can be slow; no deadline, and the same examples every time.
hypothesis.settings.register_profile("repa-bench", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.register_profile("random", deadline=None, max_examples=40)
hypothesis.settings.load_profile(os.environ.get("REPA_BENCH_HYPOTHESIS", "repa-bench"))

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh seeded generator."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _own_variables():
    """Commands that run in this process set them, for their own: the next file's tests have what was there."""
    before = {name: os.environ.get(name) for name in (CACHE_VARIABLE, VARIABLE)}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
