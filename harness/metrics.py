"""Metrics on features, in float64, with named roles: `real` is the reference, `fake` is what a model made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recipes.core.draws import seed_of
from recipes.core.errors import UserError

BUDGET = 512 * 2**20
"""Bytes that the tiles of `manifold` may take, beside its inputs."""

Points = Tensor | np.ndarray[Any, Any]
"""Features (N, D) of any floating type; a NumPy memmap is read tile by tile."""

#: Of what is added up, differences below this share are float64's rounding.
ROUNDING = 1e-12
_CHUNK = 4096
_SIDE = (8192, 2048)
"""Longest side of a tile: on an accelerator, and on a CPU, where a tile should stay in its cache."""


@dataclass(frozen=True)
class Moments:
    """Mean and unbiased covariance of a set of features."""

    mean: Tensor
    """float64, (D,)."""
    covariance: Tensor
    """float64, (D, D)."""
    count: int
    """Samples; 0 where it is not known."""

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """From features (N, D), N >= 2.

        Raises:
            ValueError: fewer than two rows, or a value that is not finite.
        """
        if len(features) < 2:
            raise ValueError("a covariance needs at least two samples")
        x = features.double()
        if not bool(torch.isfinite(x).all()):
            raise ValueError("features hold NaN or infinity")
        return cls(x.mean(0), torch.cov(x.T).reshape(x.shape[1], x.shape[1]), len(x))

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues, ascending, and eigenvectors of the covariance."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return values, vectors

    @property
    def eigenvalues(self) -> Tensor:
        """Of the covariance, ascending, (D,)."""
        return self._spectrum[0]

    @cached_property
    def root(self) -> Tensor:
        """The covariance's symmetric square root, (D, D). Kept: one reference judges many sample sets."""
        values, vectors = self._spectrum
        root: Tensor = (vectors * _leading(values, self.rank).clamp(min=0).sqrt()) @ vectors.T
        return root

    @cached_property
    def negative_mass(self) -> float:
        """Negative eigenvalues' share in the sum of all, in size, in [0, 1]: rounding, unless it is no covariance."""
        return _negative_mass(self._spectrum[0])

    def to(self, device: torch.device) -> Moments:
        """The same there, with its root if it is known; itself if it lies there."""
        if self.mean.device == device:
            return self
        moved = Moments(self.mean.to(device), self.covariance.to(device), self.count)
        if "_spectrum" in self.__dict__:
            moved.__dict__["_spectrum"] = tuple(part.to(device) for part in self._spectrum)
        return moved

    @property
    def rank(self) -> int:
        """The most that the covariance's rank can be: fewer samples than features leave directions without spread."""
        dim = len(self.mean)
        return min(dim, self.count - 1) if self.count else dim


