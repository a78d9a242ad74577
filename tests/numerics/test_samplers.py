"""Solvers against a Gaussian with a known answer, and their orders of convergence.

Data N(m, s^2) on the linear path: x_t ~ N((1-t) m, (1-t)^2 s^2 + t^2), and the exact velocity is linear in x. The
probability-flow ODE carries x_1 = z to x_0 = m + s z.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from builders import make_sit
from hypothesis import given
from hypothesis import strategies as st

from harness.sampling.protocol import Protocol
from harness.sampling.sampler import Sampler, sample_labels, to_uint8
from harness.sampling.solvers import (
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
@pytest.mark.parametrize(
    ("solver", "order"), [(ode_euler, 1), (ode_heun, 2), (partial(ode_heun, correct_last_step=True), 2)]
)
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
    channels=st.sampled_from([None, 3]),
    corrected=st.booleans(),
)
def test_nfe_is_what_the_network_is_asked(scale, low, width, steps, solver, channels, corrected):
    """By a network of four channels; a channel that is not guided saves nothing, the corrected last step costs one."""
    guidance, asked = Guidance(scale, low, low + width, channels=channels), []
    labels = torch.zeros(1, dtype=torch.int64)

    def velocity(x, t, y):
        asked.append(len(x))
        return torch.zeros_like(x)

    stochastic = solver == "sde_euler_maruyama"
    drift = guided_drift(velocity, labels, 10, guidance, path="linear", stochastic=stochastic)
    x, grid = torch.zeros(1, 4, 2, 2, dtype=torch.float64), times(solver, steps)
    if stochastic:
        sde_euler_maruyama(drift, x, grid, lambda k, x: x)
    elif solver == "ode_heun":
        ode_heun(drift, x, grid, correct_last_step=corrected)
    else:
        ode_euler(drift, x, grid)
    nfe = number_of_evaluations(solver, steps, guidance, correct_last_step=corrected)
    assert sum(asked) == nfe
    if solver == "ode_heun":
        last = 2 if guidance.active(1 / steps) else 1
        assert nfe - number_of_evaluations(solver, steps, guidance) == last * corrected


def test_guidance_is_linear_extrapolation():
    def velocity(x, t, y):
        return y.double()[:, None, None, None].expand_as(x)

    labels = torch.tensor([3, 4])
    drift = guided_drift(velocity, labels, 10, Guidance(2.0, 0.2, 0.8), path="linear", stochastic=False)
    x = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    assert drift(x, 0.5, 0.5).flatten().tolist() == [10 + 2 * (3 - 10), 10 + 2 * (4 - 10)]
    assert drift(x, 0.9, 0.9).flatten().tolist() == [3, 4]
    assert drift(x, 0.8, 0.8).flatten().tolist() == [-4, -2]  # the ends belong to the interval


CLASS_MEANS = np.array([[1.5, -0.5, 0.3, 2.0], [-1.0, 0.7, 0.1, 0.4], [0.2, 0.2, -0.2, 0.5]])  # the last: no class


def of_the_class(x, means, a, s, da, ds):
    """Exact velocity of N(mean, SPREAD^2) channels at x_t = a x + s eps, a' = da, s' = ds; NumPy, float64."""
    gain = (a * da * SPREAD**2 + s * ds) / (a * a * SPREAD**2 + s * s)
    return da * means + gain * (x - a * means)


@pytest.mark.parametrize("scale", [1.5, 4.0])
def test_sits_guidance_by_its_own_formula(scale):
    """Written anew as SiT's release samples: time from noise (0) to data (1), guidance on the velocity's first three
    channels, the fourth conditional, then the score term, an Euler-Maruyama step, and a last step without noise.
    """
    steps, y = 50, [0, 1]
    g = np.random.default_rng(0)
    start, noise = g.standard_normal((2, 4)), g.standard_normal((steps, 2, 4))

    grid = np.linspace(0.0, 1.0 - 0.04, steps)
    x, dt = start.copy(), grid[1] - grid[0]
    for k, t in enumerate(grid):
        sigma = 1.0 - t
        conditional = of_the_class(x, CLASS_MEANS[y], t, sigma, 1.0, -1.0)
        null = of_the_class(x, CLASS_MEANS[[2, 2]], t, sigma, 1.0, -1.0)
        velocity = conditional.copy()
        velocity[:, :3] = null[:, :3] + scale * (conditional[:, :3] - null[:, :3])
        drift = velocity + sigma * (t * velocity - x) / sigma  # score (t v - x) / sigma, times w / 2 = sigma
        x = x + drift * (dt if k < steps - 1 else 0.04)
        if k < steps - 1:
            x = x + np.sqrt(2 * sigma * dt) * noise[k]

    def velocity_of(x, t, y):
        means = torch.from_numpy(CLASS_MEANS)[y][..., None, None]
        return of_the_class(x, means, 1 - t, t, -1.0, 1.0)

    def ours(channels):
        guidance = Guidance(scale, channels=channels)
        drift = guided_drift(velocity_of, torch.tensor(y), 2, guidance, path="linear", stochastic=True)
        draw = lambda k, _: torch.from_numpy(noise[k])[..., None, None]  # noqa: E731
        begin = torch.from_numpy(start)[..., None, None]
        return sde_euler_maruyama(drift, begin, times("sde_euler_maruyama", steps), draw)[..., 0, 0].numpy()

    np.testing.assert_allclose(ours(3), x, rtol=1e-9, atol=1e-9)
    # The channels of these Gaussians do not mix: three are those of full guidance, and the fourth differs.
    np.testing.assert_array_equal(ours(3)[:, :3], ours(None)[:, :3])
    assert np.abs(ours(3)[:, 3] - ours(None)[:, 3]).min() > 0.1 * (scale - 1)
    np.testing.assert_array_equal(ours(9), ours(None))  # as many channels as there are


@pytest.mark.parametrize("rate", [-3.0, 0.7])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_heuns_steps_in_closed_form(rate, steps):
    """dx/dt = rate x from t = 1 to 0: a corrected step multiplies x by 1 + z + z^2 / 2, an Euler step by 1 + z."""
    z = -rate / steps
    x, grid = torch.tensor([1.0, -2.0], dtype=torch.float64), times("ode_heun", steps)
    corrected, euler = 1 + z + z * z / 2, 1 + z
    for option, factor in ((True, corrected**steps), (False, corrected ** (steps - 1) * euler)):
        out = ode_heun(lambda x, t, _: rate * x, x, grid, correct_last_step=option)
        torch.testing.assert_close(out, factor * x, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_last_correction_of_a_network(scale):
    """It adds h / 2 (v(end, 0) - v(before, h)), guided as its step began; the network is asked at t = 0."""
    sit, y = make_sit().double().eval(), torch.tensor([0, 1])
    start = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps, guidance = 4, Guidance(scale, 0.2, 1.0, channels=3)  # off at t = 0, on where the last step begins

    def sampled(**options):
        return sample_latents(
            sit, start, y, solver="ode_heun", steps=steps, guidance=guidance, path="linear", noise=lambda k, x: x,
            **options,
        )  # fmt: skip

    @torch.no_grad()
    def velocity(x, t):
        time = torch.full((2,), t, dtype=torch.float64)
        conditional = sit(x, time, y, project=False).velocity
        null = sit(x, time, torch.full_like(y, sit.null_class), project=False).velocity
        if scale > 1:
            conditional[:, :3] = null[:, :3] + scale * (conditional[:, :3] - null[:, :3])
        return conditional

    h, x = 1 / steps, start
    for k in range(steps):
        t = 1 - k * h
        first = velocity(x, t)
        end = x - h * first
        before, x = x, x - h / 2 * (first + velocity(end, t - h))
    torch.testing.assert_close(sampled(), end, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sampled(correct_last_step=True), x, rtol=1e-9, atol=1e-9)
    added = -h / 2 * (velocity(end, 0.0) - velocity(before, h))
    torch.testing.assert_close(sampled(correct_last_step=True) - sampled(), added, rtol=1e-6, atol=1e-9)
    assert added.norm() / end.norm() > 1e-4


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


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "ode_heun", "correct_last_step": True},
        {"solver": "ode_heun", "correct_last_step": True, "guidance_scale": 2.0, "guidance_low": 0.3},
        {"guidance_scale": 2.0, "guidance_channels": 3},
        {"guidance_scale": 4.0, "guidance_channels": 1, "guidance_high": 0.5},
    ],
)
def test_a_protocols_options_reach_the_samples(options):
    """The network is asked as often as the NFE says, and each option moves the latents."""

    def drawn(protocol):
        sit, asked = make_sit().double().eval(), []
        sit.register_forward_hook(lambda _, inputs, __: asked.append(len(inputs[0])))
        latents = []
        tokenizer = _Identity()
        tokenizer.decode = lambda z: latents.append(z) or z[:, :3]
        Sampler(sit, tokenizer, "linear").draw(protocol, 5, torch.arange(2))
        assert sum(asked) == 2 * protocol.nfe
        return latents[0]

    protocol = Protocol(**(dict(PROTOCOL) | options))
    for field, neutral in (("correct_last_step", False), ("guidance_channels", None)):
        if field in options:
            other = protocol.model_copy(update={field: neutral})
            assert (drawn(protocol) - drawn(other)).abs().max() > 1e-4


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
