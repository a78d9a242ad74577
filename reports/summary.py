"""The short answer: for the terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.compare import Comparison, load
from reports.tables import Table, cost_table, fid_table, guidance_table, speedup_table


@dataclass(frozen=True)
class Summary:
    """A comparison, told briefly."""

    comparison: Comparison

    def text_tables(self) -> list[Table]:
        """What `run` and `speedup` print."""
        tables = [fid_table(self.comparison)]
        if self.comparison.speedups():
            tables.append(speedup_table(self.comparison))
        return [*tables, cost_table(self.comparison)]

    def guidance_tables(self) -> list[Table]:
        """What `guidance` prints."""
        return [guidance_table(self.comparison)]

    def speedups_json(self) -> dict[str, Any]:
        """Every speedup, by recipe and currency."""
        first = self.comparison.scores[0]
        out: dict[str, Any] = {"suite": first.suite, "notice": first.notice, "speedups": {}}
        for s in self.comparison.speedups():
            out["speedups"].setdefault(s.arm, {})[s.currency] = {
                "first_checkpoint": s.first_checkpoint.mean if s.first_checkpoint else None,
                "bracket": s.bracket,
                "loglog": asdict(s.loglog) if s.loglog else None,
                "reached": f"{len(s.reached)} of {len(s.by_seed)}",
                "by_seed": {str(seed): asdict(value) for seed, value in s.by_seed.items()},
            }
        return out


def summarize(folders: Sequence[Path]) -> Summary:
    """Read results folders.

    Raises:
        UserError: see `harness.compare.load`.
    """
    return Summary(load(folders))
