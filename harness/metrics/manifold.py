"""Precision, recall, density and coverage: exact counts of nearest neighbours (arXiv 1904.06991, 2002.09797)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

BUDGET = 512 * 2**20
"""Bytes that the tiles of `manifold` may take, beside its inputs."""
Points = Tensor | np.ndarray[Any, Any]
"""Features (N, D) of any floating type; a NumPy memmap is read tile by tile."""
ROWS_AT_ONCE = 4096
_SIDE = (8192, 2048)
"""Longest side of a tile: on an accelerator, and on a CPU, where a tile should stay in its cache."""


def take_rows(points: Points, index: Tensor) -> Tensor:
    """Some rows, float64, on the points' device."""
    if isinstance(points, Tensor):
        return points[index.to(points.device)].double()
    return torch.from_numpy(np.asarray(points[index.cpu().numpy()])).double()


@dataclass(frozen=True)
class Manifold:
    """How two sets cover one another by k-nearest-neighbour balls."""

    precision: float
    """Fraction of `fake` in a ball of `real` (arXiv 1904.06991), in [0, 1]."""
    recall: float
    """Fraction of `real` in a ball of `fake`, in [0, 1]."""
    f_score: float
    """Harmonic mean of precision and recall, 0 where both are."""
    density: float
    """Balls of `real` around a `fake`, on average, over k (arXiv 2002.09797, eq. 3), >= 0."""
    coverage: float
    """Fraction of the balls of `real` that hold a `fake` (arXiv 2002.09797, eq. 4), in [0, 1]."""


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
        return take_rows(self._source, index).to(self.device)

    @cached_property
    def centre(self) -> Tensor:
        """Centre (mean rounded to float32), so that float32 and float64 views subtract identical values."""
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
    """Rows prepared for matrix-product distances (centred, scaled, cast), with error bounds.

    With u the unit roundoff and x, y centred, a product of D terms is off by at most about D u |x||y| in any order
    of summation (Higham, "Accuracy and stability of numerical algorithms", section 3.1), so a squared distance by at
    most D u (|x|^2 + |y|^2); roundings of the rows, norms and sums cost a few u more, and the float64 reference
    distances contribute twice that, in float64's u. `low` and `spread` share the bound out between
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
    """Recompute `_radii` for unresolved rows with a float64 view, falling back to brute force."""
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

        None if `coarse` and too many pairs stay undecided.
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
