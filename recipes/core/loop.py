"""The only training loop. Recipes yield updates; the core applies them.

REPA-E steps three optimizers in one iteration, so a recipe does not return a loss: it yields one `Update` for each
optimizer step and is resumed after that step has happened. An effective batch may come in micro-batches
(gradient accumulation): then the recipe runs once for each, all of them in lockstep, and every optimizer still steps
once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from recipes.core.batch import Batch
from recipes.core.distributed import GradientAverage, World
from recipes.core.draws import Draws, KeyedDraws
from recipes.core.ema import ema_copy, ema_decay, ema_update, pairs_of
from recipes.core.optimizers import make_optimizer
from recipes.core.precision import autocast, matrix_products
from recipes.core.spec import TrainSpec
from recipes.core.step import Recipe, Step, Update
from recipes.core.watchdog import Finding, Watch, leave_out


class Clock:
    """Seconds of training, without evaluation, checkpoints and logging; goes on across restarts."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._total = 0.0
        self._earlier_devices = 0.0
        self._earlier = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """The total so far."""
        return self._total + (time.perf_counter() - self._since if self._since is not None else 0.0)

    @property
    def device_seconds(self) -> float:
        """Device-seconds, correct across restarts with another number of devices."""
        return self._earlier_devices + (self.seconds - self._earlier) * self._world.size

    def start(self, total: float | None = None, device_seconds: float | None = None) -> None:
        """Start (or continue with totals of an earlier process)."""
        if total is not None:
            self._earlier, self._earlier_devices = total, total if device_seconds is None else device_seconds
        self._total = self.seconds if total is None else total
        self._since = time.perf_counter()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Context: pause the clock, after synchronising the device."""
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)
        self._total, self._since = self.seconds, None
        yield
        self._since = time.perf_counter()


class Trainer:
    """The state of a run, and the step that moves it forward."""

    def __init__(
        self,
        recipe: Recipe,
        spec: TrainSpec,
        *,
        world: World | None = None,
        micro_batch: int | None = None,
        complete: Callable[[Batch, int], Batch] = lambda batch, number: batch,
    ) -> None:
        """Args:
        recipe: its networks, already on the device.
        spec: seed, global batch, optimizers, EMA, precision.
        world: the processes that share the batch; alone by default.
        micro_batch: images that a process runs through the networks at once; its whole share by default.
        complete: adds to a batch what is computed and not stored (a frozen encoder's tokens), given the number of the
            iteration. Runs without gradients.
        """
        self.recipe = recipe
        self.spec = spec
        self.device = next(next(iter(recipe.networks.values())).parameters()).device
        self.world = world or World(device=self.device)
        self.rows = self.world.rows(spec.batch_size)
        self.micro_batch = micro_batch or (self.rows.stop - self.rows.start)
        self._complete = complete
        self.optimizers = {
            name: make_optimizer(network, spec.optimizers[name]) for name, network in recipe.networks.items()
        }
        self._parameters = {
            name: [p for group in optimizer.param_groups for p in group["params"]]
            for name, optimizer in self.optimizers.items()
        }
        self._reducers = {name: GradientAverage(ps, self.world.size) for name, ps in self._parameters.items()}
        self.scalers = {
            name: torch.amp.GradScaler(self.device.type, enabled=spec.precision == "fp16") for name in self.optimizers
        }
        self.averages = {name: ema_copy(recipe.networks[name]) for name in recipe.averaged}
        self._pairs = {name: pairs_of(average, recipe.networks[name]) for name, average in self.averages.items()}
        self._buffers = [b for n in recipe.networks.values() for b in n.buffers() if b.is_floating_point()]
        self.position = 0
        """Batches consumed. More than `step` only where an update of an averaged network was left out."""
        self.watch = Watch(list(self.optimizers), self.device)
        self._known_skips = 0
        self.clock = Clock(self.world)

    @property
    def step(self) -> int:
        """Effective optimizer steps, as far as this host knows; `settle` makes it exact."""
        return self.position - self._known_skips

    @property
    def skipped(self) -> dict[str, Tensor]:
        """Updates left out of each network, because they were not finite."""
        return self.watch.skipped

    def settle(self) -> Finding:
        """Read skip counters from the device; `step` is exact afterwards."""
        found = self.watch.read()
        self._known_skips = max(found.skipped[name] for name in self.recipe.averaged)
        return found

    def train_step(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """One iteration: every update the recipe asks for, then the averages. Never waits for the device.

        Args:
            batch: this process's share of the global batch, on the device.
            draws: its random numbers.

        Returns:
            Scalars on the device: means over this process's share. `World.mean` makes them global.
        """
        sound = [buffer.clone() for buffer in self._buffers]
        with matrix_products(self.spec.precision):
            running = [self.recipe.updates(step) for step in self._steps(batch, draws)]
            logs: dict[str, Tensor] = {}
            happened: dict[str, Tensor] = {}
            while (network := self._backward(running, logs)) is not None:
                logs[f"grad_norm_{network}"] = self._apply(network, happened)
        with torch.no_grad():
            for buffer, before in zip(self._buffers, sound, strict=True):  # batch norms move in the forward pass
                buffer.copy_(torch.where(buffer.isfinite(), buffer, before))
        decay = ema_decay(self.spec.ema, self.position)
        for name, pairs in self._pairs.items():
            # Only a loss scaler leaves out so many updates that the average must not move; and a weight on the device
            # costs the batched form.
            held = happened[name] if self.scalers[name].is_enabled() else None
            ema_update(pairs, decay, held)
        self.watch.end(self.position, logs)
        self.position += 1
        return logs

    def _steps(self, batch: Batch, draws: Draws) -> Iterator[Step]:
        """One for each micro-batch."""
        for rows in torch.arange(len(batch), device=batch.labels.device).split(self.micro_batch):
            whole = len(rows) == len(batch)
            micro_batch = batch if whole else batch.take(rows)
            with torch.no_grad(), autocast(self.spec.precision, self.device):
                micro_batch = self._complete(micro_batch, self.position)
            yield Step(self.position, micro_batch, draws if whole else draws.take(rows), self.averages)

    def _backward(self, running: Sequence[Iterator[Update]], logs: dict[str, Tensor]) -> str | None:
        """Advance each micro-batch to its next update, accumulate gradients; returns the network's name or None."""
        updates: list[Mapping[str, Tensor]] = []
        network = None
        for number, one in enumerate(running, start=1):
            with autocast(self.spec.precision, self.device):
                update = next(one, None)
            if update is None:
                return None
            network = update.network
            loss = self.scalers[network].scale(update.loss / len(running))
            self._reducers[network].backward(loss, last=number == len(running))
            updates.append(update.logs)
        for name in updates[0]:
            logs[name] = updates[0][name] if len(updates) == 1 else torch.stack([u[name] for u in updates]).mean()
        return network

    def _apply(self, network: str, happened: dict[str, Tensor]) -> Tensor:
        spec, optimizer, scaler = self.spec.optimizers[network], self.optimizers[network], self.scalers[network]
        for group in optimizer.param_groups:
            group["lr"] = spec.lr * min(1.0, (self.position + 1) / max(1, spec.warmup_steps))
        scaler.unscale_(optimizer)  # type: ignore[arg-type]
        norm = nn.utils.get_total_norm([p.grad for p in self._parameters[network] if p.grad is not None])
        if spec.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self._parameters[network], spec.clip_norm, norm)
        happened[network] = self.watch.see(network, norm)
        if not scaler.is_enabled():
            leave_out(optimizer, ~happened[network])
        scaler.step(optimizer)  # type: ignore[arg-type]
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def train(self, batches: Iterable[tuple[int, Batch]]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Train on (position, batch) pairs; yield (steps done, logs) after each.

        Callers must wrap other work between steps in ``clock.stopped()``.
        """
        items = torch.arange(self.rows.start, self.rows.stop, device=self.device)
        self.clock.start()
        for position, batch in batches:
            if position != self.position:
                raise ValueError(f"the batch of step {position} came at step {self.position}")
            logs = self.train_step(batch.to(self.device), KeyedDraws(self.spec.seed, position, items))
            yield self.step, logs

    def weights(self) -> dict[str, Tensor]:
        """Every network and average, as one flat dictionary: ``NETWORK.KEY`` and ``ema.NETWORK.KEY``."""
        modules = dict(self.recipe.networks) | {f"ema.{name}": m for name, m in self.averages.items()}
        return {f"{name}.{key}": value for name, m in modules.items() for key, value in m.state_dict().items()}

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizers' moments, flat: ``NETWORK.PARAMETER INDEX.MOMENT``; how many updates were left out, where
        there were any; with fp16, the loss scalers too.
        """
        state = {
            f"{name}.{index}.{key}": value
            for name, optimizer in self.optimizers.items()
            for index, moments in optimizer.state_dict()["state"].items()
            for key, value in moments.items()
        }
        for name, scaler in self.scalers.items():
            if scaler.is_enabled():
                saved = scaler.state_dict()
                values = [saved["scale"], saved["_growth_tracker"], self.skipped[name].item()]
                state[f"scaler.{name}"] = torch.tensor(values, dtype=torch.float64)
            elif self.skipped[name].item():
                state[f"skipped.{name}"] = self.skipped[name].clone()
        return state

    def restore(self, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], position: int) -> None:
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
        for name, scaler in self.scalers.items():
            if scaler.is_enabled():
                scale, tracker, skipped = optimizer[f"scaler.{name}"].tolist()
                scaler.load_state_dict(scaler.state_dict() | {"scale": scale, "_growth_tracker": int(tracker)})
                self.skipped[name].fill_(int(skipped))
            elif (left_out := optimizer.get(f"skipped.{name}")) is not None:
                self.skipped[name].copy_(left_out)
        self.position = position
        self.settle()


def subset(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under ``PREFIX.``, with the prefix taken off."""
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
