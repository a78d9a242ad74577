"""What `bench.py` measures, in a process of its own: a part after the other, each a line of JSON when it is over."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from benchmarks.loops import Loop, core_loop, flops_per_image, image_side, plain_loop, with_train
from gpu.bench import FIRST, LATER, Part
from gpu.precision_checks import tiny_suite
from pytest_benchmark.plugin import pytest_benchmark_generate_machine_info
from pytest_benchmark.stats import Stats
from pytest_benchmark.utils import get_commit_info

from harness.features.inception import load, write_inception
from harness.pipeline.stages import flops_per_evaluation, inception_flops, tokenizer_flops
from harness.records.provenance import provenance
from harness.sampling.protocol import Protocol
from harness.sampling.sampler import Sampler
from harness.suites.imagenet256 import ImagenetSuite, imagenet256
from recipes.core.precision import Precision, matrix_products
from recipes.core.spec import Execution
from recipes.models.autoencoder import Autoencoder
from recipes.models.sit import SiT, initialize

#: Dense FLOP/s of NVIDIA's data sheets, by the name that a card gives of itself: other boards are slower.
_HOPPER: dict[Precision, float] = {"bf16": 989e12, "fp16": 989e12, "tf32": 494.5e12, "fp32": 67e12}
_AMPERE: dict[Precision, float] = {"bf16": 312e12, "fp16": 312e12, "tf32": 156e12, "fp32": 19.5e12}
PEAKS = {"NVIDIA H100 80GB HBM3": _HOPPER, "NVIDIA H200": _HOPPER} | dict.fromkeys(
    ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB"), _AMPERE
)
#: Images that go through the networks at once: the first that fits, from here down by halves.
AT_ONCE = {"B": 256, "XL": 64, "plain": 64}
LEAST = 8
#: What a batch that does not fit says: too much memory, or too many elements for a kernel.
TOO_LARGE = ("out of memory", "INT_MAX", "32-bit", "32bit", "CUDNN_STATUS_ALLOC_FAILED")
WARM_UP, MOST_ROUNDS = 3, 20
#: Of the rounds of a part, by the device.
SECONDS = {"cuda": 4.0, "cpu": 0.2}
#: Blocks of SiT-B/2 in the place of SiT-XL/2's.
SMALLER: dict[str, dict[str, Any]] = {
    "layersync": {"blocks": ((4, 8),)},
    "sra": {"student_block": 3, "teacher_block": 8},
}


def device_of(stand_in: bool) -> torch.device:
    return torch.device("cpu") if stand_in else torch.device("cuda", 0)


def suite_of(size: str, stand_in: bool) -> ImagenetSuite:
    """The paper's, every recipe at one size."""
    full = tiny_suite() if stand_in else imagenet256()
    variants = {name: full.variants[name] for name in (*FIRST, *LATER)}
    if not stand_in:
        for name, variant in variants.items():
            options = {**variant.options, **(SMALLER.get(name, {}) if size == "B" else {})}
            variants[name] = variant.model_copy(update={"size": size, "options": options})
    return full.model_copy(update={"variants": variants})


@contextmanager
def one_process(device: torch.device) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def empty(device: torch.device) -> None:
    """Forget compiled code and free memory."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def timed(work: Callable[[], Any], device: torch.device) -> Stats:
    """Seconds of each round, at least 3, until `SECONDS` are over. The caller has warmed up."""
    stats = Stats()
    while len(stats.data) < 3 or (sum(stats.data) < SECONDS[device.type] and len(stats.data) < MOST_ROUNDS):
        began = time.perf_counter()
        work()
        synchronize(device)
        stats.update(time.perf_counter() - began)
    return stats


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fitting(make: Callable[[int], Loop], first: int, device: torch.device) -> tuple[Loop, dict[str, str]]:
    """The loop with the most images at once that fits, warmed up; and what the larger ones said."""
    refused: dict[str, str] = {}
    part = first
    while True:
        try:
            loop = make(part)
            for _ in range(WARM_UP):
                loop.step()
            synchronize(device)
            return loop, refused
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if part <= LEAST or not any(words in str(error) for words in TOO_LARGE):
                raise
            refused[str(part)] = str(error).splitlines()[0][:120]
        loop = None  # what did not fit must go before the next
        empty(device)
        part //= 2


def step(settings: dict[str, Any], device: torch.device, stand_in: bool) -> dict[str, Any]:
    """Training steps: the core's of the suite's whole batch, the plain loop's of as many images as fit."""
    size, recipe, how = settings["size"], settings["recipe"], settings["how"]
    spec = suite_of(size, stand_in).run_spec(recipe, 0, {})
    whole = spec.train.batch_size

    def make(part: int) -> Loop:
        if how.startswith("plain"):
            return plain_loop(with_train(spec, batch_size=part), device, foreach=None if "foreach" in how else False)
        parted = with_train(spec, norm_batch=part) if "discriminator" in spec.train.optimizers else spec
        execution = Execution(device=device.type, micro_batch=part, compile="compiled" in how and not stand_in)
        return core_loop(parted, execution, device, ddp="DDP" in how)

    first = min(whole, AT_ONCE["plain" if how.startswith("plain") else size])
    loop, refused = fitting(make, first, device)
    stats = timed(loop.step, device)
    assert all(torch.isfinite(p).all() for m in loop.modules for p in m.parameters())
    flops = flops_per_image(spec.model_dump_json()) * loop.images
    more = {"flops_are": "the recipe's; what a loop computes in vain does not count", "refused": refused}
    more["data"] = "one random batch that lies on the device: no image is read"
    return measured(stats, device, images=loop.images, flops=flops, **loop.settings, **more)


