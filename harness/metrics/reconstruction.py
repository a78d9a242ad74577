"""PSNR and SSIM of each image against its original."""

from __future__ import annotations

import torch
from torch import Tensor

from recipes.core.errors import UserError


def psnr_each(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of every pair of uint8 images (N, 3, H, W), in dB: (N,), float64. At most 148 dB."""
    error = (a.double() - b.double()).square().flatten(1).mean(1).clamp(min=1e-10)
    return 10 * torch.log10(255.0**2 / error)


#: Half-width of SSIM's window.
SSIM_BORDER = 5


def ssim_each(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of every pair of uint8 images (N, 3, H, W), H, W > 5: (N,), at most 1.

    Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004): 11 x 11 Gaussian
    window of sigma 1.5, K = (0.01, 0.03), borders mirrored, on each channel, averaged. torchmetrics' implementation.

    Raises:
        UserError: the images are smaller.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(a.shape[-2:]) <= SSIM_BORDER:
        raise UserError(
            f"ssim mirrors {SSIM_BORDER} pixels at each border, and the images are {a.shape[-1]} x {a.shape[-2]}: give "
            "larger ones, or leave it out with --metrics."
        )
    found = structural_similarity_index_measure(a.float(), b.float(), data_range=255.0, reduction="none")
    assert isinstance(found, Tensor)
    return found
