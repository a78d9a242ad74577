"""KL autoencoders: diffusers' `AutoencoderKL` behind the few verbs that the recipes need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from recipes.core.precision import at_least_float32, full_precision
from recipes.core.spec import Count, Depth, Spec

LOG_VARIANCE_RANGE = (-30.0, 20.0)


class AutoencoderSpec(Spec):
    """A CompVis-style KL autoencoder."""

    latent_channels: Count
    base_width: Count
    multipliers: Annotated[tuple[Count, ...], Field(min_length=1, max_length=10)]
    """Channel multiplier of each level; every level after the first halves the side."""
    residual_blocks: Depth
    """Residual blocks of each encoder level; the decoder has one more."""
    attention_levels: tuple[Annotated[int, Field(ge=0, le=9)], ...] = ()
    """Levels with attention in encoder and decoder; the middle always has it."""
    norm_groups: Count = 32
    unshuffle: Annotated[int, Field(ge=1, le=1024)] = 1
    """Fold k x k pixels into channels first. 1 in every published tokenizer; the digits suite saves time by 2."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if any(self.base_width * m % self.norm_groups for m in self.multipliers):
            raise ValueError(f"base_width {self.base_width} times a multiplier does not divide by norm_groups")
        return self

    @property
    def factor(self) -> int:
        """Image side over latent side."""
        return int(self.unshuffle * 2 ** (len(self.multipliers) - 1))


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents; both of shape (N, C, h, w)."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise."""
        return self.mean + self.std * noise


def _level_types(spec: AutoencoderSpec, plain: str, attention: str) -> list[str]:
    return [attention if level in spec.attention_levels else plain for level in range(len(spec.multipliers))]


class Autoencoder(nn.Module):
    """Images in [-1, 1] to a posterior and back."""

    notes: tuple[str, ...] = ()
    """Warnings about the weights file."""

    def __init__(self, spec: AutoencoderSpec) -> None:
        super().__init__()
        # Imported here: diffusers takes seconds to load, and most commands never build a tokenizer.
        from diffusers import AutoencoderKL

        self.spec = spec
        channels = 3 * spec.unshuffle**2
        self.kl = AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            block_out_channels=[spec.base_width * m for m in spec.multipliers],
            down_block_types=_level_types(spec, "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
            up_block_types=_level_types(spec, "UpDecoderBlock2D", "AttnUpDecoderBlock2D")[::-1],
            layers_per_block=spec.residual_blocks,
            latent_channels=spec.latent_channels,
            norm_num_groups=spec.norm_groups,
        )

    def encode(self, images: Tensor) -> Posterior:
        """(N, 3, H, W) in [-1, 1] -> posterior (N, C, H / factor, W / factor); log-variance in [-30, 20]."""
        moments: Tensor = self.kl.encode(F.pixel_unshuffle(images, self.spec.unshuffle)).latent_dist.parameters
        return _posterior(moments)

    def decode(self, latents: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, 3, H, W), about [-1, 1], not clamped."""
        out: Tensor = self.kl.decode(latents).sample
        return F.pixel_shuffle(out, self.spec.unshuffle)


@full_precision
def _posterior(moments: Tensor) -> Posterior:
    """The posterior of a network's output in any precision, in float32 or better."""
    mean, log_variance = at_least_float32(moments).chunk(2, dim=1)
    return Posterior(mean, (0.5 * log_variance.clamp(*LOG_VARIANCE_RANGE)).exp())


def to_signed(images: Tensor, like: Tensor) -> Tensor:
    """uint8 images (0..255) to [-1, 1], in the dtype and on the device of `like`."""
    return images.to(device=like.device, dtype=like.dtype) / 127.5 - 1
