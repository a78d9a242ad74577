"""Solvers against a Gaussian with a known answer, and their orders of convergence.

Data N(m, s^2) on the linear path: x_t ~ N((1-t) m, (1-t)^2 s^2 + t^2), and the exact velocity is linear in x. The
probability-flow ODE carries x_1 = z to x_0 = m + s z.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from builders import make_sit
from hypothesis import given
from hypothesis import strategies as st

from harness.generate import Sampler, sample_labels, to_uint8
from harness.protocol import Protocol
from harness.sampler import (
    Guidance,
    guided_drift,
    number_of_evaluations,
    ode_euler,
    ode_heun,
    sample_latents,
    score,
    sde_euler_maruyama,
    times,
)
from recipes.core.draws import KeyedDraws

MEAN, SPREAD = 1.5, 0.4


def exact_velocity(x: torch.Tensor, t: float, path: str = "linear") -> torch.Tensor:
    """E[d x_t / dt | x_t] for N(MEAN, SPREAD^2) data."""
    if path == "linear":
        a, s, da, ds = 1 - t, t, -1.0, 1.0
    else:
        h = math.pi / 2
        a, s, da, ds = math.cos(h * t), math.sin(h * t), -h * math.sin(h * t), h * math.cos(h * t)
    variance = a * a * SPREAD**2 + s * s
    gain = (a * da * SPREAD**2 + s * ds) / variance
    return da * MEAN + gain * (x - a * MEAN)


def ode_error(solver, steps: int, path: str) -> float:
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    out = solver(lambda x, t, _: exact_velocity(x, t, path), z, times("ode_euler", steps))
    return float((out - (MEAN + SPREAD * z)).abs().max())


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize(("solver", "order"), [(ode_euler, 1), (ode_heun, 2)])
def test_error_falls_at_the_solvers_order(solver, order, path):
    coarse, fine = ode_error(solver, 200, path), ode_error(solver, 400, path)
    assert fine < 0.02
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_score_from_velocity_is_the_gaussians():
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    for path in ("linear", "cosine"):
        for t in (0.1, 0.5, 0.9, 1.0):
            a = 1 - t if path == "linear" else math.cos(math.pi * t / 2)
            s = t if path == "linear" else math.sin(math.pi * t / 2)
            exact = -(x - a * MEAN) / (a * a * SPREAD**2 + s * s)
            torch.testing.assert_close(score(exact_velocity(x, t, path), x, t, path), exact, rtol=1e-9, atol=1e-9)


def test_sde_lands_on_the_data_distribution():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(40_000, dtype=torch.float64, generator=generator)

    def drift(x, t, _):
        v = exact_velocity(x, t)
        return v - t * score(v, x, t, "linear")

    noise = lambda k, x: torch.randn(x.shape, dtype=x.dtype, generator=generator)  # noqa: E731
    out = sde_euler_maruyama(drift, z, times("sde_euler_maruyama", 250), noise)
    assert out.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert out.std().item() == pytest.approx(SPREAD, abs=0.015)


def sde_moments_at_the_last_time(steps: int) -> tuple[float, float]:
    """Mean and variance that Euler-Maruyama has at t = 0.04, without Monte Carlo.

    The drift is linear, so the result is a linear function of the start and of each step's noise: one run with each of
    them alone gives its coefficient.
    """

    def drift(x, t, _):
        v = exact_velocity(x, t)
        return v - t * score(v, x, t, "linear")

    grid = times("sde_euler_maruyama", steps)[:-1]
    unit = torch.eye(steps + 1, dtype=torch.float64)  # column 0: nothing; 1: the start; 1 + k: the noise of step k - 1
    out = sde_euler_maruyama(drift, unit[1], grid, lambda k, x: unit[k + 2])
    coefficients = out[1:] - out[0]
    return float(out[0]), float(coefficients.square().sum())


def test_sde_error_falls_at_weak_order_one():
    t = 0.04
    mean, variance = (1 - t) * MEAN, (1 - t) ** 2 * SPREAD**2 + t**2
    coarse, fine = sde_moments_at_the_last_time(200), sde_moments_at_the_last_time(400)
    assert fine[0] == pytest.approx(mean, rel=1e-9)  # the mean moves on a straight line: no error
    assert fine[1] == pytest.approx(variance, rel=2e-3)
    assert math.log2((variance - coarse[1]) / (variance - fine[1])) == pytest.approx(1, abs=0.1)


def test_schedules():
    assert times("ode_heun", 4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    grid = times("sde_euler_maruyama", 250)
    assert len(grid) == 251
    assert grid[0] == 1.0
    assert grid[-2:] == pytest.approx([0.04, 0.0])
    gaps = {round(a - b, 12) for a, b in pairwise(grid[:-1])}
    assert len(gaps) == 1


@given(
    scale=st.sampled_from([1.0, 1.8]),
    low=st.floats(0, 0.6),
    width=st.floats(0.05, 0.4),
    steps=st.integers(1, 12),
    solver=st.sampled_from(["ode_euler", "ode_heun", "sde_euler_maruyama"]),
)
def test_nfe_is_what_the_network_is_asked(scale, low, width, steps, solver):
    guidance, asked = Guidance(scale, low, low + width), []
    labels = torch.zeros(1, dtype=torch.int64)

    def velocity(x, t, y):
        asked.append(len(x))
        return torch.zeros_like(x)

    stochastic = solver == "sde_euler_maruyama"
    drift = guided_drift(velocity, labels, 10, guidance, path="linear", stochastic=stochastic)
    x, grid = torch.zeros(1, 1, 2, 2, dtype=torch.float64), times(solver, steps)
    if stochastic:
        sde_euler_maruyama(drift, x, grid, lambda k, x: x)
    else:
        (ode_heun if solver == "ode_heun" else ode_euler)(drift, x, grid)
    assert sum(asked) == number_of_evaluations(solver, steps, guidance)


def test_guidance_is_linear_extrapolation():
    def velocity(x, t, y):
        return y.double()[:, None, None, None].expand_as(x)

    labels = torch.tensor([3, 4])
    drift = guided_drift(velocity, labels, 10, Guidance(2.0, 0.2, 0.8), path="linear", stochastic=False)
    x = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    assert drift(x, 0.5, 0.5).flatten().tolist() == [10 + 2 * (3 - 10), 10 + 2 * (4 - 10)]
    assert drift(x, 0.9, 0.9).flatten().tolist() == [3, 4]
    assert drift(x, 0.8, 0.8).flatten().tolist() == [-4, -2]  # the ends belong to the interval


class _Identity(torch.nn.Module):
    """Stands in for a tokenizer: the first three channels are the image."""

    def decode(self, latents):
        return latents[:, :3]


PROTOCOL = Protocol(
    name="test", solver="sde_euler_maruyama", steps=4, samples=12, features="f", reference="r", manifold_size=12
)


@given(batch_size=st.integers(1, 12), solver=st.sampled_from(["ode_euler", "ode_heun", "sde_euler_maruyama"]))
def test_a_sample_does_not_depend_on_its_batch(batch_size, solver):
    sampler = Sampler(make_sit().double().eval(), _Identity(), "linear")
    protocol = PROTOCOL.model_copy(update={"solver": solver})
    whole = sampler.draw(protocol, 5, torch.arange(12))[0]
    parts = torch.cat([sampler.draw(protocol, 5, indices)[0] for indices in torch.arange(12).split(batch_size)])
    assert (whole.int() - parts.int()).abs().max() <= 1  # a rounding of the last bit may cross an integer


def test_generation_seeds_are_disjoint():
    indices = torch.arange(50)
    like = torch.empty(50, 4)
    starts = [KeyedDraws(s, 0, indices).normal_like("sample start", like) for s in (0, 1)]
    assert not set(starts[0].flatten().tolist()) & set(starts[1].flatten().tolist())


def test_uniform_labels():
    indices = torch.arange(1000)
    uniform = PROTOCOL.model_copy(update={"labels": "uniform"})
    drawn = sample_labels(uniform, 0, indices, 10)
    assert drawn.min() == 0
    assert drawn.max() == 9
    assert drawn.bincount().tolist() != [100] * 10
    assert torch.equal(drawn[500:], sample_labels(uniform, 0, indices[500:], 10))


def test_uint8_rules():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0])
    assert to_uint8(x, "floor").tolist() == [0, 0, 127, 255, 255]
    assert to_uint8(x, "round").tolist() == [0, 0, 128, 255, 255]


def test_single_precision_network_keeps_a_double_state():
    sit = make_sit().eval()
    start = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    out = sample_latents(
        sit, start, torch.tensor([0, 1]), solver="ode_euler", steps=3, guidance=Guidance(), path="linear",
        noise=lambda k, x: x,
    )  # fmt: skip
    assert out.dtype == torch.float64
