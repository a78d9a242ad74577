"""Benchmarks: `nox -s bench`. No assertion on time; the figures are kept in baselines/performance/."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests_support import precision_recall

from harness.metrics.frechet import Moments, frechet_distance
from harness.suites import suite
from recipes.core.batch import Batch
from recipes.core.draws import KeyedDraws
from recipes.core.ema import ema_update, pairs_of
from recipes.core.loop import Trainer
from recipes.core.losses import alignment_loss
from recipes.core.spec import OptimizerSpec, TrainSpec
from recipes.models.sit import SiTSpec
from recipes.registry import find_recipe
from recipes.training.build import build_networks
from recipes.training.spec import RunSpec

DIGITS = suite("digits")


#: The recipes of the field, and HASTE after its stop and as released.
FIELD = ("vanilla", "repa", "irepa", "reg", "haste", "layersync", "sra", "contrastive", "dispersive", "repa_e")


def random_batch(spec: RunSpec, pixels: int, number: int = 0) -> Batch:
    """What the recipe needs in iteration `number`."""
    g, n, s, needs = torch.Generator().manual_seed(0), spec.train.batch_size, spec.sit, spec.method.needs_at(number)
    shape = (n, s.channels, s.latent_size, s.latent_size)
    widths = s.encoder_widths if needs.features else ()
    return Batch(
        images=torch.randint(0, 256, (n, 3, pixels, pixels), generator=g, dtype=torch.uint8),
        labels=torch.randint(0, s.num_classes, (n,), generator=g),
        features=tuple(torch.randn(n, s.tokens, width, generator=g) for width in widths),
        class_tokens=tuple(torch.randn(n, width, generator=g) for width in widths),
        attention=tuple(torch.randn(n, 12, s.tokens, s.tokens, generator=g) for _ in needs.attention),
        mean=torch.randn(shape, generator=g),
        std=torch.rand(shape, generator=g),
    )


def bench_steps(benchmark: Any, spec: RunSpec, pixels: int, number: int = 0) -> None:
    """Training steps from iteration `number` on."""
    trainer = Trainer(spec.method.on(build_networks(spec)), spec.train)
    trainer.position, batch = number, random_batch(spec, pixels, number)
    items = torch.arange(spec.train.batch_size)
    benchmark(lambda: trainer.train_step(batch, KeyedDraws(0, trainer.position, items)))
    assert trainer.position > number


@pytest.mark.benchmark(group="digits training step")
@pytest.mark.parametrize("variant", FIELD)
def test_training_step(benchmark, variant):
    bench_steps(benchmark, DIGITS.run_spec(variant, 0, {}), 16)


@pytest.mark.benchmark(group="digits training step")
def test_training_step_after_the_stop(benchmark):
    bench_steps(benchmark, DIGITS.run_spec("haste", 0, {}), 16, number=700)


#: SiT-S/2 on four latents of 32 x 32, with features of DINOv2-B's width.
SMALL = SiTSpec(
    latent_size=32, channels=4, num_classes=1000, patch_size=2, hidden=384, depth=12, heads=6, encoder_depth=8
)
SMALL_OPTIONS: dict[str, dict[str, Any]] = {"layersync": {"blocks": ((4, 8),)}}


@pytest.mark.benchmark(group="SiT-S/2 training step, batch 4", max_time=8, min_rounds=8)
@pytest.mark.parametrize("recipe", [name for name in FIELD if name != "repa_e"])
def test_training_step_of_sit_s(benchmark, recipe):
    method = find_recipe(recipe, SMALL_OPTIONS.get(recipe, {}), where="benchmark")
    spec = RunSpec(
        suite="bench",
        variant=recipe,
        recipe=recipe,
        options=method.options.model_dump(mode="json"),
        sit=method.shape(SMALL, (768,)),
        tokenizer=DIGITS.tokenizer.autoencoder,
        train=TrainSpec(seed=0, batch_size=4, optimizers={"sit": OptimizerSpec()}),
        inputs={},
    )
    bench_steps(benchmark, spec, 16)


def alignment_by_image(p: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    """The loss written as a loop over the images, for comparison."""
    total = torch.zeros(())
    for a, b in zip(p, f, strict=True):
        a, b = torch.nn.functional.normalize(a, dim=-1), torch.nn.functional.normalize(b, dim=-1)
        total = total - (a * b).sum(-1).mean()
    return total / len(p)


@pytest.mark.benchmark(group="alignment loss, 64 x 256 x 768, forward and backward")
@pytest.mark.parametrize("how", ["batched", "by image"])
def test_alignment(benchmark, how):
    g = torch.Generator().manual_seed(0)
    p, f = torch.randn(2, 64, 256, 768, generator=g)
    p.requires_grad_()
    loss = (lambda: alignment_loss([p], [f])) if how == "batched" else (lambda: alignment_by_image(p, f))
    torch.testing.assert_close(alignment_loss([p], [f]), alignment_by_image(p, f))
    benchmark(lambda: loss().backward())


@pytest.mark.benchmark(group="normal draws, 64 x 256")
@pytest.mark.parametrize("how", ["keyed", "torch generator"])
def test_draws(benchmark, how):
    like, items, g = torch.empty(64, 16, 4, 4), torch.arange(64), torch.Generator().manual_seed(0)
    if how == "keyed":
        drawn = benchmark(lambda: KeyedDraws(0, 1, items).normal_like("noise", like))
    else:
        drawn = benchmark(lambda: torch.randn(like.shape, generator=g))
    assert drawn.shape == like.shape


@pytest.mark.benchmark(group="EMA of the digits SiT")
@pytest.mark.parametrize("how", ["foreach", "by tensor"])
def test_ema(benchmark, how):
    network = build_networks(DIGITS.run_spec("repa", 0, {})).sit
    average = copy.deepcopy(network)
    pairs = pairs_of(average, network)

    @torch.no_grad()
    def by_tensor() -> None:
        theirs = network.state_dict()
        for name, value in average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(theirs[name], 0.001)

    benchmark((lambda: ema_update(pairs, 0.999)) if how == "foreach" else by_tensor)
    assert torch.isfinite(average.state_dict()["pos_embed"]).all()


@pytest.mark.benchmark(group="metrics of the digits suite")
@pytest.mark.parametrize("metric", ["fid", "precision and recall"])
def test_metrics(benchmark, metric):
    g = torch.Generator().manual_seed(0)
    real, fake = torch.randn(16_000, 64, generator=g), torch.randn(1024, 64, generator=g)
    moments = Moments.of(real)
    if metric == "fid":
        assert benchmark(lambda: frechet_distance(real=moments, fake=Moments.of(fake))) > 0
    else:
        assert benchmark(lambda: precision_recall(real=real[:1024], fake=fake))[0] > 0
