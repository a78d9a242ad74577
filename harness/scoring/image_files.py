"""Sample sets as files: a PNG grid, and an .npz as ADM reads it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from recipes.core.atomic import written

GRID_COLUMNS, GRID_ROWS = 10, 10


def save_grid(path: Path, images: Tensor, columns: int) -> None:
    """Write uint8 images (N, 3, H, W) as one PNG, row by row, one pixel for a pixel."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    canvas = np.zeros((rows * height, columns * width, channels), dtype=np.uint8)
    for k, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        y, x = divmod(k, columns)
        canvas[y * height : (y + 1) * height, x * width : (x + 1) * width] = image
    with written(path) as file:
        Image.fromarray(canvas).save(file, format="PNG")


def write_npz(path: Path, images: Iterator[Tensor], count: int, labels: Tensor | None = None) -> None:
    """Write images as ADM's evaluator reads them, a part at a time: 50,000 of 256 pixels are 10 GB.

    Args:
        path: of the .npz, which appears whole or not at all: ``arr_0`` uint8 (N, H, W, 3), ``labels`` int64 (N,).
        images: uint8 (n, 3, H, W) each.
        count: of all.
        labels: the class that each was asked for.

    Raises:
        ValueError: there are not `count` images.
    """
    done = 0
    with written(path) as whole, zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            for part in images:
                pixels = part.permute(0, 2, 3, 1).contiguous().numpy()
                if done == 0:
                    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *pixels.shape[1:])}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(pixels.data)
                done += len(pixels)
        if labels is not None:
            with archive.open("labels.npy", "w") as file:
                np.lib.format.write_array(file, labels.numpy())
        if done != count:
            raise ValueError(f"{done} images for an .npz of {count}")
