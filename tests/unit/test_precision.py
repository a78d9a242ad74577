"""16 bits, loss scaling, checkpointing and parts of a batch on the CPU; on a GPU: tests/gpu/test_cuda_precision.py."""

from __future__ import annotations

import pytest
import torch
from gpu import precision_checks as checks

from recipes.registry import RECIPES

pytestmark = pytest.mark.parametrize("arm", sorted(RECIPES))


@pytest.fixture(autouse=True)
def _one_thread():
    """The networks are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bits_are_close_to_float32(arm, precision):
    checks.check_16_bits_are_close_to_float32(arm, "cpu", precision)


def test_an_overflow_is_skipped(arm):
    checks.check_an_overflow_is_skipped(arm, "cpu")


def test_checkpointing_changes_nothing(arm):
    checks.check_checkpointing(arm, "cpu", rtol=1e-5)


def test_parts_add_up(arm):
    checks.check_accumulation(arm, "cpu", rtol=1e-4)


def test_channels_last_changes_nothing(arm):
    checks.check_channels_last(arm, "cpu", rtol=2e-3)
