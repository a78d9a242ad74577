"""Training data on disk, its parts on ranks, and reading ahead."""

from __future__ import annotations

import threading

import imagenet_tree as tree
import pytest
import torch
from builders import make_batch
from hypothesis import given
from hypothesis import strategies as st

from recipes.core.batch import Batch
from recipes.core.errors import UserError
from recipes.core.prefetch import prefetched
from recipes.data.images import open_images
from recipes.data.latents import finish_latents, write_latents
from recipes.data.loader import StoredData, batches, check_match


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    images = open_images(tree.write_repa_folder(folder / "repa", tree.make_squares(n=30)))

    def encode(pixels):
        x = pixels[..., ::8, ::8].float()
        return x, x / 100

    write_latents(folder / "latents", images, encode, tokenizer="t", shard_size=7)
    return images, finish_latents(folder / "latents")


def equal(a: Batch, b: Batch) -> bool:
    pairs = ((a.images, b.images), (a.labels, b.labels), (a.mean, b.mean), (a.std, b.std))
    return all(x is y is None or torch.equal(x, y) for x, y in pairs)


def test_take(parts):
    images, latents = parts
    squares = tree.make_squares(n=30)
    data = StoredData(images=images, latents=latents, labels=images.labels, threads=2)
    indices = torch.tensor([29, 3, 3, 0])
    batch = data.take(indices)
    assert torch.equal(batch.images, torch.from_numpy(squares.pixels).permute(0, 3, 1, 2)[indices])
    assert batch.labels.tolist() == [squares.labels[i] for i in indices]
    assert torch.equal(batch.mean, batch.images[..., ::8, ::8].float())
    assert len(data) == 30


def test_what_is_left_out_is_not_read(parts):
    images, latents = parts
    batch = StoredData(latents=latents, labels=images.labels).take(torch.tensor([1]))
    assert batch.images is None
    assert batch.to(torch.device("cpu")).take(torch.tensor([0])).images is None
    assert batch.mean is not None
    batch = StoredData(images=images, labels=images.labels).take(torch.tensor([1]))
    assert batch.mean is batch.std is None


def test_parts_must_belong_together(parts, tmp_path):
    images, latents = parts
    other = open_images(tree.write_edm2_zip(tmp_path / "other.zip", tree.make_squares(n=30)))
    with pytest.raises(UserError, match="made from other images"):
        StoredData(images=other, latents=latents, labels=other.labels)
    with pytest.raises(UserError, match="30 images and 29 latents"):
        check_match(images, range(29))
    with pytest.raises(UserError, match="29 labels for 30 items"):
        StoredData(latents=latents, labels=images.labels[1:])


def test_order_does_not_depend_on_threads_or_reading_ahead(parts):
    images, latents = parts
    inline = StoredData(images=images, latents=latents, labels=images.labels)
    pooled = StoredData(images=images, latents=latents, labels=images.labels, threads=4)
    wanted = list(batches(inline, seed=3, batch_size=8, start=2, stop=9))
    got = list(batches(pooled, seed=3, batch_size=8, start=2, stop=9, ahead=3))
    assert [step for step, _ in got] == list(range(2, 9))
    assert all(equal(a, b) for (_, a), (_, b) in zip(wanted, got, strict=True))


@given(
    world=st.integers(1, 5),
    local=st.integers(1, 4),
    size=st.integers(1, 40),
    start=st.integers(0, 30),
    ahead=st.integers(0, 3),
)
def test_ranks_hold_the_parts_of_one_batch(world, local, size, start, ahead):
    data = Batch(labels=torch.arange(size))
    options = {"seed": 5, "batch_size": world * local, "start": start, "stop": start + 4}
    whole = [batch.labels for _, batch in batches(data, **options)]
    ranks = [
        [b.labels for _, b in batches(data, **options, rows=slice(r * local, (r + 1) * local), ahead=ahead)]
        for r in range(world)
    ]
    assert all(torch.equal(a, torch.cat(b)) for a, b in zip(whole, zip(*ranks, strict=True), strict=True))


# Reading ahead.


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_errors_come_at_their_step(depth):
    def make(item):
        if item == 4:
            raise UserError("image 4")
        return item * item

    got = []
    with pytest.raises(UserError, match="image 4"):
        got.extend(prefetched(make, range(100), depth=depth))
    assert got == [0, 1, 4, 9]


def test_reads_ahead_but_not_further():
    begun = []
    ready = threading.Event()

    def make(item):
        begun.append(item)
        if len(begun) == 4:
            ready.set()
        return item

    stream = prefetched(make, range(100), depth=3)
    assert next(stream) == 0
    assert ready.wait(10)  # 1, 2 and 3 are read while the caller works on 0
    stream.close()
    assert max(begun) == 3


def test_closing_early_leaves_no_thread():
    before = threading.active_count()
    stream = batches(make_batch(6), seed=0, batch_size=2, start=0, stop=1000, ahead=2)
    next(stream)
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before


def test_no_items():
    assert list(prefetched(lambda item: item, [], depth=2)) == []
