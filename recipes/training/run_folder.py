"""A run's folder: specification, checkpoints, log, notes."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.core import atomic, checkpoint
from recipes.core.errors import DamagedError, UserError
from recipes.core.json_lines import append_row, left_out, read_rows, row_text
from recipes.core.jsons import load_json
from recipes.core.loop import Trainer, subset
from recipes.core.watchdog import Fault, Finding
from recipes.data.loader import order
from recipes.models import sit as transformer
from recipes.models.autoencoder import Autoencoder
from recipes.training.spec import RunSpec

WEIGHTS, OPTIMIZER = "weights", "optimizer"


@dataclass(frozen=True)
class Run:
    """A run's folder."""

    spec: RunSpec
    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Run:
        """A run that was started or imported.

        Raises:
            UserError: the folder holds no readable specification.
        """
        try:
            data = load_json((folder / "spec.json").read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} is not a run: its spec.json cannot be read ({error}).") from None
        return cls(RunSpec.parse(data, where=str(folder / "spec.json")), folder)

    @property
    def log_path(self) -> Path:
        """One JSON object for each logged step."""
        return self.folder / "log.jsonl"

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / "checkpoints" / f"{step:07d}"

    def steps(self) -> list[int]:
        """Steps with a checkpoint, in order."""
        found = [p.name for p in (self.folder / "checkpoints").glob("*") if p.is_dir()]
        return sorted(int(name) for name in found if re.fullmatch("[0-9]+", name))

    def resumable(self, up_to: int | None = None) -> int | None:
        """Last resumable step (<= up_to)."""
        kept = [s for s in self.steps() if self._has_state(s)]
        return max((s for s in kept if up_to is None or s <= up_to), default=None)

    def _has_state(self, step: int) -> bool:
        if not (self.checkpoint(step) / f"{OPTIMIZER}.safetensors").exists():
            return False
        try:
            return checkpoint.hash_of_part(self.checkpoint(step), OPTIMIZER) is not None
        except DamagedError:  # `repair` looks closer
            return True

    def clock(self, step: int) -> dict[str, Any]:
        """``step``, ``seconds`` and ``device_seconds`` of training at a checkpoint.

        Raises:
            DamagedError: the checkpoint is another step's or another run's.
        """
        meta, folder = checkpoint.read_manifest(self.checkpoint(step)), self.checkpoint(step)
        if meta.get("step") != step:
            raise DamagedError(f"{folder} holds the checkpoint of step {meta.get('step')}")
        if meta.get("run", self.spec.digest()) != self.spec.digest():
            raise DamagedError(f"{folder} holds a checkpoint of another run")
        return meta

    def weights(self, step: int) -> dict[str, Tensor]:
        """``NETWORK.KEY`` and ``ema.NETWORK.KEY`` at a checkpoint.

        Raises:
            DamagedError: see `clock` and `checkpoint.load_part`.
        """
        self.clock(step)
        return checkpoint.load_part(self.checkpoint(step), WEIGHTS)

    def weights_hash(self, step: int) -> str:
        """SHA-256 of the weights of a checkpoint."""
        return str(checkpoint.hash_of_part(self.checkpoint(step), WEIGHTS))

    def repair(self, needed: Sequence[int]) -> list[str]:
        """Move damaged checkpoints aside: all damaged `needed` ones, and newest-first until an intact resumable one is
        found.

        Returns:
            A sentence for each.
        """
        found = [told for step in sorted(set(needed) & set(self.steps())) if (told := self._sound(step))]
        if set(needed) <= set(self.steps()):
            return found
        for step in sorted(self.steps(), reverse=True):
            if self._has_state(step):
                told = self._sound(step) or self._sound_state(step)
                if told is None:
                    break
                found.append(told)
        return found

    def _sound(self, step: int) -> str | None:
        """Set a checkpoint aside if its weights are damaged, and say so."""
        try:
            self.clock(step)
            checkpoint.verify_part(self.checkpoint(step), WEIGHTS)
        except DamagedError as error:
            aside = self._aside(step)
            shutil.rmtree(aside, ignore_errors=True)
            self.checkpoint(step).rename(aside)
            return self.note(f"checkpoint {step} was set aside as {aside.name}: {error.what}")
        return None

    def _sound_state(self, step: int) -> str | None:
        """Remove a checkpoint's optimizer state if it is damaged, and say so."""
        try:
            checkpoint.verify_part(self.checkpoint(step), OPTIMIZER)
        except DamagedError as error:
            checkpoint.drop_part(self.checkpoint(step), OPTIMIZER)
            return self.note(f"the optimizer state of checkpoint {step} was removed: {error.what}")
        return None

    def _aside(self, step: int) -> Path:
        return self.checkpoint(step).with_suffix(".damaged")

    @property
    def notes_path(self) -> Path:
        """JSON-lines file of notes for readers of the run's numbers."""
        earlier = self.folder / "remarks.jsonl"  # as it was called before records of version 2
        return earlier if earlier.exists() else self.folder / "notes.jsonl"

    def note(self, text: str) -> str:
        """Append a note; returns it."""
        append_row(self.notes_path, {"text": text, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
        return text

    def notes(self) -> list[str]:
        """The sentences, in order; a line cut short is passed over."""
        rows, damaged = read_rows(self.notes_path, text=str)
        return [row["text"] for row in rows] + left_out(self.notes_path, damaged)

    def saving(self, trainer: Trainer, milestones: Sequence[int], keep: int) -> Callable[[], None]:
        """Copy the state of a trainer; the function that is returned writes it, and then prunes older checkpoints.

        All milestones are kept; of the other checkpoints, and of optimizer states, only the last `keep`.
        """
        parts = {WEIGHTS: checkpoint.host_copy(trainer.weights())}
        parts[OPTIMIZER] = checkpoint.host_copy(trainer.optimizer_state())
        step = trainer.step
        meta = {
            "step": step,
            "position": trainer.position,
            "seconds": trainer.clock.seconds,
            "device_seconds": trainer.clock.device_seconds,
            "milestone": step in milestones,
            "left_out": {name: int(count) for name, count in sorted(trainer.skipped.items()) if count},
            "run": self.spec.digest(),
        }

        def write() -> None:
            checkpoint.save_folder(self.checkpoint(step), parts, meta)
            self.prune(keep)

        return write

    def prune(self, keep: int) -> None:
        """Let go of what older checkpoints hold too much of; a process may have been killed before it did."""
        for step in self.steps()[:-keep]:
            try:
                milestone = self.clock(step).get("milestone", True)
            except DamagedError:  # no reason to stop; who needs it will see
                continue
            if milestone:
                checkpoint.drop_part(self.checkpoint(step), OPTIMIZER)
            else:
                checkpoint.remove_folder(self.checkpoint(step))

    def resume(self, trainer: Trainer, missing: Sequence[int]) -> None:
        """Bring a trainer to the last checkpoint before the first that is missing, if there is one.

        Raises:
            UserError: the run went past the first without keeping it.
        """
        step, last = self.resumable(missing[0]), self.resumable()
        if last is not None and last > missing[0] and not self._aside(missing[0]).exists():
            raise UserError(
                f"{self.folder} is at step {last} and kept no checkpoint of step {missing[0]}; "
                "keep --score-every as it was, or choose another --out."
            )
        if step is None:
            return
        clock = self.clock(step)
        state = checkpoint.load_part(self.checkpoint(step), OPTIMIZER)
        trainer.restore(self.weights(step), state, int(clock["position"]))
        trainer.clock.start(float(clock["seconds"]), float(clock["device_seconds"]))

    def log(self, step: int) -> tuple[list[dict[str, Any]], int]:
        """What was logged up to a step, and how many lines are damaged."""
        rows, damaged = read_rows(self.log_path, step=int, seconds=int | float)
        return [row for row in rows if row["step"] <= step], damaged

    def trim_log(self, step: int) -> None:
        """Truncate the log to the resumed step and note damaged lines."""
        rows, damaged = self.log(step)
        for told in left_out(self.log_path, damaged):
            self.note(told)
        atomic.write_text(self.log_path, "".join(map(row_text, rows)))

    def write_incident(self, fault: Fault, position: int, trainer: Trainer, finding: Finding, images: int) -> Path:
        """Write an incident file with everything needed to reproduce the failed step."""
        seed, batch = self.spec.train.seed, self.spec.train.batch_size
        drawn = order(seed, torch.arange(position * batch, (position + 1) * batch), images)
        content = {
            "what": fault.what,
            "network": fault.network,
            "position": position,
            "step": trainer.step,
            "seed": seed,
            "images": drawn.tolist(),
            "logs": {k: v if math.isfinite(v) else str(v) for k, v in finding.logs.items()},
            "skipped": finding.skipped,
            "last_checkpoint": self.resumable() or 0,
        }
        path = self.folder / "incidents" / f"{position:07d}.json"
        atomic.write_text(path, json.dumps(content, indent=1) + "\n")
        return path


def import_notes(run: Run, step: int) -> list[str]:
    """Notes of an imported checkpoint; [] for own runs."""
    return [str(note) for note in run.clock(step).get("imported", {}).get("notes", ())]


def load_for_sampling(
    run: Run, step: int, tokenizer: Autoencoder | None, *, average: bool, device: torch.device | None = None
) -> tuple[transformer.SiT, Autoencoder]:
    """The SiT (its EMA or its raw weights) and the tokenizer that belongs to it, in eval mode.

    Raises:
        UserError: the checkpoint holds no such weights, or no tokenizer, and none is given.
    """
    weights = run.weights(step)
    state = subset(weights, "ema.sit" if average else "sit")
    if not state:
        told = (
            "raw weights alone, and their average (EMA) is asked for: name a protocol of raw weights, as --protocol "
            "repa-e-v3+raw, or, if the file's weights are the average, import it again with --weights ema."
            if average
            else "the average (EMA) alone, and raw weights are asked for; name a protocol without +raw."
        )
        raise UserError(f"{run.folder} was imported from a file with {told}")
    sit = transformer.SiT(run.spec.sit)
    sit.load_state_dict(state)
    tuned = subset(weights, "vae")
    if tuned:
        tokenizer = Autoencoder(run.spec.tokenizer)
        tokenizer.load_state_dict(tuned)
    if tokenizer is None:
        raise UserError(
            f"{run.folder} holds no tokenizer of its own; name the one that it was trained on with --tokenizer."
        )
    for network in (sit, tokenizer):
        network.to(device or torch.device("cpu")).eval().requires_grad_(False)
    return sit, tokenizer
