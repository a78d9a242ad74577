"""Protocols: named, told apart, and explained where they differ."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.generate import sample_labels
from harness.metrics import inception_score
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
    told = difference(find_protocol("repa-e-v1"), find_protocol("repa-e-v3"))
    assert told == "version 1 and 2, labels uniform and balanced"


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


@given(count=st.integers(2, 300), classes=st.integers(2, 40), seed=st.integers(0, 2**63 - 1), part=st.integers(1, 50))
def test_balanced_labels_are_even_to_within_one_and_a_function_of_the_index(count, classes, seed, part):
    protocol = find_protocol("repa-e-v3").model_copy(update={"samples": count})
    labels = sample_labels(protocol, seed, torch.arange(count), classes)
    counts = labels.bincount(minlength=classes)
    assert len(counts) == classes
    assert counts.max() - counts.min() <= 1
    parts = [sample_labels(protocol, seed, indices, classes) for indices in torch.arange(count).flip(0).split(part)]
    assert torch.equal(torch.cat(parts).flip(0), labels)
    beyond = sample_labels(protocol, seed, torch.arange(count, 2 * count), classes)
    assert torch.equal(beyond, labels)  # more than the protocol's samples are whole lists again


def test_the_order_of_balanced_labels_is_the_generation_seeds():
    protocol, indices = find_protocol("repa-e-v3"), torch.arange(50_000)
    one, two = (sample_labels(protocol, seed, indices, 1000) for seed in (0, 1))
    assert (one == two).double().mean() == pytest.approx(1e-3, abs=5e-4)
    assert (one == indices % 1000).double().mean() == pytest.approx(1e-3, abs=5e-4)
    split = one[:5000].bincount(minlength=1000)  # a split of the Inception score: no longer 5 of each class
    assert split.double().var() == pytest.approx(5 * 0.9, rel=0.15)  # drawn without replacement from 50 of each
    few = protocol.model_copy(update={"samples": 100})
    drawn = sample_labels(few, 0, torch.arange(100), 1000)
    assert len(drawn.unique()) == 100
    assert drawn.max() >= 900  # not the first hundred classes, which on ImageNet are fish, birds and reptiles


def test_splits_with_every_class_as_often_would_raise_the_inception_score():
    """By about exp((1 - n / N) (classes - 1) / 2n) for splits of n from N samples that are perfect."""
    protocol = find_protocol("repa-e-v3").model_copy(update={"samples": 5000})
    drawn, stratified = sample_labels(protocol, 0, torch.arange(5000), 100), torch.arange(5000) % 100

    def ratio(sharpness: float) -> float:
        logits = torch.eye(100) * sharpness
        even, permuted = (inception_score(logits[labels], split_size=500).mean for labels in (stratified, drawn))
        return even / permuted

    assert ratio(30) == pytest.approx(math.exp(0.9 * 99 / 1000), rel=0.02)
    assert 1.01 < ratio(5) < ratio(30)


def test_the_version_that_had_labels_in_order_is_read_and_not_drawn():
    old = find_protocol("repa-e-v3").model_copy(update={"version": 1})
    assert old.digest() != find_protocol("repa-e-v3").digest()
    assert difference(old, find_protocol("repa-e-v3")) == "version 1 and 2"
    with pytest.raises(UserError, match=r"protocol repa-e-v3@1: its balanced labels came in the order of the classes"):
        sample_labels(old, 0, torch.arange(2), 1000)
    assert {p.version for p in PROTOCOLS.values() if p.labels == "uniform"} == {1}  # they are what they were


def test_generation_seeds_share_no_noise():
    """On one GPU, seeds 0 and 1 of the first release drew the same images."""
    like = torch.empty(64, 4, 2, 2, dtype=torch.float64)
    a, b = (KeyedDraws(seed, 0, torch.arange(64)).normal_like("sample start", like) for seed in (0, 1))
    assert not set(a.flatten().tolist()) & set(b.flatten().tolist())
