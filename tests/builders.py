"""Tiny networks, batches and specs for tests."""

from __future__ import annotations

import torch

from recipes.base import Networks, SiTRecipe
from recipes.core.batch import Batch
from recipes.core.spec import EMASpec, OptimizerSpec, TrainSpec
from recipes.models.autoencoder import Autoencoder, AutoencoderSpec
from recipes.models.discriminator import DiscriminatorSpec, PatchDiscriminator
from recipes.models.sit import SiT, SiTSpec, initialize
from recipes.registry import RECIPES
from recipes.released.autoencoder import diffusers_name

SIT = SiTSpec(
    latent_size=4,
    channels=4,
    num_classes=10,
    patch_size=2,
    hidden=32,
    depth=3,
    heads=4,
    encoder_depth=2,
    encoder_widths=(12,),
    projector_width=16,
)
TOKENIZER = AutoencoderSpec(
    latent_channels=4, base_width=8, multipliers=(1, 2), residual_blocks=1, norm_groups=4, unshuffle=2
)


class MeanSquares(torch.nn.Module):
    """A perceptual loss without weights."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).square().mean()


def make_sit(seed: int = 0, spec: SiTSpec = SIT, *, awake: bool = True) -> SiT:
    """A SiT; `awake` replaces the zero-initialised outputs, so that its velocity depends on everything."""
    sit = SiT(spec)
    initialize(sit, seed)
    if awake:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in sit.named_parameters():
            if "adaLN" in name or name.startswith("final_layer"):
                parameter.data.normal_(0, 0.1, generator=generator)
    return sit


#: Options that fit three blocks and a few steps.
OPTIONS: dict[str, dict[str, object]] = {
    "haste": {"student_blocks": (1, 2), "encoder_layers": (1, 2), "stop_at": 2},
    "layersync": {"blocks": ((1, 3),)},
    "sra": {"student_block": 1, "teacher_block": 3, "epoch": 2},
}


def make_recipe(name: str, seed: int = 0, *, dtype: torch.dtype = torch.float32, **options: object) -> SiTRecipe:
    """A recipe on its own kind of network, beside everything that REPA-E wants."""
    kind = RECIPES[name]
    chosen = kind.Options(**(OPTIONS.get(name, {}) | options))
    networks = make_networks(seed, kind.shape(chosen, SIT, SIT.encoder_widths))
    for network in (networks.sit, networks.vae, networks.discriminator):
        assert network is not None
        network.to(dtype)
    return kind(networks, chosen)


def make_networks(seed: int = 0, spec: SiTSpec = SIT) -> Networks:
    """Everything that REPA-E wants."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = Autoencoder(TOKENIZER)
        discriminator = PatchDiscriminator(DiscriminatorSpec(base_width=4, layers=1))
    return Networks(sit=make_sit(seed, spec), vae=vae, discriminator=discriminator, perceptual=MeanSquares())


def make_batch(n: int = 6, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
    """Random images, labels, cached posterior, and what an encoder says."""
    g = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.randint(0, 256, (n, 3, 16, 16), generator=g, dtype=torch.uint8),
        labels=torch.randint(0, 10, (n,), generator=g),
        features=(torch.randn(n, 4, 12, generator=g).to(dtype),),
        mean=torch.randn(n, 4, 4, 4, generator=g).to(dtype),
        std=torch.rand(n, 4, 4, 4, generator=g).to(dtype),
        class_tokens=(torch.randn(n, 12, generator=g).to(dtype),),
        attention=tuple(torch.randn(n, 4, 4, 4, generator=g).to(dtype) for _ in range(2)),
    )


def make_train_spec(*networks: str, batch_size: int = 6) -> TrainSpec:
    """AdamW everywhere."""
    return TrainSpec(
        seed=3,
        batch_size=batch_size,
        optimizers={name: OptimizerSpec(lr=1e-3, warmup_steps=2) for name in networks},
        ema=EMASpec(decay=0.99, warmup=True),
    )


def compvis_state(spec: AutoencoderSpec) -> dict[str, torch.Tensor]:
    """A CompVis state dict of the given size, each name found by asking for every candidate."""
    levels = len(spec.multipliers)
    ours = Autoencoder(spec).kl.state_dict()
    candidates = ["quant_conv", "post_quant_conv"]
    leaves = ["norm1", "norm2", "conv1", "conv2", "nin_shortcut"]
    attention = ["norm", "q", "k", "v", "proj_out"]
    for side, stack, sample in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        candidates += [f"{side}.{part}" for part in ("conv_in", "conv_out", "norm_out")]
        candidates += [f"{side}.mid.block_{k}.{leaf}" for k in (1, 2) for leaf in leaves]
        candidates += [f"{side}.mid.attn_1.{leaf}" for leaf in attention]
        for level in range(levels):
            here = f"{side}.{stack}.{level}"
            candidates += [f"{here}.block.{b}.{leaf}" for b in range(4) for leaf in leaves]
            candidates += [f"{here}.attn.{b}.{leaf}" for b in range(4) for leaf in attention]
            candidates.append(f"{here}.{sample}.conv")
    state = {}
    for name in (f"{c}.{kind}" for c in candidates for kind in ("weight", "bias")):
        renamed = diffusers_name(name, levels)
        if renamed in ours:
            value = ours[renamed]
            projection = ".attn" in name and ".norm." not in name and value.ndim == 2
            state[name] = value[..., None, None] if projection else value
    assert len(state) == len(ours)
    return state
