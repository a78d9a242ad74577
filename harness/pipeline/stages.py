"""The stages of a comparison that is too large to be rehearsed: what each does, at which rate, and what it stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from harness.sampling.protocol import Protocol
from harness.suites.base import IMAGENET_TRAIN, Budget, Suite, draws_of
from recipes.core.precision import Precision
from recipes.models.autoencoder import Autoencoder, AutoencoderSpec
from recipes.models.sit import SiT
from recipes.training.flops import flops_to
from recipes.training.spec import RunSpec

#: Peaks of NVIDIA's data sheet of the H100 SXM, dense, relative to that of bf16 (989 TFLOP/s): what a rate that was
#: given or measured for one number format says about another.
PEAKS: Mapping[Precision, float] = {"bf16": 1.0, "fp16": 1.0, "tf32": 0.5, "fp32": 67 / 989}
#: Decoding a JPEG, cropping it and writing a PNG: measured, seconds of one core.
PREPARE_SECONDS = 0.012
#: Precision and recall compare every image with every other; FID grows with the images alone. Measured at 50,000 on two
#: cores.
PAIRS_SECONDS, FID_SECONDS, MEASURED_AT = 68.0, 10.8, 50_000
#: Feature shards of an image: float32 pool_3, spatial features and logits.
SHARD_BYTES = 20_000


@dataclass(frozen=True)
class Rates:
    """How fast this will go."""

    flops: Mapping[Precision, float]
    """FLOP/s of one device in number formats that are known; see `of`."""
    source: str
    """Where these are from."""
    cpu: bool = False
    """Whether the device is a CPU, on which every number format is as fast as another."""
    prepare: float | None = None
    """Images per second that this machine prepares; None: by `PREPARE_SECONDS` and the processes."""
    processes: int = 1
    """That prepare images."""

    def of(self, precision: Precision) -> tuple[float, str]:
        """FLOP/s of one device in a number format, and where that is from."""
        if precision in self.flops:
            return self.flops[precision], self.source
        known, rate = next(iter(self.flops.items()))
        if self.cpu:
            return rate, f"as {known}"
        return rate * PEAKS[precision] / PEAKS[known], f"from {known} by the ratio of an H100's peaks"


@dataclass(frozen=True)
class Stage:
    """One part of the work."""

    name: str
    amount: str
    rate: str
    seconds: float
    """On one device, or on this machine."""
    on_device: bool = True
    """Whether more devices make it shorter."""


def stages_of(
    suite: Suite,
    budget: Budget,
    specs: Mapping[str, RunSpec],
    seeds: int,
    rates: Rates,
    *,
    images: bool,
    latents: Sequence[str],
) -> list[Stage]:
    """Every stage of a comparison.

    Args:
        suite: what would be run.
        budget: for how long.
        specs: by variant.
        seeds: training seeds of each.
        rates: see `Rates`.
        images: whether the images have to be prepared.
        latents: tokenizers whose posteriors have to be stored.
    """
    out = list[Stage]()
    if images:
        rate = rates.prepare or rates.processes / PREPARE_SECONDS
        told = "given" if rates.prepare else f"{1000 * PREPARE_SECONDS:.0f} ms an image, {rates.processes} processes"
        out.append(Stage("prepare images", f"{IMAGENET_TRAIN:,} images", told, IMAGENET_TRAIN / rate, on_device=False))
    for name in latents:
        tokenizer = next(s.tokenizer for v, s in specs.items() if name in suite.latents_of([v]))
        flops = IMAGENET_TRAIN * tokenizer_flops(tokenizer, suite.image_size)[0]
        out.append(_counted(f"encode by {name}", float(flops), "fp32", rates))
    training: dict[Precision, float] = dict.fromkeys(PEAKS, 0.0)
    for spec in specs.values():
        training[spec.train.precision] += float(flops_to(spec, suite.image_size, budget.milestones()[-1])) * seeds
    out += [_counted("train", total, precision, rates) for precision, total in training.items() if total]
    return [*out, *_scoring(suite, budget, specs, seeds, rates)]


def _scoring(suite: Suite, budget: Budget, specs: Mapping[str, RunSpec], seeds: int, rates: Rates) -> list[Stage]:
    """Sampling, decoding, features and metrics; one stage for each number format."""
    sampled, decoded = dict[Precision, float](), dict[Precision, float]()
    images, metrics = 0, 0.0
    for spec in specs.values():
        evaluation, decode = flops_per_evaluation(spec), tokenizer_flops(spec.tokenizer, suite.image_size)[1]
        for protocol, sets in draws(suite, budget, seeds):
            count = sets * protocol.samples
            sampled[protocol.precision] = sampled.get(protocol.precision, 0.0) + count * protocol.nfe * evaluation
            decoded[protocol.precision] = decoded.get(protocol.precision, 0.0) + count * decode
            images += count
            pairs = (min(protocol.samples, protocol.manifold_size) / MEASURED_AT) ** 2
            metrics += sets * (PAIRS_SECONDS * pairs + FID_SECONDS * protocol.samples / MEASURED_AT)
    return [
        *(_counted("sample", flops, precision, rates) for precision, flops in sampled.items()),
        *(_counted("decode samples", flops, precision, rates) for precision, flops in decoded.items()),
        _counted("features of samples", float(images * inception_flops()), "fp32", rates),
        Stage("metrics", f"{images:,} samples", "two cores, as measured at 50,000", metrics, on_device=False),
    ]


def draws(suite: Suite, budget: Budget, seeds: int) -> list[tuple[Protocol, int]]:
    """The protocols that a variant's runs are drawn under, and how many sample sets each."""
    sets: dict[str, tuple[Protocol, int]] = {}
    for number in range(seeds):
        for _, protocol, _ in draws_of(suite, budget, first=number == 0):
            sets[protocol.name] = protocol, sets.get(protocol.name, (protocol, 0))[1] + 1
    return list(sets.values())


