"""The paper's training step, the core against a plain loop: `nox -s bench`. Nothing is asserted about time.

Images/s, FLOP/s, memory and what they were measured at are in each benchmark's ``extra_info``. Networks are random,
which costs the same. The paper's own sizes are measured by `tests/gpu/bench.py`.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from typing import Any

import imagenet_tree as tree
import pytest
import torch
from benchmarks.loops import Loop, core_loop, flops_per_image, plain_loop
from benchmarks.plain_loop import update_ema

from harness.suites.imagenet256 import ImagenetSuite, Size, TokenizerChoice, imagenet256
from recipes.core.distributed import choose_device
from recipes.core.draws import key_of, normal
from recipes.core.ema import ema_copy, ema_update, pairs_of
from recipes.core.spec import Execution
from recipes.data.images import Images, open_images
from recipes.data.loader import StoredData
from recipes.models.autoencoder import AutoencoderSpec
from recipes.models.discriminator import DiscriminatorSpec
from recipes.models.sit import SiT
from recipes.training.spec import RunSpec

pytestmark = pytest.mark.benchmark

VARIANTS = ("vanilla", "repa", "repa_e")
WARM_UP = 3

NEEDS_GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


def on_gpu(test: Any) -> Any:
    """Mark a test for a machine with a GPU, where compiling takes minutes and the compiler gives advice."""
    for mark in (*NEEDS_GPU, pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore:::torch")):
        test = mark(test)
    return test


def cpu_suite() -> ImagenetSuite:
    """The paper's suite at a size for two cores: 16 x 16 tokens of 128-pixel images, 4 blocks of SiT-S, batch 4."""
    full = imagenet256()
    tokenizer = AutoencoderSpec(latent_channels=4, base_width=32, multipliers=(1, 2, 2, 2), residual_blocks=1)
    eye = full.encoders["dinov2-vit-b"].model_copy(
        update={"width": 192, "kwargs": {"embed_dim": 192, "depth": 2, "num_heads": 3}}
    )
    return full.model_copy(
        update={
            "name": "bench",
            "side": 128,
            "batch_size": 4,
            "precision": "fp32",
            "sizes": {"XL": Size(hidden=384, depth=4, heads=6)},
            "tokenizers": {"sd-vae": TokenizerChoice(autoencoder=tokenizer, patch_size=1)},
            "encoders": {"dinov2-vit-b": eye},
            "discriminator": DiscriminatorSpec(base_width=32),
            "variants": {name: full.variants[name].model_copy(update={"encoder_depth": 2}) for name in VARIANTS},
        }
    )


def note(benchmark: Any, spec: RunSpec, loop: Loop, **more: Any) -> None:
    """Put what was measured into the benchmark's record.

    FLOPs are those of the recipe: what a loop computes in vain does not count for it.
    """
    flops = flops_per_image(spec.model_dump_json()) * loop.images
    benchmark.extra_info.update(loop.settings, batch=loop.images, flops_per_step=flops, **more)
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = benchmark.stats.stats.min  # what else the machine does only ever adds
    benchmark.extra_info.update(
        images_per_second=loop.images / seconds, flops_per_second=flops / seconds, seconds_are="of the fastest round"
    )


# The CPU's size


