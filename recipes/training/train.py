"""One training run: a specification and data in, checkpoints out. The same call resumes it."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from recipes.core import atomic
from recipes.core.checkpoint import Writer
from recipes.core.distributed import World
from recipes.core.errors import Diverged, Stopped
from recipes.core.json_lines import append_row
from recipes.core.loop import Trainer
from recipes.core.spec import Execution
from recipes.core.watchdog import EXPLODED, Fault, Finding
from recipes.data.loader import batches
from recipes.training.build import build_trainer
from recipes.training.run_folder import Run
from recipes.training.spec import TrainingInputs


@dataclass
class TrainingOptions:
    """Execution options of `train_run`."""

    execution: Execution = field(default_factory=lambda: Execution(device="cpu"))
    world: World = field(default_factory=World)
    log_every: int = 25
    on_step: Callable[[int], None] = lambda step: None
    """Called with the number of steps done."""
    on_log: Callable[[Mapping[str, float | None]], None] = lambda row: None
    """Called in the main process with each row of the log, ``step`` and ``seconds`` among its names."""
    stop: Callable[[], int] = lambda: 0
    """Polled after every step; a non-zero signal number saves the run and raises `Stopped`."""


def train_run(
    run: Run, inputs: TrainingInputs, milestones: Sequence[int], training: TrainingOptions | None = None
) -> None:
    """Train until the last milestone, keeping a checkpoint at each; does nothing where they exist.

    Args:
        run: specification and folder; a folder with checkpoints is continued.
        inputs: data and frozen networks.
        milestones: effective optimizer steps to keep.
        training: device, processes, logging.

    Raises:
        UserError: the run went past a milestone without keeping it, or its batch cannot be spread.
        DamagedError: a checkpoint is not what was written; `Run.repair` sets it aside.
        Diverged: the watchdog stopped it; see `recipes.core.watchdog`.
        Stopped: somebody asked for it; everything is saved.
    """
    training = training or TrainingOptions()
    missing = sorted(set(milestones) - set(run.steps()))
    if not missing:
        return
    execution, world = training.execution, training.world
    trainer = build_trainer(run.spec, inputs, execution=execution, world=world)
    run.resume(trainer, missing)
    if world.main:
        atomic.write_text(run.folder / "spec.json", run.spec.model_dump_json(indent=1))
        run.trim_log(trainer.step)
    stream = batches(
        inputs.data,
        seed=run.spec.train.seed,
        batch_size=run.spec.train.batch_size,
        start=trainer.position,
        # Updates may be left out, and then it takes more batches than steps.
        stop=sys.maxsize,
        rows=world.rows(run.spec.train.batch_size),
        ahead=execution.ahead if world.device.type == "cuda" else 0,
        pin=world.device.type == "cuda",
    )
    variance = float(inputs.latent_std.square().mean())
    _Session(run, trainer, training, milestones, missing, len(inputs.data), variance).follow(stream)


@dataclass
class _Session:
    """What happens between the steps of one call of `train_run`."""

    run: Run
    trainer: Trainer
    training: TrainingOptions
    milestones: Sequence[int]
    missing: Sequence[int]
    images: int
    """Number of images of the training set."""
    variance: float
    """Variance of the latents when the run began."""
    writer: Writer = field(default_factory=Writer)
    saved: float = field(default_factory=time.monotonic)
    """When the last checkpoint was begun."""

    def follow(self, stream: Any) -> None:
        trainer, world = self.trainer, self.training.world
        for step, logs in trainer.train(stream):
            number = self.training.stop()
            stop = world.any(bool(number))
            if stop or self._is_due(step):
                with trainer.clock.stopped():
                    finding = trainer.settle()
                    read = self._read(logs)
                    self._stop_if_unsound(read, finding)
                    save = stop or self._is_time()
                    if trainer.step == step or stop:
                        self._keep(trainer.step, read, save, finding)
            self.training.on_step(trainer.step)
            if stop:
                self._finish_writing()
                told = f"stopped by a signal; {self.run.folder} is saved at step {trainer.step}."
                raise Stopped(told, number)
            if trainer.step == self.missing[-1]:
                stream.close()
                self._finish_writing()
                return

    def _is_due(self, step: int) -> bool:
        every = self.training.execution.save_every
        return (
            step % self.training.log_every == 0
            or step == 1
            or step in self.missing
            or bool(every and step % every == 0)
        )

    def _read(self, logs: Mapping[str, Tensor]) -> dict[str, float]:
        names = sorted(logs)
        values = self.training.world.mean(torch.stack([logs[name].float() for name in names])).tolist()
        return dict(zip(names, values, strict=True))

    def _finish_writing(self) -> None:
        """No process ends, and none looks for a checkpoint, before it is written."""
        self.writer.wait()
        self.training.world.barrier()

    def _is_time(self) -> bool:
        """Whether the last checkpoint is too long ago, by the main process's clock; asked in all processes."""
        minutes = self.training.execution.save_minutes
        late = bool(minutes) and time.monotonic() - self.saved >= 60 * minutes
        return self.training.world.any(late and self.training.world.main)

    def _keep(self, step: int, read: Mapping[str, float], save: bool, finding: Finding) -> None:
        """Log a step, and begin to write its checkpoint where one is due."""
        if not self.training.world.main:
            return
        row: dict[str, float | None] = {name: round(v, 7) if math.isfinite(v) else None for name, v in read.items()}
        row |= {f"skipped_{name}": count for name, count in finding.skipped.items() if count}
        seconds = round(self.trainer.clock.seconds, 4)
        row = {"step": step, "seconds": seconds, **row}
        append_row(self.run.log_path, row)
        self.training.on_log(row)
        every = self.training.execution.save_every
        if save or step in self.missing or (every and step % every == 0):
            self.writer.begin(lambda: self.run.saving(self.trainer, self.milestones, self.training.execution.keep))
            self.saved = time.monotonic()

    def _stop_if_unsound(self, logs: Mapping[str, float], finding: Finding) -> None:
        """Raise `Diverged` if the watchdog found a fault; later states are not saved."""
        on_nan, scaled = self.training.execution.on_nan, self.run.spec.train.precision == "fp16"
        fault = finding.fault(on_nan, scaled=scaled)
        limit = EXPLODED * max(1.0, self.variance)
        odd = [name for name, value in logs.items() if not math.isfinite(value)]
        if fault is None and odd and finding.position is None and not scaled:
            fault = Fault(odd[0], "the loss was not finite", skippable=True)
        if fault is None and logs.get("latent_variance", 0.0) > limit:
            fault = Fault("vae", f"the latents exploded: their variance is over {limit:g}")
        if fault is None:
            return
        self._finish_writing()
        if not self.training.world.main:
            raise Diverged(fault.what)
        position = finding.position if finding.position is not None else self.trainer.position - 1
        path = self.run.write_incident(fault, position, self.trainer, finding, self.images)
        last = self.run.resumable()
        kept = "no checkpoint was due before" if last is None else f"the checkpoint of step {last} is good"
        remedy = ", or --on-nan skip" if fault.skippable and on_nan != "skip" else ""
        raise Diverged(
            f"{self.run.spec.name}: {fault.network}: {fault.what} (batch {position}). What happened is in {path}; "
            f"{kept}. Run again to repeat it, or lower the learning rate{remedy}."
        )
