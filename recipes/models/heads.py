"""Heads on a SiT's tokens: projections to an encoder's features, and SRA's."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.core.precision import at_least_float32, full_precision

#: REPA's three layers, or iREPA's convolution over the token grid.
HeadKind = Literal["mlp", "convolution"]


class TokenLinear(nn.Linear):
    """A linear layer for tokens.

    In float32 on the CPU it is computed as a convolution of 1 x 1: PyTorch gives matrix products to MKL, which leaves
    half of an AMD processor's vector width unused, and convolutions to oneDNN, which does not.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, E)."""
        if x.device.type != "cpu" or x.dtype != torch.float32:
            return super().forward(x)
        n, tokens, width = x.shape
        columns = x.reshape(n, tokens, 1, width).permute(0, 3, 1, 2)  # channels last, as they lie
        out = F.conv2d(columns, self.weight[:, :, None, None], self.bias)
        return out.permute(0, 2, 3, 1).reshape(n, tokens, -1)


class TokenConvolution(nn.Conv2d):
    """A convolution over the square grid of the tokens, padded with zeros."""

    def __init__(self, hidden: int, out: int, kernel: int) -> None:
        super().__init__(hidden, out, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, E)."""
        side = round(x.shape[1] ** 0.5)
        return super().forward(x.transpose(1, 2).unflatten(2, (side, side))).flatten(2).transpose(1, 2)


def make_projector(kind: HeadKind, hidden: int, width: int, out: int, kernel: int) -> nn.Module:
    """A projection head from `hidden` to `out`; `width` is the MLP's, `kernel` the convolution's."""
    if kind == "convolution":
        return TokenConvolution(hidden, out, kernel)
    first, second, last = TokenLinear(hidden, width), TokenLinear(width, width), TokenLinear(width, out)
    return nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), last)


@full_precision
def spatially_normalized(tokens: Tensor, gamma: float) -> Tensor:
    """iREPA's normalisation (arXiv 2512.10794) of each image's tokens (N, T, D) over T.

    (z - gamma mean) / (std + 1e-6), with the unbiased standard deviation.
    """
    z = at_least_float32(tokens)
    return (z - gamma * z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-6)


def make_student_head(hidden: int) -> nn.Sequential:
    """SRA's head on the student's tokens (arXiv 2505.02831): two layers, the inner one twice as wide."""
    return nn.Sequential(TokenLinear(hidden, 2 * hidden), nn.SiLU(), TokenLinear(2 * hidden, hidden))
