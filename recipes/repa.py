"""REPA (arXiv 2410.06940): vanilla SiT plus the alignment of its tokens with a frozen encoder's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from recipes.base import Needs, Networks, Objective
from recipes.core.batch import Batch
from recipes.core.losses import alignment_loss
from recipes.models.sit import SiTOutput
from recipes.vanilla import Vanilla


class Repa(Vanilla):
    """Vanilla with one more term."""

    class Options(Objective):
        """REPA's own options."""

        alignment: float = 0.5
        """Coefficient of the alignment loss in the SiT's step."""

    options: Options

    def __init__(self, networks: Networks, options: Options) -> None:
        super().__init__(networks, options)

    @classmethod
    def needs(cls, options: Objective) -> Needs:
        """Features to align with."""
        return Needs(features=True)

    def extra_loss(self, out: SiTOutput, batch: Batch) -> tuple[Tensor | None, Mapping[str, Tensor]]:
        """The weighted alignment loss."""
        alignment = alignment_loss(out.projected, batch.features)
        return self.options.alignment * alignment, {"sit_align": alignment.detach()}
