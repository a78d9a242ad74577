"""SRA (arXiv 2505.02831): a block's tokens follow a deeper block's of the EMA, which sees less noise; no encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from recipes.base import Objective, Pass
from recipes.core.interpolant import NoisyLatents, interpolate
from recipes.core.losses import alignment_loss, channel_cosine_loss, l1_loss, l2_loss, smooth_l1_loss
from recipes.core.spec import Count, Depth, Fraction
from recipes.core.step import Step
from recipes.models.sit import SiTOutput, SiTSpec
from recipes.vanilla import Vanilla

#: ``cosine_of_channels`` is the release's default, over the tokens of each channel; ``cosine_of_tokens`` what the name
#: promises, over the channels of each token; ``smooth_l1`` the paper's.
LossName = Literal["cosine_of_channels", "cosine_of_tokens", "smooth_l1", "l1", "l2"]
LOSSES = {
    "cosine_of_channels": channel_cosine_loss,
    "cosine_of_tokens": lambda ours, theirs: 1.0 + alignment_loss([ours], [theirs]),
    "smooth_l1": smooth_l1_loss,
    "l1": l1_loss,
    "l2": l2_loss,
}


class Sra(Vanilla):
    """The EMA teacher gets the same image, noise and labels at an earlier time, and stops after `teacher_block`."""

    class Options(Objective):
        """Released defaults (1723f85); for SiT-XL/2 its README has blocks 8 and 20, for B/2 the paper 3 and 8."""

        student_block: Depth = 4
        teacher_block: Depth = 8
        most_less_noise: Fraction = 0.2
        """The teacher's time is earlier by up to that, uniformly, and at least 0."""
        loss: LossName = "cosine_of_channels"
        self_alignment: float | None = None
        """Coefficient; None: 0.5 for the cosines, else the release's schedule."""
        epoch: Count = 5005
        """Iterations of an epoch, for that schedule: 5,005 of 256 images are one of ImageNet."""

    @classmethod
    def shape(cls, options: Any, sit: SiTSpec, widths: tuple[int, ...]) -> SiTSpec:
        """With the student's head."""
        return super().shape(options, sit, widths).changed(student_head=True)

    def coefficient(self, number: int) -> float:
        """Of iteration `number`: 0.2 for 150 epochs and 0.2 * 0.1^((epoch - 149) / 1000) from then on."""
        if self.options.self_alignment is not None:
            return float(self.options.self_alignment)
        late = max(0, number // self.options.epoch - 149)
        return 0.5 if self.options.loss.startswith("cosine") else 0.2 * 0.1 ** (late / 1000)

    def forward(self, point: NoisyLatents, labels: Tensor, step: Step) -> SiTOutput:
        """The pass with the student's tokens."""
        out: SiTOutput = self.sit(point.x_t, point.t, labels, taps=[self.options.student_block])
        return out

    @torch.no_grad()
    def teacher(self, seen: Pass, step: Step) -> Tensor:
        """The tokens of the average, (N, T, D)."""
        less = self.options.most_less_noise * step.draws.uniform("teacher time").to(seen.point.t.dtype)
        noise = step.draws.normal_like("noise", seen.latents)
        at = interpolate(seen.latents, noise, (seen.point.t - less).clamp(0, 1), self.options.path)
        block = self.options.teacher_block
        out = step.averages["sit"](at.x_t, at.t, seen.labels, taps=[block], stop_after=block, project=False)
        tokens: Tensor = out.taps[block]
        return tokens

    def extra_loss(self, seen: Pass, step: Step) -> tuple[Tensor | None, Mapping[str, Tensor]]:
        """The weighted term."""
        student = self.sit.student_head(seen.out.taps[self.options.student_block])
        loss = LOSSES[self.options.loss](student, self.teacher(seen, step))
        return self.coefficient(step.number) * loss, {"self_align": loss.detach()}
