"""Coloured handwritten digits: scikit-learn's 1,797 real 8x8 images, moved and recoloured to 16x16 RGB.

Image i is a function of (seed, i): the training set and the reference set are two index ranges of one stream. They
share glyphs under different transforms, so the suite does not test memorisation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from recipes.core.draws import key_of, uniform
from recipes.core.spec import Count, NotNegative, Seed, Share, Spec

SIDE = 16
NUM_CLASSES = 10
#: angle, log scale, two shifts, ink colour, paper colour: what the feature network also learns to tell.
POSE_WIDTH = 4 + 3 + 3


class DigitsData(Spec):
    """The embedded data set."""

    seed: Seed = 1
    train: Count = 16_000
    reference: Count = 16_000
    max_degrees: NotNegative = 12.0
    max_log_scale: Share = 0.12
    max_shift: Share = 0.12
    """In half images."""
    paper_brightest: Annotated[float, Field(ge=0, lt=0.5)] = 0.45
    """Paper is uniform in [0, this]^3 RGB, ink in [1 - this, 1]^3: two random colours that stay apart."""


@dataclass(frozen=True)
class Digits:
    """Rendered digits."""

    images: Tensor
    """uint8, (N, 3, 16, 16)."""
    labels: Tensor
    """int64, (N,)."""
    poses: Tensor
    """float32, (N, POSE_WIDTH), each about unit scale."""


def render(spec: DigitsData, start: int, stop: int) -> Digits:
    """Render the images with indices in [start, stop)."""
    from sklearn.datasets import load_digits

    bundled = load_digits()
    glyphs = torch.from_numpy(bundled.images).float() / 16.0
    targets = torch.from_numpy(bundled.target).long()

    u = uniform(key_of(spec.seed, "digits"), 0, torch.arange(start, stop), 11)
    chosen = (u[:, 10] * len(glyphs)).long()
    u = u.float()
    signed = 2 * u[:, :4] - 1
    angle = signed[:, 0] * math.radians(spec.max_degrees)
    scale = torch.exp(signed[:, 1] * spec.max_log_scale)
    shift = signed[:, 2:4] * spec.max_shift
    cos, sin = angle.cos() / scale, angle.sin() / scale
    rows = torch.stack((cos, -sin, shift[:, 0], sin, cos, shift[:, 1]), dim=1).view(-1, 2, 3)
    grid = F.affine_grid(rows, [len(rows), 1, SIDE, SIDE], align_corners=False)
    ink_mask = F.grid_sample(glyphs[chosen][:, None], grid, align_corners=False).clamp(0, 1)
    paper, ink = u[:, 4:7] * spec.paper_brightest, 1 - u[:, 7:10] * spec.paper_brightest
    pixels = torch.lerp(paper[:, :, None, None], ink[:, :, None, None], ink_mask)
    poses = torch.cat((signed, 2 * u[:, 4:10] - 1), dim=1)
    return Digits((pixels * 255).round().to(torch.uint8), targets[chosen], poses)
