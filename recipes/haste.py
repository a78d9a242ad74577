"""HASTE (arXiv 2505.16792): REPA and the distillation of attention, both of which stop at one iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from recipes.base import Needs, Pass
from recipes.core.interpolant import NoisyLatents
from recipes.core.losses import attention_loss
from recipes.core.spec import Depth
from recipes.core.step import Step
from recipes.models.sit import SiTOutput
from recipes.repa import Repa


class Haste(Repa):
    """After `stop_at` neither encoder, projector nor attention logits are computed.

    In the release (eb7b1f1) all of them run on without a loss, which `run_on` does too. Either way, the projector gets
    no gradient after the stop.
    """

    class Options(Repa.Options):
        """REPA's options and HASTE's, for SiT-XL/2 and DINOv2-B."""

        attention: float = 0.5
        """Coefficient of the attention's cross-entropy."""
        student_blocks: Annotated[tuple[Depth, ...], Field(min_length=1)] = (5, 6, 7, 8)
        encoder_layers: Annotated[tuple[Depth, ...], Field(min_length=1)] = (9, 10, 11, 12)
        """Encoder layers, paired with `student_blocks` by position."""
        stop_at: Annotated[int, Field(ge=0)] = 250_000
        """The first iteration without the two terms."""
        run_on: bool = False
        """Keep computing encoder, projector and logits after the stop (as released)."""

    @classmethod
    def needs(cls, options: Any, number: int = 0) -> Needs:
        """Patch tokens and attention logits, until they stop."""
        if number >= options.stop_at and not options.run_on:
            return Needs()
        return Needs(features=True, attention=options.encoder_layers)

    @classmethod
    def changes(cls, options: Any) -> Sequence[int]:
        """Where the two terms stop."""
        return (options.stop_at,) if options.stop_at else ()

    def forward(self, point: NoisyLatents, labels: Tensor, step: Step) -> SiTOutput:
        """The pass with attention logits, until they stop."""
        runs = step.number < self.options.stop_at or self.options.run_on
        blocks = self.options.student_blocks if runs else ()
        out: SiTOutput = self.sit(point.x_t, point.t, labels, logits=blocks, project=runs)
        return out

    def extra_loss(self, seen: Pass, step: Step) -> tuple[Tensor | None, Mapping[str, Tensor]]:
        """Both weighted terms, or nothing."""
        if step.number >= self.options.stop_at:
            return None, {}
        alignment, logs = super().extra_loss(seen, step)
        students = [seen.out.logits[block] for block in self.options.student_blocks]
        attention = attention_loss(students, step.batch.attention)
        assert alignment is not None
        return alignment + self.options.attention * attention, {**logs, "attention": attention.detach()}
