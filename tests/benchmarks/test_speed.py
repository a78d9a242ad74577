"""Benchmarks: `nox -s bench`. No assertion on time; the figures are kept in baselines/performance/."""

from __future__ import annotations

import copy

import pytest
import torch
from tests_support import precision_recall

from harness.metrics.frechet import Moments, frechet_distance
from harness.suites import suite
from recipes.base import Networks
from recipes.core.batch import Batch
from recipes.core.draws import KeyedDraws
from recipes.core.ema import ema_update, pairs_of
from recipes.core.loop import Trainer
from recipes.core.losses import alignment_loss
from recipes.core.spec import TrainSpec
from recipes.registry import find_recipe
from recipes.training.build import build_networks
from recipes.training.spec import RunSpec

DIGITS = suite("digits")


def digits_trainer(variant: str) -> tuple[Trainer, Batch]:
    """The digits suite's networks and batch size, on random data."""
    chosen = DIGITS.variants[variant]
    method = find_recipe(chosen.recipe, chosen.options, where="benchmark")
    optimizers = {"sit": DIGITS.sit_optimizer, "vae": DIGITS.vae_optimizer}
    spec = RunSpec(
        suite="bench",
        variant=variant,
        recipe=chosen.recipe,
        options=chosen.options,
        sit=DIGITS.sit.model_copy(update={"encoder_widths": (DIGITS.encoder.width,) if method.needs.features else ()}),
        tokenizer=DIGITS.tokenizer.autoencoder,
        train=TrainSpec(seed=0, batch_size=DIGITS.batch_size, optimizers=optimizers, ema=DIGITS.ema),
        inputs={},
    )
    networks: Networks = build_networks(spec)
    g, n, s = torch.Generator().manual_seed(0), DIGITS.batch_size, DIGITS.sit
    shape = (n, s.channels, s.latent_size, s.latent_size)
    batch = Batch(
        images=torch.randint(0, 256, (n, 3, 16, 16), generator=g, dtype=torch.uint8),
        labels=torch.randint(0, 10, (n,), generator=g),
        features=(torch.randn(n, s.tokens, DIGITS.encoder.width, generator=g),),
        mean=torch.randn(shape, generator=g),
        std=torch.rand(shape, generator=g),
    )
    return Trainer(method.on(networks), spec.train), batch


@pytest.mark.benchmark(group="digits training step")
@pytest.mark.parametrize("variant", ["vanilla", "repa", "repa_e"])
def test_training_step(benchmark, variant):
    trainer, batch = digits_trainer(variant)
    items = torch.arange(DIGITS.batch_size)
    benchmark(lambda: trainer.train_step(batch, KeyedDraws(0, trainer.step, items)))
    assert trainer.step > 0


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
    trainer, _ = digits_trainer("repa")
    network = trainer.recipe.networks["sit"]
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
