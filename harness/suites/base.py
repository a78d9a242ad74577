"""What every suite hands to the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import JsonValue
from torch import Tensor

from harness.assets import Store
from harness.features import Extractor, Features
from harness.metrics import Moments
from harness.progress import Reporter
from harness.protocol import Protocol as EvaluationProtocol
from recipes.core.spec import Spec
from recipes.run import RunSpec, TrainingInputs


class Arm(Spec):
    """A recipe, or a recipe with changed options: a configuration, never copied code."""

    recipe: str
    label: str
    """Its name in tables and figures."""
    about: str
    """One sentence for the report."""
    options: dict[str, JsonValue] = {}


class Budget(Spec):
    """How long to train and how often to look. Not part of a suite's digest: more steps extend the same runs."""

    steps: int
    score_every: int

    def milestones(self) -> list[int]:
        """The steps that are kept and scored: every `score_every`, and the last."""
        return sorted({*range(self.score_every, self.steps + 1, self.score_every), self.steps})


@dataclass(frozen=True)
class Prepared:
    """Everything that is made before training, and shared by all runs of a suite."""

    inputs: TrainingInputs
    extractor: Extractor
    reference: Features
    reference_moments: Moments
    reference_images: Tensor
    """uint8, (N, 3, H, W)."""
    hashes: Mapping[str, str]
    """Content hash of each asset, by kind."""
    facts: Mapping[str, Any]
    """What was measured on the way, for people to read."""


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
    def arms(self) -> dict[str, Arm]:
        """Every configuration that it can run."""
        ...

    @property
    def default_arms(self) -> tuple[str, ...]:
        """Those that run unless others are asked for."""
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

    def identity(self) -> str:
        """Digest of everything that can change a number, the budget left out."""
        ...

    def prepare(self, store: Store, reporter: Reporter) -> Prepared:
        """Find or make every asset."""
        ...

    def run_spec(self, arm: str, seed: int, prepared: Prepared) -> RunSpec:
        """The specification of one training run."""
        ...
