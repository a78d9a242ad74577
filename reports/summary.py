"""Summary tables for the CLI and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.results.comparison import Comparison, load
from harness.results.confidence import SeedNoise
from harness.results.curves import Observation, Selection, Speedups, as_dict, compare, epochs_to, select
from reports.speedup_tables import epochs_table, speedup_table
from reports.table import Table
from reports.tables import alignment_table, cost_table, fid_table, guidance_table


class Shown:
    """Shown as tables, by a notebook and by `print`."""

    def text_tables(self) -> list[Table]:
        """The tables."""
        raise NotImplementedError

    def _repr_markdown_(self) -> str:
        return "\n".join(table.markdown() for table in self.text_tables())

    def __repr__(self) -> str:
        return "\n".join(table.text() for table in self.text_tables())


@dataclass(frozen=True, repr=False)
class Summary(Shown):
    """Short tables of a comparison."""

    comparison: Comparison

    def text_tables(self) -> list[Table]:
        """What `run` prints."""
        tables = [fid_table(self.comparison)]
        if (found := self.comparison.speedups) is not None and found.found:
            tables.append(speedup_table(found, self.comparison.labels))
        return [*tables, cost_table(self.comparison)]

    def guidance_tables(self) -> list[Table]:
        """What `guidance` prints."""
        return [guidance_table(self.comparison)]

    def alignment_tables(self) -> list[Table]:
        """What `analyse` prints."""
        return [alignment_table(self.comparison)]


@dataclass(frozen=True, repr=False)
class CurveSummary(Shown):
    """Speedups of some curves, ours or anybody's, told briefly."""

    found: Speedups
    labels: Mapping[str, str]
    """What recipes are called, for people."""
    ep_fid: float | None = None
    epochs: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """To that FID."""
    about: tuple[tuple[str, str], ...] = ()
    """Extra JSON fields (suite, notice)."""

    def as_dict(self) -> dict[str, Any]:
        """Every speedup, by recipe and currency."""
        out = dict(self.about) | as_dict(self.found)
        return out if self.ep_fid is None else out | {"ep_fid": {"target_fid": self.ep_fid, "epochs": self.epochs}}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A flat dictionary for each recipe and currency, by the names of `as_dict`."""
        return [{"recipe": s.recipe, "currency": s.currency} | s.as_dict() for s in self.found]

    def text_tables(self) -> list[Table]:
        """What `speedup` prints."""
        tables = [speedup_table(self.found, self.labels)]
        if self.ep_fid is not None:
            epochs = {self.labels.get(name, name): found for name, found in self.epochs.items()}
            tables.append(epochs_table(epochs, self.ep_fid))
        return tables


def summarize(folders: Sequence[Path]) -> Summary:
    """Read results folders.

    Raises:
        UserError: see `harness.results.comparison.load`.
    """
    return Summary(load(folders))


def summarize_curves(
    observations: Sequence[Observation],
    baseline: str,
    selection: Selection,
    *,
    target: float | None = None,
    ep_fid: float | None = None,
    noise: SeedNoise | None = None,
) -> CurveSummary:
    """Curves of a table.

    Raises:
        UserError: see `harness.results.curves.compare` and `harness.results.curves.select`.
    """
    chosen = select(observations, selection, baseline)
    found = compare(chosen, baseline, target=target, noise=noise)
    return CurveSummary(found, {}, ep_fid, {} if ep_fid is None else epochs_to(chosen, ep_fid))


def summarize_runs(
    folders: Sequence[Path],
    baseline: str,
    selection: Selection,
    *,
    target: float | None = None,
    ep_fid: float | None = None,
) -> CurveSummary:
    """The curves of results folders.

    Raises:
        UserError: see `harness.results.comparison.load` and `harness.results.curves.compare`.
    """
    return summarize_comparison(load(folders, selection, baseline=baseline), target=target, ep_fid=ep_fid)


def summarize_comparison(
    comparison: Comparison, *, target: float | None = None, ep_fid: float | None = None
) -> CurveSummary:
    """The curves of a comparison, against its baseline.

    Raises:
        UserError: see `harness.results.curves.compare`.
    """
    first = comparison.scores[0]
    about = (("suite", first.suite), ("notice", first.notice))
    epochs = {} if ep_fid is None else epochs_to(comparison.observations(), ep_fid)
    found = comparison.against(comparison.baseline, target)
    return CurveSummary(found, comparison.variants, ep_fid, epochs, about)
