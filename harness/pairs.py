"""Images beside their originals: what a tokenizer loses, image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from harness import metrics
from harness.features import FeatureNetwork, Outputs
from harness.finite import finite
from harness.generate import to_uint8
from harness.samples import ImageSet
from recipes.core.errors import UserError
from recipes.core.spec import digest_of
from recipes.models.autoencoder import Autoencoder, to_unit

#: Distance (N,) of images in [-1, 1], (N, 3, H, W) twice.
Distance = Callable[[Tensor, Tensor], Tensor]


class Beside:
    """Images and their originals, in the same order, as one set of six channels."""

    def __init__(self, images: ImageSet, originals: ImageSet) -> None:
        """Pair them.

        Raises:
            UserError: they are not as many, or not of one size.
        """
        self.images, self.originals = images, originals
        self.warnings = (*images.warnings, *originals.warnings)
        if len(images) != len(originals):
            raise UserError(
                f"psnr, ssim and lpips compare each image with its original, but there are {len(images):,} samples and "
                f"{len(originals):,} reference images; leave them out with --metrics, or give as many."
            )
        a, b = images.read(0, 1).shape, originals.read(0, 1).shape
        if a != b:
            raise UserError(
                f"psnr, ssim and lpips want images of one size: the samples are {a[-1]} x {a[-2]} pixels, the "
                f"reference {b[-1]} x {b[-2]}."
            )

    @property
    def identity(self) -> str:
        """See `ImageSet`."""
        return digest_of([self.images.identity, self.originals.identity])

    def __len__(self) -> int:
        return len(self.images)

    def read(self, start: int, stop: int) -> Tensor:
        """uint8, (n, 6, H, W): the image, then its original."""
        return torch.cat((self.images.read(start, stop), self.originals.read(start, stop)), 1)


class Reconstructed:
    """What a tokenizer makes of a set of images, from their posterior means."""

    warnings: tuple[str, ...] = ()

    def __init__(self, originals: ImageSet, tokenizer: Autoencoder, content: str, uint8_rule: str = "floor") -> None:
        """With `content`, the hash of the tokenizer's file."""
        self.originals, self.tokenizer, self.content, self.rule = originals, tokenizer, content, uint8_rule
        height, width = originals.read(0, 1).shape[-2:]
        factor = tokenizer.spec.factor
        if height % factor or width % factor:
            raise UserError(
                f"the images are {width} x {height} pixels; this tokenizer wants sides that {factor} divides."
            )

    @property
    def identity(self) -> str:
        """See `ImageSet`."""
        return digest_of([self.originals.identity, self.content, self.rule])

    def __len__(self) -> int:
        return len(self.originals)

    def read(self, start: int, stop: int) -> Tensor:
        """uint8, (n, 3, H, W).

        Raises:
            UserError: see `encoded` and `decoded`.
        """
        return decoded(
            self.tokenizer, encoded(self.tokenizer, self.originals.read(start, stop), start), start, self.rule
        )


#: Why a tokenizer gives what is no number.
DAMAGED = (
    "the tokenizer's weights are damaged, have diverged, or are too large for their number format; take an earlier "
    "checkpoint, or fetch or train the tokenizer again"
)


@torch.no_grad()
def encoded(tokenizer: Autoencoder, images: Tensor, first: int) -> Tensor:
    """Posterior means, (N, C, h, w), on the tokenizer's device, of uint8 images (N, 3, H, W) from number `first` on.

    Raises:
        UserError: one is not finite.
    """
    mean = tokenizer.encode(to_unit(images, next(tokenizer.parameters()))).mean
    return finite(mean, "the latent of image", first, DAMAGED)


@torch.no_grad()
def decoded(tokenizer: Autoencoder, latents: Tensor, first: int, uint8_rule: str = "floor") -> Tensor:
    """uint8 images (N, 3, H, W) on the CPU of latents (N, C, h, w) from number `first` on.

    Raises:
        UserError: one is not finite: as an integer it would look like any image.
    """
    found = finite(tokenizer.decode(latents), "reconstruction", first, DAMAGED)
    return to_uint8(found, uint8_rule).cpu()


class Paired:
    """A feature network for sets of six channels: it sees the image, and pairwise metrics see both."""

    def __init__(self, network: FeatureNetwork, wanted: Sequence[str], lpips: Distance | None = None) -> None:
        """`wanted` is of ``psnr``, ``ssim`` and ``lpips``; the last needs its network.

        Raises:
            ValueError: LPIPS is wanted and not given.
        """
        self.network = network
        distances: dict[str, Distance | None] = {"psnr": metrics.psnr_each, "ssim": metrics.ssim_each, "lpips": lpips}
        self._distances: dict[str, Distance] = {}
        for name in wanted:
            if (distance := distances[name]) is None:
                raise ValueError(f"{name} needs a network")
            self._distances[name] = distance

    @property
    def convention(self) -> str:
        """See `FeatureNetwork`."""
        return "; ".join([self.network.convention, *self._distances])

    @property
    def content(self) -> str:
        """See `FeatureNetwork`."""
        return self.network.content

    def __call__(self, images: Tensor) -> Outputs:
        """uint8 (N, 6, H, W)."""
        image, original = images[:, :3].contiguous(), images[:, 3:].contiguous()
        return self.network(image) | {name: f(image, original).float() for name, f in self._distances.items()}


def on_unit_images(distance: Distance, device: torch.device) -> Distance:
    """A distance of images in [-1, 1] as one of uint8 images."""

    @torch.no_grad()
    def measure(a: Tensor, b: Tensor) -> Tensor:
        x, y = (2 * image.to(device, torch.float32) / 255 - 1 for image in (a, b))
        return distance(x, y)

    return measure
