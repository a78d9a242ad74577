"""Evaluation protocols: everything between a checkpoint and a number, named, versioned and digested.

Two numbers may stand in one column of a table only if their protocol digests are equal.
"""

from __future__ import annotations

from typing import Literal

from harness.sampler import Guidance, Solver, number_of_evaluations
from recipes.core.spec import Spec, digest_of


class Protocol(Spec):
    """How a checkpoint is sampled and scored."""

    name: str
    version: int = 1
    """Raised whenever the meaning of a field changes."""
    solver: Solver
    steps: int
    guidance_scale: float = 1.0
    guidance_low: float = 0.0
    guidance_high: float = 1.0
    labels: Literal["balanced", "uniform"] = "balanced"
    """``balanced``: index modulo classes; ``uniform``: a random draw for each index."""
    samples: int
    weights: Literal["ema", "raw"] = "ema"
    to_uint8: Literal["floor", "round"] = "floor"
    """REPA and REPA-E truncate 255 x, SiT rounds."""
    features: str
    reference: str
    neighbours: int = 3
    """k of precision and recall."""
    manifold_size: int
    """Reference images, and generated images, that precision and recall look at."""

    @property
    def label(self) -> str:
        """NAME@VERSION."""
        return f"{self.name}@{self.version}"

    @property
    def guidance(self) -> Guidance:
        """Scale and interval."""
        return Guidance(self.guidance_scale, self.guidance_low, self.guidance_high)

    @property
    def nfe(self) -> int:
        """Network evaluations of one sample."""
        return number_of_evaluations(self.solver, self.steps, self.guidance)

    def digest_with(self, assets: dict[str, str]) -> str:
        """Digest of the protocol together with the content hashes of its feature network and reference."""
        return digest_of({"protocol": self.model_dump(mode="json"), "assets": assets})
