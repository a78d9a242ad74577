"""16 bits, loss scaling, checkpointing and parts of a batch on the CPU; on a GPU: tests/gpu/test_cuda_precision.py."""

from __future__ import annotations

import pytest
import torch
from gpu import precision_checks as checks

from recipes.registry import RECIPES

pytestmark = pytest.mark.parametrize("variant", sorted(RECIPES))


@pytest.fixture(autouse=True)
def _one_thread():
    """The networks are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bits_are_close_to_float32(variant, precision):
    checks.check_16_bits_are_close_to_float32(variant, "cpu", precision)


def test_an_overflow_is_skipped(variant):
    checks.check_an_overflow_is_skipped(variant, "cpu")


def test_checkpointing_changes_nothing(variant):
    checks.check_checkpointing(variant, "cpu", rtol=1e-5)


def test_parts_add_up(variant):
    checks.check_accumulation(variant, "cpu", rtol=1e-4)


def test_channels_last_changes_nothing(variant):
    checks.check_channels_last(variant, "cpu", rtol=2e-3)
