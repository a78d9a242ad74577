"""The PatchGAN discriminator of REPA-E (pix2pix, arXiv 1611.07004), with the released state-dict names."""

from __future__ import annotations

from torch import Tensor, nn

from recipes.core.spec import Spec


class DiscriminatorSpec(Spec):
    """A PatchGAN's size."""

    base_width: int = 64
    layers: int = 3


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
                nn.BatchNorm2d(widths[n]),
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