@dataclass
class Sums:
    """Count, mean and scatter of features that come in batches, on one device or on many.

    The scatter is about the mean, and two of them are joined by the update of Chan, Golub and LeVeque ("Updating
    formulae and a pairwise algorithm for computing sample variances", 1982), so that a mean far from zero costs no
    digits of the covariance as raw sums of squares would.
    """

    n: int
    mean: Tensor
    """float64, (D,)."""
    scatter: Tensor
    """float64, (D, D): the sum of (x - mean)(x - mean)^T."""

    @classmethod
    def empty(cls, dim: int, device: torch.device | str | None = None) -> Sums:
        """Of no features of `dim` numbers. Without a device, that of the first batch."""
        zeros = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        return cls(0, zeros.new_zeros(dim), zeros)

    def add(self, features: Tensor) -> Sums:
        """Take in features (B, D), B >= 0, in place; a refused batch changes nothing.

        Returns:
            itself.

        Raises:
            ValueError: the shape is another, or a value is not finite; the message names the row.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features have shape {tuple(features.shape)}, not (B, {len(self.mean)})")
        bad = (~torch.isfinite(features).all(1)).nonzero()
        if len(bad):
            row = int(bad[0, 0])
            raise ValueError(f"row {row} of the batch (row {self.n + row} of all) holds NaN or infinity")
        if self.n == 0:
            self.mean, self.scatter = self.mean.to(features.device), self.scatter.to(features.device)
        for chunk in features.split(_CHUNK) if len(features) else ():
            x = chunk.to(self.mean.device, torch.float64)
            mean = x.mean(0)
            x = x - mean
            self._join(len(x), mean, x.T @ x)
        return self

    def _join(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.n + n
        shift = mean - self.mean
        self.scatter = (self.scatter + scatter).addr_(shift, shift, alpha=self.n * n / total)
        self.mean = self.mean + shift * (n / total)
        self.n = total

    def merge(self, other: Sums) -> Sums:
        """The sums of both sets, on the device of `self`; neither is changed.

        Raises:
            ValueError: the features have another number of dimensions.
        """
        if len(self.mean) != len(other.mean):
            raise ValueError(f"sums of {len(self.mean)} and of {len(other.mean)} dimensions cannot be merged")
        if not self.n or not other.n:
            some = self if self.n else other
            return Sums(some.n, some.mean.clone(), some.scatter.clone())
        out = Sums(self.n, self.mean, self.scatter)
        out._join(other.n, other.mean.to(self.mean.device), other.scatter.to(self.mean.device))
        return out

    __add__ = merge

    def moments(self) -> Moments:
        """Mean and unbiased covariance.

        Raises:
            ValueError: fewer than two features were added.
        """
        if self.n < 2:
            raise ValueError("a covariance needs at least two samples")
        return Moments(self.mean.clone(), (self.scatter + self.scatter.T) / (2 * (self.n - 1)), self.n)

    def tensors(self) -> dict[str, Tensor]:
        """What to save: n () int64, mean (D,) and scatter (D, D) float64."""
        return {"n": torch.tensor(self.n), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Sums:
        """The reverse of `tensors`.

        Raises:
            ValueError: a name is missing, or a shape, a type or the count is not what `tensors` gives.
        """
        if missing := {"n", "mean", "scatter"} - set(tensors):
            raise ValueError(f"saved sums lack {sorted(missing)}")
        n, mean, scatter = tensors["n"], tensors["mean"], tensors["scatter"]
        dim = mean.numel()
        if mean.shape != (dim,) or scatter.shape != (dim, dim) or {mean.dtype, scatter.dtype} != {torch.float64}:
            raise ValueError("saved sums are not a float64 mean (D,) and scatter (D, D)")
        if n.numel() != 1 or n.is_floating_point() or int(n) < 0:
            raise ValueError("saved sums hold no count")
        return cls(int(n), mean.clone(), scatter.clone())


def _leading(ascending: Tensor, rank: int) -> Tensor:
    """The `rank` largest of sorted eigenvalues; zero in place of the others."""
    return torch.where(torch.arange(len(ascending), device=ascending.device) >= len(ascending) - rank, ascending, 0.0)


def _negative_mass(eigenvalues: Tensor, rounding: float = 0.0) -> float:
    """Of eigenvalues; those not larger than `rounding` are 0."""
    eigenvalues = torch.where(eigenvalues.abs() > rounding, eigenvalues, 0.0)
    total, negative = float(eigenvalues.abs().sum()), -float(eigenvalues.clamp(max=0).sum())
    return negative / total if total > 0 else 0.0


@dataclass(frozen=True)
class FrechetResult:
    """A Fréchet distance and its parts."""

    distance: float
    """The sum of the two terms."""
    mean_term: float
    """|m1 - m2|^2."""
    trace_term: float
    """tr(S1 + S2 - 2 (S1 S2)^(1/2))."""
    negative_mass: float
    """Negative eigenvalues' share in the sum of all, in size, under the root or of the reference, whichever is larger:
    rounding, near 0, unless a covariance is none."""


def frechet(*, real: Moments, fake: Moments) -> FrechetResult:
    """FID (arXiv 1706.08500, eq. 6): |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), on the device of `real`.

    The trace of the root is the sum of the roots of the eigenvalues of the symmetric S1^(1/2) S2 S1^(1/2): no general
    matrix square root, no complex parts. What rounding in float64 explains is 0: the distance of equal sets is 0.
    """
    mean, covariance = fake.mean.to(real.mean.device), fake.covariance.to(real.mean.device)
    middle = real.root @ covariance @ real.root
    eigenvalues = torch.linalg.eigvalsh((middle + middle.T) / 2)
    # Beyond the rank they are rounding, and the roots of two thousand roundings add up.
    positive = _leading(eigenvalues, min(real.rank, fake.rank)).clamp(min=0)
    squares = float(real.mean.square().sum() + mean.square().sum())
    mean_term = _beyond(float((real.mean - mean).square().sum()), ROUNDING**2 * squares)
    traces = float(real.covariance.trace() + covariance.trace())
    rounding = ROUNDING * float(real.covariance.trace() * covariance.trace())  # under the root
    # The roots of small eigenvalues have half the digits; the distance is at most the trace norm of the difference.
    alike = float((real.covariance - covariance).abs().max()) <= ROUNDING * float(real.covariance.abs().max())
    trace_term = 0.0 if alike else _beyond(traces - 2 * float(positive.sqrt().sum()), ROUNDING * traces)
    return FrechetResult(
        distance=mean_term + trace_term,
        mean_term=mean_term,
        trace_term=trace_term,
        negative_mass=max(_negative_mass(eigenvalues, rounding), real.negative_mass),
    )


def _beyond(value: float, rounding: float) -> float:
    """The value, or 0 where it is no larger than rounding; a negative one that is larger stays, and so does NaN."""
    return 0.0 if abs(value) <= rounding else value


def frechet_distance(*, real: Moments, fake: Moments) -> float:
    """FID as one number; see `frechet`."""
    return frechet(real=real, fake=fake).distance


#: Images of one part of ADM's Inception score.
ADM_SPLIT = 5000


class InceptionScore(NamedTuple):
    """An Inception score over splits."""

    mean: float
    se: float
    """Standard error of the mean: what other samples of the same model would move it by, to first order. That of a
    split is IS x sd(KL) / sqrt(n), since the error of the marginal p(y) has no first-order effect, so one split has one
    too. The bias of the splits' size is not in it."""


