"""Event files for TensorBoard beside a run's log.jsonl; the same to Weights & Biases where that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from harness.records.schema import ScoreRecord
from recipes.training.run_folder import Run


@dataclass(frozen=True)
class Events:
    """Where the course of a run is written to."""

    writer: SummaryWriter
    mirror: Any = None
    """A run of Weights & Biases."""

    def row(self, row: Mapping[str, float | None]) -> None:
        """A line of the log: a scalar ``train/NAME`` for each loss, norm and statistic."""
        values = {f"train/{name}": value for name, value in row.items() if name != "step" and value is not None}
        self._scalars(values, int(row["step"] or 0))

    def score(self, record: ScoreRecord, grid: Path) -> None:
        """The metrics of a checkpoint, ``METRIC/PROTOCOL``, and its grid of samples."""
        of = record.protocol.label + (f" generation seed {g}" if (g := record.generation_seed) else "")
        metrics = record.metrics.model_dump(exclude_none=True)
        self._scalars({f"{name}/{of}": float(value) for name, value in metrics.items()}, record.step)
        with Image.open(grid) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self.writer.add_image(f"samples/{of}", pixels, record.step, dataformats="HWC")
        if self.mirror is not None:
            import wandb

            self.mirror.log({"step": record.step, f"samples/{of}": wandb.Image(pixels)})

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        if self.mirror is not None:
            self.mirror.log({"step": step, **values})


@contextmanager
def events_of(run: Run, project: str | None, *, on: bool, begin: int | None = None) -> Iterator[Events | None]:
    """Context: an event file of a run, in its folder; None in a process that writes none.

    Args:
        run: whose.
        on: whether this process writes: of several, the main one.
        project: of Weights & Biases; None leaves it out.
        begin: training goes on after this step, and what an interrupted start wrote of later ones is hidden.

    """
    if not on:
        yield None
        return
    mirror = _mirror(run, project) if project is not None else None
    writer = SummaryWriter(str(run.folder), purge_step=None if begin is None else begin + 1)
    try:
        yield Events(writer, mirror)
    finally:
        writer.close()
        if mirror is not None:
            mirror.finish()


def _mirror(run: Run, project: str) -> Any:
    """The run of that specification in a project, begun or continued."""
    import wandb

    mirror = wandb.init(
        project=project,
        id=run.spec.digest()[:32],
        name=run.folder.name,
        group=run.spec.variant,
        config=run.spec.model_dump(mode="json"),
        dir=str(run.folder),
        resume="allow",
        settings=wandb.Settings(silent=True),
    )
    mirror.define_metric("*", step_metric="step")  # a score comes after later steps were logged
    return mirror
