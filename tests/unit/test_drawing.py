"""What a sample set is, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders import make_networks
from PIL import Image

from harness.sampling.protocol import Protocol
from harness.sampling.sampler import Sampler, sample_labels
from harness.scoring import feature_shards
from harness.scoring.feature_shards import Shards
from harness.scoring.image_files import save_grid
from harness.scoring.sample_set import draw, grid_places
from recipes.core.distributed import World
from recipes.core.errors import UserError

PROTOCOL = Protocol(
    name="test", solver="sde_euler_maruyama", steps=3, samples=12, features="x", reference="x", manifold_size=12
)


def sampler() -> Sampler:
    networks = make_networks()
    assert networks.vae is not None
    return Sampler(networks.sit.eval(), networks.vae.eval(), "linear")


@pytest.mark.parametrize(("field", "value"), [("last_step", 0.2), ("precision", "bf16"), ("to_uint8", "round")])
def test_a_protocols_fields_reach_the_samples(field, value):
    one, two = (
        sampler().draw(p, 0, torch.arange(8))[0] for p in (PROTOCOL, PROTOCOL.model_copy(update={field: value}))
    )
    assert not torch.equal(one, two)


def test_a_diverged_checkpoint_is_a_sentence():
    """As integers, NaN would look like any image."""
    broken = sampler()
    with torch.no_grad():
        broken.sit.final_layer.linear.bias[0] = float("nan")
    with pytest.raises(UserError, match=r"sample 3 under test@2 is not a number: the checkpoint's ema weights have"):
        broken.draw(PROTOCOL, 0, torch.tensor([3, 4]))


def test_a_grid_is_row_by_row(tmp_path):
    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 2, 2) * 50
    save_grid(tmp_path / "grid.png", images, 2)
    with Image.open(tmp_path / "grid.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (4, 4, 3)
    assert (pixels[0, 0, 0], pixels[0, 2, 0], pixels[2, 0, 0], pixels[2, 2, 0]) == (0, 50, 100, 0)


@pytest.mark.parametrize(("classes", "columns"), [(2, [0, 1] * 5), (10, [*range(10)]), (40, [*range(10)])])
def test_a_column_of_a_grid_is_for_one_class(classes, columns):
    labels = torch.randint(0, classes, (1000,), generator=torch.Generator().manual_seed(0))
    places = grid_places(labels)
    assert list(places) == sorted(places)
    assert sorted(places.values()) == [*range(100)]
    by_place = {place: index for index, place in places.items()}
    assert [int(labels[by_place[place]]) for place in range(100)] == columns * 10
    first = (labels == 0).nonzero().flatten().tolist()
    assert [by_place[row * 10] for row in range(10)] == first[:10]
    if classes == 2:  # whose third column goes on
        assert [by_place[row * 10 + 2] for row in range(10)] == first[10:20]


def test_a_grid_of_few_samples_shows_the_classes_that_were_drawn():
    assert grid_places(torch.tensor([700, 3, 700])) == {0: 1, 1: 0, 2: 11}


class _Two(World):
    """One of two processes that are not there at once."""

    def barrier(self) -> None:
        """Nobody to wait for."""


def test_a_grid_comes_from_the_shards_of_all_processes(tmp_path, monkeypatch):
    """Every pixel is the index of its sample; some shards hold no sample of the first ten classes."""
    monkeypatch.setattr(feature_shards, "SHARD", 4)
    protocol = PROTOCOL.model_copy(update={"samples": 100})

    class Indices:
        def draw(self, protocol, seed, indices):
            images = indices.to(torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
            return images, sample_labels(protocol, seed, indices, 40)

    cell = SimpleNamespace(
        key="k", protocol=protocol, generation_seed=3, sampler=lambda device: Indices(),
        run=SimpleNamespace(spec=SimpleNamespace(sit=SimpleNamespace(num_classes=40))),
    )  # fmt: skip
    shards, grid = Shards(tmp_path / "shards", 100), tmp_path / "grid.png"
    for rank in (1, 0):
        assert not grid.exists()
        draw(cell, shards, None, world=_Two(rank=rank, size=2), chunk=3, grid=grid)
    places = grid_places(sample_labels(protocol, 3, torch.arange(100), 40))
    assert any(not set(indices) & set(places) for indices in shards.ranges())
    with Image.open(grid) as image:
        pixels = np.asarray(image)[::2, ::2, 0]
    shown = {index: row * 10 + column for (row, column), index in np.ndenumerate(pixels) if index}
    assert shown == {index: place for index, place in places.items() if index}
