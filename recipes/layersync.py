"""LayerSync (arXiv 2510.12581): tokens of a shallow block follow those of a deep one; no encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field
from torch import Tensor

from recipes.base import Objective, Pass
from recipes.core.interpolant import NoisyLatents
from recipes.core.losses import alignment_loss
from recipes.core.spec import Depth
from recipes.core.step import Step
from recipes.models.sit import SiTOutput
from recipes.vanilla import Vanilla


class LayerSync(Vanilla):
    """Minus the mean cosine of the tokens of two blocks, of which the deep one gets no gradient.

    The release (4001d6d) defaults both blocks to 8, and its loss is then the constant -1. Of several pairs it counts
    the last alone (`transport.py:174`).
    """

    class Options(Objective):
        """For SiT-XL/2, by its README."""

        sync: float = 0.2
        blocks: Annotated[tuple[tuple[Depth, Depth], ...], Field(min_length=1)] = ((8, 16),)
        """Pairs of a shallow and a deep block, counted from 1."""
        last_pair_only: bool = True
        """As released; otherwise the mean over the pairs."""

    def forward(self, point: NoisyLatents, labels: Tensor, step: Step) -> SiTOutput:
        """The pass with the tokens of these blocks."""
        blocks = {block for pair in self.options.blocks for block in pair}
        out: SiTOutput = self.sit(point.x_t, point.t, labels, taps=blocks)
        return out

    def extra_loss(self, seen: Pass, step: Step) -> tuple[Tensor | None, Mapping[str, Tensor]]:
        """The weighted term."""
        pairs = self.options.blocks[-1:] if self.options.last_pair_only else self.options.blocks
        taps = seen.out.taps
        sync = alignment_loss([taps[shallow] for shallow, _ in pairs], [taps[deep].detach() for _, deep in pairs])
        return self.options.sync * sync, {"sync": sync.detach()}
