"""The released samplers as pure functions of (velocity, start, schedule, noise), with a double-precision state.

Times run from t = 1 (noise) to t = 0 (data). REPA-E's release (arXiv 2504.10483) and SiT (arXiv 2401.08740).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from recipes.core.interpolant import PathName, coefficients
from recipes.core.precision import Precision, autocast
from recipes.models.sit import SiT

Solver = Literal["ode_euler", "ode_heun", "sde_euler_maruyama"]
LAST_SDE_TIME = 0.04
#: Drift at (x, t); t is a number in [0, 1], and `gate` the time that decides whether guidance is on.
Drift = Callable[[Tensor, float, float], Tensor]
#: Standard normal noise of a step, like x.
StepNoise = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance inside a time interval (both ends included)."""

    scale: float = 1.0
    low: float = 0.0
    high: float = 1.0
    channels: int | None = field(default=None, kw_only=True)
    """Guide only the first `channels` channels; the rest follow the conditional drift. None: guide all."""
    class_scale: float | None = field(default=None, kw_only=True)
    """Scale for a class token (REG): 0 is the conditional drift; None: as for the image."""

    def active(self, t: float) -> bool:
        """Whether the null class is evaluated at time t."""
        return self.scale > 1.0 and self.low <= t <= self.high

    def combine(self, conditional: Tensor, null: Tensor) -> Tensor:
        """Two drifts (N, C, ...) to the guided one."""
        guided = null + self.scale * (conditional - null)
        if self.channels is None:
            return guided
        return torch.cat((guided[:, : self.channels], conditional[:, self.channels :]), dim=1)

    def combine_class(self, conditional: Tensor, null: Tensor) -> Tensor:
        """Two drifts of a class token (N, width) to the guided one."""
        scale = self.scale if self.class_scale is None else self.class_scale
        return null + scale * (conditional - null) if scale > 0 else conditional


@dataclass(frozen=True)
class Interference:
    """Contrastive flow matching's correction (arXiv 2506.05350): inside the guidance interval v becomes a v - b u."""

    vector: Tensor
    """u, (1, C, h, w)."""
    weight: float = 0.05
    """b."""
    velocity: float = 0.95
    """a."""


def times(solver: Solver, steps: int, last_step: float = LAST_SDE_TIME) -> list[float]:
    """The steps + 1 times of a schedule, from 1 to 0.

    ODE: equal steps. SDE: steps - 1 equal ones to t = `last_step`, then one to 0.
    """
    if solver == "sde_euler_maruyama":
        return [*torch.linspace(1.0, last_step, steps, dtype=torch.float64).tolist(), 0.0]
    grid: list[float] = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64).tolist()
    return grid


def number_of_evaluations(
    solver: Solver,
    steps: int,
    guidance: Guidance,
    last_step: float = LAST_SDE_TIME,
    *,
    correct_last_step: bool = False,
) -> int:
    """NFE of one sample: network evaluations, two where guidance is active; see `ode_heun` for its last step."""
    grid = times(solver, steps, last_step)
    per_step = [2 if guidance.active(t) else 1 for t in grid[:-1]]
    corrected = per_step if correct_last_step else per_step[:-1]
    return sum(per_step) + (sum(corrected) if solver == "ode_heun" else 0)


def ode_euler(drift: Drift, x: Tensor, grid: list[float]) -> Tensor:
    """First-order steps of dx/dt = drift."""
    for t, t_next in pairwise(grid):
        x = x + (t_next - t) * drift(x, t, t)
    return x


def ode_heun(drift: Drift, x: Tensor, grid: list[float], *, correct_last_step: bool = False) -> Tensor:
    """Second-order steps, corrected by the drift at their end: in REPA and REPA-E all but the last, in SiT all."""
    for t, t_next in pairwise(grid):
        first = drift(x, t, t)
        ahead = x + (t_next - t) * first
        if t_next > 0 or correct_last_step:
            # The release decides on guidance once for both evaluations, by the step's beginning.
            ahead = x + (t_next - t) * 0.5 * (first + drift(ahead, t_next, t))
        x = ahead
    return x


def sde_euler_maruyama(drift: Drift, x: Tensor, grid: list[float], noise: StepNoise) -> Tensor:
    """Steps of the reverse SDE with diffusion w = 2 t; the last one adds no noise."""
    for k, (t, t_next) in enumerate(pairwise(grid)):
        dt = t_next - t
        step_noise = noise(k, x) if t_next > 0 else None
        x = x + dt * drift(x, t, t)
        if step_noise is not None:
            x = x + (sde_diffusion(t) * abs(dt)) ** 0.5 * step_noise
    return x


def sde_diffusion(t: float) -> float:
    """w(t) = 2 t."""
    return 2.0 * t


def score(velocity: Tensor, x: Tensor, t: float, path: PathName) -> Tensor:
    """Score of the marginal at t from its velocity (SiT, eq. 9): s = (r v - x) / (sigma^2 - r sigma' sigma)."""
    at = coefficients(path, torch.tensor(t, dtype=torch.float64, device=x.device))
    r = at.alpha / at.d_alpha
    return (r * velocity - x) / (at.sigma**2 - r * at.d_sigma * at.sigma)


