"""Exponential moving average of a network, as REPA-E's release keeps it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from recipes.core.spec import EMASpec


def ema_decay(spec: EMASpec, step: int) -> float:
    """The decay used after step `step` (counted from 0)."""
    return min(spec.decay, (1 + step) / (10 + step)) if spec.warmup else spec.decay


@torch.no_grad()
def ema_update(average: nn.Module, network: nn.Module, decay: float, happened: Tensor | None = None) -> None:
    """Move the average towards the network: a <- decay a + (1 - decay) n.

    Parameters and float buffers (batch-norm statistics among them) are averaged, other buffers are copied. Both
    modules must have the same state dict; nothing is allocated on the host and nothing waits for the device.

    Args:
        average: changed in place.
        network: what it follows.
        decay: in [0, 1].
        happened: a bool scalar on the device; where a loss scaler skipped the step it is false, and nothing moves.
    """
    theirs, ours = network.state_dict(), average.state_dict()
    floats = [name for name, value in ours.items() if value.is_floating_point()]
    if happened is None:
        torch._foreach_lerp_([ours[n] for n in floats], [theirs[n] for n in floats], 1.0 - decay)
    else:
        weight = (1.0 - decay) * happened
        for name in floats:  # one by one, because a weight on the device has no foreach form
            ours[name].lerp_(theirs[name], weight.to(ours[name].dtype))
    for name in ours.keys() - set(floats):
        ours[name].copy_(theirs[name])


def ema_copy(network: nn.Module) -> nn.Module:
    """An average that starts as a frozen copy of the network, in eval mode."""
    return copy.deepcopy(network).eval().requires_grad_(False)
