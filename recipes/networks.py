"""The networks that a recipe may be given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from recipes.models.sit import SiT


@dataclass(frozen=True)
class Networks:
    """The SiT, and what joint training needs beside it."""

    sit: SiT
    vae: nn.Module | None = None
    discriminator: nn.Module | None = None
    perceptual: nn.Module | None = None

    def require(self, name: str) -> Any:
        """A network that the recipe cannot do without.

        Raises:
            ValueError: it was not given.
        """
        network = getattr(self, name)
        if network is None:
            raise ValueError(f"this recipe needs the network '{name}'")
        return network
