"""The average of parameters and float buffers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from recipes.core.ema import ema_copy, ema_decay, ema_update, pairs_of
from recipes.core.spec import EMASpec


@given(decay=st.floats(0, 1), values=st.lists(st.floats(-10, 10), min_size=1, max_size=8))
def test_equals_the_recurrence(decay, values):
    network = nn.Linear(1, 1, bias=False).double()
    network.weight.data.fill_(1.0)
    average, expected = ema_copy(network), 1.0
    for value in values:
        network.weight.data.fill_(value)
        ema_update(pairs_of(average, network), decay)
        expected = decay * expected + (1 - decay) * value
    assert average.weight.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_float_buffers_are_averaged_and_counters_copied():
    network = nn.BatchNorm2d(2, affine=False).double()
    average = ema_copy(network)
    network.train()(torch.randn(4, 2, 3, 3, dtype=torch.float64) + 5)
    ema_update(pairs_of(average, network), 0.9)
    torch.testing.assert_close(average.running_mean, 0.1 * network.running_mean)
    assert average.num_batches_tracked.item() == 1


def test_the_copy_is_frozen_and_apart():
    network = nn.Linear(2, 2)
    average = ema_copy(network)
    assert not any(p.requires_grad for p in average.parameters())
    assert not average.training
    network.weight.data.add_(1)
    assert not torch.equal(average.weight, network.weight)


def test_warmup():
    spec = EMASpec(decay=0.999, warmup=True)
    assert [ema_decay(spec, s) for s in (0, 9)] == pytest.approx([0.1, 10 / 19])
    assert ema_decay(spec, 10**6) == 0.999
    assert ema_decay(EMASpec(decay=0.5), 0) == 0.5
