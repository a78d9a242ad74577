"""The specification of a training run, and what it is given besides."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from pydantic import Field, JsonValue
from torch import Tensor, nn

from recipes.core.batch import TrainingData
from recipes.core.errors import UserError
from recipes.core.spec import Spec, TrainSpec
from recipes.models import discriminator as gan
from recipes.models import sit as transformer
from recipes.models.autoencoder import Autoencoder, AutoencoderSpec
from recipes.models.encoder import Encoder, EncoderSpec
from recipes.models.perceptual import InputRange
from recipes.registry import Recipe, find_recipe


class RunSpec(Spec):
    """Everything that decides a run's weights at every step. The budget is not in it: more steps extend it."""

    ADDED = frozenset({"source"})

    suite: str
    variant: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,79}$")]
    """Its name in tables and of its folder: a recipe, or a recipe with changed options."""
    recipe: str
    source: str | None = None
    """SHA-256 of the recipe's file, where that is not of this tree: an edited file is another run."""
    options: dict[str, JsonValue]
    sit: transformer.SiTSpec
    tokenizer: AutoencoderSpec
    discriminator: gan.DiscriminatorSpec = gan.DiscriminatorSpec()
    encoders: tuple[EncoderSpec, ...] = ()
    """Encoders run online; empty if their outputs are cached."""
    perceptual: InputRange | None = None
    """Which input range LPIPS is given; none without LPIPS."""
    train: TrainSpec
    inputs: dict[str, str]
    """Content hash of every asset that the run trains on."""

    @cached_property
    def method(self) -> Recipe:
        """Its recipe and typed options.

        Raises:
            UserError: there is no such recipe or option, or its file is not what it was.
        """
        found = find_recipe(self.recipe, self.options, where=f"variant {self.variant}")
        if found.source != self.source:
            raise UserError(
                f"run {self.name} is of another version of recipe {self.recipe}: its file had SHA-256 "
                f"{(self.source or 'none')[:12]} then, {(found.source or 'none')[:12]} now. Give the old file."
            )
        return found

    @property
    def name(self) -> str:
        """Readable, unique folder name."""
        return f"{self.variant}-seed{self.train.seed}-{self.digest()[:8]}"


@dataclass(frozen=True)
class TrainingInputs:
    """What a run is given besides its specification."""

    data: TrainingData
    """The whole training set."""
    tokenizer: Autoencoder | None
    """None: joint training starts from a tokenizer with random weights."""
    latent_mean: Tensor
    """(C,), of the tokenizer's latents over the training set."""
    latent_std: Tensor
    encoders: tuple[Encoder, ...] = ()
    """Same order as `RunSpec.encoders`."""
    perceptual: nn.Module | None = None
    discriminator: gan.PatchDiscriminator | None = None
    """Pretrained discriminator, or None."""
