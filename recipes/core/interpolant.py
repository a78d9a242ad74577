"""Paths between data and noise, and the time they are trained at: pure functions.

t = 0 is data and t = 1 is noise (SiT, arXiv 2401.08740, section 2; REPA's convention).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PathName = Literal["linear", "cosine"]
TimeSampling = Literal["uniform", "lognormal"]


@dataclass(frozen=True)
class Coefficients:
    """x_t = alpha x + sigma noise, and the derivatives by t; each of the shape of t."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


def coefficients(path: PathName, t: Tensor) -> Coefficients:
    """The path's coefficients at times t in [0, 1]."""
    if path == "linear":
        one = torch.ones_like(t)
        return Coefficients(1 - t, t, -one, one)
    half_pi = math.pi / 2
    cos, sin = torch.cos(half_pi * t), torch.sin(half_pi * t)
    return Coefficients(cos, sin, -half_pi * sin, half_pi * cos)


def sample_times(u: Tensor, path: PathName, sampling: TimeSampling) -> Tensor:
    """Turn uniform numbers into training times.

    Args:
        u: uniform in (0, 1), any shape.
        path: decides the log-normal rule's map from noise level to t.
        sampling: ``uniform``, or ``lognormal`` (noise level s = exp(N(0, 1)); t = s / (1 + s) for the linear path,
            (2 / pi) atan s for the cosine one).
    """
    if sampling == "uniform":
        return u
    level = torch.exp(torch.special.ndtri(u))
    return level / (1 + level) if path == "linear" else torch.atan(level) * (2 / math.pi)


@dataclass(frozen=True)
class NoisyLatents:
    """A point on the path and what the network should answer there."""

    x_t: Tensor
    """(N, C, h, w)."""
    t: Tensor
    """(N,), in [0, 1]."""
    target: Tensor
    """The velocity d x_t / dt, (N, C, h, w)."""


def interpolate(latents: Tensor, noise: Tensor, t: Tensor, path: PathName) -> NoisyLatents:
    """Move latents along the path to time t.

    Args:
        latents: normalised latents x, (N, C, h, w), or what else is noised, (N, ...).
        noise: standard normal, the same shape.
        t: (N,), in [0, 1].
        path: ``linear`` (velocity = noise - x) or ``cosine``.
    """
    at = coefficients(path, t.to(latents.dtype).reshape(-1, *[1] * (latents.ndim - 1)))
    return NoisyLatents(
        x_t=at.alpha * latents + at.sigma * noise,
        t=t.to(latents.dtype),
        target=at.d_alpha * latents + at.d_sigma * noise,
    )
