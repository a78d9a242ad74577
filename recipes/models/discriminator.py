"""The PatchGAN discriminator of REPA-E (pix2pix, arXiv 1611.07004), with the released state-dict names."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from recipes.core.distributed import differentiable_mean, world_size
from recipes.core.precision import at_least_float32, full_precision
from recipes.core.spec import Count, Spec


class DiscriminatorSpec(Spec):
    """A PatchGAN's size."""

    base_width: Count = 64
    layers: Annotated[int, Field(ge=1, le=16)] = 3


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose training statistics are those of all processes (`nn.SyncBatchNorm` runs on GPUs alone)."""

    @full_precision
    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> the same; every process must hold as many images."""
        if not self.training or world_size() == 1:
            return super().forward(at_least_float32(x))
        x = at_least_float32(x)
        mean = differentiable_mean(x.mean(dim=(0, 2, 3)))
        centred = x - mean.reshape(1, -1, 1, 1)
        var = differentiable_mean(centred.square().mean(dim=(0, 2, 3)))
        self._move(mean.detach(), var.detach(), world_size() * x.numel() // x.shape[1])
        normal = centred * (var + self.eps).rsqrt().reshape(1, -1, 1, 1)
        return normal * self.weight.reshape(1, -1, 1, 1) + self.bias.reshape(1, -1, 1, 1)

    @torch.no_grad()
    def _move(self, mean: Tensor, var: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        self.num_batches_tracked += 1


class PatchDiscriminator(nn.Module):
    """Images to a grid of logits: strided 4x4 convolutions with batch norm."""

    def __init__(self, spec: DiscriminatorSpec) -> None:
        super().__init__()
        widths = [spec.base_width * min(2**n, 8) for n in range(spec.layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for n in range(1, spec.layers + 1):
            stride = 2 if n < spec.layers else 1
            parts += [
                nn.Conv2d(widths[n - 1], widths[n], 4, stride=stride, padding=1, bias=False),
                GlobalBatchNorm2d(widths[n]),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> logits (N, 1, h, w)."""
        out: Tensor = self.main(images)
        return out


def initialize(discriminator: PatchDiscriminator) -> None:
    """N(0, 0.02) convolutions, N(1, 0.02) norm weights, zero norm bias (pix2pix)."""
    for module in discriminator.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
