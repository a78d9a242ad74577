"""REG (arXiv 2507.01467): REPA, and the encoder's class token as one more noised token that is denoised too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from recipes.base import Needs, Pass
from recipes.core.interpolant import NoisyLatents, PathName, interpolate
from recipes.core.losses import alignment_loss, denoising_loss
from recipes.core.step import Step
from recipes.models.sit import SiTOutput, SiTSpec
from recipes.repa import Repa


class Reg(Repa):
    """The class token gets its own noise and the image's time; clean, it is aligned with like the patches.

    On the linear path alone: the release's cosine path mixes up the images of a batch (`loss.py`, 021ea2e). With
    several encoders, the last one's class token is used, as in the release.
    """

    class Options(Repa.Options):
        """REPA's options and REG's."""

        path: PathName = "linear"
        class_denoising: float = 0.03
        """Coefficient of the class token's denoising loss."""

    @classmethod
    def needs(cls, options: Any, number: int = 0) -> Needs:
        """Patch tokens and class token."""
        return replace(super().needs(options, number), class_token=True)

    @classmethod
    def shape(cls, options: Any, sit: SiTSpec, widths: tuple[int, ...]) -> SiTSpec:
        """REPA's network with one more token."""
        return super().shape(options, sit, widths).changed(class_width=widths[-1])

    def forward(self, point: NoisyLatents, labels: Tensor, step: Step) -> SiTOutput:
        """The pass with the noised class token."""
        out: SiTOutput = self.sit(point.x_t, point.t, labels, class_token=self.class_point(point.t, step).x_t)
        return out

    def class_point(self, t: Tensor, step: Step) -> NoisyLatents:
        """Interpolate the class token with its own noise."""
        token = step.batch.class_tokens[-1].to(t.dtype)
        return interpolate(token, step.draws.normal_like("class noise", token), t, self.options.path)

    def extra_loss(self, seen: Pass, step: Step) -> tuple[Tensor | None, Mapping[str, Tensor]]:
        """The weighted alignment of all tokens, and the class token's denoising loss."""
        pairs = zip(step.batch.class_tokens, self.options.targets(step.batch), strict=True)
        targets = tuple(torch.cat((token[:, None], patches), dim=1) for token, patches in pairs)
        alignment = alignment_loss(seen.out.projected, targets)
        assert seen.out.class_velocity is not None
        denoising = denoising_loss(seen.out.class_velocity, self.class_point(seen.point.t, step).target).mean()
        logs = {"sit_align": alignment.detach(), "class_denoising": denoising.detach()}
        return self.options.alignment * alignment + self.options.class_denoising * denoising, logs
