"""Pairwise comparison of images with their originals (PSNR, SSIM, LPIPS), and tokenizer reconstructions."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import cast

import torch
from torch import Tensor

from harness.features.base import FeatureNetwork, Outputs
from harness.metrics import reconstruction
from harness.sampling.sampler import to_uint8
from harness.scoring.image_sets import ImageSet, NamedSet
from recipes.core.errors import UserError
from recipes.core.finite import finite
from recipes.core.precision import matrix_products
from recipes.core.spec import digest_of
from recipes.data.files import natural, printable
from recipes.models.autoencoder import Autoencoder, to_signed

#: Distance (N,) of images in [-1, 1], (N, 3, H, W) twice.
Distance = Callable[[Tensor, Tensor], Tensor]


def _bare(stems: Sequence[str]) -> list[str]:
    """Strip the common prefix and suffix of all stems, without splitting numbers."""
    head = os.path.commonprefix(list(stems)).rstrip("0123456789")  # noqa: RUF071 (characters are meant)
    rest = [stem[len(head) :] for stem in stems]
    tail = os.path.commonprefix([stem[::-1] for stem in rest])[::-1].lstrip("0123456789")  # noqa: RUF071
    return [stem[: len(stem) - len(tail)] for stem in rest]


def _keys(names: Sequence[str]) -> Iterator[list[Hashable]]:
    """Matching keys from strict to loose: full name, path+stem, stem, stem without common prefix/suffix."""
    whole = [unicodedata.normalize("NFC", name) for name in names]
    yield [*whole]
    parts = [PurePosixPath(name) for name in whole]
    for stems in ([part.stem for part in parts], _bare([part.stem for part in parts])):
        last: list[Hashable] = [natural(stem)[0] for stem in stems]
        yield [(natural(str(part.parent))[0], stem) for part, stem in zip(parts, last, strict=True)]
        yield last


def paired_by_name(names: Sequence[str], originals: Sequence[str]) -> list[int]:
    """Index of the matching original for each image (strictest key that matches all).

    Raises:
        UserError: they are not of the same names; the first that differ are named.
    """
    for mine, theirs in zip(_keys(names), _keys(originals), strict=True):
        where = {key: k for k, key in enumerate(theirs)}
        if len(where) == len(theirs) and len(set(mine)) == len(mine) and where.keys() == set(mine):
            return [where[key] for key in mine]
    pairs = list(zip(*(sorted(side, key=natural) for side in (names, originals)), strict=True))
    one, other = next((p for p in pairs if len({natural(PurePosixPath(n).stem)[0] for n in p}) == 2), pairs[0])
    raise UserError(
        "psnr, ssim and lpips compare each image with its original, and the names do not say which that is: the first "
        f"that differ are {printable(one)} and {printable(other)}. Give both sides the same names."
    )


class Beside:
    """Images and their originals as one set of six channels: by name where both have names, else by position."""

    def __init__(self, images: ImageSet, originals: ImageSet) -> None:
        """Pair them.

        Raises:
            UserError: they are not as many, not of one size, or their names do not say which belong together.
        """
        self.images, self.originals, self.names, self.size = images, originals, images.names, images.size
        if len(images) != len(originals):
            raise UserError(
                f"psnr, ssim and lpips compare each image with its original, but there are {len(images):,} samples and "
                f"{len(originals):,} reference images; leave them out with --metrics, or give as many."
            )
        if images.size != originals.size:
            raise UserError(
                "psnr, ssim and lpips want images of one size: the samples are {} x {} pixels, the reference "
                "{} x {}.".format(*images.size, *originals.size)
            )
        self._order: list[int] | None = None
        if images.names is not None and originals.names is not None:
            order = paired_by_name(images.names, originals.names)
            self._order = order if order != [*range(len(order))] else None
        else:
            _refuse_unsure(images.names or originals.names or ())

    @property
    def warnings(self) -> tuple[str, ...]:
        """See `ImageSet`."""
        return (*self.images.warnings, *self.originals.warnings)

    @property
    def identity(self) -> str:
        """See `ImageSet`."""
        return digest_of([self.images.identity, self.originals.identity, self._order])

    def __len__(self) -> int:
        return len(self.images)

    def read(self, start: int, stop: int) -> Tensor:
        """uint8, (n, 6, H, W): the image, then its original."""
        if self._order is None:
            originals = self.originals.read(start, stop)
        else:
            originals = cast(NamedSet, self.originals).take(self._order[start:stop])
        return torch.cat((self.images.read(start, stop), originals), 1)


def _refuse_unsure(names: Sequence[str]) -> None:
    """Files are paired with an array by position; refuse names whose text order and numeric order differ."""
    for one, other in zip(names, sorted(names, key=natural), strict=True):
        if one != other:
            raise UserError(
                f"psnr, ssim and lpips compare files with an array by position, but {printable(one)} comes before "
                f"{printable(other)} as text and after it as a number; write the numbers with leading zeros, or give "
                "both as folders."
            )


class Reconstructed:
    """An ImageSet with a tokenizer's reconstructions."""

    warnings: tuple[str, ...] = ()

    def __init__(self, originals: ImageSet, tokenizer: Autoencoder, content: str, uint8_rule: str = "floor") -> None:
        """With `content`, the hash of the tokenizer's file."""
        self.originals, self.tokenizer, self.content, self.rule = originals, tokenizer, content, uint8_rule
        self.names, self.size = originals.names, originals.size
        width, height = originals.size
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


#: Error text: cause and remedy when a tokenizer produces NaN.
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
    mean = tokenizer.encode(to_signed(images, next(tokenizer.parameters()))).mean
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
    """Feature network for image+original pairs (6 channels): features of the image, plus pairwise metrics."""

    def __init__(self, network: FeatureNetwork, wanted: Sequence[str], lpips: Distance | None = None) -> None:
        """`wanted` is of ``psnr``, ``ssim`` and ``lpips``; the last needs its network.

        Raises:
            ValueError: LPIPS is wanted and not given.
        """
        self.network = network
        distances: dict[str, Distance | None] = {
            "psnr": reconstruction.psnr_each,
            "ssim": reconstruction.ssim_each,
            "lpips": lpips,
        }
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

    @property
    def notes(self) -> tuple[str, ...]:
        """See `FeatureNetwork`."""
        return self.network.notes

    def __call__(self, images: Tensor) -> Outputs:
        """uint8 (N, 6, H, W)."""
        image, original = images[:, :3].contiguous(), images[:, 3:].contiguous()
        return self.network(image) | {name: f(image, original).float() for name, f in self._distances.items()}


def on_uint8_images(distance: Distance, device: torch.device) -> Distance:
    """A distance of images in [-1, 1] as one of uint8 images."""

    @matrix_products("fp32")
    @torch.no_grad()
    def measure(a: Tensor, b: Tensor) -> Tensor:
        x, y = (2 * image.to(device, torch.float32) / 255 - 1 for image in (a, b))
        return distance(x, y)

    return measure