def cpu_step_bytes(step: Callable[[], Any]) -> int:
    """The most that the CPU allocator held during a step, above what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


@pytest.mark.parametrize("how", ["core", "plain"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_step_on_the_cpu(benchmark, variant, how):
    benchmark.group = f"{variant}: step of 4 images, 128 px, SiT 384 x 4, CPU"
    spec, cpu = cpu_suite().run_spec(variant, 0, {}), torch.device("cpu")
    loop = core_loop(spec, Execution(device="cpu"), cpu) if how == "core" else plain_loop(spec, cpu)
    loop.step()  # makes the moments
    step_bytes, held = cpu_step_bytes(loop.step), loop.held_bytes()
    benchmark.pedantic(loop.step, rounds=2 if variant == "repa_e" else 4, iterations=1)
    note(
        benchmark,
        spec,
        loop,
        threads=torch.get_num_threads(),
        held_bytes=held,
        step_bytes=step_bytes,
        peak_bytes=held + step_bytes,
        memory_is="held: weights, buffers, moments; step: the most that a step's CPU allocations hold (torch.profiler)",
    )
    assert all(torch.isfinite(p).all() for m in loop.modules for p in m.parameters())


# Parts of a step at the paper's sizes


@pytest.fixture
def cuda():
    """The device, empty before and after."""
    _empty()
    yield choose_device("cuda")
    _empty()


def _empty() -> None:
    gc.collect()
    torch.compiler.reset()
    torch.cuda.empty_cache()


@on_gpu
@pytest.mark.parametrize("how", ["keyed", "keyed, compiled", "torch generator"])
def test_draws_on_a_gpu(benchmark, cuda, how):
    benchmark.group = "normal draws, 256 x 4 x 32 x 32, GPU"
    items, key, elements = torch.arange(256, device=cuda), key_of(0, "noise"), 4 * 32 * 32
    steps, compiled = itertools.count(), torch.compile(normal)
    draw = {
        "keyed": lambda: normal(key, next(steps), items, elements),
        "keyed, compiled": lambda: compiled(key, next(steps), items, elements),
        "torch generator": lambda: torch.randn(256, elements, device=cuda),
    }[how]
    for _ in range(WARM_UP):  # the second step number makes the compiler take any
        draw()
    if how == "keyed, compiled":
        # Logarithm and cosine may differ in their last bits.
        expected = normal(key, 100, items, elements)
        torch.testing.assert_close(compiled(key, 100, items, elements), expected, rtol=1e-9, atol=1e-9)

    def timed() -> torch.Tensor:
        out = draw()
        torch.cuda.synchronize(cuda)
        return out

    assert benchmark(timed).shape == (256, elements)


@on_gpu
@pytest.mark.parametrize("how", ["foreach", "loop", "by tensor, under a loss scaler"])
def test_ema_on_a_gpu(benchmark, cuda, how):
    benchmark.group = "EMA of SiT-XL/2, GPU"
    with cuda:
        network = SiT(imagenet256().sit_spec("repa"))
    average, happened = ema_copy(network), torch.ones((), dtype=torch.bool, device=cuda)
    pairs = pairs_of(average, network)
    update = {
        "foreach": lambda: ema_update(pairs, 0.9999),
        "loop": lambda: update_ema(average, network, 0.9999),
        "by tensor, under a loss scaler": lambda: ema_update(pairs, 0.9999, happened),
    }[how]

    def timed() -> None:
        update()
        torch.cuda.synchronize(cuda)

    benchmark(timed)
    assert torch.isfinite(average.pos_embed).all()


DECODED = 64


@pytest.fixture(scope="module")
def pngs(tmp_path_factory) -> Images:
    """Pictures of 256 pixels with a little noise, in a zip of EDM2's layout."""
    path = tmp_path_factory.mktemp("pngs") / "images.zip"
    return open_images(tree.write_edm2_zip(path, tree.make_squares(n=DECODED, side=256)))


@pytest.mark.parametrize("threads", [1, 2, *(pytest.param(n, marks=NEEDS_GPU) for n in (8, 16))])
def test_png_decoding(benchmark, pngs, threads):
    benchmark.group = f"a batch of {DECODED} PNGs of 256 px through StoredData"
    data, indices = StoredData(labels=pngs.labels, images=pngs, threads=threads), torch.arange(DECODED)
    batch = benchmark.pedantic(data.take, (indices,), rounds=5, iterations=1, warmup_rounds=1)
    assert batch.images.shape == (DECODED, 3, 256, 256)
    if benchmark.stats is not None:
        benchmark.extra_info["images_per_second"] = DECODED / benchmark.stats.stats.min
