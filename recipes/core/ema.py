"""Exponential moving average of a network, as REPA-E's release keeps it."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recipes.core.spec import EMASpec


def ema_decay(spec: EMASpec, step: int) -> float:
    """The decay used after step `step` (counted from 0)."""
    return min(spec.decay, (1 + step) / (10 + step)) if spec.warmup else spec.decay


@dataclass(frozen=True)
class Pairs:
    """Matching lists of tensors: the EMA's, and at the same index the network's.

    Looked up once for a whole training: a state dict costs the host milliseconds.
    """

    floats: tuple[list[Tensor], list[Tensor]]
    """Parameters and float buffers, batch-norm statistics among them."""
    others: tuple[list[Tensor], list[Tensor]]


def pairs_of(average: nn.Module, network: nn.Module) -> Pairs:
    """Pair the tensors of two modules with the same state dict."""
    theirs, ours = network.state_dict(), average.state_dict()
    floats = [name for name, value in ours.items() if value.is_floating_point()]
    others = [name for name, value in ours.items() if not value.is_floating_point()]
    return Pairs(
        ([ours[n] for n in floats], [theirs[n] for n in floats]),
        ([ours[n] for n in others], [theirs[n] for n in others]),
    )


@torch.no_grad()
def ema_update(pairs: Pairs, decay: float, happened: Tensor | None = None) -> None:
    """Move the average towards the network: a <- decay a + (1 - decay) n.

    Non-float tensors are copied. Nothing is allocated on the host and nothing waits for the device.

    Args:
        pairs: what is changed in place, and what it follows.
        decay: in [0, 1].
        happened: a bool scalar on the device; where a loss scaler skipped the step it is false, and nothing moves.
    """
    if happened is None:
        torch._foreach_lerp_(*pairs.floats, 1.0 - decay)
    else:
        weight = (1.0 - decay) * happened
        for ours, theirs in zip(*pairs.floats, strict=True):  # a weight on the device has no foreach form
            ours.lerp_(theirs, weight.to(ours.dtype))
    for ours, theirs in zip(*pairs.others, strict=True):
        ours.copy_(theirs)


def ema_copy(network: nn.Module) -> nn.Module:
    """An average that starts as a frozen copy of the network, in eval mode."""
    return copy.deepcopy(network).eval().requires_grad_(False)
