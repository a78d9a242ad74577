"""Feature networks by name, with the weights that lie on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from harness.assets.cache import Store
from harness.assets.catalogue import require
from harness.features.base import CLEAN, DINOV2, FeatureNetwork
from recipes.core.errors import UserError, nearest

Loader = Callable[[Path, torch.device], FeatureNetwork]


def _inception(weights: Path, device: torch.device) -> FeatureNetwork:
    from harness.features import inception

    return inception.load(weights, device)


def _dinov2(name: str) -> Loader:
    def load(weights: Path, device: torch.device) -> FeatureNetwork:
        from harness.features import dinov2

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
    """The additional networks that the requested outputs (`DINOV2`, `CLEAN`) need; `first` is the main network.

    Raises:
        UserError: a network is not on this machine, or `first` is not Inception.
    """
    from harness.features.inception import CleanInception, Inception

    found: dict[str, FeatureNetwork] = {}
    for name in outputs:
        if name == DINOV2:
            found[name] = load_network("dinov2-vit-l", store, device)
        elif name == CLEAN:
            if not isinstance(first, Inception):
                raise UserError("--metrics clean_fid is of Inception, which is not what this suite is judged by.")
            found[name] = CleanInception(first)
    return found