def inception_score(logits: Tensor, splits: int = 1, *, split_size: int | None = None) -> InceptionScore:
    """IS (arXiv 1606.03498): exp of the mean KL of p(y|x) from p(y), averaged over splits taken in order.

    Args:
        logits: (N, classes).
        splits: how many parts, as torch-fidelity and the paper say it.
        split_size: rows of a part instead, the last one may have fewer: ADM's evaluator takes 5,000.

    Raises:
        ValueError: both `splits` and `split_size` are given, or a probability is no number.
    """
    if split_size is not None and splits != 1:
        raise ValueError("give splits or split_size, not both")
    scores, errors = [], []
    for part in logits.chunk(splits) if split_size is None else logits.split(split_size):
        logp = part.double().log_softmax(dim=1)
        if bool(logp.isnan().any()):
            raise ValueError("logits hold NaN or infinity")
        # Of a class that no image may be of, both are log 0, and 0 log 0 is 0.
        marginal = logp.logsumexp(0, keepdim=True) - math.log(len(logp))
        kl = torch.where(logp == -torch.inf, 0.0, logp.exp() * (logp - marginal)).sum(1)
        scores.append(kl.mean().clamp(min=0).exp())  # no divergence is negative, but for rounding
        errors.append(scores[-1] * (kl - kl.mean()).square().mean().sqrt() / math.sqrt(max(1, len(kl) - 1)))
    return InceptionScore(
        float(torch.stack(scores).mean()), float(torch.stack(errors).square().sum().sqrt() / len(errors))
    )


def _take(points: Points, index: Tensor) -> Tensor:
    """Some rows, float64, on the points' device."""
    if isinstance(points, Tensor):
        return points[index.to(points.device)].double()
    return torch.from_numpy(np.asarray(points[index.cpu().numpy()])).double()


