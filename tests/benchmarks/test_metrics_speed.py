"""Benchmarks of the metrics beside torch-fidelity and clean-fid: `nox -s bench`. No assertion on time."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests_support import precision_recall

from harness.features.base import FEATURES, LOGITS, SPATIAL
from harness.metrics.evaluate import DEFAULT, evaluate
from harness.metrics.frechet import Moments, MomentSums, frechet_distance
from harness.metrics.manifold import Manifold, manifold, manifolds
from harness.scoring import feature_shards
from harness.scoring.image_sets import FolderImages
from harness.scoring.score_images import Job
from recipes.core.distributed import World

WIDTH = 2048


def features(seed: int, n: int) -> torch.Tensor:
    """Non-negative, of a decaying spectrum, as Inception's are: float32, (n, 2048)."""
    mixing = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)) / WIDTH**0.5
    mixing *= (20 * torch.arange(1, WIDTH + 1) ** -0.7)[:, None]
    return (torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed)) @ mixing).relu()


def resident(name: str) -> int:
    """VmRSS or VmHWM (its peak) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measure(benchmark: Any, run: Callable[[], Any], rounds: int) -> Any:
    """Time it, and note how far its peak memory lies above what was resident before (Linux only)."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return benchmark.pedantic(run, rounds=rounds)
    gc.collect()
    reset.write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    found = benchmark.pedantic(run, rounds=rounds)
    benchmark.extra_info["peak_memory_bytes"] = resident("VmHWM") - before
    return found


@pytest.fixture(scope="module")
def moments() -> tuple[Moments, Moments]:
    return tuple(MomentSums.empty(WIDTH).add(features(seed, 3000)).moments() for seed in (1, 2))


