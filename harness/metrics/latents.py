"""What latents look like: statistics of REPA-E's Table 1, pictures, and how far two representations agree."""

from __future__ import annotations

import torch
from torch import Tensor


def spatial_variance(latents: Tensor) -> float:
    """Variance over the positions of each channel of each image, averaged, of latents (N, C, h, w), h w >= 2.

    REPA-E (arXiv 2504.10483, v1 Table 1) calls a figure of this kind spatial variance and does not define it: compare
    values of this function with each other alone.
    """
    return float(latents.double().flatten(2).var(dim=2).mean())


def total_variation(latents: Tensor) -> float:
    """Sum of absolute differences of horizontal and vertical neighbours, averaged over images (N, C, h, w).

    Grows with the number of channels and positions; see `spatial_variance` on the paper's figure.
    """
    x = latents.double()
    across, down = (x.diff(dim=d).abs().flatten(1).sum(1) for d in (2, 3))
    return float((across + down).mean())


def principal_images(latents: Tensor, side: int) -> Tensor:
    """The first three principal components of the latents' channels as colours, uint8 (N, 3, side, side).

    Args:
        latents: (N, C, h, w); components are found over all images and positions. With fewer than three channels the
            last colours stay grey.
        side: nearest-neighbour enlarged to it; a multiple of h.
    """
    n, channels, height, width = latents.shape
    flat = latents.double().permute(0, 2, 3, 1).reshape(-1, channels)
    flat = flat - flat.mean(0)
    _, _, axes = torch.linalg.svd(flat, full_matrices=False)
    axes = axes[:3]
    # A component's sign is arbitrary: the largest weight is made positive, so that equal latents give equal pictures.
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    shown = flat @ (axes * largest.sign()).T
    scaled = 0.5 + shown / (4 * shown.std(0).clamp(min=1e-12))  # two standard deviations to each side
    colours = torch.full((len(flat), 3), 0.5, dtype=torch.float64)
    colours[:, : scaled.shape[1]] = scaled.clamp(0, 1)
    images = (255 * colours).round().to(torch.uint8).reshape(n, height, width, 3).permute(0, 3, 1, 2)
    return images.repeat_interleave(side // height, 2).repeat_interleave(side // width, 3).contiguous()


def _unbiased_hsic(k: Tensor, m: Tensor) -> Tensor:
    """Song et al., "Feature selection via dependence maximization" (JMLR 2012), eq. 5: diagonals do not count."""
    n = len(k)
    k, m = (x.clone().fill_diagonal_(0) for x in (k, m))
    ones = k.sum() * m.sum() / ((n - 1) * (n - 2))
    cross = 2 * (k.sum(0) * m.sum(1)).sum() / (n - 2)
    return ((k * m.T).sum() + ones - cross) / (n * (n - 3))


def _mutual(k: Tensor, m: Tensor, neighbours: int) -> Tensor:
    """HSIC of two kernels over the pairs that are nearest neighbours in both."""
    masks = []
    for kernel in (k, m):
        nearest = kernel.clone().fill_diagonal_(-torch.inf).topk(neighbours, dim=1).indices
        masks.append(torch.zeros_like(kernel).scatter_(1, nearest, 1.0))
    both = masks[0] * masks[1]
    return _unbiased_hsic(both * k, both * m)


def cknna(a: Tensor, b: Tensor, neighbours: int = 10) -> float:
    """Centred kernel nearest-neighbour alignment (arXiv 2405.07987) of two representations of the same items.

    Args:
        a: (N, D), N > neighbours + 2; rows are scaled to length 1.
        b: (N, E).
        neighbours: k; REPA (arXiv 2410.06940) takes 10.

    Returns:
        1 for equal representations, up to rotation and scale; about 0 for unrelated ones. 0 where one of them is the
        same for every item: its centred kernel is 0, the paper's quotient 0 / 0, and which items are its nearest is
        chance.

    Raises:
        ValueError: the numbers of items differ, or are too few, or a value is not finite.
    """
    if len(a) != len(b) or len(a) <= max(neighbours + 1, 3):
        raise ValueError(f"{len(a)} and {len(b)} items for {neighbours} neighbours")
    if not bool(a.isfinite().all() & b.isfinite().all()):
        raise ValueError("features hold NaN or infinity")
    if any(without_spread(torch.nn.functional.normalize(y, dim=1)) for y in (a, b)):
        return 0.0
    k, m = (x @ x.T for x in (torch.nn.functional.normalize(y.double(), dim=1) for y in (a, b)))
    scale = (_mutual(k, k, neighbours) * _mutual(m, m, neighbours)).clamp(min=0).sqrt()
    return float(_mutual(k, m, neighbours) / scale) if float(scale) > 1e-12 else 0.0


def without_spread(rows: Tensor) -> bool:
    """Whether the rows (N, D) are all the same one, but for the rounding of their number format."""
    size = float(torch.linalg.vector_norm(rows.double(), dim=1).max())
    apart = float(torch.linalg.vector_norm(rows.double() - rows.double().mean(0), dim=1).max())
    return apart <= 8 * torch.finfo(rows.dtype).eps * size


def effective_rank(latents: Tensor) -> float:
    """Participation ratio of the covariance's spectrum, (sum l)^2 / sum l^2, of latents (N, ...) seen as vectors.

    A collapse that keeps the variance (channels turned into copies) shows here. At least 1, or 0 where the latents are
    all equal (see `without_spread`): the complete collapse, which has no direction.

    Raises:
        ValueError: a value is not finite.
    """
    if not bool(latents.isfinite().all()):
        raise ValueError("latents hold NaN or infinity")
    if without_spread(latents.flatten(1)):
        return 0.0
    x = latents.flatten(1).double()
    x = x - x.mean(0)
    x = x / x.abs().max()  # so that no fourth power is lost
    # The traces of the covariance and of its square are those of the Gram matrix, which is small where N is.
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    return float(gram.trace().square() / gram.square().sum())
