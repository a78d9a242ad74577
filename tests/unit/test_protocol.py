"""Protocols: named, told apart, and explained where they differ."""

from __future__ import annotations

import pytest
import torch

from harness.generate import sample_labels
from harness.protocol import PROTOCOLS, difference, find_protocol
from recipes.core.draws import KeyedDraws
from recipes.core.errors import UserError


def test_names_and_digests_are_unique():
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())
    bodies = {protocol.model_copy(update={"name": ""}).digest() for protocol in PROTOCOLS.values()}
    assert len(bodies) == len(PROTOCOLS)


def test_the_evaluations_of_the_headline():
    """A guided step costs two evaluations: by the interval over the SDE's times 1 ... 0.04, 0."""
    assert find_protocol("repa-e-v3").nfe == 250
    guided = find_protocol("repa-e-v3-cfg-e2e-vavae")
    inside = sum(t <= 0.73 for t in torch.linspace(1, 0.04, 250, dtype=torch.float64).tolist())
    assert guided.nfe == 250 + inside
    assert find_protocol("sit-heun125").nfe == 249


def test_a_difference_is_spelled_out():
    told = difference(find_protocol("repa-e-v1"), find_protocol("sit-sde250"))
    assert told == "to_uint8 floor and round"
    assert difference(find_protocol("repa-e-v1"), find_protocol("repa-e-v3")) == "labels uniform and balanced"


def test_an_unknown_protocol_is_a_sentence():
    with pytest.raises(UserError, match=r"no protocol 'repa-e-v2'\. Did you mean 'repa-e-v"):
        find_protocol("repa-e-v2")


def test_balanced_labels_are_exact_and_uniform_ones_are_not():
    indices = torch.arange(50_000)
    balanced = sample_labels(find_protocol("repa-e-v3"), 0, indices, 1000).bincount(minlength=1000)
    assert balanced.unique().tolist() == [50]
    uniform = sample_labels(find_protocol("repa-e-v1"), 0, indices, 1000).bincount(minlength=1000)
    assert 6 < uniform.double().std() < 8.2  # sqrt(50)
    assert 47 < uniform.double().median() < 53


def test_generation_seeds_share_no_noise():
    """On one GPU, seeds 0 and 1 of the first release drew the same images."""
    like = torch.empty(64, 4, 2, 2, dtype=torch.float64)
    a, b = (KeyedDraws(seed, 0, torch.arange(64)).normal_like("sample start", like) for seed in (0, 1))
    assert not set(a.flatten().tolist()) & set(b.flatten().tolist())
