"""The paper: ImageNet 256x256, SiT with the released settings, and every configuration of REPA-E's Tables 2 to 7.

Settings: released training commands and defaults of REPA-E (arXiv 2504.10483, code of April 2025) and REPA (arXiv
2410.06940). Where paper and release differ the release is the default, since it made the published numbers: L1 instead
of squared reconstruction error, LPIPS on [-3, 1], a trained position embedding. What is different here: bf16 instead of
fp16; a position embedding's gradient that is averaged over processes like every other; no image is flipped in any
recipe (SiT's own training flips).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from harness.sampling.protocol import find_protocol
from harness.suites.base import Budget, Suite
from harness.suites.followups import Changes
from harness.suites.imagenet_variants import PaperVariant, later_variants, paper_variants
from recipes.core.errors import UserError, nearest
from recipes.core.precision import Precision
from recipes.core.spec import Count, Depth, EMASpec, OptimizerSpec, Positive, Seed, Spec, TrainSpec
from recipes.data.latents import DType
from recipes.models.autoencoder import AutoencoderSpec
from recipes.models.discriminator import DiscriminatorSpec
from recipes.models.encoder import ENCODERS, EncoderSpec
from recipes.models.perceptual import InputRange
from recipes.models.sit import SIZES, SiTSpec
from recipes.registry import Recipe
from recipes.released import autoencoder as released_autoencoder
from recipes.training.spec import RunSpec

F8D4, F16D32 = released_autoencoder.TOKENIZERS["f8d4"], released_autoencoder.TOKENIZERS["f16d32"]
#: Tokenizers of the catalogue: architecture, and the patch that gives 16 x 16 tokens.
TOKENIZERS = {
    "sd-vae": (F8D4, 2),
    "in-vae": (F16D32, 1),
    "va-vae": (F16D32, 1),
    "e2e-sdvae": (F8D4, 2),
    "e2e-invae": (F16D32, 1),
    "e2e-vavae": (F16D32, 1),
    "tuned-vae": (F8D4, 2),
    "tuned-vae-f16d32": (F16D32, 1),
}


class TokenizerChoice(Spec):
    """A tokenizer of the catalogue."""

    autoencoder: AutoencoderSpec
    patch_size: Count
    """Side of the patches of the SiT on its latents."""


class Size(Spec):
    """A SiT's size."""

    hidden: Count
    depth: Depth
    heads: Count


