"""Randomness is a pure function of (seed, step, purpose, item)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.core.draws import KeyedDraws, key_of, normal, philox_4x32, seed_of, uniform


# Known answers of Random123 (kat_vectors, philox4x32 with 10 rounds).
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    words = philox_4x32(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(w) for w in words) == expected


@given(
    n=st.integers(1, 12),
    cut=st.integers(0, 12),
    elements=st.integers(1, 9),
    step=st.integers(0, 2**32 - 1),
    seed=st.integers(0, 2**40),
)
def test_any_split_of_a_batch_draws_the_same(n, cut, elements, step, seed):
    items = torch.arange(n)
    like = torch.empty(n, elements)
    whole = KeyedDraws(seed, step, items).normal_like("noise", like)
    parts = [items[: min(cut, n)], items[min(cut, n) :]]
    split = torch.cat([KeyedDraws(seed, step, p).normal_like("noise", like[: len(p)]) for p in parts if len(p)])
    assert torch.equal(whole, split)


@given(order=st.permutations(range(8)))
def test_an_item_keeps_its_numbers_wherever_it_stands(order):
    plain = KeyedDraws(0, 5, torch.arange(8)).uniform("time")
    shuffled = KeyedDraws(0, 5, torch.tensor(order)).uniform("time")
    assert torch.equal(plain[torch.tensor(order)], shuffled)


def test_seed_step_purpose_and_item_all_matter():
    items = torch.arange(4)
    draws = {
        tuple(KeyedDraws(seed, step, items + shift).uniform(purpose).tolist())
        for seed in (0, 1)
        for step in (0, 1)
        for shift in (0, 4)
        for purpose in ("time", "noise")
    }
    assert len(draws) == 16


def test_distributions():
    items = torch.arange(2000)
    u = uniform(key_of(0, "u"), 0, items, 50).flatten()
    assert u.min() > 0
    assert u.max() < 1
    # 5 sigma of the mean of 100,000 uniforms, and of the moments of as many normals
    assert abs(u.mean() - 0.5) < 5 * (1 / 12 / 100_000) ** 0.5
    z = normal(key_of(0, "z"), 0, items, 50).flatten()
    assert abs(z.mean()) < 5 / 100_000**0.5
    assert abs(z.var() - 1) < 5 * (2 / 100_000) ** 0.5
    assert abs((z**4).mean() - 3) < 5 * (96 / 100_000) ** 0.5
    pairs = z.view(-1, 2)
    assert abs((pairs[:, 0] * pairs[:, 1]).mean()) < 5 / 50_000**0.5


def test_wrong_batch_size_is_a_bug():
    with pytest.raises(ValueError, match="3 rows"):
        KeyedDraws(0, 0, torch.arange(4)).normal_like("noise", torch.empty(3, 2))


def test_seeds_of_neighbours_are_unrelated():
    seeds = {seed_of(seed, "init", name) for seed in range(20) for name in ("a", "b")}
    assert len(seeds) == 40
    assert seed_of(1, "2") != seed_of(12, "")
