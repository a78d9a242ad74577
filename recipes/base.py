"""What recipes share: the objective that each implements, and the networks that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recipes.core.batch import Batch
from recipes.core.draws import Draws
from recipes.core.interpolant import NoisyLatents, PathName, TimeSampling, interpolate, sample_times
from recipes.core.spec import Fraction, Spec
from recipes.models.sit import SiT


@dataclass(frozen=True)
class Networks:
    """The SiT, and what joint training needs beside it."""

    sit: SiT
    vae: nn.Module | None = None
    discriminator: nn.Module | None = None
    perceptual: nn.Module | None = None

    def require(self, name: str) -> Any:
        """A network that the recipe cannot do without.

        Raises:
            ValueError: it was not given.
        """
        network = getattr(self, name)
        if network is None:
            raise ValueError(f"this recipe needs the network '{name}'")
        return network


@dataclass(frozen=True)
class Needs:
    """What a recipe with its options is given besides the SiT. Whatever is not needed is neither loaded nor built."""

    features: bool = False
    """An encoder's patch tokens, and projectors to them."""
    tokenizer: bool = False
    """To train it: the recipe then sees images instead of cached latents."""
    discriminator: bool = False
    """To train it."""
    perceptual: bool = False
    """LPIPS, frozen."""

    @property
    def trained(self) -> tuple[str, ...]:
        """The networks that have an optimizer."""
        return ("sit", *["vae"] * self.tokenizer, *["discriminator"] * self.discriminator)


class Objective(Spec):
    """The options of every recipe: the path and how it is sampled."""

    path: PathName = "linear"
    time_sampling: TimeSampling = "uniform"
    label_dropout: Fraction = 0.1


def diffuse(latents: Tensor, draws: Draws, options: Objective) -> NoisyLatents:
    """Noise normalised latents (N, C, h, w) at times drawn for this step."""
    t = sample_times(draws.uniform("time"), options.path, options.time_sampling)
    return interpolate(latents, draws.normal_like("noise", latents), t, options.path)


def drop_labels(labels: Tensor, null_class: int, draws: Draws, options: Objective) -> Tensor:
    """Replace a share of the labels by the null class, for classifier-free guidance."""
    return torch.where(draws.uniform("label_dropout") < options.label_dropout, null_class, labels)


def cached_latents(batch: Batch, draws: Draws) -> Tensor:
    """Latents drawn anew from the frozen tokenizer's cached posterior, (N, C, h, w)."""
    assert batch.mean is not None
    assert batch.std is not None
    return batch.mean + batch.std * draws.normal_like("posterior", batch.mean)
