"""DINOv2 as a feature network: FD-DINOv2 of Stein et al. (arXiv 2306.04675), as EDM2 and others print it.

Class token after the last norm; images resized to 224 by an antialiased bicubic filter. torch-fidelity's DINOv2 is the
same network behind another resize (TensorFlow 1's bilinear rule), and gives other numbers.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.features.base import FEATURES, Outputs
from recipes.core.precision import matrix_products
from recipes.models.encoder import DINOV2, Encoder, load_encoder

SIDE = 224
#: The released DINOv2 code resamples its position embedding by (tokens + 0.1) / (tokens it was trained with).
OFFSET = 0.1


def resample_position(position: Tensor, grid: int) -> Tensor:
    """A position embedding (1, 1 + n * n, D), with its class token, on another grid, as the released DINOv2 does.

    Bicubic without antialiasing, at the scale (grid + 0.1) / n.
    """
    side = math.isqrt(position.shape[1] - 1)
    if side == grid or 1 + side**2 != position.shape[1]:  # what is no square is refused by its shape
        return position
    patches = position[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = (grid + OFFSET) / side
    out = F.interpolate(patches, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    return torch.cat((position[:, :1].float(), out.flatten(2).transpose(1, 2)), 1)


class DinoV2:
    """uint8 images to class tokens."""

    def __init__(self, encoder: Encoder, device: torch.device) -> None:
        self.encoder = encoder.to(device)
        self.device = device

    @property
    def convention(self) -> str:
        """Network, token and resize."""
        return f"{self.encoder.spec.name}/14 class token, antialiased bicubic resize to {SIDE}"

    @property
    def content(self) -> str:
        """SHA-256 of the weights."""
        return self.encoder.content or ""

    @property
    def notes(self) -> tuple[str, ...]:
        """See `FeatureNetwork`."""
        return self.encoder.notes

    @matrix_products("fp32")
    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """uint8 (N, 3, H, W) -> float32 (N, width)."""
        pixels = images.to(self.device, torch.float32)
        pixels = F.interpolate(pixels, size=(SIDE, SIDE), mode="bicubic", antialias=True) / 255
        tokens = self.encoder.network.forward_features((pixels - self.encoder.mean) / self.encoder.std)
        return {FEATURES: tokens[:, 0].float()}


def load(name: str, weights: Path, device: torch.device) -> DinoV2:
    """DINOv2 with the weights of a file, in the released naming or timm's.

    Raises:
        UserError: the file cannot be read safely, or is not this network.
    """
    return DinoV2(load_encoder(DINOV2[name], weights, resample=resample_position), device)
