"""What recipes share: the objective that each implements, and the networks that it is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recipes.core.batch import Batch
from recipes.core.draws import Draws
from recipes.core.interpolant import NoisyLatents, PathName, TimeSampling, interpolate, sample_times
from recipes.core.losses import denoising_loss
from recipes.core.spec import Count, Fraction, NotNegative, Spec
from recipes.core.step import Step, Update
from recipes.models.heads import HeadKind, spatially_normalized
from recipes.models.sit import SiT, SiTOutput, SiTSpec


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
    """Inputs a recipe requires besides the SiT; nothing else is loaded."""

    features: bool = False
    """An encoder's patch tokens, and projectors to them."""
    class_token: bool = False
    """The encoder's class token."""
    attention: tuple[int, ...] = ()
    """Layers of the first encoder, counted from 1, whose attention logits are wanted."""
    tokenizer: bool = False
    """Train the tokenizer; the recipe then receives images instead of cached latents."""
    discriminator: bool = False
    """Train the discriminator."""
    perceptual: bool = False
    """LPIPS, frozen."""
    across: int | None = 1
    """How many images a loss looks across: 1, each by itself; None, those of the global batch."""

    @property
    def encoder(self) -> bool:
        """Whether it looks at an encoder at all."""
        return self.features or self.class_token or bool(self.attention)

    @property
    def trained(self) -> tuple[str, ...]:
        """The networks that have an optimizer."""
        return ("sit", *["vae"] * self.tokenizer, *["discriminator"] * self.discriminator)


def declared(batch: Batch, needs: Needs) -> Batch:
    """A batch with only what a recipe declares that it needs, so that nothing else can change its numbers."""
    return replace(
        batch,
        images=batch.images if needs.tokenizer or needs.encoder else None,
        mean=None if needs.tokenizer else batch.mean,
        std=None if needs.tokenizer else batch.std,
        features=batch.features if needs.features else (),
        class_tokens=batch.class_tokens if needs.class_token else (),
        attention=batch.attention if needs.attention else (),
    )


class Objective(Spec):
    """The options of every recipe: the path and how it is sampled."""

    path: PathName = "linear"
    time_sampling: TimeSampling = "uniform"
    label_dropout: Fraction = 0.1


class Alignment(Objective):
    """The options of every recipe that aligns tokens with an encoder's: the heads, and what they are to meet."""

    ADDED: ClassVar[frozenset[str]] = frozenset({"projector", "kernel", "gamma"})

    projector: HeadKind = "mlp"
    kernel: Count = 1
    """Side of the projector, where it is a convolution."""
    gamma: NotNegative | None = None
    """Share of the mean that iREPA's spatial normalisation takes from the encoder's tokens; None: as they are."""

    def targets(self, batch: Batch) -> tuple[Tensor, ...]:
        """The encoders' tokens, (N, tokens, width) each."""
        return tuple(f if self.gamma is None else spatially_normalized(f, self.gamma) for f in batch.features)


@dataclass(frozen=True)
class Pass:
    """Inputs and outputs of the SiT's forward pass."""

    latents: Tensor
    """Clean and normalised, (N, C, h, w)."""
    point: NoisyLatents
    """The noisy latents."""
    labels: Tensor
    """int64 (N,), some of them dropped."""
    out: SiTOutput


def diffuse(latents: Tensor, draws: Draws, options: Objective) -> NoisyLatents:
    """Noise normalised latents (N, C, h, w) at times drawn for this step."""
    t = sample_times(draws.uniform("time"), options.path, options.time_sampling)
    return interpolate(latents, draws.normal_like("noise", latents), t, options.path)


def drop_labels(labels: Tensor, null_class: int, draws: Draws, options: Objective) -> Tensor:
    """Replace a share of the labels by the null class, for classifier-free guidance."""
    return torch.where(draws.uniform("label_dropout") < options.label_dropout, null_class, labels)


def cached_latents(step: Step) -> Tensor:
    """Latents drawn anew from the frozen tokenizer's cached posterior, (N, C, h, w)."""
    mean, std = step.batch.mean, step.batch.std
    assert mean is not None
    assert std is not None
    return mean + std * step.draws.normal_like("posterior", mean)


class SiTRecipe:
    """Base class of recipes; subclasses override the methods that they change."""

    Options: ClassVar[type[Objective]] = Objective
    averaged: Sequence[str] = ("sit",)

    def __init__(self, networks: Networks, options: Any) -> None:
        self.sit: SiT = networks.sit
        self.networks: dict[str, nn.Module] = {"sit": networks.sit}
        self.options = options

    @classmethod
    def needs(cls, options: Any, number: int = 0) -> Needs:
        """What it is given besides the SiT in iteration `number`: here nothing."""
        return Needs()

    @classmethod
    def changes(cls, options: Any) -> Sequence[int]:
        """Ascending iterations at which its needs or computation change; none by default."""
        return ()

    @classmethod
    def shape(cls, options: Any, sit: SiTSpec, widths: tuple[int, ...]) -> SiTSpec:
        """Its network: a suite's SiT with the heads that the recipe wants on it, for encoders of these widths."""
        return sit.changed(encoder_widths=widths if cls.needs(options).features else ())

    def updates(self, step: Step) -> Iterator[Update]:
        """Yield the optimizer steps of one iteration, in order."""
        raise NotImplementedError

    def sit_loss(self, latents: Tensor, step: Step) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The SiT's loss on normalised latents, and what to log."""
        point = diffuse(latents, step.draws, self.options)
        labels = drop_labels(step.batch.labels, self.sit.null_class, step.draws, self.options)
        seen = Pass(latents, point, labels, self.forward(point, labels, step))
        denoising, logs = self.denoising_loss(seen, step)
        extra, more = self.extra_loss(seen, step)
        return denoising if extra is None else denoising + extra, {**logs, **more}

    def forward(self, point: NoisyLatents, labels: Tensor, step: Step) -> SiTOutput:
        """The SiT's pass."""
        out: SiTOutput = self.sit(point.x_t, point.t, labels)
        return out

    def denoising_loss(self, seen: Pass, step: Step) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The mean squared error of the velocity."""
        assert seen.out.velocity is not None
        denoising = denoising_loss(seen.out.velocity, seen.point.target).mean()
        return denoising, {"denoising": denoising.detach()}

    def extra_loss(self, seen: Pass, step: Step) -> tuple[Tensor | None, Mapping[str, Tensor]]:
        """Extra weighted loss and its logs; None by default."""
        return None, {}
