"""Dispersive loss (arXiv 2506.09027): the tokens of different images are kept apart; no encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from recipes.base import Needs, Objective, Pass
from recipes.core.distributed import gather_rows
from recipes.core.interpolant import NoisyLatents
from recipes.core.losses import dispersive_loss, normalized_dispersive_loss
from recipes.core.spec import Count, Depth, Positive
from recipes.core.step import Step
from recipes.models.sit import SiTOutput
from recipes.vanilla import Vanilla


class Dispersive(Vanilla):
    """The log of the mean of exp(-distance) over all pairs of a group of images."""

    class Options(Objective):
        """Defaults of the PyTorch release; the JAX release uses coefficient and temperature 0.5 and block depth / 4."""

        dispersive: float = 0.25
        block: Depth | None = None
        """None: the last."""
        temperature: Positive = 1.0
        variant: Literal["pytorch", "ddt", "ddt_as_released"] = "pytorch"
        """``ddt``: normalised tokens, different images only (DDT's code); as released it has no gradient at all."""
        group: Count | None = None
        """Images of a group; None: the global batch. In the release one process's, 32."""

    @classmethod
    def needs(cls, options: Any, number: int = 0) -> Needs:
        """Needs a group of images per loss."""
        return Needs(across=options.group)

    @property
    def block(self) -> int:
        """The block whose tokens are looked at."""
        return self.options.block or self.sit.spec.depth

    def forward(self, point: NoisyLatents, labels: Tensor, step: Step) -> SiTOutput:
        """The pass with that block's tokens."""
        out: SiTOutput = self.sit(point.x_t, point.t, labels, taps=[self.block])
        return out

    def extra_loss(self, seen: Pass, step: Step) -> tuple[Tensor | None, Mapping[str, Tensor]]:
        """The weighted term, a mean over the groups."""
        tokens = seen.out.taps[self.block]
        tokens = tokens.detach() if self.options.variant == "ddt_as_released" else tokens
        groups = [gather_rows(tokens)] if self.options.group is None else tokens.split(self.options.group)
        loss = dispersive_loss if self.options.variant == "pytorch" else normalized_dispersive_loss
        dispersive = torch.stack([loss(group, self.options.temperature) for group in groups]).mean()
        return self.options.dispersive * dispersive, {"dispersive": dispersive.detach()}
