"""iREPA (arXiv 2512.10794): REPA with a convolution for its projector and spatially normalised targets."""

from __future__ import annotations

from recipes.core.spec import Count, NotNegative
from recipes.models.heads import HeadKind
from recipes.repa import Repa


class IRepa(Repa):
    """REPA under other options.

    As its latent-diffusion command trains (release 99ad4ac): kernel 1, gamma 0.6, coefficient 1. Its README, paper and
    pixel-space code have kernel 3, the latter gamma 0.8 and coefficient 0.5.
    """

    class Options(Repa.Options):
        """REPA's options with iREPA's values; all of them stand in a run's specification."""

        ADDED = frozenset()

        alignment: float = 1.0
        projector: HeadKind = "convolution"
        kernel: Count = 1
        gamma: NotNegative | None = 0.6
