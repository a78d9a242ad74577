"""Checks on the pixels: duplicate and single-colour images."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from harness.features.base import Outputs

#: Rows about an image, beside what a network says of it: a hash of its pixels, the same of the original that a pairwise
#: metric compares it with, and whether it is of one colour.
HASH, ORIGINAL, FLAT = "hash", "hash_of_original", "one_colour"
#: Levels by which the pixels of one colour may differ: compression moves them.
LEVELS = 8


def rows_about(images: Tensor) -> Outputs:
    """Of uint8 images (N, 3, H, W), or (N, 6, H, W) with their originals: `HASH`, `FLAT` and `ORIGINAL`, each (N,)."""
    images = images.cpu()
    pixels = images[:, :3].flatten(2)
    rows = {HASH: _hashes(pixels), FLAT: (pixels.amax(2) - pixels.amin(2) <= LEVELS).all(1)}
    return rows | ({ORIGINAL: _hashes(images[:, 3:])} if images.shape[1] == 6 else {})


def _hashes(images: Tensor) -> Tensor:
    """64 bits of each, int64 (N,): of a million images, two agree by chance once in 37 million sets."""
    digests = (hashlib.blake2b(x.data, digest_size=8).digest() for x in images.contiguous().numpy())
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests], dtype=torch.int64)


def of_a_set(rows: Outputs, what: str) -> list[str]:
    """Of `rows_about` a whole set: images of one colour, and copies of each other; `what` are they?"""
    found, count = [], len(rows[HASH])
    if flat := int(rows[FLAT].sum()):
        found.append(f"{flat:,} of the {count:,} {what} are of one colour, such as black.")
    if copies := count - len(rows[HASH].unique()):
        found.append(f"{copies:,} of the {count:,} {what} are copies of others; {count - copies:,} differ.")
    return found
