"""The embedded suite: coloured handwritten digits, a whole comparison in minutes on two CPU cores.

Settings follow a feasibility study that fixed them before fresh seeds were run. It is a proxy: its feature network is
trained on the spot, so its FID compares with no published one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from harness.assets import Asset, Store
from harness.features import LOGITS, outputs_of
from harness.finite import finite
from harness.measured import Measured
from harness.pairs import DAMAGED
from harness.progress import Reporter
from harness.protocol import Protocol, find_protocol
from harness.suites.base import Arm, Budget, Judge, Prepared, Surroundings
from harness.suites.digits_data import NUM_CLASSES, SIDE, Digits, DigitsData, render
from harness.suites.digits_networks import (
    DigitsFeatures,
    EncoderSpec,
    FeatureClassifier,
    FeatureSpec,
    OnStep,
    TokenEncoder,
    TokenizerSpec,
    Training,
    train_encoder,
    train_features,
    train_tokenizer,
)
from recipes.core.data import Batch
from recipes.core.spec import Count, EMASpec, OptimizerSpec, Positive, Seed, Spec, TrainSpec, digest_of
from recipes.models.autoencoder import Autoencoder, AutoencoderSpec, to_unit
from recipes.models.sit import SiTSpec
from recipes.registry import recipe, recipe_options
from recipes.run import RunSpec, TrainingInputs

#: Raised when code changes what an asset of an unchanged specification holds.
ASSET_VERSION = 2
CHUNK = 500


class DigitsSuite(Spec):
    """Everything that can change a number of the digits suite, and its budget."""

    chunk: ClassVar[int] = 256
    wants_gpu: ClassVar[bool] = False
    reads_data: ClassVar[bool] = False
    knows_labels: ClassVar[bool] = True
    threads: ClassVar[int | None] = 1
    """Sums over two threads are taken in another order and end in other bits, so a run has one on every machine."""
    finals_once: ClassVar[bool] = True

    name: str = "digits"
    notice: str = "proxy suite: digits, not ImageNet"
    data: DigitsData
    tokenizer: TokenizerSpec
    encoder: EncoderSpec
    features: FeatureSpec
    sit: SiTSpec
    batch_size: Count
    sit_optimizer: OptimizerSpec
    vae_optimizer: OptimizerSpec
    ema: EMASpec
    arms: dict[str, Arm]
    default_arms: tuple[str, ...]
    default_seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    default_jobs: Count
    curve_protocol: Protocol
    final_protocols: tuple[Protocol, ...]
    max_rfid: Positive
    """Gate: a tokenizer whose own rFID is not well under the expected gFID would be what the metric measures."""
    budget: Budget

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
        if missing := [arm for arm in self.default_arms if arm not in self.arms]:
            raise ValueError(f"default_arms names {missing[0]}, which is no arm")
        return self

    def place(self, store: Store) -> Store:
        """Where in the cache the suite keeps its files."""
        return store

    def identity(self) -> str:
        """Digest of everything but the budget and what runs by default."""
        fixed = self.model_copy(update={"budget": Budget(steps=1, score_every=1), "default_arms": ()})
        return digest_of(fixed.model_dump(mode="json", exclude={"default_seeds", "default_jobs"}))

    @property
    def image_size(self) -> int:
        """Side of its images, in pixels."""
        return SIDE

    def prepare(self, around: Surroundings, arms: Sequence[str]) -> Prepared:
        """Render the data, train tokenizer, encoder and feature network, and cache what they say of the data."""
        if not around.world.main:  # one process makes what is missing, the others find it
            around.world.barrier()
        prepared = _Preparation(self, around.store, around.reporter).run()
        if around.world.main:
            around.world.barrier()
        return prepared

    def needs(self, arm: str) -> list[str]:
        """No file that others made."""
        return []

    def judged_by(self) -> list[str]:
        """No file that others made."""
        return []

    def latents_of(self, arms: Sequence[str]) -> dict[str, tuple[tuple[int, int], str]]:
        """Its latents are too small to speak of."""
        return {}

    def run_spec(self, arm: str, seed: int, hashes: Mapping[str, str]) -> RunSpec:
        """The specification of one training run; for a plan, hashes may be missing."""
        chosen = self.arms[arm]
        kind = recipe(chosen.recipe)
        options = recipe_options(chosen.recipe, chosen.options, where=f"arm {arm}")
        optimizers = {"sit": self.sit_optimizer}
        if kind.trains_tokenizer:
            optimizers["vae"] = self.vae_optimizer
        widths = (self.encoder.width,) if kind.aligned else ()
        used = ["data", "tokenizer", *(["tokens"] if kind.aligned else [])]
        return RunSpec(
            suite=self.name,
            arm=arm,
            recipe=chosen.recipe,
            options=options.model_dump(mode="json"),
            sit=self.sit.model_copy(update={"encoder_widths": widths}),
            tokenizer=self.tokenizer.autoencoder,
            train=TrainSpec(seed=seed, batch_size=self.batch_size, optimizers=optimizers, ema=self.ema),
            inputs={name: hashes[name] for name in used if name in hashes},
        )


def digits_arms(tokenizer: TokenizerSpec) -> dict[str, Arm]:
    """The three recipes and two controls, which show where REPA-E's gain comes from and why it needs its rules."""
    # The tokenizer goes on under the losses it was made with; the suite has no GAN and no LPIPS. The position
    # embedding stays fixed in every arm, so that joint training is the only difference.
    joint: dict[str, Any] = {
        "l1": tokenizer.l1,
        "l2": tokenizer.l2,
        "kl": tokenizer.kl,
        "gan": 0.0,
        "perceptual": 0.0,
        "train_pos_embed": False,
    }
    return {
        "vanilla": _arm("vanilla", "vanilla (SiT)", "Denoising loss only, frozen tokenizer."),
        "repa": _arm("repa", "REPA", "Plus alignment of the SiT's tokens with a frozen encoder's."),
        "repa_e": _arm(
            "repa_e", "REPA-E", "Plus joint training of the tokenizer, through the alignment loss alone.", **joint
        ),
        "joint_no_align": _arm(
            "repa_e",
            "joint, VAE align 0",
            "Control: the tokenizer trains on, but the alignment gradient does not reach it.",
            **joint | {"vae_alignment": 0.0},
        ),
        "naive_e2e": _arm(
            "repa_e",
            "naive end-to-end",
            "Control: the diffusion loss trains the tokenizer, which learns latents that are easy, not good.",
            **joint | {"vae_alignment": 0.0, "vae_diffusion": 1.0},
        ),
    }


