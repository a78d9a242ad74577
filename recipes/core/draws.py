"""All randomness of a step, as a pure function of (seed, step, purpose, item, element).

The generator is Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), written in
int64 tensor arithmetic so that it runs on every device. Being counter-based it has no state: a rank draws just its
own items of the global batch, a resumed run needs nothing restored, two recipes that ask for the same purpose get
the same numbers, and a sample depends on its index alone. The integers are the same on every device; normals go
through log and cos in float64, which may differ between devices in the last bit.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox_4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox on four words.

    Args:
        counter: four int64 tensors of one shape (or broadcastable), values in [0, 2^32).
        key: two integers in [0, 2^32).

    Returns:
        Four int64 tensors with values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The 64-bit products wrap in int64, which keeps their bits; the mask undoes the arithmetic shift.
        p0 = c0 * _MULTIPLIERS[0]
        p1 = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0 = (k0 + _WEYL[0]) & _MASK
        k1 = (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def key_of(*parts: int | str) -> tuple[int, int]:
    """Two 32-bit words from any names and numbers, through SHA-256 so that neighbours are unrelated."""
    raw = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:8], "little")


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed for a `torch.Generator`, from names and numbers."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "little") >> 1


def uniform(key: tuple[int, int], step: int, items: Tensor, elements: int) -> Tensor:
    """Uniform numbers in (0, 1), float64, of shape (len(items), elements).

    Args:
        key: from `key_of`.
        step: the counter's third word, in [0, 2^32).
        items: int64 global indices, shape (n,).
        elements: how many numbers for each item.
    """
    blocks = torch.arange(math.ceil(elements / 4), device=items.device)
    zero = torch.zeros((), dtype=torch.int64, device=items.device)
    words = philox_4x32((blocks[None, :], items[:, None], zero + step, zero), key)
    bits = torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(1)[:, :elements]
    return (bits.to(torch.float64) + 0.5) * 2.0**-32


def normal(key: tuple[int, int], step: int, items: Tensor, elements: int) -> Tensor:
    """Standard normal numbers (Box-Muller), float64, of shape (len(items), elements)."""
    u = uniform(key, step, items, 2 * math.ceil(elements / 2)).unflatten(1, (-1, 2))
    radius = (-2.0 * u[..., 0].log()).sqrt()
    angle = (2.0 * math.pi) * u[..., 1]
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1).flatten(1)[:, :elements]


class Draws(Protocol):
    """Source of a recipe's random numbers; tests and `replay` inject recorded ones."""

    def uniform(self, purpose: str) -> Tensor:
        """One number in (0, 1) for each image of the batch: float64, shape (N,)."""
        ...

    def integers(self, purpose: str, below: int) -> Tensor:
        """One of 0 .. below - 1 for each image of the batch: int64, shape (N,)."""
        ...

    def normal_like(self, purpose: str, like: Tensor) -> Tensor:
        """Standard normal numbers with the shape (N, ...), dtype and device of `like`."""
        ...

    def take(self, rows: Tensor) -> Draws:
        """The draws of some of the batch's images."""
        ...


@dataclass(frozen=True)
class KeyedDraws:
    """The draws of one step for the items that this process holds.

    Asking twice for one purpose gives the same numbers: REPA-E relies on it to use the same t and noise in its
    tokenizer step and in its SiT step.
    """

    seed: int
    step: int
    items: Tensor
    """Positions inside the global batch (training) or sample indices (generation): int64, shape (N,)."""

    def uniform(self, purpose: str) -> Tensor:
        """See `Draws.uniform`."""
        return uniform(key_of(self.seed, purpose), self.step, self.items, 1)[:, 0]

    def integers(self, purpose: str, below: int) -> Tensor:
        """See `Draws.integers`."""
        return (self.uniform(purpose) * below).long()

    def normal_like(self, purpose: str, like: Tensor) -> Tensor:
        """See `Draws.normal_like`."""
        if len(like) != len(self.items):
            raise ValueError(f"{len(like)} rows were asked for a batch of {len(self.items)} items")
        drawn = normal(key_of(self.seed, purpose), self.step, self.items, math.prod(like.shape[1:]))
        return drawn.to(like.dtype).reshape(like.shape)

    def take(self, rows: Tensor) -> KeyedDraws:
        """See `Draws.take`."""
        return KeyedDraws(self.seed, self.step, self.items[rows])
