"""The paper's training step, the core against a plain loop: `nox -s bench`. Nothing is asserted about time.

Images/s, FLOP/s, memory and what they were measured at are in each benchmark's ``extra_info``. On a GPU the paper's
own sizes are run too; without one those tests skip. Networks are random, which costs the same.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import imagenet_tree as tree
import pytest
import torch
from plain_loop import PlainLoop, TorchDraws, update_ema
from torch import nn

from harness.pipeline.probe import random_batch, random_inputs
from harness.suites.imagenet256 import ImagenetSuite, Size, TokenizerChoice, imagenet256
from recipes.core.distributed import World, choose_device
from recipes.core.draws import KeyedDraws, key_of, normal
from recipes.core.ema import ema_copy, ema_update, pairs_of
from recipes.core.spec import Execution
from recipes.data.images import Images, open_images
from recipes.data.loader import StoredData
from recipes.models.autoencoder import AutoencoderSpec
from recipes.models.discriminator import DiscriminatorSpec
from recipes.models.sit import SiT
from recipes.training.build import build_networks, build_trainer
from recipes.training.flops import flops_per_step
from recipes.training.spec import RunSpec, TrainingInputs

pytestmark = pytest.mark.benchmark

VARIANTS = ("vanilla", "repa", "repa_e")
#: Dense bf16 FLOP/s of the SXM boards, by a piece of the device's name (NVIDIA's data sheets).
PEAKS = {"H200": 989e12, "H100 80GB HBM3": 989e12, "A100": 312e12}
#: Images at once; the first that fits is taken.
PARTS = (256, 128, 64, 32)
#: What a batch that does not fit says: too much memory, or too many elements for a kernel.
TOO_LARGE = ("out of memory", "INT_MAX", "32-bit", "32bit", "CUDNN_STATUS_ALLOC_FAILED")
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


def gpu_suite(size: str) -> ImagenetSuite:
    """The paper's suite, its three recipes at one size of SiT."""
    full = imagenet256()
    return full.model_copy(
        update={"variants": {n: full.variants[n].model_copy(update={"size": size}) for n in VARIANTS}}
    )


def with_train(spec: RunSpec, **changes: int) -> RunSpec:
    return spec.model_copy(update={"train": spec.train.model_copy(update=changes)})


def image_side(spec: RunSpec) -> int:
    return spec.sit.latent_size * spec.tokenizer.factor


@dataclass
class Loop:
    """A way of training that can be stepped."""

    step: Callable[[], Any]
    images: int
    """Of one step."""
    modules: Sequence[nn.Module]
    """Everything that stays in memory between two steps: trained, averaged and frozen."""
    optimizers: Sequence[torch.optim.Optimizer]
    settings: dict[str, Any]
    """What it was measured with."""

    def held_bytes(self) -> int:
        """Weights, buffers and moments."""
        tensors = [t for m in self.modules for t in (*m.parameters(), *m.buffers())]
        tensors += [
            t for o in self.optimizers for s in o.state.values() for t in s.values() if isinstance(t, torch.Tensor)
        ]
        return sum(t.numel() * t.element_size() for t in tensors)


def seeded_inputs(spec: RunSpec) -> TrainingInputs:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return random_inputs(spec)


def core_loop(spec: RunSpec, execution: Execution, device: torch.device) -> Loop:
    inputs = seeded_inputs(spec)
    trainer = build_trainer(spec, inputs, execution=execution, world=World(device=device))
    count = spec.train.batch_size
    batch = random_batch(spec, count, image_side(spec)).to(device)
    items = torch.arange(count, device=device)
    frozen = [m for m in (*inputs.encoders, inputs.perceptual) if m is not None]
    return Loop(
        step=lambda: trainer.train_step(batch, KeyedDraws(0, trainer.position, items)),
        images=count,
        modules=[*trainer.recipe.networks.values(), *trainer.averages.values(), *frozen],
        optimizers=list(trainer.optimizers.values()),
        settings={"precision": spec.train.precision, "micro_batch": trainer.micro_batch, "compiled": execution.compile},
    )