def _arm(name: str, label: str, about: str, **options: Any) -> Arm:
    """An arm with every option written out, so that each can be overridden by its key."""
    full = recipe_options(name, options, where=label).model_dump(mode="json")
    return Arm(recipe=name, label=label, about=about, options=full)


def digits() -> DigitsSuite:
    """The default. Minutes on two cores; expected figures stand in the README, measured by its first command."""
    tokenizer = TokenizerSpec(
        autoencoder=AutoencoderSpec(
            latent_channels=16,
            base_width=32,
            multipliers=(1, 1),
            residual_blocks=1,
            norm_groups=8,
            unshuffle=2,
        ),
        training=Training(seed=103, steps=1000, batch_size=64, lr=2e-3),
    )
    rate = OptimizerSpec(lr=2e-3, warmup_steps=50)
    return DigitsSuite(
        data=DigitsData(),
        tokenizer=tokenizer,
        encoder=EncoderSpec(
            width=96,
            depth=3,
            heads=4,
            grid=4,
            training=Training(seed=102, steps=500, batch_size=128, lr=3e-3),
        ),
        features=FeatureSpec(width=32, features=64, training=Training(seed=101, steps=400, batch_size=128, lr=3e-3)),
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
        arms=digits_arms(tokenizer),
        default_arms=("vanilla", "repa", "repa_e"),
        default_seeds=(10, 11, 12),  # 0 to 9 were looked at while the suite was being made
        default_jobs=4,
        curve_protocol=find_protocol("digits-ode25"),
        final_protocols=(find_protocol("digits-sde50"),),
        max_rfid=1.0,
        budget=Budget(steps=1000, score_every=250),
    )


