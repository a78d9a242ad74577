"""Small ImageNet-shaped data, and the same images in the formats that others prepare."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import PIL.Image

SYNSETS = ("n01440764", "n02102040", "n03000684")
EACH = 20
GREY, CMYK, TRUNCATED, PNG = (0, 3), (1, 5), (2, 7), (2, 1)
"""(synset, number) of the odd files."""


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth colours with some noise: uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(3, 20) + y / rng.uniform(3, 20) + rng.uniform(0, 6)) for _ in range(3)]
    return np.clip(127 + 90 * np.stack(waves, -1) + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def file_name(synset: int, number: int) -> str:
    return f"{SYNSETS[synset]}/{SYNSETS[synset]}_{100 + number}.JPEG"


def write_tree(root: Path) -> Path:
    """60 files of 3 synsets; one grey, one CMYK, one truncated, one PNG with the suffix .JPEG."""
    rng = np.random.default_rng(0)
    for synset, folder in enumerate(SYNSETS):
        (root / folder).mkdir(parents=True)
        for number in range(EACH):
            height, width = rng.integers(40, 160, size=2)
            pixels = picture(int(height), int(width), seed=100 * synset + number)
            here = (synset, number)
            if here == PNG:
                raw = encoded(pixels, "png", "RGBA")
            else:
                raw = encoded(pixels, "jpeg", {GREY: "L", CMYK: "CMYK"}.get(here, "RGB"))
            (root / file_name(synset, number)).write_bytes(raw[: len(raw) // 2] if here == TRUNCATED else raw)
    return root


@dataclass(frozen=True)
class Squares:
    """The content of the written formats."""

    pixels: np.ndarray
    """uint8 (N, side, side, 3)."""
    labels: list[int]
    latents: np.ndarray
    """float32 (N, 2C, h, w): means, then standard deviations."""

    def names(self, pattern: str = "img{:08d}.png") -> list[str]:
        return [f"{i // 4:05d}/" + pattern.format(i) for i in range(len(self.labels))]

    def label_file(self, names: list[str]) -> str:
        pairs = list(map(list, zip(names, self.labels, strict=True)))
        return json.dumps({"labels": pairs[::-1]})  # the order in the file means nothing


def make_squares(n: int = 10, side: int = 16) -> Squares:
    rng = np.random.default_rng(1)
    latents = rng.normal(size=(n, 8, 2, 2)).astype(np.float32)
    latents[:, 4:] = np.abs(latents[:, 4:])
    pixels = np.stack([picture(side, side, seed) for seed in range(n)])
    return Squares(pixels, rng.integers(0, 5, size=n).tolist(), latents)


def write_edm2_zip(path: Path, squares: Squares, *, npy: bool = False, deflated: bool = False) -> Path:
    """PNG or .npy images with dataset.json, as EDM2's tool writes them."""
    names = squares.names("img{:08d}.npy" if npy else "img{:08d}.png")
    method = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, pixels in zip(names, squares.pixels, strict=True):
            if npy:
                buffer = io.BytesIO()
                np.save(buffer, pixels.transpose(2, 0, 1))
                archive.writestr(name, buffer.getvalue())
            else:
                archive.writestr(name, encoded(pixels, "png"))
        archive.writestr("dataset.json", squares.label_file(names))
    return path


def write_repa_folder(root: Path, squares: Squares, *, labels_in_images: bool = False) -> Path:
    """images/ and vae-sd/, as REPA's preparation writes them."""
    image_names, latent_names = squares.names(), squares.names("img-mean-std-{:08d}.npy")
    for i, (image, latent) in enumerate(zip(image_names, latent_names, strict=True)):
        for path in (root / "images" / image, root / "vae-sd" / latent):
            path.parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / image).write_bytes(encoded(squares.pixels[i], "png"))
        np.save(root / "vae-sd" / latent, squares.latents[i])
    if labels_in_images:
        (root / "images" / "dataset.json").write_text(squares.label_file(image_names))
    else:
        (root / "vae-sd" / "dataset.json").write_text(squares.label_file(latent_names))
    return root


def write_h5(folder: Path, squares: Squares) -> Path:
    """images.h5 and images_h5.json, as REPA-E's preparation writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = squares.names()
    with h5py.File(folder / "images.h5", "w") as file:
        for name, pixels in zip(names, squares.pixels, strict=True):
            file.create_dataset(name, data=np.frombuffer(encoded(pixels, "png"), dtype=np.uint8))
        file.create_dataset("dataset.json", data=squares.label_file(names).encode())
    (folder / "images_h5.json").write_text(json.dumps([*names[::-1], "dataset.json"]))
    return folder
