"""Protocols: named, told apart, and explained where they differ."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baselines.published import load_all
from harness.metrics.inception_score import inception_score
from harness.sampling.protocol import PROTOCOLS, Protocol, difference, find_protocol
from harness.sampling.sampler import sample_labels
from harness.suites import suite
from recipes.core.draws import KeyedDraws
from recipes.core.errors import UserError

#: What records of before SiT's guidance and last step were options name; of SiT's two, version 1.
DIGESTS = {
    "repa-e-v1": "dbec3b271ef8cd9c",
    "repa-e-v3": "62d52eedd24d166e",
    "repa-e-v3-cfg-sdvae": "5044490f603af2cb",
    "repa-e-v3-cfg-invae": "5aae5504eca252c4",
    "repa-e-v3-cfg-vavae": "f6176340e050f648",
    "repa-e-v1-cfg-e2e-vavae": "36d92fae53533b8c",
    "repa-e-v3-cfg-e2e-vavae": "3549da844342f4df",
    "sit-sde250": "444725fc7cf0cfea",
    "ode50-10k": "84698e63dbf2ef84",
    "digits-ode25": "b2a535fefbfaa723",
    "digits-sde50": "1f15ed8c6b89947e",
}
SIT_BEFORE = {"sit-sde250-cfg": "8ca92df6d0b4c524", "sit-heun125": "d6bf3db4a16f5f16"}


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
    assert find_protocol("sit-heun125").nfe == 250  # as SiT's paper counts them
    assert find_protocol("sit-sde250-cfg").nfe == 500  # the unguided channel costs nothing less


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
    uniform = {p.name: p.version for p in PROTOCOLS.values() if p.labels == "uniform" and p.version > 1}
    assert uniform == {"sit-sde250-cfg": 2, "sit-heun125": 2}  # the others are what they were


@pytest.mark.parametrize("name", DIGESTS)
def test_digests_are_those_of_earlier_records(name):
    assert find_protocol(name).digest().startswith(DIGESTS[name])


@pytest.mark.parametrize("name", SIT_BEFORE)
def test_earlier_records_of_sits_protocols_are_read_as_what_they_were(name):
    now = find_protocol(name)
    written = {k: v for k, v in now.model_dump(mode="json").items() if k not in now.as_sit} | {"version": 1}
    before = Protocol.parse(written, where="records.jsonl")
    assert before.digest().startswith(SIT_BEFORE[name])
    assert before.as_sit == {}
    assert before.label == f"{name}@1"
    assert now.label == f"{name}@2"
    told = "guidance_channels None and 3" if now.guidance_scale > 1 else "correct_last_step False and True"
    assert set(difference(before, now).split(", ")) == {told, "version 1 and 2"}
    assert Protocol.parse(now.model_dump(mode="json"), where="records.jsonl").digest() == now.digest()


def test_what_changes_nothing_is_in_no_digest():
    """Channels without guidance, and the last step of a solver that is not Heun's."""
    unguided = find_protocol("sit-sde250")
    assert unguided.guidance_channels == 3
    assert unguided.as_sit == {}
    assert find_protocol("sit-sde250-cfg").guided(1.0).as_sit == {}
    plain = find_protocol("repa-e-v1")
    for idle in ({"guidance_channels": 3}, {"correct_last_step": True}):
        assert plain.model_copy(update=idle).digest() == plain.digest()
    guided = plain.guided(2.0)
    assert guided.model_copy(update={"guidance_channels": 3}).digest() != guided.digest()
    heun = plain.model_copy(update={"solver": "ode_heun"})
    assert heun.model_copy(update={"correct_last_step": True}).digest() != heun.digest()


def test_a_sweep_of_sits_protocols_guides_as_sit_does():
    for name in ("sit-sde250", "sit-sde250-cfg", "sit-heun125"):
        guided = find_protocol(name).guided(1.5)
        assert guided.guidance.channels == 3
        assert "guidance_channels" in guided.model_dump()
    assert find_protocol("repa-e-v1").guided(1.5).guidance.channels is None


def test_both_can_be_set_in_a_suite():
    told = suite("imagenet256", {"curve_protocol.guidance_channels": 3, "curve_protocol.correct_last_step": True})
    assert (told.curve_protocol.guidance_channels, told.curve_protocol.correct_last_step) == (3, True)
    assert told.identity() == suite("imagenet256").identity()  # Euler's method without guidance looks at neither


@pytest.mark.parametrize(
    ("name", "row", "fid", "labels"),
    [
        ("repa-e-v1-cfg-sdvae", "repa_e:117", 1.67, "uniform"),
        ("repa-e-v1-cfg-invae", "repa_e:119", 1.61, "uniform"),
        ("repa-e-v1-cfg-vavae", "repa_e:121", 1.73, "uniform"),
        ("repa-e-v1-cfg-e2e-vavae", "repa_e:129", 1.26, "uniform"),
        ("repa-e-v3-cfg-e2e-vavae", "repa_e:137", 1.12, "balanced"),
        ("sit-sde250-cfg", "vanilla:25", 2.06, "uniform"),
    ],
)
def test_a_protocol_is_that_of_the_published_row(name, row, fid, labels):
    protocol, published = find_protocol(name), next(r for r in load_all() if r.ref == row)
    assert published.gfid == fid
    assert published.cfg is not None
    assert published.cfg.scale == protocol.guidance_scale
    assert (published.cfg.interval or (0.0, 1.0)) == (protocol.guidance_low, protocol.guidance_high)
    assert protocol.labels == labels
    if row.startswith("repa_e"):
        assert published.note is not None
        assert labels in published.note.replace("class-balanced", "balanced").replace("random", "uniform")


def test_the_two_sets_of_labels_differ_in_nothing_else():
    for name in ("sdvae", "invae", "vavae"):
        told = difference(find_protocol(f"repa-e-v1-cfg-{name}"), find_protocol(f"repa-e-v3-cfg-{name}"))
        assert told == "version 1 and 2, labels uniform and balanced"


def test_generation_seeds_share_no_noise():
    """On one GPU, seeds 0 and 1 of the first release drew the same images."""
    like = torch.empty(64, 4, 2, 2, dtype=torch.float64)
    a, b = (KeyedDraws(seed, 0, torch.arange(64)).normal_like("sample start", like) for seed in (0, 1))
    assert not set(a.flatten().tolist()) & set(b.flatten().tolist())
