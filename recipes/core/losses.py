"""The losses of the recipes: pure functions of tensors, reduced in float32 or better, outside autocast."""

from __future__ import annotations

import math
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
def channel_cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the mean cosine over the tokens of each channel, (N, T, D) twice: a scalar in [0, 2].

    SRA's release (arXiv 2505.02831) takes PyTorch's default dimension 1, which is that of the tokens.
    """
    return 1.0 - F.cosine_similarity(at_least_float32(student), at_least_float32(teacher), dim=1).mean()


@full_precision
def smooth_l1_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 with beta 0.05, as in SRA's paper (arXiv 2505.02831): a scalar."""
    return F.smooth_l1_loss(at_least_float32(student), at_least_float32(teacher), beta=0.05)


@full_precision
def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Cross-entropy of attention (HASTE, arXiv 2505.16792): a mean over images, heads, queries and pairs of layers.

    Args:
        student: logits q k / sqrt(width of a head) of some blocks, (N, heads, T, T) each.
        teacher: those of an encoder's layers; heads are paired by number as far as both have them.
    """
    losses = []
    for ours, theirs in zip(student, teacher, strict=True):
        heads = min(ours.shape[1], theirs.shape[1])
        target = at_least_float32(theirs[:, :heads]).softmax(-1)
        losses.append(-(target * at_least_float32(ours[:, :heads]).log_softmax(-1)).sum(-1).mean())
    return torch.stack(losses).mean()


@full_precision
def dispersive_loss(tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log of the mean of exp(-D / temperature) over all pairs (N, T, d), the diagonal too: a scalar in [-inf, 0].

    D is the squared distance of two images' tokens over their number T d (arXiv 2506.09027, its PyTorch code).
    """
    z = at_least_float32(tokens).flatten(1)
    distances = _squared_distances(z) / z.shape[1]
    return torch.logsumexp(-distances.flatten() / temperature, 0) - 2 * math.log(len(z))


def _squared_distances(z: Tensor) -> Tensor:
    """Pairwise squared distances via matrix product, (N, N). Rounding error is relative to the norms (about d)."""
    norms = z.square().sum(1)
    distances: Tensor = norms[:, None] + norms[None] - 2 * z @ z.mT
    return distances


@full_precision
def normalized_dispersive_loss(tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """DDT's variant: of normalised tokens, over pairs of different images, 1e-5 under the logarithm: a scalar."""
    z = F.normalize(at_least_float32(tokens).flatten(1), dim=1)
    distances = _squared_distances(z)
    i, j = torch.triu_indices(len(z), len(z), offset=1, device=z.device)
    return torch.log(torch.exp(-distances[i, j] / temperature).mean() + 1e-5)


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
