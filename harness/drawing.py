"""Sample sets: drawn in shards by one process or many, looked at on the way, and kept only if somebody asks."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.features import FeatureNetwork, Outputs
from harness.generate import Sampler, sample_labels
from harness.measured import GRID, IMAGES, Measured, Shards
from harness.pixels import rows_about
from harness.protocol import Protocol
from recipes.core.checkpoint import written
from recipes.core.distributed import World
from recipes.core.spec import digest_of
from recipes.models.autoencoder import Autoencoder
from recipes.registry import recipe_options
from recipes.run import Run, load_for_sampling

#: The class that each sample was asked for: an output like a network's.
LABELS = "labels"
GRID_COLUMNS, GRID_ROWS = 10, 10


@dataclass(frozen=True)
class Cell:
    """One checkpoint under one protocol and one generation seed: all that decides a sample set."""

    run: Run
    step: int
    protocol: Protocol
    generation_seed: int = 0
    tokenizer: Autoencoder | None = None
    """That the run was trained on, where it holds none of its own."""
    tokenizer_content: str = ""
    """Its hash, where the run's specification does not name it."""

    @property
    def name(self) -> str:
        """For files: checkpoint, protocol, generation seed."""
        return f"{self.step:07d}-{self.protocol.name}-g{self.generation_seed}"

    @cached_property
    def key(self) -> str:
        """Digest of the weights, the protocol and the seed, so that nothing stale is ever taken for this set."""
        weights = self.run.weights_hash(self.step)
        return digest_of([weights, self.tokenizer_content, self.protocol.digest(), self.generation_seed])

    def sampler(self, device: torch.device) -> Sampler:
        """The checkpoint, ready to draw from with the weights that the protocol names."""
        run, average = self.run, self.protocol.weights == "ema"
        sit, tokenizer = load_for_sampling(run, self.step, self.tokenizer, average=average, device=device)
        options = recipe_options(run.spec.recipe, run.spec.options, where=run.spec.arm)
        return Sampler(sit, tokenizer, options.path)


def draw(
    cell: Cell,
    shards: Shards,
    network: FeatureNetwork | None,
    *,
    world: World,
    chunk: int,
    keep: bool = False,
    grid: Path | None = None,
    on_sample: Callable[[int], None] = lambda done: None,
) -> Measured | None:
    """Draw a sample set; images go from the sampler to the network on the device.

    A shard is a range of sample indices, whatever the number of processes: each process draws every n-th, and a
    finished one is never drawn again.

    Args:
        cell: what to draw.
        shards: where it is kept; their count is how many.
        network: what looks at the samples; none only keeps them.
        world: the processes.
        chunk: samples at once.
        keep: the images too, as uint8.
        grid: PNG of the first samples of the first classes, see `grid_places`.
        on_sample: told how many this process and, as it supposes, the others have drawn.

    Returns:
        outputs and `LABELS`, in the main process.

    Raises:
        UserError: a sample is not finite.
    """
    sampler, done, places = None, 0, dict[int, int]()
    if grid is not None:
        every, classes = torch.arange(shards.count), cell.run.spec.sit.num_classes
        places = grid_places(sample_labels(cell.protocol, cell.generation_seed, every, classes))
    for indices in shards.ranges(world.rank, world.size):
        if not shards.has(indices, cell.key):
            sampler = sampler or cell.sampler(world.device)
            images, outputs = _draw_shard(cell, sampler, network, indices, chunk)
            kept = {IMAGES: images} if keep else {}
            if grid is not None:  # its samples lie in many shards, which many processes draw
                kept[GRID] = images[[index - indices.start for index in places if index in indices]]
            shards.save(indices, outputs, {"key": cell.key}, kept)
        done += len(indices)
        on_sample(min(done * world.size, shards.count))
    world.barrier()
    if not world.main:
        return None
    if grid is not None:
        save_grid(grid, _placed(torch.cat(list(shards.images(GRID))), places), GRID_COLUMNS)
    return shards.load(digest=cell.key)


def grid_places(labels: Tensor) -> dict[int, int]:
    """Where in a grid of samples, counted row by row, each of them stands: by its index, in order.

    A column is for one class and holds its first samples; of more classes than columns, the first ones are shown. Of
    fewer, a class has several columns.

    Args:
        labels: of all samples by index, int64, (N,).
    """
    classes, found = labels.unique().tolist()[:GRID_COLUMNS], dict[int, int]()
    for column in range(GRID_COLUMNS):
        turn, k = divmod(column, len(classes))
        of_class = (labels == classes[k]).nonzero().flatten().tolist()
        for row, index in enumerate(of_class[turn * GRID_ROWS :][:GRID_ROWS]):
            found[index] = row * GRID_COLUMNS + column
    return dict(sorted(found.items()))


def _placed(images: Tensor, places: Mapping[int, int]) -> Tensor:
    """The images of `grid_places`, in its order, at their places; black where there is none."""
    cells = images.new_zeros(max(places.values()) + 1, *images.shape[1:])
    cells[list(places.values())] = images
    return cells


def _draw_shard(
    cell: Cell, sampler: Sampler, network: FeatureNetwork | None, indices: range, chunk: int
) -> tuple[Tensor, Outputs]:
    images, parts = [], list[Outputs]()
    for part in torch.arange(indices.start, indices.stop).split(chunk):
        drawn, labels = sampler.draw(cell.protocol, cell.generation_seed, part)
        images.append(drawn)
        seen = network(drawn) | rows_about(drawn) if network is not None else {}
        parts.append({name: value.cpu() for name, value in (seen | {LABELS: labels}).items()})
    return torch.cat(images), {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


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
