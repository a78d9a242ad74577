"""Generate sample sets in shards; features are computed on the fly, images kept only on request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from harness.features.base import FeatureNetwork, Outputs
from harness.features.pixels import rows_about
from harness.metrics.statistics import Measured
from harness.records.schema import ScoreRecord
from harness.sampling.protocol import Protocol
from harness.sampling.sampler import Sampler, sample_labels
from harness.scoring.feature_shards import GRID, IMAGES, Shards
from harness.scoring.image_files import GRID_COLUMNS, GRID_ROWS, save_grid
from recipes.core.distributed import World
from recipes.core.spec import digest_of
from recipes.models.autoencoder import Autoencoder
from recipes.training.run_folder import Run, load_for_sampling

#: The class that each sample was asked for: an output like a network's.
LABELS = "labels"


@dataclass(frozen=True)
class Evaluation:
    """One checkpoint under one protocol and one generation seed: all that decides a sample set."""

    run: Run
    step: int
    protocol: Protocol
    generation_seed: int = 0
    tokenizer: Autoencoder | None = None
    """Tokenizer, if the checkpoint does not contain one."""
    tokenizer_content: str = ""
    """Hash of a tokenizer that the run's spec does not name."""
    assets: Mapping[str, str] = field(default_factory=dict)
    """Content hash of the evaluator's feature network and reference; empty where samples are only drawn."""
    search: bool = False
    """Tried to choose a setting by: no result."""

    @property
    def name(self) -> str:
        """For files: checkpoint, protocol, generation seed."""
        return f"{self.step:07d}-{self.protocol.name}-g{self.generation_seed}"

    @cached_property
    def key(self) -> str:
        """Digest that identifies the sample set's content (guards against stale shards)."""
        weights = self.run.weights_hash(self.step)
        return digest_of([weights, self.tokenizer_content, self.protocol.digest(), self.generation_seed])

    @property
    def protocol_digest(self) -> str:
        """Digest of protocol and evaluator assets."""
        return self.protocol.digest_with(dict(self.assets))

    @property
    def record_key(self) -> tuple[object, ...]:
        """Key of the record that it gets."""
        run = self.run.spec.digest()
        return ScoreRecord.key_of(run, self.step, self.protocol_digest, self.generation_seed, self.search)

    def sampler(self, device: torch.device) -> Sampler:
        """The checkpoint, ready to draw from with the weights that the protocol names."""
        run, average = self.run, self.protocol.weights == "ema"
        sit, tokenizer = load_for_sampling(run, self.step, self.tokenizer, average=average, device=device)
        return Sampler(sit, tokenizer, run.spec.method.options.path)


def draw(
    evaluation: Evaluation,
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
        evaluation: what to draw.
        shards: where it is kept; their count is how many.
        network: what looks at the samples; none only keeps them.
        world: the processes.
        chunk: samples at once.
        keep: the images too, as uint8.
        grid: PNG of the first samples of the first classes, see `grid_places`.
        on_sample: given the number of samples that are drawn, as if the other processes were as far.

    Returns:
        outputs and `LABELS`, in the main process.

    Raises:
        UserError: a sample is not finite.
    """
    sampler, done, places = None, 0, dict[int, int]()
    if grid is not None:
        every, classes = torch.arange(shards.count), evaluation.run.spec.sit.num_classes
        places = grid_places(sample_labels(evaluation.protocol, evaluation.generation_seed, every, classes))
    ranges = shards.ranges(world.rank, world.size)
    missing, notes = shards.missing(ranges, evaluation.key)
    for indices in ranges:
        if indices in missing:
            sampler = sampler or evaluation.sampler(world.device)
            images, outputs = _draw_shard(evaluation, sampler, network, indices, chunk)
            kept = {IMAGES: images} if keep else {}
            if grid is not None:  # its samples lie in many shards, which many processes draw
                kept[GRID] = images[[index - indices.start for index in places if index in indices]]
            shards.save(indices, outputs, {"key": evaluation.key}, kept)
        done += len(indices)
        on_sample(min(done * world.size, shards.count))
    world.barrier()
    if not world.main:
        return None
    if grid is not None:
        save_grid(grid, _placed(torch.cat(list(shards.images(GRID))), places), GRID_COLUMNS)
    return shards.load(digest=evaluation.key, notes=notes)


def grid_places(labels: Tensor) -> dict[int, int]:
    """sample index -> grid cell (row-major), in index order.

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
    tiles = images.new_zeros(max(places.values()) + 1, *images.shape[1:])
    tiles[list(places.values())] = images
    return tiles


def _draw_shard(
    evaluation: Evaluation, sampler: Sampler, network: FeatureNetwork | None, indices: range, chunk: int
) -> tuple[Tensor, Outputs]:
    images, parts = [], list[Outputs]()
    for part in torch.arange(indices.start, indices.stop).split(chunk):
        drawn, labels = sampler.draw(evaluation.protocol, evaluation.generation_seed, part)
        images.append(drawn)
        seen = network(drawn) | rows_about(drawn) if network is not None else {}
        parts.append({name: value.cpu() for name, value in (seen | {LABELS: labels}).items()})
    return torch.cat(images), {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
