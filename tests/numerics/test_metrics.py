"""Metrics against closed forms, torch-fidelity and clean-fid."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests_support import precision_recall

from harness.metrics.frechet import Moments, MomentSums, frechet, frechet_distance
from harness.metrics.inception_score import inception_score
from harness.metrics.kid import kid
from harness.metrics.latents import effective_rank
from harness.metrics.manifold import manifold
from harness.metrics.reconstruction import psnr_each, ssim_each
from recipes.core.errors import UserError

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


def test_fid_with_fewer_samples_than_features_is_exact():
    """The trace of the root is then the nuclear norm of the product of the centred feature matrices."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 300, generator=g).double(), torch.randn(24, 300, generator=g).double() * 1.3
    a, b = (x - x.mean(0)) / 19**0.5, (y - y.mean(0)) / 23**0.5
    root = torch.linalg.svdvals(a @ b.T).sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * root
    assert fid(x, y) == pytest.approx(float(expected), rel=1e-12)
    assert abs(fid(x, x)) < 1e-10 * float(a.square().sum())


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


def test_the_parts_of_a_frechet_distance_add_up():
    for n in (400, 5):
        real, fake = Moments.of(cloud(0)), Moments.of(cloud(1, n, shift=0.3))
        result = frechet(real=real, fake=fake)
        assert result.distance == frechet_distance(real=real, fake=fake)
        assert result.mean_term == pytest.approx(float((real.mean - fake.mean).square().sum()), rel=1e-12)
        assert result.mean_term + result.trace_term == pytest.approx(result.distance, rel=1e-12)
        assert 0 <= result.negative_mass < 1e-12
    broken = Moments(fake.mean, fake.covariance - 0.1 * torch.eye(DIM), 5)
    assert frechet(real=real, fake=broken).negative_mass > 1e-4


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * float(b.abs().max()))


@given(cuts=st.lists(st.integers(0, 300), max_size=8), seed=st.integers(0, 100), shift=st.sampled_from([0, 3, 100]))
def test_sums_do_not_depend_on_the_batches(cuts, seed, shift):
    x = cloud(seed, 300, shift=shift).float()
    edges = [0, *sorted(cuts), 300]
    parts = [x[a:b] for a, b in itertools.pairwise(edges)]
    added, merged, expected = MomentSums.empty(DIM), MomentSums.empty(DIM), Moments.of(x)
    for part in parts:
        assert added.add(part) is added
        merged = merged + MomentSums.empty(DIM).add(part)
    for sums in (added, merged):
        found = sums.moments()
        assert found.count == sums.n == 300
        close(found.mean, expected.mean)
        close(found.covariance, expected.covariance)


def test_sums_lose_no_digits_to_a_far_mean():
    x = cloud(0, 1000)
    far = (x * 2**20).round() / 2**20 + 2.0**20
    sums = MomentSums.empty(DIM)
    for part in far.split(7):
        sums.add(part)
    exact = Moments.of(far - 2.0**20).covariance
    assert float((sums.moments().covariance - exact).abs().max()) < 1e-8 * float(exact.abs().max())


def test_sums_leave_their_parts_alone():
    a, b = MomentSums.empty(DIM).add(cloud(0, 9)), MomentSums.empty(DIM).add(cloud(1, 8))
    before, mean = a.scatter.clone(), b.mean.clone()
    whole = a.merge(b)
    whole.add(cloud(2, 5))
    (MomentSums.empty(DIM) + a).add(cloud(2, 5))
    assert (a.n, b.n, whole.n) == (9, 8, 22)
    assert torch.equal(a.scatter, before)
    assert torch.equal(b.mean, mean)