class Kid(NamedTuple):
    """A kernel distance over subsets."""

    mean: float
    sd: float
    """Over the subsets, divided by their number, as torch-fidelity does. Subsets overlap, so this over the root of
    their number would be too small for a standard error."""
    se: float
    """Standard error of the mean: what other real and generated features would move it by, to first order, and what
    other subsets would. Too large where the sets are alike: by about the root of their size over a subset's where they
    are from one distribution."""


def _mmd2(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased squared MMD of x (n, D) and y (n, D) under the kernel (x.y / D + 1)^3, and its variances by x and
    by y, each times n, to first order: (3,).
    """
    n, dim = x.shape
    within = [((z @ z.T) / dim + 1).pow(3).fill_diagonal_(0).sum(1) / (n - 1) for z in (x, y)]
    across = ((x @ y.T) / dim + 1).pow(3)
    ours, theirs = within[0] - across.mean(1), within[1] - across.mean(0)
    found = ours.mean() + theirs.mean()
    # Features that are all the same have 0; of equal sets the unbiased estimate is below 0, and stays so.
    found = torch.where(found.abs() <= ROUNDING * across.abs().mean(), 0.0, found)
    return torch.stack((found, 4 * ours.var(), 4 * theirs.var()))


def kid(*, real: Points, fake: Points, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> Kid:
    """KID (arXiv 1801.01401): the unbiased squared MMD, over subsets drawn without replacement from the seed.

    Args:
        real: (N, D).
        fake: (M, D); a tensor lies on the device of `real`.
        subsets: how many.
        subset_size: rows of each set in a subset, 2 to min(N, M).
        seed: the same one draws the same subsets, on every device.

    Raises:
        ValueError: a set is smaller than a subset, a subset than 2, or a value is not finite.
    """
    if not 2 <= subset_size <= min(len(real), len(fake)) or subsets < 1:
        raise ValueError(f"no {subsets} subsets of {subset_size} from {len(real)} real and {len(fake)} fake features")
    values = []
    for k in range(subsets):
        g = torch.Generator().manual_seed(seed_of(seed, "kid", k))
        x, y = (_take(z, torch.randperm(len(z), generator=g)[:subset_size]) for z in (real, fake))
        values.append(_mmd2(x, y))
    drawn, of_real, of_fake = torch.stack(values).T
    if not bool(torch.isfinite(drawn).all()):
        raise ValueError("features hold NaN or infinity")
    squared = of_real.mean() / len(real) + of_fake.mean() / len(fake) + drawn.var(correction=0) / subsets
    return Kid(float(drawn.mean()), float(drawn.std(correction=0)), float(squared.sqrt()))


@dataclass(frozen=True)
class Manifold:
    """How two sets cover one another by k-nearest-neighbour balls."""

    precision: float
    """Share of `fake` in a ball of `real` (arXiv 1904.06991), in [0, 1]."""
    recall: float
    """Share of `real` in a ball of `fake`, in [0, 1]."""
    f_score: float
    """Harmonic mean of precision and recall, 0 where both are."""
    density: float
    """Balls of `real` around a `fake`, on average, over k (arXiv 2002.09797, eq. 3), >= 0."""
    coverage: float
    """Share of the balls of `real` that hold a `fake` (arXiv 2002.09797, eq. 4), in [0, 1]."""


def manifold(*, real: Points, fake: Points, k: int = 5, budget: int = BUDGET) -> Manifold:
    """Precision, recall, density and coverage of features (N, D) and (M, D), exactly, in bounded memory.

    A ball is closed: its radius is the distance to the k-th neighbour among the others of its set, and a point at
    that distance is inside. (The authors' `prdc` takes open balls, which differ at exact ties only.)

    Distances come from float32 products with a bound on their error. What the bound leaves open is decided by
    distances summed in float64, so the result is that of float64 brute force whatever the tiles.

    Args:
        real: (N, D); the work happens on its device.
        fake: (M, D).
        k: which neighbour, 1 to min(N, M) - 1.
        budget: bytes for the tiles; beside them a few numbers for each row are kept.

    Raises:
        ValueError: the shapes do not fit, k has no neighbour, or a value is not finite.
    """
    return manifolds(real=real, fake=fake, ks=(k,), budget=budget)[k]


def manifolds(*, real: Points, fake: Points, ks: Sequence[int], budget: int = BUDGET) -> dict[int, Manifold]:
    """`manifold` for several k at once: the distances, which are most of the work, are computed once."""
    device = real.device if isinstance(real, Tensor) else torch.device("cpu")
    a, b = _Rows(real, device, budget), _Rows(fake, device, budget)
    if a.dim != b.dim:
        raise ValueError(f"real has {a.dim} features, fake has {b.dim}")
    for k in ks:
        if not 1 <= k < min(len(a), len(b)):
            raise ValueError(f"k = {k} needs more than k samples; there are {len(a)} real and {len(b)} fake")
    with _full_precision(device):
        found = _cross(a, b, _radii(a, ks), _radii(b, ks))
    return {k: _manifold(k, *(part[n] for part in found)) for n, k in enumerate(ks)}


def _manifold(k: int, balls: Tensor, covered: Tensor, recalled: Tensor) -> Manifold:
    precision, recall = float((balls > 0).double().mean()), float(recalled.double().mean())
    return Manifold(
        precision=precision,
        recall=recall,
        f_score=2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        density=float(balls.double().mean()) / k,
        coverage=float(covered.double().mean()),
    )


def precision_recall(*, real: Points, fake: Points, k: int = 3, budget: int = BUDGET) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991) of features (N, D) and (M, D); see `manifold`.

    Returns:
        precision, the share of `fake` inside a k-nearest-neighbour ball of `real`, and recall, the reverse.
    """
    result = manifold(real=real, fake=fake, k=k, budget=budget)
    return result.precision, result.recall


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No TF32 or bfloat16 in products, which the bound on their error does not allow for."""
    before = torch.get_float32_matmul_precision()
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)


class _Rows:
    """Features that are read tile by tile."""

    def __init__(self, source: Points, device: torch.device, budget: int) -> None:
        if source.ndim != 2:
            raise ValueError(f"features have shape {tuple(source.shape)}, not (N, D)")
        self._source, self.device, self.dim = source, device, int(source.shape[1])
        row = 4 * max(1, self.dim)
        # A tile of products takes up to 32 bytes an element (itself, masks, indices); its operands six float64 rows.
        self.side = max(1, min(_SIDE[device.type == "cpu"], math.isqrt(budget // 64), budget // (24 * row)))
        self.pairs = max(1, budget // (16 * row))
        self.kept = budget // (8 * row * self.side)

    def __len__(self) -> int:
        return len(self._source)

    def starts(self, first: int = 0) -> range:
        return range(first, len(self), self.side)

    def slice(self, start: int) -> Tensor:
        """The tile's rows as they are, (side or fewer, D)."""
        part = self._source[start : start + self.side]
        return (part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))).to(self.device)

    def take(self, index: Tensor) -> Tensor:
        """Any rows, float64."""
        return _take(self._source, index).to(self.device)

    @cached_property
    def centre(self) -> Tensor:
        """About the mean (D,), float64, in numbers that float32 has: every view subtracts the same ones."""
        total = torch.zeros(self.dim, dtype=torch.float64, device=self.device)
        for start in self.starts():
            total += self.slice(start).sum(0, dtype=torch.float64)
        if not bool(torch.isfinite(total).all()):
            raise ValueError("features hold NaN or infinity")
        return (total / len(self)).float().double()

    def norms(self, centre: Tensor) -> Tensor:
        """Squared distances (N,) from the centre, float64."""
        parts = [torch.linalg.vector_norm(self.slice(i).double() - centre, dim=1) for i in self.starts()]
        norms = torch.cat(parts).square_()
        if not bool(torch.isfinite(norms).all()):
            raise ValueError("features hold NaN or infinity, or numbers too large to square")
        return norms


