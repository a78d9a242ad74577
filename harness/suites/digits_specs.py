"""Specifications of the digits suite: its data and the networks that it trains for itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from recipes.core.spec import Count, Depth, Fraction, NotNegative, Positive, Seed, Spec
from recipes.models.autoencoder import AutoencoderSpec

SIDE = 16
NUM_CLASSES = 10


class DigitsData(Spec):
    """The embedded data set."""

    seed: Seed = 1
    train: Count = 16_000
    reference: Count = 16_000
    max_degrees: NotNegative = 12.0
    max_log_scale: Fraction = 0.12
    max_shift: Fraction = 0.12
    """Largest shift, in halves of an image."""
    paper_brightest: Annotated[float, Field(ge=0, lt=0.5)] = 0.45
    """Paper is uniform in [0, this]^3 RGB, ink in [1 - this, 1]^3: two random colours that stay apart."""


class NetworkTraining(Spec):
    """One-cycle AdamW on random batches."""

    seed: Seed
    steps: Count
    batch_size: Count
    lr: Positive
    weight_decay: NotNegative = 0.01


class TokenizerSpec(Spec):
    """The suite's KL autoencoder and how it is trained (no GAN, no LPIPS)."""

    autoencoder: AutoencoderSpec
    training: NetworkTraining
    l1: float = 1.0
    l2: float = 2.0
    kl: float = 5e-5


class TokenEncoderSpec(Spec):
    """The encoder in DINOv2's role."""

    width: Count
    depth: Depth
    heads: Count
    grid: Count
    training: NetworkTraining
    mask_fraction: Fraction = 0.5


class FeatureSpec(Spec):
    """The feature network in Inception's role."""

    width: Annotated[int, Field(ge=4, le=2**20)]
    features: Count
    training: NetworkTraining