class ImagenetSuite(Suite):
    """Everything that can change a number of the paper-scale suite, and its budget."""

    varied_keys: ClassVar[frozenset[str]] = Suite.varied_keys | {
        "discriminator", "discriminator_optimizer", "norm_batch", "perceptual", "precision", "projector_width",
    }  # fmt: skip

    name: str = "imagenet256"
    notice: str = "ImageNet 256x256"
    side: Count = 256
    num_classes: Count = 1000
    sizes: dict[str, Size]
    tokenizers: dict[str, TokenizerChoice]
    encoders: dict[str, EncoderSpec]
    discriminator: DiscriminatorSpec = DiscriminatorSpec()
    perceptual: InputRange = "released"
    projector_width: Count = 2048
    batch_size: Count = 256
    precision: Precision = "bf16"
    norm_batch: Count | None = None
    sit_optimizer: OptimizerSpec = OptimizerSpec()
    vae_optimizer: OptimizerSpec = OptimizerSpec()
    discriminator_optimizer: OptimizerSpec = OptimizerSpec()
    ema: EMASpec = EMASpec()
    latents: DType = "float16"
    """Number format of cached posteriors."""
    features: str = "inception"
    reference: str = "adm-reference"
    """``adm-reference``, or ``images``: statistics of the prepared training images themselves."""
    stand_ins: bool = False
    """Tiny networks with random weights instead of the published ones: proves the path, means nothing."""
    variants: dict[str, PaperVariant]
    default_variants: tuple[str, ...] = ("vanilla", "repa", "repa_e")
    default_seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    max_rfid: Positive = 10.0

    @property
    def image_size(self) -> int:
        """See `Suite`."""
        return self.side

    @property
    def chunk(self) -> int:
        """See `Suite`."""
        return 16 if self.stand_ins else 64

    @property
    def wants_gpu(self) -> bool:
        """See `Suite`."""
        return not self.stand_ins

    @property
    def cache_folder(self) -> str | None:
        """See `Suite`; stand-ins never lie beside real files."""
        return self.name if self.stand_ins else None

    def variant(self, name: str) -> PaperVariant:
        """A configuration, its names checked.

        Raises:
            UserError: it names a size, tokenizer or encoder that the suite does not have.
        """
        variant = self.variants[name]
        wanted: tuple[tuple[str, Sequence[str], Mapping[str, Any]], ...] = (
            ("size", [variant.size], self.sizes),
            ("tokenizer", [variant.tokenizer], self.tokenizers),
            ("encoder", variant.encoders, self.encoders),
        )
        for kind, names, known in wanted:
            for found in names:
                if found not in known:
                    raise UserError(f"variant {name}: there is no {kind} '{found}'.{nearest(found, known)}")
        return variant

    def method(self, name: str) -> Recipe:
        """See `Suite`; the variant's names are checked.

        Raises:
            UserError: see `variant`.
        """
        self.variant(name)
        return super().method(name)

    def sit_spec(self, name: str) -> SiTSpec:
        """The SiT of a variant."""
        variant, size = self.variant(name), self.sizes[self.variant(name).size]
        tokenizer = self.tokenizers[variant.tokenizer]
        sit = SiTSpec(
            latent_size=self.side // tokenizer.autoencoder.factor,
            channels=tokenizer.autoencoder.latent_channels,
            num_classes=self.num_classes,
            patch_size=tokenizer.patch_size,
            hidden=size.hidden,
            depth=size.depth,
            heads=size.heads,
            encoder_depth=variant.encoder_depth,
            projector_width=self.projector_width,
        )
        return self.method(name).shape(sit, tuple(self.encoders[e].width for e in variant.encoders))

    def _run_spec(self, name: str, seed: int, hashes: Mapping[str, str]) -> RunSpec:
        """See `Suite`."""
        variant = self.variant(name)
        method = self.method(name)
        train = TrainSpec(
            seed=seed,
            batch_size=self.batch_size,
            optimizers=self.optimizers(name),
            ema=self.ema,
            precision=self.precision,
            norm_batch=self.norm_batch,
        )
        return RunSpec(
            suite=self.name,
            variant=name,
            recipe=variant.recipe,
            source=method.source,
            options=method.options.model_dump(mode="json"),
            sit=self.sit_spec(name),
            tokenizer=self.tokenizers[variant.tokenizer].autoencoder,
            discriminator=self.discriminator,
            encoders=tuple(self.encoders[e] for e in variant.encoders) if method.needs.encoder else (),
            perceptual=self.perceptual if method.needs.perceptual else None,
            train=train,
            inputs={asset: hashes[asset] for asset in self.needs(name) if asset in hashes},
        )

    def optimizers(self, name: str) -> dict[str, OptimizerSpec]:
        """See `Suite`."""
        known = {"sit": self.variants[name].sit_optimizer or self.sit_optimizer, "vae": self.vae_optimizer}
        known["discriminator"] = self.discriminator_optimizer
        return {network: known[network] for network in self.method(name).needs.trained}

    def needs(self, name: str) -> list[str]:
        """See `Suite`."""
        variant = self.variant(name)
        needs = self.method(name).needs
        return [
            "images",
            *([] if variant.from_scratch else [variant.tokenizer]),
            *(variant.encoders if needs.encoder else ()),
            *(["vgg16"] if needs.perceptual else []),
        ]

    def scored_by(self) -> list[str]:
        """See `Suite`."""
        return [name for name in (self.features, self.reference) if name != "images"]

    def latents_of(self, variants: Sequence[str]) -> dict[str, tuple[tuple[int, int], str]]:
        """See `Suite`."""
        frozen = {self.variant(name).tokenizer: self.sit_spec(name) for name in variants if self.caches_latents(name)}
        return {name: ((sit.channels, sit.latent_size), self.latents) for name, sit in frozen.items()}

    def caches_latents(self, name: str) -> bool:
        """Whether a variant trains on cached posteriors of a frozen tokenizer."""
        return not self.method(name).needs.tokenizer


