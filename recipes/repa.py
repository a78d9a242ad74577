"""REPA (arXiv 2410.06940): vanilla SiT plus the alignment of its tokens with a frozen encoder's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from recipes.base import Alignment, Needs, Pass
from recipes.core.losses import alignment_loss
from recipes.core.step import Step
from recipes.models.sit import SiTSpec
from recipes.vanilla import Vanilla


class Repa(Vanilla):
    """Vanilla with one more term."""

    class Options(Alignment):
        """REPA's own options."""

        alignment: float = 0.5
        """Coefficient of the alignment loss in the SiT's step."""

    @classmethod
    def needs(cls, options: Any, number: int = 0) -> Needs:
        """Features to align with."""
        return Needs(features=True)

    @classmethod
    def shape(cls, options: Any, sit: SiTSpec, widths: tuple[int, ...]) -> SiTSpec:
        """The suite's SiT with a projector for each encoder."""
        return super().shape(options, sit, widths).changed(projector=options.projector, projector_kernel=options.kernel)

    def extra_loss(self, seen: Pass, step: Step) -> tuple[Tensor | None, Mapping[str, Tensor]]:
        """The weighted alignment loss."""
        alignment = alignment_loss(seen.out.projected, self.options.targets(step.batch))
        return self.options.alignment * alignment, {"sit_align": alignment.detach()}
