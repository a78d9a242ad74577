"""LPIPS and the discriminator of REPA-E in float32 and under autocast: how far 16 bits move them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from builders import make_batch, make_networks, make_train_spec
from pydantic import ValidationError
from torch import Tensor, nn

from harness.suites.digits import digits
from harness.suites.imagenet256 import imagenet256
from recipes.base import Networks
from recipes.core.draws import KeyedDraws
from recipes.core.loop import Trainer
from recipes.core.losses import discriminator_loss
from recipes.core.precision import matrix_products
from recipes.core.step import Step
from recipes.models.autoencoder import Posterior, to_signed
from recipes.models.discriminator import DiscriminatorSpec, PatchDiscriminator, initialize
from recipes.models.perceptual import Perceptual
from recipes.repa_e import RepaE

SIDE, IMAGES = 64, 4


@pytest.fixture(scope="module")
def networks() -> Networks:
    """LPIPS and PatchGAN of the released sizes: He's weights in VGG16, LPIPS's own heads, pix2pix's initialisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        perceptual, discriminator = Perceptual(), PatchDiscriminator(DiscriminatorSpec())
        for module in perceptual.lpips.net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        initialize(discriminator)
    small = make_networks()
    return Networks(sit=small.sit, vae=small.vae, discriminator=discriminator, perceptual=perceptual)


def pictures(noise: float) -> tuple[Tensor, Tensor]:
    """Smooth images in [-1, 1], and the same with noise of that size: a reconstruction."""
    g = torch.Generator().manual_seed(1)
    coarse = torch.rand(IMAGES, 3, SIDE // 8, SIDE // 8, generator=g)
    fine = F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=True)
    images = 2 * (fine + 0.1 * torch.rand(fine.shape, generator=g)).clamp(0, 1) - 1
    return images, images + noise * torch.randn(images.shape, generator=g)


def term(
    networks: Networks, name: str, noise: float, *, autocast: bool, device: str = "cpu", **options: str
) -> tuple[Tensor, Tensor]:
    """A term of the tokenizer's loss and its gradient on the reconstruction."""
    recipe = RepaE(networks, RepaE.Options(**options))
    for network in (recipe.perceptual, recipe.discriminator):
        network.to(device)
    images, reconstruction = (x.to(device) for x in pictures(noise))
    reconstruction.requires_grad_()
    latents = torch.zeros(IMAGES, 1, 1, 1, device=device)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
        terms = recipe.reconstruction_terms(images, reconstruction, Posterior(latents, latents + 1))
    value = terms[name][1]
    (gradient,) = torch.autograd.grad(value, reconstruction)
    return value.detach(), gradient


def off(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize(
    ("name", "noise", "value_off", "gradient_off"),
    [
        ("perceptual", 0.3, (0, 0.01), (0.10, 0.25)),
        ("perceptual", 0.02, (0.01, 0.10), (0.15, 0.30)),  # a good reconstruction
        ("gan", 0.3, (0, 0.03), (0.05, 0.20)),
    ],
)
def test_what_bfloat16_does_to_the_losses(networks, name, noise, value_off, gradient_off):
    """Shown by `pytest -rP`: these are the figures of docs/imagenet.md."""
    check_what_bfloat16_does(networks, "cpu", name, noise, value_off, gradient_off)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("name", "noise"), [("perceptual", 0.3), ("perceptual", 0.02), ("gan", 0.3)])
def test_what_bfloat16_does_to_the_losses_on_a_gpu(networks, name, noise):
    """Without TF32, so that float32 is float32; shown by `nox -s gpu -- -rP`."""
    with matrix_products("fp32"):
        check_what_bfloat16_does(copy.deepcopy(networks), "cuda", name, noise, (0, 0.15), (0.02, 0.5))


def check_what_bfloat16_does(
    networks: Networks,
    device: str,
    name: str,
    noise: float,
    value_off: tuple[float, float],
    gradient_off: tuple[float, float],
) -> None:
    exact = term(networks, name, noise, autocast=False, device=device)
    low = term(networks, name, noise, autocast=True, device=device, loss_precision="autocast")
    value, gradient = (off(a, b) for a, b in zip(low, exact, strict=True))
    print(f"{name}, noise {noise:g}, {device}: value {value:.1%}, gradient {gradient:.1%} off in bf16")
    assert value_off[0] <= value <= value_off[1]
    assert gradient_off[0] <= gradient <= gradient_off[1]
    kept = term(networks, name, noise, autocast=True, device=device)
    for a, b in zip(kept, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0 if device == "cpu" else 1e-4 * float(b.abs().max()))


def test_the_discriminator_trains_in_float32_beside_16_bits():
    """Its step in a bf16 run is the one that float32 makes of the same reconstruction."""
    networks = make_networks()
    recipe = RepaE(networks, RepaE.Options(perceptual=0.0))
    alone, seen = copy.deepcopy(networks.discriminator), []
    hook = networks.discriminator.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out.dtype)))
    batch = make_batch(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        steps = recipe.updates(Step(0, batch, KeyedDraws(0, 0, torch.arange(4))))
        next(steps)
        update = next(steps)
    hook.remove()
    assert update.network == "discriminator"
    assert [dtype for _, dtype in seen] == [torch.float32] * 3  # the generator's term, real, fake
    fake = seen[2][0]
    assert torch.equal(fake, fake.bfloat16().float())  # the tokenizer did run in 16 bits
    images = to_signed(batch.images, next(recipe.vae.parameters()))
    assert torch.equal(update.loss, discriminator_loss(alone(images), alone(fake)))


def test_under_autocast_it_follows(networks):
    recipe = RepaE(networks, RepaE.Options(loss_precision="autocast"))
    seen = []
    hooks = [
        module.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
        for module in (networks.discriminator, networks.perceptual.lpips.net.slice1)
    ]
    images, reconstruction = pictures(0.1)
    latents = torch.zeros(IMAGES, 1, 1, 1)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        recipe.reconstruction_terms(images, reconstruction, Posterior(latents, latents + 1))
    for hook in hooks:
        hook.remove()
    assert seen == [torch.bfloat16] * 3


def trained(loss_precision: str) -> dict[str, Tensor]:
    recipe = RepaE(make_networks(), RepaE.Options(loss_precision=loss_precision))
    trainer = Trainer(recipe, make_train_spec(*recipe.networks))
    for step in range(3):
        trainer.train_step(make_batch(seed=step), KeyedDraws(3, step, torch.arange(6)))
    return trainer.weights()


def test_a_float32_run_is_the_same_to_the_bit():
    one, other = trained("fp32"), trained("autocast")
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_digests_of_runs_without_these_losses_are_what_they_were():
    assert "loss_precision" not in RepaE.Options(perceptual=0.0, gan=0.0).model_dump()
    assert all("loss_precision" not in variant.options for variant in digits().variants.values())
    suite = imagenet256()
    assert suite.variants["repa_e"].options["loss_precision"] == "fp32"
    assert suite.variants["repa_e_no_gan"].options["loss_precision"] == "fp32"
    assert suite.run_spec("repa_e", 0, {}).options["loss_precision"] == "fp32"
    with pytest.raises(ValidationError):
        RepaE.Options(loss_precision="bf16")
