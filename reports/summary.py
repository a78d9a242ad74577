"""The short answer: for the terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.compare import BASELINE, ArmSpeedup, Comparison, load
from harness.curves import Observation, as_dict, compare, epochs_to
from reports.tables import Table, alignment_table, cost_table, epochs_table, fid_table, guidance_table, speedup_table


@dataclass(frozen=True)
class Summary:
    """A comparison, told briefly."""

    comparison: Comparison

    def text_tables(self) -> list[Table]:
        """What `run` prints."""
        tables = [fid_table(self.comparison)]
        if found := self.comparison.speedups():
            tables.append(speedup_table(found))
        return [*tables, cost_table(self.comparison)]

    def guidance_tables(self) -> list[Table]:
        """What `guidance` prints."""
        return [guidance_table(self.comparison)]

    def alignment_tables(self) -> list[Table]:
        """What `analyse` prints."""
        return [alignment_table(self.comparison)]


@dataclass(frozen=True)
class CurveSummary:
    """Curves of FID, ours or anybody's, told briefly."""

    observations: Sequence[Observation]
    baseline: str = BASELINE
    ep_fid: float | None = None
    about: tuple[tuple[str, str], ...] = ()
    """What else the JSON says: suite and notice of our records."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of recipes, for people."""

    def label(self, recipe: str) -> str:
        """Of a recipe."""
        return self.labels.get(recipe, recipe)

    def as_dict(self) -> dict[str, Any]:
        """Every speedup, by recipe and currency."""
        return dict(self.about) | as_dict(self.observations, self.baseline, self.ep_fid)

    def text_tables(self) -> list[Table]:
        """What `speedup` prints."""
        found = compare(self.observations, self.baseline)
        arms = [ArmSpeedup(s.recipe, self.label(s.recipe), s.currency, s.estimate) for s in found]
        tables = [speedup_table(arms, self.label(self.baseline))]
        if self.ep_fid is not None:
            epochs = epochs_to(self.observations, self.ep_fid)
            tables.append(epochs_table({self.label(name): found for name, found in epochs.items()}, self.ep_fid))
        return tables


def summarize(folders: Sequence[Path]) -> Summary:
    """Read results folders.

    Raises:
        UserError: see `harness.compare.load`.
    """
    return Summary(load(folders))


def summarize_runs(folders: Sequence[Path], baseline: str, ep_fid: float | None) -> CurveSummary:
    """The curves of results folders.

    Raises:
        UserError: see `harness.compare.load`.
    """
    comparison = load(folders)
    first = comparison.scores[0]
    about = (("suite", first.suite), ("notice", first.notice))
    return CurveSummary(comparison.observations(), baseline, ep_fid, about, comparison.arms)
