"""The losses of the three recipes: pure functions of tensors, reduced in float32 or better, outside autocast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.core.precision import at_least_float32, full_precision


@full_precision
def denoising_loss(velocity: Tensor, target: Tensor) -> Tensor:
    """Mean squared velocity error of each image: (N, C, h, w) twice -> (N,). Average it over the batch."""
    return (at_least_float32(velocity) - at_least_float32(target)).square().flatten(1).mean(1)


@full_precision
def alignment_loss(projected: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
    """REPA's alignment (arXiv 2410.06940, eq. 8): minus the mean cosine over images, tokens and encoders.

    Args:
        projected: for each encoder, the projected SiT tokens, (N, tokens, width).
        features: for each encoder, its patch tokens of the clean image, the same shape.

    Returns:
        A scalar in [-1, 1]. Normalised in float32 or better: in float16 it is where users met NaN.
    """
    pairs = zip(projected, features, strict=True)
    cosines = [_cosine(at_least_float32(p), at_least_float32(f)).mean() for p, f in pairs]
    return -torch.stack(cosines).mean()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine over the last dimension; with less memory traffic than `F.cosine_similarity` has."""
    norms = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    cosine: Tensor = torch.linalg.vecdot(a, b) / norms.clamp_min(1e-8)
    return cosine


@full_precision
def kl_loss(mean: Tensor, std: Tensor) -> Tensor:
    """KL of N(mean, std^2) from N(0, 1), summed over the latent: (N, C, h, w) twice -> (N,)."""
    mean, var = at_least_float32(mean), at_least_float32(std).square()
    return 0.5 * (mean.square() + var - 1.0 - var.log()).flatten(1).sum(1)


@full_precision
def l1_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error of two image batches: a scalar."""
    return F.l1_loss(at_least_float32(reconstruction), at_least_float32(images))


@full_precision
def l2_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean squared error of two image batches: a scalar."""
    return F.mse_loss(at_least_float32(reconstruction), at_least_float32(images))


@full_precision
def generator_loss(fake_logits: Tensor) -> Tensor:
    """The hinge GAN's generator term, minus the mean logit of the reconstructions: a scalar."""
    return -at_least_float32(fake_logits).mean()


@full_precision
def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The hinge GAN's discriminator term, 0.5 (relu(1 - real) + relu(1 + fake)): a scalar."""
    real, fake = at_least_float32(real_logits), at_least_float32(fake_logits)
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
