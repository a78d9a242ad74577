"""Preparation of the digits suite: data, tokenizer, encoder and feature network, trained and cached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.assets.cache import Asset
from harness.features.base import LOGITS, outputs_of
from harness.metrics.statistics import Measured
from harness.preparation.base import Evaluator, PreparationContext, Prepared, Reference
from harness.preparation.digits_data import Digits, render
from harness.preparation.digits_networks import (
    DigitsFeatures,
    FeatureClassifier,
    OnStep,
    TokenEncoder,
    train_encoder,
    train_features,
    train_tokenizer,
)
from harness.scoring.paired_images import DAMAGED
from harness.suites.digits import DigitsSuite, attention_asset
from harness.suites.digits_specs import SIDE
from recipes.base import Needs
from recipes.core.batch import Batch
from recipes.core.errors import UserError
from recipes.core.finite import finite
from recipes.models.autoencoder import Autoencoder, to_signed
from recipes.models.latent_norm import latent_statistics
from recipes.training.spec import TrainingInputs

#: Raised when code changes what an asset of an unchanged specification holds.
ASSET_VERSION = 2
CHUNK = 500


class DigitsPreparation:
    """The stages before training. Each stage has its own seed, so changing one does not affect the others."""

    def __init__(self, suite: DigitsSuite, context: PreparationContext, variants: Sequence[str] = ()) -> None:
        self.suite, self.store, self.context = suite, context.store, context
        self.needs = {variant: suite.method(variant).needs for variant in variants}
        self.encoder = TokenEncoder(suite.encoder, SIDE)
        self.hashes: dict[str, str] = {}
        self.facts: dict[str, float] = {}

    def run(self) -> Prepared:
        """Find or make every asset, in order of need."""
        train, reference = self._digits("data", 0), self._digits("reference", self.suite.data.train)
        network = self._network(train, reference)
        tokens = self._tokens(train, reference)
        tokenizer, moments = self._tokenizer(train)
        mean, std = moments.tensors["mean"], moments.tensors["std"]
        latent_mean, latent_std = latent_statistics(mean, std)
        data = Batch(images=train.images, labels=train.labels, features=(tokens,), mean=mean, std=std)
        plain = TrainingInputs(data=data, tokenizer=tokenizer, latent_mean=latent_mean, latent_std=latent_std)
        inputs = {variant: replace(plain, data=self._seen(data, needs)) for variant, needs in self.needs.items()}
        shown = Reference(self._measured(reference, network), reference.images, train.images)
        return Prepared(
            inputs=inputs.__getitem__,
            tokenizers={"tokenizer": tokenizer},
            tokenizer_of=lambda variant: "tokenizer",
            floor_images=len(train.images),
            judge=lambda: Evaluator(network, lambda: shown, knows_labels=True),
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
            with self.context.stage(name, units) as on_step:
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
            self.context.reporter.note(f"  feature network (Inception's role): accuracy {correct:.1%} on the reference")
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
        network = self.encoder

        def make_encoder(on_step: OnStep) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
            network.load_state_dict(train_encoder(spec, train, on_step).state_dict())
            tokens = _tokens_of(network, reference.images)
            correct = (network.classify(tokens.mean(1)).argmax(1) == reference.labels).double().mean().item()
            self.context.reporter.note(f"  encoder (DINOv2's role): accuracy {correct:.1%} on the reference")
            return network.state_dict(), {"encoder_accuracy": correct}

        asset = self._get(
            "encoder", spec.model_dump(mode="json"), ("data", "reference"), spec.training.steps, make_encoder
        )
        network.load_state_dict(dict(asset.tensors))

        def make_tokens(on_step: OnStep) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
            on_step(1)
            return {"tokens": _standardised(_tokens_of(network, train.images))}, {}

        return self._get("tokens", {}, ("data", "encoder"), 1, make_tokens).tensors["tokens"]

    def _seen(self, data: Batch, needs: Needs) -> Batch:
        """Training data plus the encoder outputs that `needs` asks for, from the cache (the encoder never runs during
        training).
        """
        images = data.images
        assert images is not None

        def make_class_tokens(on_step: OnStep) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
            # By its mean token it was taught the class, so that is its class token.
            return {"class_tokens": _standardised(_tokens_of(self.encoder, images).mean(1))}, {}

        def make_attention(on_step: OnStep) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
            return _attention_of(self.encoder, images, needs.attention), {}

        sources = ("data", "encoder")
        if needs.class_token:
            found = self._get("class-tokens", {}, sources, 1, make_class_tokens).tensors
            data = replace(data, class_tokens=(found["class_tokens"],))
        if needs.attention:
            name, spec = attention_asset(needs.attention), {"layers": list(needs.attention)}
            found = self._get(name, spec, sources, 1, make_attention).tensors
            data = replace(data, attention=tuple(found[str(layer)] for layer in needs.attention))
        return data

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
                parts = [network.encode(to_signed(chunk, like)) for chunk in train.images.split(CHUNK)]
            on_step(1)
            mean, std = torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts])
            finite(torch.cat((mean, std), 1), "the latent of image", 0, DAMAGED)
            return {"mean": mean, "std": std}, {}

        return network, self._get("latents", {}, ("data", "tokenizer"), 1, make_moments)


def _standardised(tokens: Tensor) -> Tensor:
    """Standardise each channel: layer-norm tokens share a large mean that any projector would match trivially."""
    flat = tokens.flatten(0, -2)
    return (tokens - flat.mean(0)) / flat.std(0).clamp(min=1e-6)


@torch.no_grad()
def _attention_of(network: TokenEncoder, images: Tensor, layers: Sequence[int]) -> dict[str, Tensor]:
    """Attention logits by layer, float16, (N, heads, T, T) each.

    Raises:
        UserError: there is no such layer.
    """
    if (deepest := max(layers)) > (depth := len(network.attentions)):
        raise UserError(f"encoder_layers: layer {deepest} is wanted, and the suite's encoder has {depth}.")
    seen: dict[str, list[Tensor]] = {str(layer): [] for layer in layers}
    for chunk in images.split(CHUNK):
        logits = network.logits(to_signed(chunk, network.position))
        for layer in layers:
            seen[str(layer)].append(logits[layer - 1].half())
    return {name: torch.cat(parts) for name, parts in seen.items()}


@torch.no_grad()
def _tokens_of(network: nn.Module, images: Tensor) -> Tensor:
    network.eval().requires_grad_(False)
    like = next(network.parameters())
    return torch.cat([network(to_signed(chunk, like)) for chunk in images.split(CHUNK)])
