"""Interfaces between recipe and loop: Step (input), Update (output), Recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from recipes.core.batch import Batch
from recipes.core.draws import Draws


@dataclass(frozen=True)
class Step:
    """Everything that one iteration may look at."""

    number: int
    """Batches consumed before this one: by it schedules go."""
    batch: Batch
    """The micro-batch."""
    draws: Draws
    """Its random numbers."""
    averages: Mapping[str, nn.Module] = field(default_factory=dict)
    """The EMA of each averaged network as it was before this iteration: in eval mode, without gradients."""


@dataclass(frozen=True)
class Update:
    """One optimizer step that a recipe asks for."""

    network: str
    """Which network the gradients are for; only its optimizer steps."""
    loss: Tensor
    """A mean over the images of the micro-batch."""
    logs: Mapping[str, Tensor] = field(default_factory=dict)
    """Detached scalars, means over the images of the micro-batch; they stay on the device until somebody reads them."""


class Recipe(Protocol):
    """What differs between two ways of training."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The networks that are trained, by name. Each has an optimizer of that name."""
        ...

    @property
    def averaged(self) -> Sequence[str]:
        """Names of networks with an EMA (used for sampling)."""
        ...

    def updates(self, step: Step) -> Iterator[Update]:
        """Yield the optimizer steps of one iteration, in order. A parameter may go without a gradient."""
        ...
