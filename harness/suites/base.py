"""What a suite says: what is trained on what, and how it is judged. Pure data; no computation here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Self

from pydantic import Field, JsonValue

from harness.sampling.protocol import Protocol
from recipes.core.spec import (
    EVERY_FIELD,
    Count,
    EMASpec,
    OptimizerSpec,
    Positive,
    Seed,
    Spec,
    digest_of,
    with_overrides,
)
from recipes.registry import Recipe, find_recipe
from recipes.training.spec import RunSpec

#: Images of ImageNet's training set.
IMAGENET_TRAIN = 1_281_167


class Variant(Spec):
    """A recipe, or a recipe with changed options: a configuration, never copied code."""

    ADDED = frozenset({"later", "sit_optimizer", "changes"})

    recipe: str
    label: str
    """Its name in tables and figures."""
    about: str
    """One sentence for the report."""
    options: dict[str, JsonValue] = {}
    sit_optimizer: OptimizerSpec | None = None
    """Overrides the suite's SiT optimizer."""
    changes: dict[str, JsonValue] = {}
    """Keys of the suite that are different for this variant: of those that decide training alone."""
    later: bool = False
    """Whether it stands beside the suite's first variants and changes none of their numbers: its runs say what it is,
    and the suite's digest leaves it out."""


class Budget(Spec):
    """How long to train and how often to look. Not part of a suite's digest: more steps extend the same runs."""

    steps: Count
    score_every: Count

    def milestones(self) -> list[int]:
        """The steps that are kept and scored: every `score_every`, and the last."""
        return sorted({*range(self.score_every, self.steps + 1, self.score_every), self.steps})


class Suite(Spec):
    """What is trained on what, and how it is judged: everything that can change a number, and the budget."""

    threads: ClassVar[int | None] = None
    """Threads that train and score a run on the CPU, whatever the machine has; None: as many as PyTorch takes."""
    finals_once: ClassVar[bool] = False
    """Whether only the grid's first seed is drawn under the final protocols: a proxy's time is for seeds."""
    encoder_is_cached: ClassVar[bool] = False
    """Whether what the encoder says of the training images is stored with them, so that its pass is in no FLOPs."""
    varied_keys: ClassVar[frozenset[str]] = frozenset({"batch_size", "sit_optimizer", "vae_optimizer", "ema"})
    """First parts of the keys that a variant may have for itself, because they decide training alone."""
    reads_data: ClassVar[bool] = True
    """Whether it wants ``--data``, and does not make its own."""

    name: str
    """Its name on the command line."""
    notice: str
    """Disclaimer shown with its numbers."""
    batch_size: Count
    sit_optimizer: OptimizerSpec
    vae_optimizer: OptimizerSpec
    ema: EMASpec
    variants: Mapping[str, Variant]
    """Every configuration that it can run."""
    default_variants: tuple[str, ...]
    """Default variants."""
    default_seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    """Training seeds that run unless others are asked for."""
    curve_protocol: Protocol
    """For every checkpoint."""
    final_protocols: tuple[Protocol, ...]
    """Additional protocols for the last checkpoint."""
    max_rfid: Positive
    """Refuse tokenizers with a higher rFID: FID would then measure the tokenizer."""
    budget: Budget

    def identity(self) -> str:
        """Digest of everything but the budget and what runs by default."""
        first = {name: variant for name, variant in self.variants.items() if not variant.later}
        budget = Budget(steps=1, score_every=1)
        fixed = self.model_copy(update={"budget": budget, "default_variants": (), "variants": first})
        return digest_of(fixed.model_dump(mode="json", exclude={"default_seeds", "default_jobs"}))

    def method(self, name: str) -> Recipe:
        """The recipe of a variant, and its typed options."""
        variant = self.variants[name]
        return find_recipe(variant.recipe, variant.options, where=f"variant {name}")

    def optimizers(self, name: str) -> dict[str, OptimizerSpec]:
        """The optimizer of each network that a variant trains."""
        known = {"sit": self.variants[name].sit_optimizer or self.sit_optimizer, "vae": self.vae_optimizer}
        return {network: known[network] for network in self.method(name).needs.trained}

    @property
    def image_size(self) -> int:
        """Side of its images, in pixels."""
        raise NotImplementedError

    @property
    def chunk(self) -> int:
        """Images that go through a network at once when samples are drawn or judged."""
        raise NotImplementedError

    @property
    def wants_gpu(self) -> bool:
        """Whether ``--device auto`` looks for one."""
        return False

    @property
    def cache_folder(self) -> str | None:
        """The folder of the cache that holds its files, where they must not lie beside others."""
        return None

    @property
    def jobs(self) -> int:
        """Runs that are worked on at a time, at most, unless told otherwise."""
        return 1

    def run_spec(self, name: str, seed: int, hashes: Mapping[str, str]) -> RunSpec:
        """The specification of one training run; for a plan, hashes may be missing."""
        return self._seen_by(name)._run_spec(name, seed, hashes)

    def _seen_by(self, name: str) -> Self:
        """The suite with what is different for a variant.

        Raises:
            UserError: a value that a key does not take.
        """
        if not (changes := self.variants[name].changes):
            return self
        data = json.loads(self.model_dump_json(context=EVERY_FIELD)) | {"variants": {}, "default_variants": ()}
        varied = type(self).parse(with_overrides(data, changes, flag="--grid"), where="--grid")
        return varied.model_copy(update={"variants": self.variants})

    def _run_spec(self, name: str, seed: int, hashes: Mapping[str, str]) -> RunSpec:
        """See `run_spec`; what is different for the variant is in the suite already."""
        raise NotImplementedError

    def needs(self, name: str) -> list[str]:
        """The assets of the catalogue that training a variant reads."""
        return []

    def scored_by(self) -> list[str]:
        """The assets of the catalogue that scoring reads."""
        return []

    def latents_of(self, variants: Sequence[str]) -> dict[str, tuple[tuple[int, int], str]]:
        """Tokenizers whose posteriors these variants cache on the disk: (channels, side) and number format."""
        return {}


def draws_of(suite: Suite, budget: Budget, *, first: bool) -> list[tuple[int, Protocol, int]]:
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
