"""The embedded suite: coloured handwritten digits, a whole comparison in minutes on two CPU cores.

Settings were fixed in a feasibility study, before the reported seeds were run. It is a proxy: its feature network is
trained on the spot, so its FID compares with no published one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import model_validator

from harness.sampling.protocol import find_protocol
from harness.suites.base import Budget, Suite, Variant
from harness.suites.digits_specs import (
    NUM_CLASSES,
    SIDE,
    DigitsData,
    FeatureSpec,
    NetworkTraining,
    TokenEncoderSpec,
    TokenizerSpec,
)
from harness.suites.followups import followups
from recipes.core.errors import UserError
from recipes.core.spec import Count, EMASpec, OptimizerSpec, TrainSpec
from recipes.models.autoencoder import AutoencoderSpec
from recipes.models.sit import SiTSpec
from recipes.registry import find_recipe
from recipes.training.spec import RunSpec


class DigitsSuite(Suite):
    """Everything that can change a number of the digits suite, and its budget."""

    threads: ClassVar[int | None] = 1
    """Sums over two threads are taken in another order and end in other bits, so a run has one on every machine."""
    finals_once: ClassVar[bool] = True
    varied_keys: ClassVar[frozenset[str]] = Suite.varied_keys | {"sit"}
    encoder_is_cached: ClassVar[bool] = True
    reads_data: ClassVar[bool] = False

    name: str = "digits"
    notice: str = "proxy suite: digits, not ImageNet"
    data: DigitsData
    tokenizer: TokenizerSpec
    encoder: TokenEncoderSpec
    features: FeatureSpec
    sit: SiTSpec
    default_jobs: Count

    @model_validator(mode="after")
    def _fits(self) -> Self:
        autoencoder, sit, encoder = self.tokenizer.autoencoder, self.sit, self.encoder
        latent = f"{sit.channels} x {sit.latent_size} x {sit.latent_size}"
        if autoencoder.factor * sit.latent_size != SIDE or autoencoder.latent_channels != sit.channels:
            raise ValueError(f"the tokenizer does not make latents of {latent} from images of {SIDE} pixels")
        if sit.encoder_depth > sit.depth:
            raise ValueError(f"sit.encoder_depth {sit.encoder_depth} is beyond the last block, {sit.depth}")
        if encoder.grid**2 != sit.tokens or encoder.width % encoder.heads:
            raise ValueError(f"the encoder gives no {sit.tokens} tokens, or its width is no multiple of its heads")
        if missing := [variant for variant in self.default_variants if variant not in self.variants]:
            raise ValueError(f"default_variants names {missing[0]}, which is no variant")
        return self

    @property
    def image_size(self) -> int:
        """See `Suite`."""
        return SIDE

    @property
    def chunk(self) -> int:
        """See `Suite`."""
        return 256

    @property
    def jobs(self) -> int:
        """See `Suite`."""
        return self.default_jobs

    def _run_spec(self, name: str, seed: int, hashes: Mapping[str, str]) -> RunSpec:
        """See `Suite`."""
        method = self.method(name)
        if method.needs.discriminator or method.needs.perceptual:
            raise UserError(f"variant {name}: suite {self.name} has no GAN and no LPIPS; set both to 0.")
        needs = method.needs
        attention = attention_asset(needs.attention)
        seen = {"tokens": needs.features, "class-tokens": needs.class_token, attention: bool(needs.attention)}
        used = ["data", "tokenizer", *(name for name, wanted in seen.items() if wanted)]
        return RunSpec(
            suite=self.name,
            variant=name,
            recipe=self.variants[name].recipe,
            source=method.source,
            options=method.options.model_dump(mode="json"),
            sit=method.shape(self.sit, (self.encoder.width,)),
            tokenizer=self.tokenizer.autoencoder,
            train=TrainSpec(seed=seed, batch_size=self.batch_size, optimizers=self.optimizers(name), ema=self.ema),
            inputs={asset: hashes[asset] for asset in used if asset in hashes},
        )


def attention_asset(layers: Sequence[int]) -> str:
    """Name of the asset that holds the attention logits of some layers of the encoder."""
    return "-".join(map(str, ("attention", *layers)))


def digits_variants(tokenizer: TokenizerSpec, rate: OptimizerSpec) -> dict[str, Variant]:
    """The three recipes, two controls, which show where REPA-E's gain comes from and why it needs its rules, and the
    recipes that followed (see `followups`).
    """
    # The tokenizer goes on under the losses it was made with; the suite has no GAN and no LPIPS. The position
    # embedding stays fixed in every variant, so that joint training is the only difference.
    joint: dict[str, Any] = {
        "l1": tokenizer.l1,
        "l2": tokenizer.l2,
        "kl": tokenizer.kl,
        "gan": 0.0,
        "perceptual": 0.0,
        "train_pos_embed": False,
    }
    return {
        "vanilla": _variant("vanilla", "vanilla (SiT)", "Denoising loss only, frozen tokenizer."),
        "repa": _variant("repa", "REPA", "Plus alignment of the SiT's tokens with a frozen encoder's."),
        "repa_e": _variant(
            "repa_e", "REPA-E", "Plus joint training of the tokenizer, through the alignment loss alone.", **joint
        ),
        "joint_no_align": _variant(
            "repa_e",
            "joint, VAE align 0",
            "Control: the tokenizer trains on, but the alignment gradient does not reach it.",
            **joint | {"vae_alignment": 0.0},
        ),
        "naive_e2e": _variant(
            "repa_e",
            "naive end-to-end",
            "Control: the diffusion loss trains the tokenizer, which learns latents that are easy, not good.",
            **joint | {"vae_alignment": 0.0, "vae_diffusion": 1.0},
        ),
        **followups(FOLLOWUPS, rate),
    }


#: Options scaled from SiT-XL/2 (28 blocks, 400K steps) to 4 blocks and 1,000 steps, keeping the papers' fractions.
FOLLOWUPS: dict[str, dict[str, Any]] = {
    "haste": {"student_blocks": (1, 2), "encoder_layers": (2, 3), "stop_at": 625},
    "layersync": {"blocks": ((1, 2),)},
    "sra": {"student_block": 1, "teacher_block": 3, "epoch": 250},
}


def _variant(name: str, label: str, about: str, **options: Any) -> Variant:
    """A variant with its options written out."""
    full = find_recipe(name, options, where=label).options.model_dump(mode="json")
    return Variant(recipe=name, label=label, about=about, options=full)


def _tokenizer() -> TokenizerSpec:
    """Trained by the suite itself, on its own images."""
    return TokenizerSpec(
        autoencoder=AutoencoderSpec(
            latent_channels=16,
            base_width=32,
            multipliers=(1, 1),
            residual_blocks=1,
            norm_groups=8,
            unshuffle=2,
        ),
        training=NetworkTraining(seed=103, steps=1000, batch_size=64, lr=2e-3),
    )


def digits() -> DigitsSuite:
    """The default. Minutes on two cores; expected figures stand in the README, measured by its first command."""
    tokenizer = _tokenizer()
    rate = OptimizerSpec(lr=2e-3, warmup_steps=50)
    return DigitsSuite(
        data=DigitsData(),
        tokenizer=tokenizer,
        encoder=TokenEncoderSpec(
            width=96,
            depth=3,
            heads=4,
            grid=4,
            training=NetworkTraining(seed=102, steps=500, batch_size=128, lr=3e-3),
        ),
        features=FeatureSpec(
            width=32, features=64, training=NetworkTraining(seed=101, steps=400, batch_size=128, lr=3e-3)
        ),
        sit=SiTSpec(
            latent_size=4,
            channels=16,
            num_classes=NUM_CLASSES,
            patch_size=1,
            hidden=96,
            depth=4,
            heads=4,
            encoder_depth=2,
            projector_width=256,
        ),
        batch_size=64,
        sit_optimizer=rate,
        vae_optimizer=rate.model_copy(update={"lr": 4e-4}),
        ema=EMASpec(decay=0.999, warmup=True),
        variants=digits_variants(tokenizer, rate),
        default_variants=("vanilla", "repa", "repa_e"),
        default_seeds=(10, 11, 12),  # 0 to 9 were looked at while the suite was being made
        default_jobs=4,
        curve_protocol=find_protocol("digits-ode25"),
        final_protocols=(find_protocol("digits-sde50"),),
        max_rfid=1.0,
        budget=Budget(steps=1000, score_every=250),
    )