def samples(settings: dict[str, Any], device: torch.device, stand_in: bool) -> dict[str, Any]:
    """A chunk of samples of REPA's SiT, decoded to uint8, under the protocol of the curves."""
    suite = suite_of("XL", stand_in)
    spec, protocol = suite.run_spec("repa", 0, {}), suite.curve_protocol
    with device:
        sit = SiT(spec.sit)
        initialize(sit, 0)
        tokenizer = Autoencoder(spec.tokenizer)
    sit.eval().requires_grad_(False)
    tokenizer.eval().requires_grad_(False)
    indices = torch.arange(suite.chunk, device=device)
    if settings["how"] == "plain":
        work = partial(plain_samples, sit, tokenizer, protocol, len(indices))
    else:
        sampler = Sampler(sit, tokenizer, spec.method.options.path)
        work = partial(sampler.draw, protocol, 0, indices)
    work()
    stats = timed(work, device)
    each = flops_per_evaluation(spec) * protocol.nfe + tokenizer_flops(spec.tokenizer, image_side(spec))[1]
    told = {"protocol": protocol.label, "steps": protocol.steps, "precision": protocol.precision}
    return measured(stats, device, images=len(indices), flops=each * len(indices), **told)


@torch.no_grad()
def plain_samples(sit: SiT, tokenizer: Autoencoder, protocol: Protocol, count: int) -> torch.Tensor:
    """The same as a script would have it: Euler's steps from noise of torch's own generator, state in float64."""
    assert protocol.solver == "ode_euler"
    device, spec = sit.pos_embed.device, sit.spec
    with matrix_products(protocol.precision):
        x = torch.randn(count, spec.channels, spec.latent_size, spec.latent_size, device=device, dtype=torch.float64)
        labels = torch.randint(0, spec.num_classes, (count,), device=device)
        times = torch.linspace(1, 0, protocol.steps + 1, dtype=torch.float64)
        for now, then in pairwise(times.tolist()):
            t = torch.full((count,), now, device=device)
            x = x + (then - now) * sit(x.float(), t, labels).velocity.double()
        images = tokenizer.decode(sit.bn.denormalize(x).float())
        return torch.clamp(255 * (images + 1) / 2, 0, 255).to(torch.uint8).cpu()


def features(settings: dict[str, Any], device: torch.device, stand_in: bool) -> dict[str, Any]:
    """Inception of a chunk of images, as every score has it: float32, all three outputs."""
    suite = suite_of("XL", stand_in)
    with tempfile.TemporaryDirectory() as folder:
        network = load(write_inception(Path(folder)), device)
    count, side = (2 if stand_in else suite.chunk), suite.side
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, device=device)
    network(images)
    stats = timed(lambda: network(images), device)
    return measured(stats, device, images=count, flops=inception_flops() * count, precision="fp32")


def measured(
    stats: Stats, device: torch.device, *, images: int, flops: float, precision: Precision, **more: Any
) -> dict[str, Any]:
    """What stands in an entry beside its name."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    peak, gpu = PEAKS.get(name, {}).get(precision), device.type == "cuda"
    extra = {
        "device": name,
        "weights": "random, which cost the same",
        "batch": images,
        "precision": precision,
        "images_per_second": images / stats.min,
        "seconds_are": "of the fastest round",  # what else the machine does only ever adds
        "flops_per_round": flops,
        "flops_per_second": flops / stats.min,
        "utilisation": flops / stats.min / peak if peak else None,
        "utilisation_of": f"{peak / 1e12:g} TFLOP/s, dense {precision} of {name} (data sheet)" if peak else "unknown",
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if gpu else None,
        "memory_is": "torch.cuda.max_memory_allocated, warm-up included" if gpu else "not measured on a CPU",
    }
    return {"extra_info": extra | more, "stats": stats.as_dict() | {"data": stats.data, "iterations": 1}}


@lru_cache
def machine(gpu: str) -> dict[str, Any]:
    """Where and of what code; the commit is git's, and without one the hash of the source stands in the versions."""
    info = pytest_benchmark_generate_machine_info()
    info["cpu"].pop("flags", None)
    info |= {"gpu": gpu, "cuda": torch.version.cuda, "provenance": provenance().model_dump(mode="json")}
    return {"machine_info": info, "commit_info": get_commit_info()}


KINDS = {"step": step, "samples": samples, "features": features}


def measure(part: Part, *, stand_in: bool) -> dict[str, Any]:
    """An entry, or `why` there is none."""
    device = device_of(stand_in)
    try:
        empty(device)
        with one_process(device) if "DDP" in part.name else nullcontext():
            told = KINDS[part.kind](part.settings, device, stand_in)
    except Exception as error:
        traceback.print_exc()
        return {"why": f"{type(error).__name__}: {error}"[:500]}
    shown = {"fullname": f"tests/gpu/bench.py::{part.name}", "params": part.settings, "param": None, "options": {}}
    group = f"{part.kind}{', stand-in sizes' if stand_in else ''}"
    return {"group": group, "name": part.name, **shown, **told, "machine": machine(told["extra_info"]["device"])}


def main() -> None:
    stand_in, *given = ("--stand-in" in sys.argv, *(text for text in sys.argv[1:] if text.startswith("{")))
    torch.backends.cudnn.benchmark = True  # as in a run; the plain loop has it too
    print("{}", flush=True)  # everything is imported
    for text in given:
        print(json.dumps(measure(Part(**json.loads(text)), stand_in=stand_in)), flush=True)


if __name__ == "__main__":
    main()
