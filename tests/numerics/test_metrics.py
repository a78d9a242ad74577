"""Metrics against closed forms, torch-fidelity and clean-fid."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.metrics import Moments, effective_rank, frechet_distance, inception_score, precision_recall, psnr

DIM = 12


def cloud(seed: int, n: int = 400, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(DIM, DIM, generator=g, dtype=torch.float64)
    return torch.randn(n, DIM, generator=g, dtype=torch.float64) @ mixing * scale + shift


def fid(real: torch.Tensor, fake: torch.Tensor) -> float:
    return frechet_distance(real=Moments.of(real), fake=Moments.of(fake))


def test_fid_equals_clean_fid():
    from cleanfid.fid import frechet_distance as clean

    a, b = cloud(0), cloud(1, shift=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of SciPy's sqrtm, inside clean-fid
        theirs = clean(
            a.mean(0).numpy(), np.cov(a.numpy(), rowvar=False), b.mean(0).numpy(), np.cov(b.numpy(), rowvar=False)
        )
    assert fid(a, b) == pytest.approx(float(theirs), rel=1e-8)


def test_fid_equals_torch_fidelity():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = cloud(2), cloud(3, scale=1.2)
    theirs = fid_statistics_to_metric(fid_features_to_statistics(a), fid_features_to_statistics(b), verbose=False)
    assert fid(a, b) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-8)


def test_fid_of_known_gaussians():
    """Diagonal covariances commute: |m|^2 + sum (sqrt a - sqrt b)^2."""
    a = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    b = torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64)
    m = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    real, fake = Moments(torch.zeros_like(m), torch.diag(a), 10), Moments(m, torch.diag(b), 10)
    expected = float(m.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    assert frechet_distance(real=real, fake=fake) == pytest.approx(expected, rel=1e-12)


@given(seed=st.integers(0, 1000), n=st.integers(2, 60))
def test_fid_with_itself_is_zero_even_with_fewer_samples_than_features(seed, n):
    x = cloud(seed, n)
    assert abs(fid(x, x)) <= 1e-6 * float(Moments.of(x).covariance.trace() + 1)


@given(seed=st.integers(0, 1000), shift=st.floats(-3, 3))
def test_fid_is_symmetric_rotation_invariant_and_sees_a_shift(seed, shift):
    x, y = cloud(seed), cloud(seed + 1)
    base = fid(x, y)
    assert base == pytest.approx(fid(y, x), rel=1e-7)
    rotation = torch.linalg.qr(cloud(seed + 2)[:DIM]).Q
    assert fid(x @ rotation, y @ rotation) == pytest.approx(base, rel=1e-7)
    assert fid(x, x + shift) == pytest.approx(DIM * shift**2, rel=1e-6, abs=1e-6)
    assert fid(x[torch.randperm(len(x))], y) == pytest.approx(base, rel=1e-9)


def test_nan_never_becomes_a_number():
    x = cloud(0)
    x[3, 1] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        Moments.of(x)
    with pytest.raises(ValueError, match="two samples"):
        Moments.of(x[:1])


def test_inception_score_equals_torch_fidelity():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = torch.randn(500, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    for splits in (1, 5):
        theirs = isc_features_to_metric(logits, splits=splits, shuffle=False)["inception_score_mean"]
        assert inception_score(logits, splits) == pytest.approx(theirs, rel=1e-9)


def test_inception_score_ends():
    certain = torch.eye(10).repeat(20, 1) * 100
    assert inception_score(certain) == pytest.approx(10, rel=1e-6)
    assert inception_score(torch.zeros(50, 10)) == pytest.approx(1)


def test_precision_recall_equals_torch_fidelity_with_the_roles_exchanged():
    """Its first argument is the generated set, whatever a caller expects; ours are named (torch-fidelity #58)."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = cloud(0, 300).float(), cloud(0, 200, shift=0.8, scale=0.7).float()
    theirs = prc_features_to_metric(fake, real, prc_neighborhood=3, verbose=False)
    assert precision_recall(real=real, fake=fake) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)
    other = prc_features_to_metric(real, fake, prc_neighborhood=3, verbose=False)
    assert other["precision"] != pytest.approx(theirs["precision"], abs=1e-3)


def test_collapse_has_precision_without_recall_and_spread_the_reverse():
    real = cloud(0, 500)
    collapsed = real[:1] + 1e-3 * torch.randn(500, DIM, dtype=torch.float64)
    precision, recall = precision_recall(real=real, fake=collapsed)
    assert precision > 0.95
    assert recall < 0.02
    scattered = torch.cat((real + 1e-3, cloud(0, 1500) * 20 + 300))
    precision, recall = precision_recall(real=real, fake=scattered)
    assert precision < 0.3
    assert recall > 0.95


def test_precision_recall_by_hand():
    real, fake = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [10.0], [10.5]])
    # k = 1: real radii 1, 1, 2; fake radii 9.5, 0.5, 0.5
    assert precision_recall(real=real, fake=fake, k=1) == (pytest.approx(1 / 3), pytest.approx(1.0))


@given(seed=st.integers(0, 200))
def test_precision_recall_survive_shuffling(seed):
    g = torch.Generator().manual_seed(seed)
    real, fake = cloud(seed, 60), cloud(seed + 1, 50)
    shuffled = precision_recall(real=real[torch.randperm(60, generator=g)], fake=fake[torch.randperm(50, generator=g)])
    assert shuffled == precision_recall(real=real, fake=fake)


def test_effective_rank():
    g = torch.Generator().manual_seed(0)
    white = torch.randn(20_000, 8, generator=g)
    assert effective_rank(white) == pytest.approx(8, rel=0.02)
    assert effective_rank(white[:, :1] * torch.ones(1, 8)) == pytest.approx(1, rel=1e-6)


def test_psnr():
    a = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    assert psnr(a, a + 255) == pytest.approx(0)
    assert psnr(a, a + 16) == pytest.approx(20 * np.log10(255 / 16))