def _distances(a: _Rows, i: Tensor, b: _Rows, j: Tensor) -> Tensor:
    """Distances (P,) of the pairs (i, j), float64: each the same number whichever pairs it is asked with."""
    parts = [torch.empty(0, dtype=torch.float64, device=a.device)]
    for p, q in zip(i.split(a.pairs), j.split(a.pairs), strict=True):
        x, y = a.take(p).unsqueeze(1), b.take(q).unsqueeze(1)
        parts.append(torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").flatten())
    return torch.cat(parts)


class _View:
    """Rows as a product sees them: centred, scaled and rounded, with bounds on the squared distances it gives.

    With u the unit roundoff and x, y centred, a product of D terms is off by at most about D u |x||y| in any order
    of summation (Higham, "Accuracy and stability of numerical algorithms", section 3.1), so a squared distance by at
    most D u (|x|^2 + |y|^2); roundings of the rows, norms and sums cost a few u more, and those of the float64
    distances that it must agree with twice as much again in their u. `low` and `spread` share the bound out between
    the rows.
    """

    def __init__(self, rows: _Rows, centre: Tensor, norms: Tensor, scale: float, dtype: torch.dtype) -> None:
        self.rows, self.centre, self.scale, self.dtype = rows, centre, scale, dtype
        bound = (rows.dim + 64) * (torch.finfo(dtype).eps / 2 + torch.finfo(torch.float64).eps)
        tiny = 1e-30 if dtype == torch.float32 else 1e-280
        norms = norms * scale**2
        self.low = (norms * (1 - bound) - tiny).to(dtype)
        self.spread = (2 * (norms * bound + tiny)).to(dtype)
        self._kept: dict[int, Tensor] = {}

    def shape(self, x: Tensor) -> Tensor:
        work = torch.promote_types(x.dtype, self.dtype)
        return (x.to(work) - self.centre.to(work)).mul_(self.scale).to(self.dtype)

    def block(self, start: int) -> tuple[Tensor, Tensor]:
        """The tile's rows and their share of the lower bound; some tiles are kept."""
        found = self._kept.get(start)
        if found is None:
            found = self.shape(self.rows.slice(start))
            if len(self._kept) < self.rows.kept:
                self._kept[start] = found
        return found, self.low[start : start + self.rows.side]


def _lower(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """Lower bounds on the squared, scaled distances of two blocks."""
    return torch.addmm(b[1][None], a[0], b[0].T, alpha=-2).add_(a[1][:, None])


def _scale(norms: Tensor) -> float:
    """A power of two that makes the largest norm about 1: exact, and far from overflow."""
    largest = float(norms.max())
    return 2.0 ** -(math.frexp(largest)[1] // 2) if largest > 0 else 1.0


class _Nearest:
    """Some of the smallest lower bounds of every row, with their columns."""

    def __init__(self, n: int, keep: int, like: Tensor) -> None:
        self.low = torch.full((n, keep), math.inf, dtype=like.dtype, device=like.device)
        self.column = torch.zeros((n, keep), dtype=torch.int64, device=like.device)

    def update(self, start: int, tile: Tensor, offset: int) -> None:
        """Take in lower bounds (rows from `start`, columns from `offset`)."""
        rows, keep = slice(start, start + len(tile)), self.low.shape[1]
        low, column = tile.topk(min(keep, tile.shape[1]), dim=1, largest=False)
        low, column = torch.cat((self.low[rows], low), 1), torch.cat((self.column[rows], column + offset), 1)
        self.low[rows], chosen = low.topk(keep, dim=1, largest=False)
        self.column[rows] = column.gather(1, chosen)

    def settle(self, view: _View, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k-th smallest distances of the rows `ids`, and where they are sure: both (rows,)."""
        high = self.low + view.spread[self.column] + view.spread[ids][:, None]
        at_most, at_least = high.kthvalue(k, dim=1, keepdim=True).values, self.low[:, k - 1 : k]
        open_, below = (self.low <= at_most) & (high >= at_least), high < at_least
        sure = (self.low[:, -1:] > at_most).flatten() | (self.low.shape[1] >= len(view.rows) - 1)
        i, j = (open_ & sure[:, None]).nonzero(as_tuple=True)
        exact = torch.full_like(self.low, math.inf, dtype=torch.float64).masked_fill_(below, -1)
        exact[i, j] = _distances(view.rows, ids[i], view.rows, self.column[i, j])
        return exact.kthvalue(k, dim=1).values, sure


def _radii(rows: _Rows, ks: Sequence[int]) -> Tensor:
    """Distance (K, N) of every point to its k-th neighbour among the others, for each k, float64."""
    norms = rows.norms(rows.centre)
    scale, keep = _scale(norms), min(len(rows) - 1, max(ks) + 8)
    view = _View(rows, rows.centre, norms, scale, torch.float32)
    nearest = _Nearest(len(rows), keep, view.low)
    for i in rows.starts():
        a = view.block(i)
        for j in rows.starts(i):
            tile = _lower(a, a if i == j else view.block(j))
            if i == j:
                tile.fill_diagonal_(math.inf)
            else:
                nearest.update(j, tile.T.contiguous(), i)
            nearest.update(i, tile, j)
    finer, out = _View(rows, rows.centre, norms, scale, torch.float64), []
    for k in ks:
        radii, sure = nearest.settle(view, torch.arange(len(rows), device=rows.device), k)
        for ids in (~sure).nonzero().flatten().split(rows.side):
            radii[ids] = _radii_again(finer, ids, k, keep)
        out.append(radii)
    return torch.stack(out)


def _radii_again(view: _View, ids: Tensor, k: int, keep: int) -> Tensor:
    """As `_radii`, of a few rows that a coarser view leaves open: from a finer one, and if need be by brute force."""
    rows, some = view.rows, torch.arange(len(ids), device=view.rows.device)
    nearest, a = _Nearest(len(ids), keep, view.low), (view.shape(view.rows.take(ids)), view.low[ids])
    for j in rows.starts():
        nearest.update(0, _hide(_lower(a, view.block(j)), ids - j), j)
    radii, sure = nearest.settle(view, ids, k)
    for left in some[~sure].split(max(1, rows.side // 2)):
        x, best = rows.take(ids[left]), torch.full((len(left), k), math.inf, dtype=torch.float64, device=rows.device)
        for j in rows.starts():
            y = rows.slice(j).double()
            tile = _hide(torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist"), ids[left] - j)
            best = torch.cat((best, tile), 1).topk(k, dim=1, largest=False).values
        radii[left] = best[:, -1]
    return radii


def _hide(tile: Tensor, columns: Tensor) -> Tensor:
    """Put infinity at one column of each row, where the tile has it."""
    here = ((columns >= 0) & (columns < tile.shape[1])).nonzero().flatten()
    tile[here, columns[here]] = math.inf
    return tile


@dataclass(frozen=True)
class _Crossing:
    """Two sets of balls, of one or more radii each, and what products say about which point is in which."""

    real: _View
    fake: _View
    real_radii: Tensor
    """(K, N)."""
    fake_radii: Tensor
    """(K, M)."""

    def inside(self, i: int, j: int, coarse: bool) -> list[tuple[Tensor, Tensor]] | None:
        """For the tile at (i, j) and each radius, whether the fake (column) is in the real's ball, and the reverse.

        Nothing if it is coarse and leaves too much open.
        """
        rows, columns = slice(i, i + self.real.rows.side), slice(j, j + self.fake.rows.side)
        low = _lower(self.real.block(i), self.fake.block(j))
        high = (low + self.fake.spread[columns]).add_(self.real.spread[rows][:, None])
        out = []
        for real, fake in zip(self.real_radii[:, rows], self.fake_radii[:, columns], strict=True):
            pair = []
            for radii in (real[:, None], fake[None]):
                squared = (radii * self.real.scale).square().to(low.dtype)
                inside = high <= squared
                p, q = (low <= squared).logical_xor_(inside).nonzero(as_tuple=True)
                if coarse and len(p) > low.numel() // 64 + 64:
                    return None
                exact = _distances(self.real.rows, p + i, self.fake.rows, q + j)
                inside[p, q] = exact <= radii.expand_as(low)[p, q]
                pair.append(inside)
            out.append((pair[0], pair[1]))
        return out


def _cross(real: _Rows, fake: _Rows, real_radii: Tensor, fake_radii: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each radius: count of real balls around each fake (K, M); whether each real's ball holds a fake, and a
    fake's ball it: (K, N).
    """
    norms = real.norms(real.centre), fake.norms(real.centre)
    scale = _scale(torch.cat(norms))
    coarse, fine = (
        _Crossing(
            _View(real, real.centre, norms[0], scale, dtype),
            _View(fake, real.centre, norms[1], scale, dtype),
            real_radii,
            fake_radii,
        )
        for dtype in (torch.float32, torch.float64)
    )
    many = len(real_radii)
    balls = torch.zeros((many, len(fake)), dtype=torch.int64, device=real.device)
    covered, recalled = torch.zeros((2, many, len(real)), dtype=torch.bool, device=real.device)
    for i in real.starts():
        for j in fake.starts():
            found = coarse.inside(i, j, True) or fine.inside(i, j, False)
            assert found is not None
            for n, (in_real, in_fake) in enumerate(found):
                balls[n, j : j + fake.side] += in_real.sum(0)
                covered[n, i : i + real.side] |= in_real.any(1)
                recalled[n, i : i + real.side] |= in_fake.any(1)
    return balls, covered, recalled


def without_spread(rows: Tensor) -> bool:
    """Whether the rows (N, D) are all the same one, but for the rounding of their number format."""
    size = float(torch.linalg.vector_norm(rows.double(), dim=1).max())
    apart = float(torch.linalg.vector_norm(rows.double() - rows.double().mean(0), dim=1).max())
    return apart <= 8 * torch.finfo(rows.dtype).eps * size


def effective_rank(latents: Tensor) -> float:
    """Participation ratio of the covariance's spectrum, (sum l)^2 / sum l^2, of latents (N, ...) seen as vectors.

    A collapse that keeps the variance (channels turned into copies) shows here. At least 1, or 0 where the latents are
    all equal (see `without_spread`): the complete collapse, which has no direction.

    Raises:
        ValueError: a value is not finite.
    """
    if not bool(latents.isfinite().all()):
        raise ValueError("latents hold NaN or infinity")
    if without_spread(latents.flatten(1)):
        return 0.0
    x = latents.flatten(1).double()
    x = x - x.mean(0)
    x = x / x.abs().max()  # so that no fourth power is lost
    # The traces of the covariance and of its square are those of the Gram matrix, which is small where N is.
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    return float(gram.trace().square() / gram.square().sum())


def psnr_each(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of every pair of uint8 images (N, 3, H, W), in dB: (N,), float64. At most 148 dB."""
    error = (a.double() - b.double()).square().flatten(1).mean(1).clamp(min=1e-10)
    return 10 * torch.log10(255.0**2 / error)


#: Pixels that SSIM's window reaches beyond an image.
SSIM_BORDER = 5


def ssim_each(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of every pair of uint8 images (N, 3, H, W), H, W > 5: (N,), at most 1.

    Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004): 11 x 11 Gaussian
    window of sigma 1.5, K = (0.01, 0.03), borders mirrored, on each channel, averaged. torchmetrics' implementation.

    Raises:
        UserError: the images are smaller.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(a.shape[-2:]) <= SSIM_BORDER:
        raise UserError(
            f"ssim mirrors {SSIM_BORDER} pixels at each border, and the images are {a.shape[-1]} x {a.shape[-2]}: give "
            "larger ones, or leave it out with --metrics."
        )
    found = structural_similarity_index_measure(a.float(), b.float(), data_range=255.0, reduction="none")
    assert isinstance(found, Tensor)
    return found
