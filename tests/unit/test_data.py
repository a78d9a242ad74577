"""The order of the data is a function of (seed, position)."""

from __future__ import annotations

import torch
from builders import make_batch
from hypothesis import given
from hypothesis import strategies as st

from recipes.data.loader import batches, order


def test_every_epoch_has_an_order_of_its_own():
    drawn = order(0, torch.arange(3 * 100), 100).view(3, 100)
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


@given(size=st.integers(1, 50), epochs=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_every_epoch_is_a_permutation(size, epochs, seed):
    drawn = order(seed, torch.arange(size * epochs), size).view(epochs, size)
    for row in drawn:
        assert row.sort().values.tolist() == list(range(size))


@given(size=st.integers(2, 30), start=st.integers(0, 60), split=st.integers(1, 19))
def test_order_does_not_depend_on_how_it_is_asked_for(size, start, split):
    positions = torch.arange(start, start + 20)
    whole = order(7, positions, size)
    parts = torch.cat([order(7, part, size) for part in positions.split(split)])
    assert torch.equal(whole, parts)


def test_another_seed_gives_another_order():
    assert not torch.equal(order(0, torch.arange(100), 100), order(1, torch.arange(100), 100))


def test_batches_continue_where_they_were_left():
    data = make_batch(10)
    whole = [batch.images for _, batch in batches(data, seed=1, batch_size=4, start=0, stop=6)]
    rest = [batch.images for _, batch in batches(data, seed=1, batch_size=4, start=3, stop=6)]
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], rest, strict=True))


def test_take_moves_every_tensor_alike():
    data = make_batch(5)
    taken = data.take(torch.tensor([4, 0]))
    assert torch.equal(taken.labels, data.labels[[4, 0]])
    assert torch.equal(taken.features[0], data.features[0][[4, 0]])
    assert torch.equal(taken.mean, data.mean[[4, 0]])
    assert len(taken) == 2
