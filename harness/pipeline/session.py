"""One output folder, worked on by one command."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness.assets.cache import Store
from harness.preparation import prepare as preparation
from harness.preparation.base import PreparationContext, Prepared, assets_of
from harness.records import provenance, schema
from harness.records.file import RecordFile
from harness.records.schema import StageRecord
from harness.results.run_folders import set_aside
from harness.runtime.progress import Reporter
from harness.suites.base import Budget, Suite
from recipes.core.distributed import World
from recipes.core.errors import UserError
from recipes.core.spec import Execution


@dataclass(frozen=True)
class Session:
    """One output folder, worked on by one command."""

    suite: Suite
    budget: Budget
    folder: Path
    store: Store
    reporter: Reporter
    world: World = field(default_factory=World)
    execution: Execution = field(default_factory=lambda: Execution(device="cpu"))
    data: str | None = None
    """Where the images lie, if the user said so."""
    keep_samples: bool = False
    """Whether scored samples stay, as .npz files in ADM's form."""
    variants: tuple[str, ...] = ()
    """Variants of the grid."""
    seeds: tuple[int, ...] = ()
    """Training seeds of the grid."""
    wandb: str | None = None
    """Project of Weights & Biases that the course of runs is sent to."""

    @property
    def assets(self) -> Store:
        """The part of the cache that is the suite's."""
        return assets_of(self.suite, self.store)

    @property
    def records(self) -> RecordFile:
        """The results so far."""
        return RecordFile(self.folder)

    def common(self) -> dict[str, Any]:
        """The fields that every record of the suite shares."""
        return {
            "suite": self.suite.name,
            "suite_digest": self.suite.identity(),
            "notice": self.suite.notice,
            "provenance": provenance.provenance(),
        }

    def refuse_foreign_records(self) -> None:
        """Refuse a results folder with records of another suite specification.

        Raises:
            UserError: the folder holds some.
        """
        mine = self.suite.identity()
        for record in self.records.all():
            if record.suite_digest != mine:
                raise UserError(
                    f"{self.folder} holds results of another specification of suite {record.suite} "
                    f"(digest {record.suite_digest[:8]}, not {mine[:8]}); choose another --out."
                )

    def note(self, text: str, variant: str | None = None, seed: int | None = None, source: str | None = None) -> None:
        """Print a note and append it as a record (main process only)."""
        self.reporter.note(text, "yellow")
        peak = provenance.peak_memory_bytes()
        self.records.append(
            StageRecord(
                **self.common(),
                stage=schema.NOTE,
                variant=variant,
                seed=seed,
                source=source,
                seconds=0.0,
                peak_memory_bytes=peak,
                notes=[text],
            )
        )

    def repair_records(self) -> None:
        """Move damaged records, and preparation records of other settings, out of the file. Must run before records are
        read.
        """
        if self.world.main:
            for told in [*self.records.repair(), *set_aside(self.folder, self.suite.identity())]:
                self.note(told)
        self.world.barrier()

    @contextmanager
    def costed(self, stage: str, variant: str | None = None, seed: int | None = None) -> Iterator[dict[str, float]]:
        """Record what a stage cost; facts put into the yielded dictionary are kept beside it."""
        began, facts = time.perf_counter(), dict[str, float]()
        yield facts
        if not self.world.main:
            return
        self.records.append(
            StageRecord(
                **self.common(),
                stage=stage,
                variant=variant,
                seed=seed,
                seconds=time.perf_counter() - began,
                peak_memory_bytes=provenance.peak_memory_bytes(),
                facts=facts,
            )
        )


def prepare(session: Session, variants: Sequence[str]) -> Prepared:
    """Find or make every asset that the variants need.

    Raises:
        UserError: the folder holds results of another specification, or an asset is missing.
    """
    session.repair_records()
    session.refuse_foreign_records()
    store = Store(session.store.root, session.reporter.note)
    context = PreparationContext(
        store, session.reporter, session.world, session.execution, session.data, session.costed
    )
    with threads_of(session):
        return preparation.prepare(session.suite, context, variants)


@contextmanager
def threads_of(session: Session) -> Iterator[None]:
    """Context: set the suite's number of CPU threads (results depend on it in the last bits)."""
    before, wanted = torch.get_num_threads(), session.suite.threads
    if wanted is not None and session.world.device.type == "cpu" and session.world.size == 1:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)
