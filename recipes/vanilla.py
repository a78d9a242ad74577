"""Vanilla SiT (arXiv 2401.08740): a denoising loss on the latents of a frozen tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import Tensor, nn

from recipes.base import Needs, Networks, Objective, cached_latents, diffuse, drop_labels
from recipes.core.batch import Batch
from recipes.core.draws import Draws
from recipes.core.loop import Update
from recipes.core.losses import denoising_loss
from recipes.models.sit import SiT, SiTOutput


class Vanilla:
    """One update of the SiT for each batch."""

    Options: ClassVar[type[Objective]] = Objective
    averaged = ("sit",)

    def __init__(self, networks: Networks, options: Objective) -> None:
        self.sit: SiT = networks.sit
        self.networks: dict[str, nn.Module] = {"sit": networks.sit}
        self.options = options

    @classmethod
    def needs(cls, options: Objective) -> Needs:
        """What it is given besides the SiT: here nothing."""
        return Needs()

    def updates(self, batch: Batch, draws: Draws) -> Iterator[Update]:
        """Step the SiT."""
        latents = self.sit.bn.normalize(cached_latents(batch, draws))
        yield Update("sit", *self.sit_loss(latents, batch, draws))

    def sit_loss(self, latents: Tensor, batch: Batch, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The SiT's loss on normalised latents, and what to log."""
        point = diffuse(latents, draws, self.options)
        labels = drop_labels(batch.labels, self.sit.null_class, draws, self.options)
        out = self.sit(point.x_t, point.t, labels)
        denoising = denoising_loss(out.velocity, point.target).mean()
        extra, logs = self.extra_loss(out, batch)
        return denoising + extra if extra is not None else denoising, {
            "denoising": denoising.detach(),
            **logs,
        }

    def extra_loss(self, out: SiTOutput, batch: Batch) -> tuple[Tensor | None, Mapping[str, Tensor]]:
        """What a recipe adds to the denoising loss: here nothing."""
        return None, {}
