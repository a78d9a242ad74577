"""The only training loop. A recipe says what to update; the core does the updating.

REPA-E steps three optimizers in one iteration, so a recipe does not return a loss: it yields one `Update` for each
optimizer step and is resumed after that step has happened.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from recipes.core.data import Batch
from recipes.core.draws import Draws, KeyedDraws
from recipes.core.ema import ema_copy, ema_decay, ema_update
from recipes.core.spec import OptimizerSpec, TrainSpec


@dataclass(frozen=True)
class Update:
    """One optimizer step that a recipe asks for."""

    network: str
    """Which network the gradients are for; only its optimizer steps."""
    loss: Tensor
    logs: Mapping[str, Tensor] = field(default_factory=dict)
    """Detached scalars; they stay on the device until somebody reads them."""


class Recipe(Protocol):
    """What differs between two ways of training."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The networks that are trained, by name. Each has an optimizer of that name."""
        ...

    @property
    def averaged(self) -> Sequence[str]:
        """Those of them that are sampled from, and so have an EMA."""
        ...

    def updates(self, batch: Batch, draws: Draws) -> Iterator[Update]:
        """Yield the optimizer steps of one iteration, in order."""
        ...


def make_optimizer(network: nn.Module, spec: OptimizerSpec) -> torch.optim.AdamW:
    """AdamW over the parameters that ask for a gradient."""
    return torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad],
        lr=spec.lr,
        betas=spec.betas,
        eps=spec.eps,
        weight_decay=spec.weight_decay,
        fused=True,
    )


class Clock:
    """Seconds of training. Stopped for evaluation, checkpoints and logging; goes on across restarts."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._total = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """The total so far."""
        return self._total + (time.perf_counter() - self._since if self._since is not None else 0.0)

    def start(self, total: float | None = None) -> None:
        """Go on, from `total` if it is given."""
        self._total = self.seconds if total is None else total
        self._since = time.perf_counter()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Do something that is not training. Waits for the device, so that its queue is counted."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._total, self._since = self.seconds, None
        yield
        self._since = time.perf_counter()


class Trainer:
    """The state of a run, and the step that moves it forward."""

    def __init__(self, recipe: Recipe, spec: TrainSpec) -> None:
        self.recipe = recipe
        self.spec = spec
        self.optimizers = {
            name: make_optimizer(network, spec.optimizers[name]) for name, network in recipe.networks.items()
        }
        self.averages = {name: ema_copy(recipe.networks[name]) for name in recipe.averaged}
        self.step = 0
        """Effective optimizer steps done."""
        self.device = next(next(iter(recipe.networks.values())).parameters()).device
        self.clock = Clock(self.device)

    def train_step(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """One iteration: every update the recipe asks for, then the averages. Never waits for the device."""
        logs: dict[str, Tensor] = {}
        for update in self.recipe.updates(batch, draws):
            logs.update(update.logs)
            logs[f"grad_norm_{update.network}"] = self._apply(update)
        decay = ema_decay(self.spec.ema, self.step)
        for name, average in self.averages.items():
            ema_update(average, self.recipe.networks[name], decay)
        self.step += 1
        return logs

    def _apply(self, update: Update) -> Tensor:
        spec, optimizer = self.spec.optimizers[update.network], self.optimizers[update.network]
        for group in optimizer.param_groups:
            group["lr"] = spec.lr * min(1.0, (self.step + 1) / max(1, spec.warmup_steps))
        optimizer.zero_grad(set_to_none=True)
        update.loss.backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, spec.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def train(self, batches: Iterable[tuple[int, Batch]]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Train on (step, batch) pairs; yield (steps done, logs) after each.

        The clock runs; who does something else between two steps does it under ``clock.stopped()``.
        """
        items = torch.arange(self.spec.batch_size, device=self.device)
        self.clock.start()
        for step, batch in batches:
            if step != self.step:
                raise ValueError(f"the batch of step {step} came at step {self.step}")
            yield step + 1, self.train_step(batch.to(self.device), KeyedDraws(self.spec.seed, step, items))

    def weights(self) -> dict[str, Tensor]:
        """Every network and average, as one flat dictionary: ``NETWORK.KEY`` and ``ema.NETWORK.KEY``."""
        modules = dict(self.recipe.networks) | {f"ema.{name}": m for name, m in self.averages.items()}
        return {f"{name}.{key}": value for name, m in modules.items() for key, value in m.state_dict().items()}

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizers' moments, flat: ``NETWORK.PARAMETER INDEX.MOMENT``."""
        return {
            f"{name}.{index}.{key}": value
            for name, optimizer in self.optimizers.items()
            for index, moments in optimizer.state_dict()["state"].items()
            for key, value in moments.items()
        }

    def restore(
        self, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], step: int, seconds: float
    ) -> None:
        """Continue from what `weights` and `optimizer_state` returned. Draws need no state."""
        modules = dict(self.recipe.networks) | {f"ema.{name}": m for name, m in self.averages.items()}
        for name, module in modules.items():
            module.load_state_dict(subset(weights, name))
        for name, own in self.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in subset(optimizer, name).items():
                index, moment = key.split(".")
                state.setdefault(int(index), {})[moment] = value
            own.load_state_dict({"state": state, "param_groups": own.state_dict()["param_groups"]})
        self.step = step
        self.clock.start(seconds)


def subset(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under ``PREFIX.``, with the prefix taken off."""
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
