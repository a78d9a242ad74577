"""Over how many images the discriminator's batch norm pools: the global batch here, a GPU's share in the release."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.suites.imagenet256 import imagenet256
from recipes.core.distributed import World
from recipes.core.losses import discriminator_loss
from recipes.core.spec import Execution
from recipes.models.discriminator import DiscriminatorSpec, PatchDiscriminator, initialize
from recipes.training.build import layout

BATCH, SHARE, SIDE = 64, 32, 32


def pictures() -> tuple[Tensor, Tensor]:
    """Of unequal brightness and contrast, as photographs are; and the same with noise. In [-1, 1], float64."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(BATCH, 3, 4, 4, generator=g, dtype=torch.float64)
    fine = F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=True)
    contrast, brightness = torch.rand(2, BATCH, 1, 1, 1, generator=g, dtype=torch.float64)
    images = 2 * (fine * contrast + brightness / 2).clamp(0, 1) - 1
    return images, images + 0.1 * torch.randn(images.shape, generator=g, dtype=torch.float64)


def gradient(discriminator: PatchDiscriminator, rows: Tensor) -> Tensor:
    real, fake = (x[rows] for x in pictures())
    loss = discriminator_loss(discriminator(real), discriminator(fake))
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(discriminator.parameters()))])


def test_the_first_gradient_of_pooled_statistics_is_another():
    """Shown by `pytest -rP`. Where every share holds the same images, pooling changes nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        discriminator = PatchDiscriminator(DiscriminatorSpec(base_width=16)).double()
        initialize(discriminator)
    rows = torch.arange(BATCH)

    def off(rows: Tensor) -> float:
        shares = torch.stack([gradient(discriminator, share) for share in rows.split(SHARE)]).mean(0)
        return float((gradient(discriminator, rows) - shares).norm() / shares.norm())

    different, same = off(rows), off(rows % SHARE)
    print(f"pooled over {BATCH} images instead of {SHARE}: first gradient {different:.1%} off")
    assert 0.02 < different < 1
    assert same < 1e-10


@pytest.mark.parametrize(("processes", "part", "accumulation"), [(8, 4, 8), (1, 32, 8), (2, 16, 8)])
def test_the_releases_32_images_can_be_had(processes, part, accumulation):
    """``--micro-batch 4 --set norm_batch=32`` on 8 GPUs, and so on."""
    suite = imagenet256().model_copy(update={"norm_batch": 32})
    world = World(size=processes, device=torch.device("cuda"))
    found = layout(suite.run_spec("repa_e", 0, {}), Execution(micro_batch=part), world)
    assert (found.micro_batch, found.accumulation) == (part, accumulation)
