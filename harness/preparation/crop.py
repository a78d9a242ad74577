"""How ImageNet is cropped: ADM's way, which every paper of the line takes."""

from __future__ import annotations

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from recipes.data.decoding import MOST_PIXELS


def center_crop(image: PIL.Image.Image, side: int) -> NDArray[np.uint8]:
    """ADM's crop: halve with a box filter while possible, bicubic to the shorter side, cut the centre.

    Args:
        image: RGB.
        side: pixels along each edge of the result.

    Returns:
        uint8, (side, side, 3). An image of (side, side) comes back as it is.

    Raises:
        ValueError: it would become larger than any picture that is read.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), PIL.Image.Resampling.BOX)
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are too thin to be enlarged to a side of {side}")
    if size != image.size:
        image = image.resize(size, PIL.Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))