def test_sums_refuse_what_is_no_number_and_name_the_row():
    sums, x = MomentSums.empty(DIM).add(cloud(0, 10)), cloud(1, 10)
    before = sums.mean.clone()
    for value in (float("nan"), float("inf")):
        x[4, 2] = value
        with pytest.raises(ValueError, match=r"row 4 of the batch \(row 14 of all\) holds NaN"):
            sums.add(x)
    assert sums.n == 10
    assert torch.equal(sums.mean, before)
    with pytest.raises(ValueError, match="shape"):
        sums.add(x[:, :3])
    with pytest.raises(ValueError, match="two samples"):
        MomentSums.empty(DIM).add(cloud(0, 1)).moments()
    with pytest.raises(ValueError, match="dimensions"):
        sums.merge(MomentSums.empty(3))


def test_inception_score_equals_torch_fidelity():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = torch.randn(500, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    for splits in (1, 5):
        theirs = isc_features_to_metric(logits, splits=splits, shuffle=False)["inception_score_mean"]
        assert inception_score(logits, splits).mean == pytest.approx(theirs, rel=1e-9)


def test_inception_score_in_splits_of_a_size_as_adm_does():
    logits = torch.randn(250, 10, generator=torch.Generator().manual_seed(0)) * 3
    scores = []
    for start in range(0, 250, 100):
        p = logits[start : start + 100].double().softmax(1).numpy()
        scores.append(np.exp(np.mean(np.sum(p * (np.log(p) - np.log(p.mean(0, keepdims=True))), 1))))
    assert inception_score(logits, split_size=100).mean == pytest.approx(np.mean(scores), rel=1e-9)
    assert inception_score(logits, split_size=5000) == pytest.approx(inception_score(logits), rel=1e-12)
    with pytest.raises(ValueError, match="not both"):
        inception_score(logits, 2, split_size=100)


def test_kid_equals_torch_fidelity():
    from torch_fidelity.metric_kid import kernel_mmd, kid_features_to_metric

    real, fake = cloud(0, 120), cloud(1, 120, shift=0.4)
    theirs = kernel_mmd(
        real.numpy(), fake.numpy(), kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_coef0=1
    )
    found = kid(real=real, fake=fake, subsets=3, subset_size=120)
    assert found.mean == pytest.approx(float(theirs), rel=1e-9)
    assert found.sd <= 1e-9 * abs(found.mean)
    # Other subsets of the same size: equal up to their spread.
    drawn = kid(real=real, fake=fake, subsets=200, subset_size=40)
    other = kid_features_to_metric(fake, real, kid_subsets=200, kid_subset_size=40, verbose=False)
    assert drawn.sd == pytest.approx(other["kernel_inception_distance_std"], rel=0.3)
    assert abs(drawn.mean - other["kernel_inception_distance_mean"]) < 5 * drawn.sd / 200**0.5


@pytest.mark.parametrize(("size", "other", "subset"), [(400, 400, 100), (120, 1000, 100), (100, 100, 100)])
def test_the_error_of_kid_is_how_far_other_sets_move_it(size, other, subset):
    g = torch.Generator().manual_seed(0)
    found = [
        kid(
            real=torch.randn(size, DIM, generator=g),
            fake=torch.randn(other, DIM, generator=g) + 0.3,
            subsets=20,
            subset_size=subset,
        )
        for _ in range(100)
    ]
    moved = float(np.std([k.mean for k in found], ddof=1))
    assert 0.8 * moved < np.mean([k.se for k in found]) < 1.4 * moved
    assert np.mean([k.sd for k in found]) / 20**0.5 < moved / 2  # the subsets overlap, and of whole sets are one


def test_kid_is_a_function_of_its_seed():
    real, fake = cloud(0, 90).float(), cloud(1, 70).float()

    def draw(seed: int) -> tuple[float, float]:
        return kid(real=real, fake=fake, subsets=5, subset_size=30, seed=seed)

    state = torch.get_rng_state()
    assert draw(1) == draw(1) == kid(real=real.numpy(), fake=fake.numpy(), subsets=5, subset_size=30, seed=1)
    assert draw(1) != draw(2)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="no 5 subsets of 71"):
        kid(real=real, fake=fake, subsets=5, subset_size=71)
    fake[0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        kid(real=real, fake=fake, subsets=1, subset_size=70)


@pytest.mark.parametrize(("split", "classes"), [(100, 20), (500, 20), (1000, 20), (250, 5)])
def test_the_error_of_the_inception_score_is_how_far_other_samples_move_it(split, classes):
    """Of one split too; over several it is, but for noise, their standard deviation over the root of their number."""
    g = torch.Generator().manual_seed(0)
    found, over_splits = [], []
    for _ in range(100):
        logits = torch.randn(1000, classes, generator=g)
        logits[torch.arange(1000), torch.randint(0, classes, (1000,), generator=g)] += 4
        found.append(inception_score(logits, split_size=split))
        parts = [inception_score(part).mean for part in logits.split(split)]
        over_splits.append(np.std(parts, ddof=1) / len(parts) ** 0.5 if len(parts) > 1 else found[-1].se)
    moved = float(np.std([k.mean for k in found], ddof=1))
    assert np.mean([k.se for k in found]) == pytest.approx(moved, rel=0.2)
    assert np.sqrt(np.mean(np.square(over_splits))) == pytest.approx(np.mean([k.se for k in found]), rel=0.2)


def test_inception_score_ends():
    certain = torch.eye(10).repeat(20, 1) * 100
    assert inception_score(certain) == pytest.approx((10, 0), rel=1e-6, abs=1e-9)
    assert inception_score(torch.zeros(50, 10)) == pytest.approx((1, 0))
    assert inception_score(torch.randn(101, 10), split_size=100).se > 0  # the last part has one row


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


def brute(real: torch.Tensor, fake: torch.Tensor, k: int) -> tuple[float, ...]:
    """Every distance at once, in float64: precision, recall, density, coverage."""

    def apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")

    radii, other = (apart(x, x).kthvalue(k + 1, dim=1).values for x in (real, fake))
    cross = apart(real, fake)
    balls, reverse = cross <= radii[:, None], cross <= other[None]
    shares = (balls.any(0), reverse.any(1), balls.sum(0), balls.any(1))
    precision, recall, density, coverage = (float(x.double().mean()) for x in shares)
    return precision, recall, density / k, coverage


def make(kind: str, seed: int, n: int, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sets that are easy or hard for products in float32."""
    real, fake = cloud(seed, n).float(), cloud(seed, m + 7, shift=0.2, scale=0.9)[7:].float()
    if kind == "far":  # the distances are lost against the norms
        return real + 1e4, fake + 1e4
    if kind == "copies":  # exact ties
        return torch.cat((real, real[: n // 2])), torch.cat((fake, real[: m // 2], real[:1].expand(m, -1)))
    if kind == "grid":  # ties of different pairs
        return (real[:, :3]).round(), (fake[:, :3] * 1.3).round()
    if kind == "outlier":
        return torch.cat((real, torch.full((1, DIM), 3e8))), torch.cat((fake, torch.full((2, DIM), -1e9)))
    if kind == "collapsed":
        return real, 1e-5 * fake + real[:1] + 20
    return real, fake


KINDS = ["plain", "far", "copies", "grid", "outlier", "collapsed"]


@settings(max_examples=150)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 500),
    k=st.integers(1, 6),
    n=st.integers(8, 60),
    m=st.integers(8, 60),
    budget=st.sampled_from([12_000, 40_000, 2**29]),
)
def test_manifold_equals_brute_force_whatever_the_tiles(kind, seed, k, n, m, budget):
    real, fake = make(kind, seed, n, m)
    found = manifold(real=real, fake=fake, k=k, budget=budget)
    expected = brute(real, fake, k)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected, abs=1e-12)
    assert precision_recall(real=real, fake=fake, k=k, budget=budget) == (found.precision, found.recall)
    total = found.precision + found.recall
    assert found.f_score == pytest.approx(2 * found.precision * found.recall / total if total else 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_manifold_of_many_points_in_few_tiles_equals_brute_force(kind, dtype):
    real, fake = (x.clamp(-6e4, 6e4).to(dtype) for x in make(kind, 3, 700, 500))
    for k in (1, 5):
        found = manifold(real=real, fake=fake, k=k, budget=2**22)
        expected = brute(real, fake, k)
        assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_manifold_point_by_point(kind):
    real, fake = make(kind, 1, 12, 10)
    kept = real.clone(), fake.clone()
    assert manifold(real=real, fake=fake, k=2, budget=1) == manifold(real=real.double(), fake=fake.double(), k=2)
    assert torch.equal(real, kept[0])
    assert torch.equal(fake, kept[1])


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_manifold_of_tiny_and_huge_numbers(scale):
    real, fake = cloud(0, 90), cloud(0, 97, shift=0.2)[7:]
    assert manifold(real=real * scale, fake=fake * scale) == manifold(real=real, fake=fake)


def test_manifold_reads_a_memmap_by_tiles(tmp_path):
    real, fake = cloud(0, 300).float(), cloud(1, 200).float()
    for name, x in (("real", real), ("fake", fake)):
        np.save(tmp_path / f"{name}.npy", x.numpy())
    maps = {name: np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("real", "fake")}
    assert manifold(**maps, budget=50_000) == manifold(real=real, fake=fake)


def test_manifold_heeds_no_reduced_precision_and_restores_it():
    real, fake = make("far", 0, 200, 150)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = manifold(real=real, fake=fake)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert (found.precision, found.recall, found.density, found.coverage) == brute(real, fake, 5)


def test_manifold_refuses_what_has_no_answer():
    x, y = cloud(0, 10), cloud(1, 6)
    for k in (0, 6):
        with pytest.raises(ValueError, match="samples"):
            manifold(real=x, fake=y, k=k)
    with pytest.raises(ValueError, match="features"):
        manifold(real=x, fake=y[:, :4])
    for value in (float("nan"), float("inf")):
        y[2, 3] = value
        with pytest.raises(ValueError, match="NaN"):
            manifold(real=x, fake=y)


def test_density_and_coverage_by_hand():
    real, fake = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [10.0], [10.5]])
    # k = 1: real radii 1, 1, 2; the first fake lies in the first two balls and on no other
    found = manifold(real=real, fake=fake, k=1)
    assert (found.density, found.coverage) == (pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_effective_rank():
    g = torch.Generator().manual_seed(0)
    white = torch.randn(20_000, 8, generator=g)
    assert effective_rank(white) == pytest.approx(8, rel=0.02)
    assert effective_rank(white[:, :1] * torch.ones(1, 8)) == pytest.approx(1, rel=1e-6)


def test_psnr():
    a = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    assert psnr_each(a, a + 255).tolist() == pytest.approx([0])
    assert psnr_each(a, a + 16).tolist() == pytest.approx([20 * np.log10(255 / 16)])


@pytest.mark.parametrize(("n", "dim"), [(2, 3), (20, 300), (400, 12), (50, 1)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_distance_of_equal_sets_is_exactly_zero(n, dim, scale):
    """In another order too, which moves the last bits of mean and covariance."""
    x = scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(n), dtype=torch.float64) + 3 * scale
    assert fid(x, x) == 0.0
    assert fid(x, x.flip(0)) == 0.0
    assert fid(x, x + 1e-3 * scale) == pytest.approx(dim * 1e-6 * scale**2, rel=1e-5)
    assert fid(torch.zeros(n, dim), torch.zeros(n, dim)) == 0.0


def test_a_negative_distance_that_rounding_does_not_explain_stays():
    real, fake = Moments.of(cloud(0)), Moments.of(cloud(1))
    broken = Moments(real.mean, -fake.covariance, 0)
    found = frechet(real=Moments(real.mean, real.covariance, 0), fake=broken)
    assert found.negative_mass == 1.0  # nothing is positive
    assert broken.negative_mass == 1.0
    tilted = Moments(real.mean, real.covariance - 2 * float(real.covariance.trace()) * torch.eye(DIM), 0)
    assert frechet(real=real, fake=tilted).distance < -1
    turn = torch.linalg.qr(cloud(2)[:DIM]).Q
    halves = [(turn * (torch.arange(DIM) < DIM // 2).logical_xor(torch.tensor(k))) @ turn.T for k in (False, True)]
    apart = frechet(real=Moments(real.mean, halves[0], 0), fake=Moments(real.mean, halves[1], 0))
    assert apart.negative_mass < 1e-12  # of spreads in other directions nothing is left under the root but rounding
    assert apart.distance == pytest.approx(DIM, rel=1e-6)
    lost = Moments(torch.full((DIM,), torch.nan, dtype=torch.float64), real.covariance, 0)
    assert np.isnan(frechet(real=real, fake=lost).distance)


def test_kid_is_zero_where_its_kernels_are_all_the_same():
    for value in (0.0, 0.1, 700.3):
        same = torch.full((40, DIM), value)
        assert kid(real=same, fake=same, subsets=3, subset_size=30).mean == 0.0
    x = cloud(0, 60)
    gram = (x @ x.T / DIM + 1) ** 3
    off, diagonal = float(gram.sum() - gram.trace()), float(gram.trace())
    closed = 2 * off / (60 * 59) - 2 * (off + diagonal) / 60**2  # of a set and itself: below 0, without bias
    assert kid(real=x, fake=x, subsets=1, subset_size=60).mean == pytest.approx(closed, rel=1e-9)
    assert closed < 0


@pytest.mark.parametrize("far", [1e3, 1e5, float("inf")])
def test_a_class_of_probability_zero_counts_nothing(far):
    """0 log 0 = 0: images that are certainly of one of two classes have an IS of 2, beside one that none is of."""
    logits = torch.tensor([[0.0, -far, -far], [-far, 0.0, -far]], dtype=torch.float64).repeat(10, 1)
    assert inception_score(logits) == pytest.approx((2, 0), abs=1e-9)
    assert inception_score(logits[:1].repeat(5, 1)) == pytest.approx((1, 0), abs=1e-9)
    mixed = torch.cat((logits, torch.tensor([[0.0, 0.0, -far]], dtype=torch.float64)))
    assert inception_score(mixed).mean == pytest.approx(float(np.exp(np.log(2) * 20 / 21)), rel=1e-9)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_inception_score_of_no_numbers_is_refused(value):
    logits = torch.zeros(4, 3)
    logits[2, 1] = value
    with pytest.raises(ValueError, match="NaN"):
        inception_score(logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_complete_collapse_has_effective_rank_zero(dtype):
    """Rounding of equal latents is no direction; a collapse onto a line, however short, has one."""
    g = torch.Generator().manual_seed(0)
    one = torch.randn(1, 4, 8, 8, generator=g, dtype=dtype)
    same = one.expand(30, -1, -1, -1)
    rounded = same * (1 + torch.finfo(dtype).eps * torch.randint(-1, 2, same.shape, generator=g))
    for latents in (same, 1e-30 * same, 1e30 * same, rounded, torch.zeros_like(same), one):
        assert effective_rank(latents) == 0.0
    line = one * torch.linspace(-1, 1, 30, dtype=dtype)[:, None, None, None]
    for scale in (1e-30, 1.0, 1e30):
        assert effective_rank(scale * line) == pytest.approx(1, rel=1e-5)
    with pytest.raises(ValueError, match="NaN"):
        effective_rank(torch.where(same > 0, same, torch.nan))


def test_ssim_of_images_that_are_too_small():
    a = torch.zeros(2, 3, 5, 5, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"ssim mirrors 5 pixels .* the images are 5 x 5"):
        ssim_each(a, a)
    assert ssim_each(torch.zeros(1, 3, 6, 6), torch.zeros(1, 3, 6, 6)).tolist() == pytest.approx([1])


def test_the_inception_score_of_equal_logits_is_exactly_one():
    assert inception_score(torch.full((50, 7), 0.3)).mean == 1.0
