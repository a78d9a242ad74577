"""What a suite says: what is trained on what, and how it is judged. Specifications do no work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from pydantic import JsonValue

from harness.sampling.protocol import Protocol as EvaluationProtocol
from recipes.core.spec import Count, Spec
from recipes.training.spec import RunSpec


class Variant(Spec):
    """A recipe, or a recipe with changed options: a configuration, never copied code."""

    recipe: str
    label: str
    """Its name in tables and figures."""
    about: str
    """One sentence for the report."""
    options: dict[str, JsonValue] = {}


class Budget(Spec):
    """How long to train and how often to look. Not part of a suite's digest: more steps extend the same runs."""

    steps: Count
    score_every: Count

    def milestones(self) -> list[int]:
        """The steps that are kept and scored: every `score_every`, and the last."""
        return sorted({*range(self.score_every, self.steps + 1, self.score_every), self.steps})


class Suite(Protocol):
    """What is trained on what, and how it is judged."""

    @property
    def name(self) -> str:
        """Its name on the command line."""
        ...

    @property
    def notice(self) -> str:
        """What its numbers are not."""
        ...

    @property
    def variants(self) -> Mapping[str, Variant]:
        """Every configuration that it can run."""
        ...

    @property
    def default_variants(self) -> tuple[str, ...]:
        """Those that run unless others are asked for."""
        ...

    @property
    def default_seeds(self) -> tuple[int, ...]:
        """Training seeds that run unless others are asked for."""
        ...

    @property
    def default_jobs(self) -> int:
        """Runs that are worked on at a time, at most, unless told otherwise."""
        ...

    @property
    def threads(self) -> int | None:
        """Threads that train and score a run on the CPU, whatever the machine has; None: as many as PyTorch takes."""
        ...

    @property
    def finals_once(self) -> bool:
        """Whether only the grid's first seed is drawn under the final protocols: a proxy's time is for seeds."""
        ...

    @property
    def budget(self) -> Budget:
        """How long, unless told otherwise."""
        ...

    @property
    def curve_protocol(self) -> EvaluationProtocol:
        """For every checkpoint."""
        ...

    @property
    def final_protocols(self) -> tuple[EvaluationProtocol, ...]:
        """For the last checkpoint, besides."""
        ...

    @property
    def max_rfid(self) -> float:
        """Gate for the tokenizer's own rFID."""
        ...

    @property
    def stand_ins(self) -> bool:
        """Whether tiny networks with random weights stand for the published ones, in a cache of their own."""
        ...

    def identity(self) -> str:
        """Digest of everything that can change a number, the budget left out."""
        ...

    @property
    def image_size(self) -> int:
        """Side of its images, in pixels."""
        ...

    @property
    def chunk(self) -> int:
        """Images that go through a network at once when samples are drawn or judged."""
        ...

    @property
    def wants_gpu(self) -> bool:
        """Whether ``--device auto`` looks for one."""
        ...

    @property
    def reads_data(self) -> bool:
        """Whether it wants ``--data``, and does not make its own."""
        ...

    @property
    def knows_labels(self) -> bool:
        """Whether the feature network's logits are the suite's classes."""
        ...

    def run_spec(self, variant: str, seed: int, hashes: Mapping[str, str]) -> RunSpec:
        """The specification of one training run; for a plan, hashes may be missing."""
        ...

    def needs(self, variant: str) -> list[str]:
        """The assets of the catalogue that training a variant reads."""
        ...

    def scored_by(self) -> list[str]:
        """The assets of the catalogue that scoring reads."""
        ...

    def latents_of(self, variants: Sequence[str]) -> dict[str, tuple[tuple[int, int], str]]:
        """Tokenizers whose posteriors these variants cache: (channels, side) and number format."""
        ...


def draws_of(suite: Suite, budget: Budget, *, first: bool) -> list[tuple[int, EvaluationProtocol, int]]:
    """What is drawn of a run, as step, protocol and generation seed.

    Every milestone under the curve protocol, and the last one under all of them. Of the grid's `first` seed the last
    one is drawn twice: how far FID moves by the draw alone is no matter of the seed.
    """
    steps = budget.milestones()
    out = [(step, suite.curve_protocol, 0) for step in steps]
    if first:
        out.append((steps[-1], suite.curve_protocol, 1))
    if first or not suite.finals_once:
        out += [(steps[-1], protocol, 0) for protocol in suite.final_protocols]
    return out