def guided_drift(
    velocity: Callable[[Tensor, float, Tensor], Tensor],
    labels: Tensor,
    null_class: int,
    guidance: Guidance,
    *,
    path: PathName,
    stochastic: bool,
    combine: Callable[[Tensor, Tensor], Tensor] | None = None,
    interference: Interference | None = None,
) -> Drift:
    """The drift that a solver integrates: guided velocity, with the score term for the SDE.

    Args:
        velocity: (x, t, labels) -> velocity, all float64 outside.
        labels: int64 (N,).
        null_class: the label of "no label".
        guidance: outside its interval the conditional drift is used alone, at half the cost.
        path: the training path.
        stochastic: add the SDE's -w/2 times the score.
        combine: conditional and null drift to the guided one; `Guidance.combine` by default.
        interference: of the velocity, before the score.
    """
    combine = combine or guidance.combine

    def evaluate(x: Tensor, t: float, y: Tensor) -> Tensor:
        v = velocity(x, t, y)
        if interference is not None and guidance.low <= t <= guidance.high:
            v = interference.velocity * v - interference.weight * interference.vector
        return v - 0.5 * sde_diffusion(t) * score(v, x, t, path) if stochastic else v

    def drift(x: Tensor, t: float, gate: float) -> Tensor:
        if not guidance.active(gate):
            return evaluate(x, t, labels)
        both = evaluate(torch.cat((x, x)), t, torch.cat((labels, torch.full_like(labels, null_class))))
        conditional, null = both.chunk(2)
        return combine(conditional, null)

    return drift


@dataclass(frozen=True)
class _States:
    """Image and class token as one row, since solvers are elementwise; without a token the image as it is."""

    shape: torch.Size
    has_token: bool

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (N, C, h, w) and class tokens (N, width)."""
        if not self.has_token:
            return x, None
        size = self.shape.numel()
        return x[:, :size].unflatten(1, self.shape), x[:, size:]

    def row(self, image: Tensor, token: Tensor | None) -> Tensor:
        """Inverse of `parts`: one row per sample."""
        return image if token is None else torch.cat((image.flatten(1), token), dim=1)

    def velocity(self, sit: SiT, precision: Precision, x: Tensor, t: float, y: Tensor) -> Tensor:
        """The network's answer, float64."""
        image, token = self.parts(x)
        dtype = sit.x_embedder.proj.weight.dtype
        time = torch.full((len(x),), t, dtype=dtype, device=x.device)
        with autocast(precision, x.device):
            more = {} if token is None else {"class_token": token.to(dtype)}
            out = sit(image.to(dtype), time, y, project=False, **more)
        return self.row(out.velocity.double(), None if token is None else out.class_velocity.double())

    def combine(self, guidance: Guidance, conditional: Tensor, null: Tensor) -> Tensor:
        """Two drifts to the guided one."""
        (image, token), (none, no_token) = self.parts(conditional), self.parts(null)
        both = None if token is None or no_token is None else guidance.combine_class(token, no_token)
        return self.row(guidance.combine(image, none), both)

    def noise(self, noise: StepNoise, class_noise: StepNoise | None, k: int, x: Tensor) -> Tensor:
        """Step noise for image and class token, as one row."""
        image, token = self.parts(x)
        return self.row(noise(k, image), None if token is None or class_noise is None else class_noise(k, token))


def sample_latents(sit: SiT, start: Tensor, labels: Tensor, **settings: Any) -> Tensor:
    """Integrate from noise to normalised latents, float64, (N, C, h, w); see `sample_states`."""
    return sample_states(sit, start, labels, **settings)[0]


@torch.no_grad()
def sample_states(
    sit: SiT,
    start: Tensor,
    labels: Tensor,
    *,
    solver: Solver,
    steps: int,
    guidance: Guidance,
    path: PathName,
    noise: StepNoise,
    class_start: Tensor | None = None,
    class_noise: StepNoise | None = None,
    last_step: float = LAST_SDE_TIME,
    correct_last_step: bool = False,
    precision: Precision = "fp32",
    interference: Interference | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Integrate from noise to normalised latents, and to a class token where the network has one.

    Args:
        sit: the network, in eval mode.
        start: standard normal latents at t = 1, (N, C, h, w).
        labels: int64 (N,).
        solver: which of the three.
        steps: solver steps; see `number_of_evaluations` for the cost.
        guidance: scale, interval and channels.
        path: the training path.
        noise: noise of the SDE's steps.
        class_start: standard normal class tokens, (N, width).
        class_noise: noise of the SDE's steps for them.
        last_step: the time at which the SDE's last step begins.
        correct_last_step: of Heun's method; the other solvers do not look at it.
        precision: number format of the network; the state is float64 in any case.
        interference: see there.

    Returns:
        float64, (N, C, h, w), and (N, width).
    """
    states = _States(start.shape[1:], class_start is not None)
    drift = guided_drift(
        partial(states.velocity, sit, precision),
        labels,
        sit.null_class if guidance.scale > 1 else -1,  # a network without one can be sampled without guidance
        guidance,
        path=path,
        stochastic=solver == "sde_euler_maruyama",
        combine=partial(states.combine, guidance),
        interference=interference,
    )
    grid = times(solver, steps, last_step)
    x = states.row(start.double(), None if class_start is None else class_start.double())
    if solver == "ode_euler":
        x = ode_euler(drift, x, grid)
    elif solver == "ode_heun":
        x = ode_heun(drift, x, grid, correct_last_step=correct_last_step)
    else:
        x = sde_euler_maruyama(drift, x, grid, partial(states.noise, noise, class_noise))
    return states.parts(x)