def plain_loop(spec: RunSpec, device: torch.device, *, foreach: bool | None = False) -> Loop:
    inputs = seeded_inputs(spec)
    networks = build_networks(spec, inputs.tokenizer, discriminator=inputs.discriminator, perceptual=inputs.perceptual)
    networks.sit.bn.start_from(inputs.latent_mean, inputs.latent_std)
    encoders = [encoder.to(device) for encoder in inputs.encoders]
    for network in (networks.sit, networks.vae, networks.discriminator, networks.perceptual):
        if network is not None:
            network.to(device)
    options = spec.method.options
    plain = PlainLoop(spec.recipe, networks, options, spec.train, encoders=encoders, foreach=foreach)
    count = spec.train.batch_size
    batch, draws = random_batch(spec, count, image_side(spec)).to(device), TorchDraws(count, device)
    frozen = [*encoders, *([networks.perceptual] if networks.perceptual is not None else [])]
    return Loop(
        step=lambda: plain.step(batch, draws),
        images=count,
        modules=[*plain.models.values(), plain.ema, *frozen],
        optimizers=list(plain.optimizers.values()),
        settings={"precision": "tf32" if device.type == "cuda" else "fp32", "part": count, "compiled": False},
    )


@lru_cache
def flops_per_image(spec_json: str) -> float:
    spec = RunSpec.model_validate_json(spec_json)
    return flops_per_step(spec, image_side(spec)) / spec.train.batch_size


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
    peak = more.get("dense_bf16_peak")
    if peak:
        benchmark.extra_info["model_flop_utilisation"] = flops / seconds / peak


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


# The paper's sizes


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


def fitting(make: Callable[[int], Loop]) -> tuple[Loop, dict[int, str]]:
    """The loop with the most images at once that fits, warmed up; and what the larger ones said."""
    refused: dict[int, str] = {}
    for part in PARTS:
        loop = _tried(make, part, refused)
        if loop is not None:
            return loop, refused
        _empty()
    pytest.skip(f"{PARTS[-1]} images do not fit: {refused}")


def _tried(make: Callable[[int], Loop], part: int, refused: dict[int, str]) -> Loop | None:
    try:
        loop = make(part)
        for _ in range(WARM_UP):
            loop.step()
        torch.cuda.synchronize()
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not any(words in str(error) for words in TOO_LARGE):
            raise
        refused[part] = str(error).splitlines()[0][:120]
        return None
    return loop


def dense_bf16_peak(name: str) -> float | None:
    """The table's entry; none for a device, or a slower board of it, that is not in the table."""
    if any(board in name for board in ("NVL", "PCIe", "MIG")) and "A100" not in name:
        return None
    return next((peak for piece, peak in PEAKS.items() if piece in name), None)


def core_in_parts(spec: RunSpec, device: torch.device, part: int) -> Loop:
    """The paper's batch; in parts, the discriminator's batch norm pools over one of them."""
    if "discriminator" in spec.train.optimizers and part != spec.train.batch_size:
        spec = with_train(spec, norm_batch=part)
    return core_loop(spec, Execution(device="cuda", micro_batch=part, compile=True), device)


def plain_batch(spec: RunSpec, device: torch.device, foreach: bool | None, part: int) -> Loop:
    return plain_loop(with_train(spec, batch_size=part), device, foreach=foreach)


@on_gpu
@pytest.mark.parametrize("how", ["core", "plain", "plain, torch's own foreach"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", ["B", "XL"])
def test_step_on_a_gpu(benchmark, cuda, size, variant, how):
    """Core: bf16, compiled, 256 images a step. Plain: fp32 weights and TF32, eager, as many images as fit."""
    benchmark.group = f"{variant}: step of SiT-{size}/2, 256 px, GPU"
    spec = gpu_suite(size).run_spec(variant, 0, {})
    foreach = False if how == "plain" else None
    make = partial(core_in_parts, spec, cuda) if how == "core" else partial(plain_batch, spec, cuda, foreach)
    loop, refused = fitting(make)
    torch.cuda.reset_peak_memory_stats(cuda)

    def timed() -> None:
        loop.step()
        torch.cuda.synchronize(cuda)

    benchmark.pedantic(timed, rounds=8, iterations=1)
    peak = torch.cuda.max_memory_allocated(cuda)
    name = torch.cuda.get_device_name(cuda)
    note(
        benchmark,
        spec,
        loop,
        device=name,
        dense_bf16_peak=dense_bf16_peak(name),
        peak_bytes=peak,
        peak_gib=peak / 2**30,
        memory_is="torch.cuda.max_memory_allocated over the timed steps",
        refused={str(n): why for n, why in refused.items()},
    )
    assert all(torch.isfinite(p).all() for m in loop.modules for p in m.parameters())


# Parts of a step


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
        network = SiT(gpu_suite("XL").sit_spec("repa"))
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
