"""Tiny networks with random weights, written in the published file formats and registered like the real files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.assets import catalogue
from harness.assets.cache import Store
from harness.features.inception import write_inception
from recipes.core.draws import seed_of
from recipes.models.autoencoder import Autoencoder
from recipes.models.discriminator import PatchDiscriminator
from recipes.models.discriminator import initialize as initialize_discriminator
from recipes.models.encoder import Encoder
from recipes.models.perceptual import Perceptual
from recipes.released.autoencoder import save_autoencoder

if TYPE_CHECKING:
    from harness.suites.imagenet256 import ImagenetSuite


def make(suite: ImagenetSuite, store: Store) -> None:
    """Create and register missing stand-ins, deterministically."""
    makers: dict[str, Callable[[Path], Path]] = {
        "sd-vae": lambda folder: _tokenizer(suite, folder),
        "vgg16": _vgg16,
        "inception": write_inception,
        **{name: lambda folder, name=name: _encoder(suite, name, folder) for name in suite.encoders},  # type: ignore[misc]
    }
    for name, write in makers.items():
        with store.alone(store.root / "stand-ins"):
            if catalogue.find(store, name) is None:
                folder = store.root / "stand-ins" / name
                folder.mkdir(parents=True, exist_ok=True)
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed_of(0, "stand-in", name))
                    path = write(folder)
                catalogue.register(store, name, path, published=False)


def _tokenizer(suite: ImagenetSuite, folder: Path) -> Path:
    vae = Autoencoder(suite.tokenizers["sd-vae"].autoencoder)
    channels = vae.spec.latent_channels
    save_autoencoder(folder, "sdvae", vae, torch.zeros(channels), torch.ones(channels))
    discriminator = PatchDiscriminator(suite.discriminator)
    initialize_discriminator(discriminator)
    torch.save(discriminator.state_dict(), folder / "sdvae-discriminator-ckpt.pt")
    return folder / "sdvae.pt"


def _encoder(suite: ImagenetSuite, name: str, folder: Path) -> Path:
    torch.save(Encoder(suite.encoders[name]).network.state_dict(), folder / f"{name}.pth")
    return folder / f"{name}.pth"


def _vgg16(folder: Path) -> Path:
    """The convolutions of VGG16 under torchvision's names."""
    state: dict[str, Tensor] = {}
    for piece in Perceptual().lpips.net.children():
        for number, layer in piece.named_children():
            if isinstance(layer, nn.Conv2d):
                state |= {f"features.{number}.{key}": value for key, value in layer.state_dict().items()}
    torch.save(state, folder / "vgg16.pth")
    return folder / "vgg16.pth"