class _Preparation:
    """The stages before training. Each has its own seed, so that changing one moves no other."""

    def __init__(self, suite: DigitsSuite, store: Store, reporter: Reporter) -> None:
        self.suite, self.store, self.reporter = suite, store, reporter
        self.hashes: dict[str, str] = {}
        self.facts: dict[str, float] = {}

    def run(self) -> Prepared:
        """Find or make every asset, in order of need."""
        train, reference = self._digits("data", 0), self._digits("reference", self.suite.data.train)
        network = self._network(train, reference)
        tokens = self._tokens(train, reference)
        tokenizer, moments = self._tokenizer(train)
        mean, std = moments.tensors["mean"], moments.tensors["std"]
        # The latents' own spread: of the posterior means, plus the posterior's variance.
        spread = (mean.var(dim=(0, 2, 3)) + std.square().mean(dim=(0, 2, 3))).sqrt()
        inputs = TrainingInputs(
            data=Batch(images=train.images, labels=train.labels, features=(tokens,), mean=mean, std=std),
            tokenizer=tokenizer,
            latent_mean=mean.mean(dim=(0, 2, 3)),
            latent_std=spread,
        )
        judge = Judge(
            network=network,
            reference=self._measured(reference, network),
            reference_images=reference.images,
            training_images=train.images,
        )
        return Prepared(
            inputs=lambda arm: inputs,
            tokenizers={"tokenizer": tokenizer},
            tokenizer_of=lambda arm: "tokenizer",
            judge=judge,
            hashes=self.hashes,
            facts=self.facts,
        )

    def _get(
        self,
        name: str,
        spec: Mapping[str, Any],
        sources: tuple[str, ...],
        units: int,
        make: Callable[[OnStep], tuple[Mapping[str, Tensor], Mapping[str, Any]]],
    ) -> Asset:
        def with_progress() -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
            with self.reporter.stage(name, units) as on_step:
                return make(on_step)

        asset = self.store.get(
            f"digits-{name}",
            {"version": ASSET_VERSION, **spec},
            {source: self.hashes[source] for source in sources},
            with_progress,
        )
        self.hashes[name] = asset.content
        self.facts |= asset.facts
        return asset

    def _digits(self, name: str, start: int) -> Digits:
        spec = self.suite.data
        stop = start + (spec.train if name == "data" else spec.reference)

        def make(on_step: OnStep) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
            made = render(spec, start, stop)
            on_step(1)
            return {"images": made.images, "labels": made.labels, "poses": made.poses}, {}

        bounds = {"start": start, "stop": stop}
        tensors = self._get(name, spec.model_dump(mode="json") | bounds, (), 1, make).tensors
        return Digits(tensors["images"], tensors["labels"], tensors["poses"])

    def _network(self, train: Digits, reference: Digits) -> DigitsFeatures:
        spec = self.suite.features
        network = FeatureClassifier(spec)

        def make(on_step: OnStep) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
            network.load_state_dict(train_features(spec, train, on_step).state_dict())
            network.eval()
            logits = outputs_of(reference.images.split(CHUNK), DigitsFeatures(network))[LOGITS]
            correct = (logits.argmax(1) == reference.labels).double().mean().item()
            self.reporter.say(f"  feature network (Inception's role): accuracy {correct:.1%} on the reference")
            return network.state_dict(), {"feature_accuracy": correct}

        asset = self._get("features", spec.model_dump(mode="json"), ("data", "reference"), spec.training.steps, make)
        network.load_state_dict(dict(asset.tensors))
        network.eval().requires_grad_(False)
        return DigitsFeatures(network, asset.content)

    def _measured(self, reference: Digits, network: DigitsFeatures) -> Measured:
        def make(on_step: OnStep) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
            made = outputs_of(reference.images.split(CHUNK), network)
            on_step(1)
            return made, {}

        spec = {"network": network.convention}
        return Measured([self._get("reference-features", spec, ("reference", "features"), 1, make).tensors])

    def _tokens(self, train: Digits, reference: Digits) -> Tensor:
        spec = self.suite.encoder
        network = TokenEncoder(spec, SIDE)

        def make_encoder(on_step: OnStep) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
            network.load_state_dict(train_encoder(spec, train, on_step).state_dict())
            tokens = _tokens_of(network, reference.images)
            correct = (network.classify(tokens.mean(1)).argmax(1) == reference.labels).double().mean().item()
            self.reporter.say(f"  encoder (DINOv2's role): accuracy {correct:.1%} on the reference")
            return network.state_dict(), {"encoder_accuracy": correct}

        asset = self._get(
            "encoder", spec.model_dump(mode="json"), ("data", "reference"), spec.training.steps, make_encoder
        )
        network.load_state_dict(dict(asset.tensors))

        def make_tokens(on_step: OnStep) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
            tokens = _tokens_of(network, train.images)
            # Layer-norm tokens share a large mean, which any projector aligns with at once: standardise them.
            flat = tokens.flatten(0, 1)
            on_step(1)
            return {"tokens": (tokens - flat.mean(0)) / flat.std(0).clamp(min=1e-6)}, {}

        return self._get("tokens", {}, ("data", "encoder"), 1, make_tokens).tensors["tokens"]

    def _tokenizer(self, train: Digits) -> tuple[Autoencoder, Asset]:
        spec = self.suite.tokenizer
        network = Autoencoder(spec.autoencoder)

        def make(on_step: OnStep) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
            return train_tokenizer(spec, train, on_step).state_dict(), {}

        asset = self._get("tokenizer", spec.model_dump(mode="json"), ("data",), spec.training.steps, make)
        network.load_state_dict(dict(asset.tensors))
        network.eval().requires_grad_(False)

        def make_moments(on_step: OnStep) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
            like = next(network.parameters())
            with torch.no_grad():
                parts = [network.encode(to_unit(chunk, like)) for chunk in train.images.split(CHUNK)]
            on_step(1)
            mean, std = torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts])
            finite(torch.cat((mean, std), 1), "the latent of image", 0, DAMAGED)
            return {"mean": mean, "std": std}, {}

        return network, self._get("latents", {}, ("data", "tokenizer"), 1, make_moments)


@torch.no_grad()
def _tokens_of(network: nn.Module, images: Tensor) -> Tensor:
    network.eval().requires_grad_(False)
    like = next(network.parameters())
    return torch.cat([network(to_unit(chunk, like)) for chunk in images.split(CHUNK)])
