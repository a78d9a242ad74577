"""A guidance sweep: every variant gets the same settings, samples and seeds, and its best is chosen on generation seeds
that no result uses.

The lowest of many noisy numbers is too low. So the setting that has it is drawn again, under a generation seed that the
choice never saw, and that is the number to quote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from harness.pipeline import score
from harness.pipeline.session import Session
from harness.preparation.base import Prepared
from harness.sampling.protocol import Protocol
from recipes.core.errors import UserError
from recipes.training.run_folder import Run

#: Generation seeds that a suite's own scores use.
REPORTED = (0, 1)


@dataclass(frozen=True)
class Sweep:
    """What is tried, the same for every variant."""

    base: Protocol
    """Protocol whose guidance settings are replaced by the ones tried."""
    scales: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    seeds: tuple[int, ...]
    """Generation seeds to choose by."""
    reported: tuple[int, ...]
    """Generation seeds of the result."""
    samples: int
    """How many samples are drawn of every setting that is tried."""

    def __post_init__(self) -> None:
        """Check the grid.

        Raises:
            UserError: nothing to try, an interval that is none, or a seed that would choose and report.
        """
        if not any(scale > 1 for scale in self.scales):
            raise UserError("--scales: give at least one above 1; no guidance is always tried.")
        if odd := [scale for scale in self.scales if not 0 <= scale < 1e6]:
            raise UserError(f"--scales {odd[0]:g}: a guidance scale is a number from 0, such as 1.5.")
        for low, high in self.intervals:
            if not 0 <= low < high <= 1:
                raise UserError(f"--intervals {low:g}:{high:g}: write LOW:HIGH with 0 <= LOW < HIGH <= 1, as in 0:0.7.")
        if both := sorted(set(self.seeds) & {*REPORTED, *self.reported}):
            raise UserError(
                f"--search-seeds {both[0]}: that seed's samples are results, so the choice must not see them; take "
                "others, such as 1000."
            )

    def settings(self) -> list[Protocol]:
        """No guidance, then every scale in every interval, with the number of samples to choose by."""
        few = self.base.model_copy(update={"name": f"{self.base.name}-n{self.samples}", "samples": self.samples})
        few = few.model_copy(update={"manifold_size": min(few.manifold_size, self.samples)})
        guided = [few.guided(s, *i) for i in self.intervals for s in self.scales if s > 1]
        return [few.guided(1.0), *dict.fromkeys(guided)]

    def result(self, chosen: Protocol) -> Protocol:
        """The protocol of the result under a setting."""
        if chosen.guidance_scale <= 1:
            return self.base.guided(1.0) if self.base.guidance_scale > 1 else self.base
        return self.base.guided(chosen.guidance_scale, chosen.guidance_low, chosen.guidance_high)


def sweep_variant(session: Session, prepared: Prepared, runs: Sequence[Run], sweep: Sweep, step: int) -> None:
    """Try every setting on every run of a variant, choose one for all of them, and score it."""
    settings, label = sweep.settings(), session.suite.variants[runs[0].spec.variant].label
    for run in runs:
        tried = [prepared.evaluation(run, step, p, seed, search=True) for p in settings for seed in sweep.seeds]
        score.score_evaluations(session, prepared, tried, f"try guidance, {label}, seed {run.spec.train.seed}")
    session.world.barrier()
    chosen = sweep.result(best_setting(session, prepared, runs, sweep, step))
    for run in runs:
        # Beside the result under guidance, the one without, from the same seeds.
        protocols = dict.fromkeys((sweep.result(settings[0]), chosen))
        results = [prepared.evaluation(run, step, p, seed) for p in protocols for seed in sweep.reported]
        score.score_evaluations(session, prepared, results, f"score guidance, {label}, seed {run.spec.train.seed}")


def best_setting(session: Session, prepared: Prepared, runs: Sequence[Run], sweep: Sweep, step: int) -> Protocol:
    """The setting with the lowest FID, averaged over training seeds and the generation seeds to choose by."""
    found = {r.key(): r for r in session.records.all()}

    def fid(setting: Protocol) -> float:
        keys = [
            prepared.evaluation(run, step, setting, seed, search=True).record_key
            for run in runs
            for seed in sweep.seeds
        ]
        return fmean(found[key].metrics.fid for key in keys)  # type: ignore[union-attr]

    return min(sweep.settings(), key=fid)


def parse_interval(text: str) -> tuple[float, float]:
    """``0:0.7`` to numbers.

    Raises:
        UserError: it is not two numbers.
    """
    try:
        low, high = text.split(":")
        return float(low), float(high)
    except ValueError:
        raise UserError(f"--intervals {text}: write LOW:HIGH, as in 0:0.7.") from None
