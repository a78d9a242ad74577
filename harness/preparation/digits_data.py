"""Coloured handwritten digits, rendered."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.suites.digits_specs import SIDE, DigitsData
from recipes.core.draws import key_of, uniform

#: angle, log scale, two shifts, ink colour, paper colour: what the feature network also learns to tell.
POSE_WIDTH = 4 + 3 + 3


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