@pytest.mark.benchmark(group="Fréchet distance of 2048 features")
@pytest.mark.parametrize("whose", ["ours, root kept", "torch-fidelity", "clean-fid"])
def test_frechet(benchmark, moments, whose):
    from cleanfid.fid import frechet_distance as clean
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    real, fake = moments
    expected = frechet_distance(real=real, fake=fake)  # computes the root
    (m1, s1), (m2, s2) = ((x.mean.numpy(), x.covariance.numpy()) for x in moments)

    def fidelity() -> float:
        statistics = {"mu": m1, "sigma": s1}, {"mu": m2, "sigma": s2}
        return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]

    how: dict[str, Callable[[], float]] = {
        "ours, root kept": lambda: frechet_distance(real=real, fake=fake),
        "torch-fidelity": fidelity,
        "clean-fid": lambda: float(clean(m1, s1, m2, s2)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of SciPy's sqrtm, inside clean-fid
        found = measure(benchmark, how[whose], rounds=1)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.benchmark(group="precision and recall, 6,000 fake and 3,000 real x 2048")
@pytest.mark.parametrize("whose", ["ours", "torch-fidelity"])
def test_precision_recall(benchmark, whose):
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = features(1, 3000), features(2, 6000) * 0.97

    def fidelity() -> tuple[float, float]:
        theirs = prc_features_to_metric(fake, real, prc_neighborhood=3, verbose=False)
        return theirs["precision"], theirs["recall"]

    run = (lambda: precision_recall(real=real, fake=fake)) if whose == "ours" else fidelity
    precision, recall = measure(benchmark, run, rounds=2)
    assert 0 < precision < 1
    assert 0 < recall < 1


@pytest.mark.benchmark(group="precision and recall, 50,000 fake and 10,000 real x 2048")
@pytest.mark.parametrize("whose", ["ours", "torch-fidelity, save_cpu_ram"])
def test_precision_recall_at_adms_size(benchmark, whose):
    """Once each: minutes. Without `save_cpu_ram` torch-fidelity holds 50,000 x 50,000 distances twice, 20 GB."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = features(1, 10_000), features(2, 50_000) * 0.97

    def fidelity() -> tuple[float, float]:
        theirs = prc_features_to_metric(fake, real, prc_neighborhood=3, save_cpu_ram=True, verbose=False)
        return theirs["precision"], theirs["recall"]

    run = (lambda: precision_recall(real=real, fake=fake)) if whose == "ours" else fidelity
    precision, recall = measure(benchmark, run, rounds=1)
    assert 0 < precision < 1
    assert 0 < recall < 1


@pytest.mark.benchmark(group="five manifold metrics, 6,000 fake and 3,000 real x 2048")
@pytest.mark.parametrize("how", ["k = 3 and 5 at once", "one after the other"])
def test_manifolds(benchmark, how):
    real, fake = features(1, 3000), features(2, 6000) * 0.97

    def run() -> dict[int, Manifold]:
        if how == "one after the other":
            return {k: manifold(real=real, fake=fake, k=k) for k in (3, 5)}
        return manifolds(real=real, fake=fake, ks=(3, 5))

    assert set(measure(benchmark, run, rounds=2)) == {3, 5}


class Device:
    """A feature network in the place of one on an accelerator: it takes its time and leaves the processor alone."""

    convention, content, notes = "device", "d" * 64, ()

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        time.sleep(2e-3 * len(images))
        return {FEATURES: images.float().mean((2, 3))}


@pytest.mark.benchmark(group="512 PNGs of 256 pixels read for a device that takes 2 ms an image")
@pytest.mark.parametrize("how", ["overlapped", "in turn"])
def test_reading_is_overlapped(benchmark, how, tmp_path, monkeypatch):
    smooth = torch.nn.functional.interpolate(torch.rand(64, 3, 32, 32), size=(256, 256), mode="bicubic")
    for k in range(512):
        pixels = (255 * (smooth[k % 64] + 0.02 * torch.randn(3, 256, 256))).clamp(0, 255).to(torch.uint8)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / f"{k:04d}.png", compress_level=1)
    images = FolderImages(tmp_path)
    if how == "in turn":
        monkeypatch.setattr(feature_shards, "prefetched", lambda read, chunks, depth: map(read, chunks))

    def run() -> int:
        shards = feature_shards.Shards(tmp_path / "shards", len(images))
        found = feature_shards.measure(images, Device(), shards, batch=64, world=World())
        shards.clear()
        assert found is not None
        return found.rows

    assert measure(benchmark, run, rounds=3) == 512


class Blank:
    """50,000 images of 8 pixels that cost nothing to read."""

    warnings: tuple[str, ...] = ()

    def __init__(self, name: str, count: int) -> None:
        self.identity, self._count = name, count

    def __len__(self) -> int:
        return self._count

    def read(self, start: int, stop: int) -> torch.Tensor:
        index = torch.arange(start, stop)[:, None, None, None].expand(-1, 3, 8, 8)
        return (index % 256).to(torch.uint8)


class Sized:
    """Outputs of Inception's sizes at no cost, other ones for every batch."""

    convention, content, notes = "sized", "s" * 64, ()

    def __init__(self) -> None:
        self._seen = 0

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self._seen += 1
        g = torch.Generator().manual_seed(self._seen)
        return {
            FEATURES: features(self._seen, len(images)),
            LOGITS: torch.randn(len(images), 1008, generator=g),
            SPATIAL: torch.randn(len(images), 2023, generator=g).relu(),
        }


@pytest.mark.benchmark(group="everything but the network: 50,000 samples against 10,000, five metrics")
def test_scoring_at_adms_size(benchmark, tmp_path):
    """Shards, statistics, memory-mapped features, FID, sFID, IS, precision, recall; wall clock and peak memory."""
    real = Job(Sized(), "inception", DEFAULT, tmp_path).measure(Blank("real", 10_000), "reference")[1]
    assert real is not None

    def run() -> dict[str, float]:
        fake = Job(Sized(), "inception", DEFAULT, tmp_path, batch=256).measure(Blank("fake", 50_000), "samples")[1]
        assert fake is not None
        return evaluate(DEFAULT, real=real, fake=fake).values

    assert set(measure(benchmark, run, rounds=1)) == set(DEFAULT)