def imagenet256() -> ImagenetSuite:
    """400,000 steps of 256 images with SiT-XL/2; `repa-bench plan --suite imagenet256` says what that costs."""
    return ImagenetSuite(
        sizes={k: Size(hidden=h, depth=d, heads=n) for k, (h, d, n) in SIZES.items()},
        tokenizers={k: TokenizerChoice(autoencoder=a, patch_size=p) for k, (a, p) in TOKENIZERS.items()},
        encoders=dict(ENCODERS),
        variants=paper_variants(),
        curve_protocol=find_protocol("ode50-10k"),
        final_protocols=(find_protocol("repa-e-v3"),),
        budget=Budget(steps=400_000, score_every=50_000),
    )


#: Options of the recipes that followed, for three blocks, an encoder of two layers and six steps.
SMOKE_FOLLOWUPS: Changes = {
    "haste": {"student_blocks": (1, 2), "encoder_layers": (1, 2), "stop_at": 3},
    "layersync": {"blocks": ((1, 2),)},
    "sra": {"student_block": 1, "teacher_block": 3, "epoch": 2},
}


def _smoke_variants(full: ImagenetSuite) -> dict[str, PaperVariant]:
    first = ("vanilla", "repa", "repa_e", "two_stage", "repa_e_scratch")
    changed = {name: full.variants[name].model_copy(update={"encoder_depth": 2}) for name in first}
    return changed | later_variants(SMOKE_FOLLOWUPS, encoder_depth=2)


def imagenet_smoke() -> ImagenetSuite:
    """Every stage of `imagenet256` on any tree of images, in a minute on two cores: tiny random networks."""
    full = imagenet256()
    tiny = AutoencoderSpec(latent_channels=4, base_width=32, multipliers=(1, 1, 1, 1), residual_blocks=1)
    eye = full.encoders["dinov2-vit-b"].model_copy(
        update={
            "input_size": 56,
            "grid": 4,
            "width": 32,
            "kwargs": {"embed_dim": 32, "depth": 2, "num_heads": 2},
        }
    )
    # Adam turns the rounding of a gradient that is zero into a step; with this eps, layouts can be compared.
    calm = OptimizerSpec(eps=1e-3)
    small: dict[str, Any] = {"samples": 8, "manifold_size": 8, "steps": 4, "reference": "images"}
    return full.model_copy(
        update={
            "name": "imagenet-smoke",
            "notice": "smoke suite: tiny networks with random weights; its numbers mean nothing",
            "side": 64,
            "num_classes": full.num_classes,  # a tree may have any number up to that
            "sizes": {"XL": Size(hidden=32, depth=3, heads=4)},
            "tokenizers": {k: TokenizerChoice(autoencoder=tiny, patch_size=2) for k in ("sd-vae", "tuned-vae")},
            "encoders": {"dinov2-vit-b": eye},
            "discriminator": DiscriminatorSpec(base_width=8, layers=2),
            "projector_width": 32,
            "batch_size": 4,
            "precision": "fp32",
            **dict.fromkeys(("sit_optimizer", "vae_optimizer", "discriminator_optimizer"), calm),
            "reference": "images",
            "stand_ins": True,
            "variants": _smoke_variants(full),
            "curve_protocol": full.curve_protocol.model_copy(update={"name": "smoke-ode4", **small}),
            "final_protocols": (full.final_protocols[0].model_copy(update={"name": "smoke-sde4", **small}),),
            "max_rfid": 1e6,
            "budget": Budget(steps=6, score_every=6),
        }
    )
