"""Inputs (`PreparationContext`) and result (`Prepared`) of preparing a suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from harness.assets.cache import Store
from harness.assets.networks import extra_networks
from harness.features.base import FEATURES, FeatureNetwork, FeatureNetworks, outputs_of
from harness.metrics.statistics import Measured
from harness.runtime.progress import Reporter
from harness.sampling.protocol import Protocol
from harness.scoring.paired_images import Distance
from harness.scoring.sample_set import Evaluation
from harness.suites.base import Suite
from recipes.core.distributed import World
from recipes.core.errors import UserError
from recipes.core.spec import Execution
from recipes.models.autoencoder import Autoencoder
from recipes.training.run_folder import Run
from recipes.training.spec import TrainingInputs

#: Batch size for extra feature networks.
CHUNK = 64


@dataclass(frozen=True)
class Reference:
    """The real images that samples are compared with."""

    measured: Measured
    """What the feature network says of them."""
    images: Tensor
    """uint8, (N, 3, H, W): what tokenizers are made to reconstruct."""
    training_images: Tensor
    """uint8, (n, 3, H, W), n at least the samples of the curve protocol: for the noise floor."""
    lpips: Distance | None = None
    """LPIPS of uint8 images, where its network is on this machine."""


@dataclass(frozen=True)
class Evaluator:
    """What samples are judged by: a network in every process, and the reference where it is asked for."""

    network: FeatureNetwork
    load: Callable[[], Reference]
    """Reads the reference: gigabytes, so the main process alone calls it, where something is scored."""
    knows_labels: bool = False
    """Whether the feature network's logits are the suite's classes."""

    @cached_property
    def reference(self) -> Reference:
        """The real images, read when they are first needed. Only for the main process."""
        return self.load()

    def seeing(self, outputs: Sequence[str], store: Store, device: torch.device) -> Evaluator:
        """Copy with the extra networks that other metrics' `outputs` need; the reference gets their features too.

        Raises:
            UserError: a network is not on this machine.
        """
        others = extra_networks(dict.fromkeys(outputs), self.network, store, device)
        if not others:
            return self

        def load() -> Reference:
            chunks = self.reference.images.split(CHUNK)
            looked = {name: outputs_of(chunks, network)[FEATURES] for name, network in others.items()}
            return replace(self.reference, measured=self.reference.measured.joined(looked))

        return replace(self, network=FeatureNetworks(self.network, others), load=load)


@dataclass(frozen=True)
class Prepared:
    """Everything that is made before training, and shared by all runs of a suite."""

    inputs: Callable[[str], TrainingInputs]
    """What a variant trains on."""
    tokenizers: Mapping[str, Autoencoder]
    """By name: those that start frozen or are tuned."""
    tokenizer_of: Callable[[str], str | None]
    """Tokenizer name of a variant; None if trained from scratch."""
    judge: Callable[[], Evaluator] | None
    """Loads what samples are judged by. Absent where the metric's own files are missing: then nothing can be scored,
    but everything can be trained.
    """
    floor_images: int
    """How many training images `Reference` has for the noise floor."""
    hashes: Mapping[str, str]
    """Content hash of each asset, by kind."""
    facts: Mapping[str, float]
    """Informational measurements made during preparation."""

    def tokenizer(self, variant: str) -> Autoencoder | None:
        """The tokenizer that a variant starts from."""
        name = self.tokenizer_of(variant)
        return None if name is None else self.tokenizers[name]

    def evaluation(
        self, run: Run, step: int, protocol: Protocol, generation_seed: int = 0, *, search: bool = False
    ) -> Evaluation:
        """A checkpoint under a protocol and a generation seed, with what draws and judges it."""
        tokenizer = self.tokenizer(run.spec.variant)
        return Evaluation(run, step, protocol, generation_seed, tokenizer, assets=self.evaluator_assets, search=search)

    @property
    def evaluator_assets(self) -> dict[str, str]:
        """Content hash of the feature network and of the reference."""
        return {name: self.hashes[name] for name in ("features", "reference") if name in self.hashes}

    @cached_property
    def evaluator(self) -> Evaluator:
        """What samples are judged by, loaded when something is first scored.

        Raises:
            UserError: its files are missing.
        """
        self.refuse_unscorable()
        assert self.judge is not None
        return self.judge()

    def refuse_unscorable(self) -> None:
        """Fail early where nothing can be scored.

        Raises:
            UserError: the metric's files are missing.
        """
        if self.judge is None:
            raise UserError(
                "nothing can be scored without the metric's files. Remedy: repa-bench fetch inception and "
                "repa-bench fetch adm-reference (or fetch NAME --from PATH)."
            )


@dataclass(frozen=True)
class PreparationContext:
    """What a suite's preparation is given."""

    store: Store
    reporter: Reporter
    world: World
    execution: Execution
    data: str | None = None
    """Where raw or prepared images lie, if the user said so."""
    costed: Callable[[str], AbstractContextManager[object]] = lambda stage: nullcontext()
    """Context manager that records the cost of a stage."""

    @contextmanager
    def stage(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """See `Reporter.stage`; its cost is kept."""
        with self.costed(f"prepare {label}"), self.reporter.stage(label, total) as on_done:
            yield on_done


def assets_of(suite: Suite, store: Store) -> Store:
    """The part of a cache that is a suite's; stand-ins never lie beside real files."""
    return store.below(suite.cache_folder) if suite.cache_folder else store
