"""What every suite hands to the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from pydantic import JsonValue
from torch import Tensor

from harness.assets import Store
from harness.features import FEATURES, FeatureNetwork, Several, extra_networks, outputs_of
from harness.measured import Measured
from harness.pairs import Distance
from harness.progress import Reporter
from harness.protocol import Protocol as EvaluationProtocol
from recipes.core.distributed import World
from recipes.core.errors import UserError
from recipes.core.spec import Count, Execution, Spec
from recipes.models.autoencoder import Autoencoder
from recipes.run import RunSpec, TrainingInputs

#: Reference images that an extra network looks at, at once.
CHUNK = 64


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

    steps: Count
    score_every: Count

    def milestones(self) -> list[int]:
        """The steps that are kept and scored: every `score_every`, and the last."""
        return sorted({*range(self.score_every, self.steps + 1, self.score_every), self.steps})


@dataclass(frozen=True)
class Judge:
    """What samples are judged by."""

    network: FeatureNetwork
    reference: Measured
    reference_images: Tensor
    """uint8, (N, 3, H, W): what tokenizers are made to reconstruct."""
    training_images: Tensor
    """uint8, (n, 3, H, W), n at least the samples of the curve protocol: for the noise floor."""
    lpips: Distance | None = None
    """Of uint8 images, where its network is on this machine."""

    def seeing(self, outputs: Sequence[str], store: Store, device: torch.device) -> Judge:
        """The same with the networks that these outputs are from, and what they say of the reference images.

        Raises:
            UserError: a network is not on this machine.
        """
        missing = [name for name in dict.fromkeys(outputs) if not self.reference.has(name)]
        others = extra_networks(missing, self.network, store, device)
        if not others:
            return self
        looked = {
            name: outputs_of(self.reference_images.split(CHUNK), network)[FEATURES] for name, network in others.items()
        }
        return replace(self, network=Several(self.network, others), reference=self.reference.joined(looked))


@dataclass(frozen=True)
class Prepared:
    """Everything that is made before training, and shared by all runs of a suite."""

    inputs: Callable[[str], TrainingInputs]
    """What an arm trains on."""
    tokenizers: Mapping[str, Autoencoder]
    """By name: those that start frozen or are tuned."""
    tokenizer_of: Callable[[str], str | None]
    """Which of them an arm starts from; none if from scratch."""
    judge: Judge | None
    """Absent where the metric's own files are missing: then nothing can be scored, but everything can be trained."""
    hashes: Mapping[str, str]
    """Content hash of each asset, by kind."""
    facts: Mapping[str, float]
    """What was measured on the way, for people to read."""

    def tokenizer(self, arm: str) -> Autoencoder | None:
        """The tokenizer that an arm starts from."""
        name = self.tokenizer_of(arm)
        return None if name is None else self.tokenizers[name]

    def require_judge(self) -> Judge:
        """What samples are judged by.

        Raises:
            UserError: its files are missing.
        """
        if self.judge is None:
            raise UserError(
                "nothing can be scored without the metric's files. Mend: repa-bench fetch inception and "
                "repa-bench fetch adm-reference (or fetch NAME --from PATH)."
            )
        return self.judge


@dataclass(frozen=True)
class Surroundings:
    """What a suite's preparation is given."""

    store: Store
    reporter: Reporter
    world: World
    execution: Execution
    data: str | None = None
    """Where raw or prepared images lie, if the user said so."""


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
    def arms(self) -> Mapping[str, Arm]:
        """Every configuration that it can run."""
        ...

    @property
    def default_arms(self) -> tuple[str, ...]:
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

    def place(self, store: Store) -> Store:
        """Where in the cache the suite keeps its files."""
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

    def prepare(self, around: Surroundings, arms: Sequence[str]) -> Prepared:
        """Find or make every asset that these arms need."""
        ...

    def run_spec(self, arm: str, seed: int, hashes: Mapping[str, str]) -> RunSpec:
        """The specification of one training run; for a plan, hashes may be missing."""
        ...

    def needs(self, arm: str) -> list[str]:
        """The assets of the catalogue that training an arm reads."""
        ...

    def judged_by(self) -> list[str]:
        """The assets of the catalogue that scoring reads."""
        ...

    def latents_of(self, arms: Sequence[str]) -> dict[str, tuple[tuple[int, int], str]]:
        """Tokenizers whose posteriors these arms cache: (channels, side) and number format."""
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
