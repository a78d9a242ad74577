"""Context manager that freezes parameters during forward passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Run forward passes whose gradients flow through the networks but never into their parameters.

    Autograd records at forward time which tensors want a gradient, so the flags may be restored before the backward
    pass, and no parameter gradient is computed. With activation checkpointing the recomputation must also run under
    `frozen`.
    """
    wanting = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in wanting:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)
