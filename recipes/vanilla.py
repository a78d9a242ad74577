"""Vanilla SiT (arXiv 2401.08740): a denoising loss on the latents of a frozen tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

from recipes.base import SiTRecipe, cached_latents
from recipes.core.step import Step, Update


class Vanilla(SiTRecipe):
    """One update of the SiT for each batch."""

    def updates(self, step: Step) -> Iterator[Update]:
        """Step the SiT."""
        yield Update("sit", *self.sit_loss(self.sit.bn.normalize(cached_latents(step)), step))
