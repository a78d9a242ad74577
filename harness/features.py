"""Feature networks behind one interface: uint8 images in, named outputs out, a row for each image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from harness.assets import Store
from harness.catalogue import require
from recipes.core.errors import UserError, nearest

#: What FID, precision and recall look at: (N, D).
FEATURES = "features"
#: Class logits for the Inception score: (N, classes).
LOGITS = "logits"
#: A layer that still knows where things are, for sFID: (N, S).
SPATIAL = "spatial"
#: Features of other networks, that some metrics want besides: DINOv2-L's class token, and Inception's pool_3 behind
#: clean-fid's resizing.
DINOV2, CLEAN = "dinov2", "clean"
#: float32 rows by name, on the network's device.
Outputs = dict[str, Tensor]


class FeatureNetwork(Protocol):
    """What looks at images."""

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
        """What whoever reads its numbers should know of its weights."""
        ...

    def __call__(self, images: Tensor) -> Outputs:
        """uint8 (N, 3, H, W) -> `FEATURES`, and what else the network has."""
        ...


@dataclass(frozen=True)
class Several:
    """Networks that look at the same batch, so that images are read once."""

    first: FeatureNetwork
    others: Mapping[str, FeatureNetwork]
    """By the name that their features get."""

    @property
    def convention(self) -> str:
        """Of all."""
        return "; ".join([self.first.convention, *(n.convention for n in self.others.values())])

    @property
    def content(self) -> str:
        """Of all."""
        return "+".join([self.first.content, *(n.content for n in self.others.values())])

    @property
    def notes(self) -> tuple[str, ...]:
        """Of all."""
        return tuple(note for network in (self.first, *self.others.values()) for note in network.notes)

    def __call__(self, images: Tensor) -> Outputs:
        """See `FeatureNetwork`."""
        return self.first(images) | {name: network(images)[FEATURES] for name, network in self.others.items()}


def outputs_of(images: Iterable[Tensor], network: FeatureNetwork) -> Outputs:
    """Stream batches of images through a network: its outputs, in order, on the CPU."""
    parts = [{name: value.cpu() for name, value in network(batch).items()} for batch in images]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


Loader = Callable[[Path, torch.device], FeatureNetwork]


def _inception(weights: Path, device: torch.device) -> FeatureNetwork:
    from harness import inception

    return inception.load(weights, device)


def _dinov2(name: str) -> Loader:
    def load(weights: Path, device: torch.device) -> FeatureNetwork:
        from harness import dinov2

        return dinov2.load(name, weights, device)

    return load


#: Feature networks by the name of their asset.
NETWORKS: dict[str, Loader] = {
    "inception": _inception,
    **{name: _dinov2(name) for name in ("dinov2-vit-s", "dinov2-vit-b", "dinov2-vit-l", "dinov2-vit-g")},
}
#: torch-fidelity's names for them.
ALIASES = {
    "inception-v3-compat": "inception",
    **{f"{name}-14": name for name in NETWORKS if name.startswith("dinov2")},
}


def network_name(name: str) -> str:
    """The asset that a feature network's name stands for.

    Raises:
        UserError: there is no such network, with the nearest.
    """
    known = ALIASES.get(name, name)
    if known not in NETWORKS:
        raise UserError(f"--features: there is no feature network '{name}'.{nearest(name, [*NETWORKS, *ALIASES])}")
    return known


def load_network(name: str, store: Store, device: torch.device, weights: Path | None = None) -> FeatureNetwork:
    """A feature network with its trained weights.

    Args:
        name: of `NETWORKS` or `ALIASES`.
        store: the cache, where `repa-bench fetch` registered its file.
        device: where it runs.
        weights: a file instead.

    Raises:
        UserError: no such network, no such file, or a file of something else.
    """
    name = network_name(name)
    if weights is None:
        weights = require(store, name).path
    if not weights.is_file():
        raise UserError(f"--weights {weights}: there is no such file.")
    return NETWORKS[name](weights, device)


def extra_networks(
    outputs: Iterable[str], first: FeatureNetwork, store: Store, device: torch.device
) -> dict[str, FeatureNetwork]:
    """The networks that give these of `DINOV2` and `CLEAN`, beside `first`.

    Raises:
        UserError: a network is not on this machine, or `first` is not Inception.
    """
    from harness.inception import CleanInception, Inception

    found: dict[str, FeatureNetwork] = {}
    for name in outputs:
        if name == DINOV2:
            found[name] = load_network("dinov2-vit-l", store, device)
        elif name == CLEAN:
            if not isinstance(first, Inception):
                raise UserError("--metrics clean_fid is of Inception, which is not what this suite is judged by.")
            found[name] = CleanInception(first)
    return found
