"""Feature networks behind one interface: uint8 images in, named outputs out, a row for each image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

#: What FID, precision and recall look at: (N, D).
FEATURES = "features"
#: Class logits for the Inception score: (N, classes).
LOGITS = "logits"
#: A spatial feature layer, for sFID.
SPATIAL = "spatial"
#: Features of other networks, that some metrics want besides: DINOv2-L's class token, and Inception's pool_3 behind
#: clean-fid's resizing.
DINOV2, CLEAN = "dinov2", "clean"
#: float32 rows by name, on the network's device.
Outputs = dict[str, Tensor]


class FeatureNetwork(Protocol):
    """A network that turns images into features."""

    @property
    def convention(self) -> str:
        """Network, layer and resizing, in words: part of a protocol's digest."""
        ...

    @property
    def content(self) -> str:
        """SHA-256 of its weights."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings about its weights, shown with results."""
        ...

    def __call__(self, images: Tensor) -> Outputs:
        """uint8 (N, 3, H, W) -> `FEATURES`, and what else the network has."""
        ...


@dataclass(frozen=True)
class FeatureNetworks:
    """Networks that look at the same batch, so that images are read once."""

    first: FeatureNetwork
    others: Mapping[str, FeatureNetwork]
    """By the name that their features get."""

    @property
    def convention(self) -> str:
        """Conventions of all networks, joined."""
        return "; ".join([self.first.convention, *(n.convention for n in self.others.values())])

    @property
    def content(self) -> str:
        """Hashes of all networks, joined."""
        return "+".join([self.first.content, *(n.content for n in self.others.values())])

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes of all networks."""
        return tuple(note for network in (self.first, *self.others.values()) for note in network.notes)

    def __call__(self, images: Tensor) -> Outputs:
        """See `FeatureNetwork`."""
        return self.first(images) | {name: network(images)[FEATURES] for name, network in self.others.items()}


def outputs_of(images: Iterable[Tensor], network: FeatureNetwork) -> Outputs:
    """Stream batches of images through a network: its outputs, in order, on the CPU."""
    parts = [{name: value.cpu() for name, value in network(batch).items()} for batch in images]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