def _counted(name: str, flops: float, precision: Precision, rates: Rates) -> Stage:
    rate, source = rates.of(precision)
    unit, called = (1e18, "EFLOP") if flops >= 1e15 else (1e12, "TFLOP")
    told = f"{precision}: {rate / 1e12:,.3g} TFLOP/s, {source}"
    return Stage(name, f"{flops / unit:,.3g} {called}", told, flops / rate)


def flops_per_evaluation(spec: RunSpec) -> int:
    """Floating-point operations of one forward pass of the SiT for one image."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        sit = SiT(spec.sit)
        side = spec.sit.latent_size
        latents = torch.zeros(1, spec.sit.channels, side, side)
        width = spec.sit.class_width
        token = None if width is None else torch.zeros(1, width)
        sit(latents, torch.zeros(1), torch.zeros(1, dtype=torch.int64), class_token=token, project=False)
    return int(counter.get_total_flops())


@lru_cache
def tokenizer_flops(spec: AutoencoderSpec, side: int) -> tuple[int, int]:
    """Floating-point operations of encoding and of decoding one image of so many pixels a side."""
    found = []
    with torch.device("meta"), torch.no_grad():
        tokenizer, small = Autoencoder(spec), side // spec.factor
        latents, images = torch.zeros(1, spec.latent_channels, small, small), torch.zeros(1, 3, side, side)
        for given, work in ((images, tokenizer.encode), (latents, tokenizer.decode)):
            with FlopCounterMode(display=False) as counter:
                work(given)
            found.append(int(counter.get_total_flops()))
    return found[0], found[1]


@lru_cache
def inception_flops() -> int:
    """Floating-point operations of Inception-v3 for one image, which it sees at 299 pixels."""
    from torchvision.models import inception_v3

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        image: Tensor = torch.zeros(1, 3, 299, 299)
        inception_v3(weights=None, init_weights=False, aux_logits=False).eval()(image)
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Storage:
    """What a variant's runs take on the disk, in bytes."""

    finished: int
    """A run that is over: its milestones, and the states that the last checkpoints keep for going on."""
    working: int
    """What a run takes beyond that while it trains: resume checkpoints, and the one that is being written."""


def storage_of(parameters: Mapping[str, int], milestones: int, keep: int) -> Storage:
    """What checkpoints take.

    Args:
        parameters: numbers of the trained networks, the SiT's average left out.
        milestones: checkpoints that are kept for scoring.
        keep: last checkpoints that hold an optimizer's state, and stay though they are no milestones.
    """
    total = sum(parameters.values())
    weights, state = 4 * (total + parameters["sit"]), 8 * total
    return Storage(milestones * weights + keep * state + (keep - 1) * weights, weights + state)


def lost_to_a_kill(seconds_per_step: float, save_minutes: float, save_every: int | None, steps: int) -> float:
    """Seconds of training that a process that dies without a word loses at most."""
    limits = [steps * seconds_per_step]
    if save_minutes:
        limits.append(60 * save_minutes)
    if save_every:
        limits.append(save_every * seconds_per_step)
    return min(limits)
