"""Number formats, compilation, checkpointing, accumulation and host waits on a CUDA device: `nox -s gpu`."""

from __future__ import annotations

import gc

import pytest
import torch
from gpu import precision_checks as checks

from recipes.registry import RECIPES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:::torch"),  # the compiler's advice
    pytest.mark.parametrize("variant", sorted(RECIPES)),
]


@pytest.fixture(autouse=True)
def _fresh():
    """No compiled code and no memory of another test's."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bits_are_close_to_float32(variant, precision):
    checks.check_16_bits_are_close_to_float32(variant, "cuda", precision)


def test_an_overflow_is_skipped(variant):
    checks.check_an_overflow_is_skipped(variant, "cuda")


def test_checkpointing_changes_nothing(variant):
    checks.check_checkpointing(variant, "cuda", rtol=1e-5)


def test_parts_add_up(variant):
    checks.check_accumulation(variant, "cuda", rtol=1e-3)


def test_channels_last_changes_nothing(variant):
    checks.check_channels_last(variant, "cuda", rtol=5e-3)


def test_compiled_equals_eager(variant):
    spec = checks.make_spec(variant, "bf16")
    batch = checks.make_batch(spec, "cuda")
    wanted_logs, wanted = checks.losses_and_gradients(checks.make_trainer(spec, "cuda"), batch)
    logs, gradients = checks.losses_and_gradients(checks.make_trainer(spec, "cuda", compile=True), batch)
    losses = [name for name in wanted_logs if not name.startswith("grad_norm")]
    checks.assert_losses_close(
        {name: logs[name] for name in losses}, {name: wanted_logs[name] for name in losses}, rtol=0.02, atol=0.01
    )
    # A discriminator's batch norm over few images amplifies the eight bits of a bfloat16.
    checks.assert_gradients_close(gradients, wanted, rtol=0.15)


def test_checkpointing_saves_memory(variant):
    spec = checks.make_spec(variant, "fp32", suite=checks.wide_suite(), images=32)
    batch, peaks = checks.make_batch(spec, "cuda"), {}
    for checkpointing in (False, True):
        trainer = checks.make_trainer(spec, "cuda", checkpointing=checkpointing)
        checks.step(trainer, batch)  # makes the moments
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        checks.step(trainer, batch)
        torch.cuda.synchronize()
        peaks[checkpointing] = torch.cuda.max_memory_allocated()
        del trainer
        gc.collect()
        torch.cuda.empty_cache()
    assert peaks[True] < 0.95 * peaks[False], peaks


@pytest.mark.parametrize("part", [None, checks.IMAGES // 2], ids=["whole", "in parts"])
@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_never_waits_for_the_device(variant, precision, compile, part):
    spec = checks.make_spec(variant, precision)
    trainer = checks.make_trainer(spec, "cuda", compile=compile, micro_batch=part)
    batch = checks.make_batch(spec, "cuda")
    for _ in range(4):  # kernels are chosen and compiled, moments and loss scales made
        checks.step(trainer, batch)
    draws = checks.draws_of(trainer, batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step(batch, draws)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.position == 5


def test_the_sync_check_would_notice(variant):
    """Reading one logged scalar is what the check above forbids."""
    spec = checks.make_spec(variant, "bf16")
    logs = checks.step(checks.make_trainer(spec, "cuda"), checks.make_batch(spec, "cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            logs["denoising"].item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
