"""Contrastive flow matching (arXiv 2506.05350): REPA whose velocity is also kept away from another image's target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from recipes.base import Needs, Pass
from recipes.core.distributed import gather_equal, world_rank
from recipes.core.losses import denoising_loss
from recipes.core.spec import Count
from recipes.core.step import Step
from recipes.repa import Repa


class Contrastive(Repa):
    """The negative of an image is any other of its group, of the same class too, as released (489f536)."""

    class Options(Repa.Options):
        """REPA's options and its own; the release's default weight is 1, its README's 0.05."""

        contrast: float = 0.05
        """Weight of the squared error to the negative's target, which is subtracted."""
        group: Count | None = None
        """Images among which negatives are drawn, at least 2; None: the global batch. In the release one GPU's."""
        contrast_null: bool = True
        """As released; otherwise images whose label was dropped have no negative, and the others count for them."""

    @classmethod
    def needs(cls, options: Any, number: int = 0) -> Needs:
        """REPA's needs, plus a group of images."""
        return replace(super().needs(options, number), across=options.group)

    def denoising_loss(self, seen: Pass, step: Step) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The denoising loss less the weighted distance to the negatives' targets."""
        target, kept = seen.point.target, (seen.labels != self.sit.null_class).to(seen.point.t.dtype)
        n, size = len(target), self.options.group
        everyone, first = gather_equal(target).flatten(0, 1), world_rank() * n
        if size is not None:
            everyone, first = target, 0
        size = size or len(everyone)
        place = torch.arange(first, first + n, device=target.device)
        own = place % size
        drawn = step.draws.integers("negative", size - 1)
        negatives = everyone[place - own + drawn + (drawn >= own)]
        assert seen.out.velocity is not None
        away = denoising_loss(seen.out.velocity, negatives)
        if not self.options.contrast_null:
            shares = kept.unflatten(0, (-1, size)) if self.options.group else gather_equal(kept).flatten()[None]
            away = away * kept / shares.mean(1).repeat_interleave(n // len(shares)).clamp_min(1 / size)
        denoising, away = denoising_loss(seen.out.velocity, target).mean(), away.mean()
        logs = {"denoising": denoising.detach(), "contrastive": away.detach()}
        return denoising - self.options.contrast * away, logs
