"""Frozen encoders whose patch tokens the SiT is aligned with: timm's vision transformers on a 16 x 16 grid.

Preprocessing and choice of tokens are those of the released REPA code (arXiv 2410.06940); DINOv3 and SigLIP, which it
does not have, follow timm's published preprocessing.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, JsonValue
from torch import Tensor, nn

from recipes.core.errors import UserError
from recipes.core.precision import full_precision
from recipes.core.spec import Count, Spec
from recipes.core.state_dicts import find, network_in, notes_of
from recipes.core.weights import content_of, load_exactly, load_state

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
#: Prefixes of unused tensors in published files.
_UNUSED = ("head.", "fc_norm.", "attn_pool.", "decoder_")
#: Anchor tensor names: timm-style ViT, OpenAI CLIP.
_ANCHORS = ("patch_embed.proj.weight", "visual.conv1.weight")
#: If a file holds several networks, prefer these (as the released code does).
_PREFERRED = ("teacher", "base_encoder", "encoder")


class EncoderSpec(Spec):
    """A frozen encoder: which network, what it is fed, which tokens are taken."""

    name: str
    """REPA's name for it."""
    architecture: str
    """timm's name of the network."""
    width: Count
    input_size: Count
    """Side of the images that the network is fed; patches of 14 want 224 for a 16 x 16 grid, patches of 16 want 256."""
    grid: Count = 16
    """Side of the grid of patch tokens."""
    mean: tuple[float, float, float]
    """Of RGB in [0, 1]."""
    std: tuple[float, float, float]
    resize: Literal["before", "after"] = "after"
    """When an image of another side is resized (bicubic, no antialiasing): before or after normalisation."""
    prefix_tokens: Annotated[int, Field(ge=0, le=1000)] = 1
    """Class and register tokens in front of the patch tokens; dropped."""
    final_norm: bool = True
    """Take the tokens after the network's last norm; the released REPA code takes MAE's and CLIP's before it."""
    kwargs: dict[str, JsonValue] = {}
    """Overrides of the network's size, for tests."""
    source: str
    """Where its weights are published."""
    license: str

    @property
    def tokens(self) -> int:
        """Patch tokens of an image."""
        return self.grid**2


def _dinov2(letter: str, architecture: str, width: int, *, registers: int = 0) -> EncoderSpec:
    file = f"dinov2_vit{letter}14{f'_reg{registers}' if registers else ''}_pretrain.pth"
    return EncoderSpec(
        name=f"dinov2{'reg' if registers else ''}-vit-{letter}",
        architecture=architecture,
        width=width,
        input_size=224,
        mean=_IMAGENET[0],
        std=_IMAGENET[1],
        prefix_tokens=1 + registers,
        source=f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vit{letter}14/{file} "
        f"or huggingface.co/timm/{architecture}.lvd142m",
        license="Apache-2.0",
    )


def _mocov3(letter: str, architecture: str, width: int, source: str, license: str) -> EncoderSpec:
    return EncoderSpec(
        name=f"mocov3-vit-{letter}",
        architecture=architecture,
        width=width,
        input_size=256,
        mean=_IMAGENET[0],
        std=_IMAGENET[1],
        source=source,
        license=license,
    )


def _dinov3(letter: str, architecture: str, width: int) -> EncoderSpec:
    return EncoderSpec(
        name=f"dinov3-vit-{letter}",
        architecture=architecture,
        width=width,
        input_size=256,
        mean=_IMAGENET[0],
        std=_IMAGENET[1],
        prefix_tokens=5,  # a class token and four registers
        source=f"huggingface.co/timm/{architecture}.lvd1689m",
        license="DINOv3 License",
    )


_SPECS = (
    _dinov2("b", "vit_base_patch14_dinov2", 768),
    _dinov2("l", "vit_large_patch14_dinov2", 1024),
    _dinov2("g", "vit_giant_patch14_dinov2", 1536),
    _dinov2("b", "vit_base_patch14_reg4_dinov2", 768, registers=4),
    _dinov2("l", "vit_large_patch14_reg4_dinov2", 1024, registers=4),
    _dinov2("g", "vit_giant_patch14_reg4_dinov2", 1536, registers=4),
    _dinov3("b", "vit_base_patch16_dinov3", 768),
    _dinov3("l", "vit_large_patch16_dinov3", 1024),
    EncoderSpec(
        name="dinov1-vit-b",
        architecture="vit_base_patch16_224",
        width=768,
        input_size=256,
        mean=_IMAGENET[0],
        std=_IMAGENET[1],
        source="https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth "
        "or huggingface.co/timm/vit_base_patch16_224.dino",
        license="Apache-2.0",
    ),
    _mocov3(
        "b",
        "vit_base_patch16_224",
        768,
        "https://dl.fbaipublicfiles.com/moco-v3/vit-b-300ep/vit-b-300ep.pth.tar",
        "CC-BY-NC-4.0",
    ),
    _mocov3("l", "vit_large_patch16_224", 1024, "the moco v3 ViT-L that github.com/LTH14/rcg links to", "see there"),
    EncoderSpec(
        name="mae-vit-l",
        architecture="vit_large_patch16_224",
        width=1024,
        input_size=256,
        mean=_IMAGENET[0],
        std=_IMAGENET[1],
        final_norm=False,
        source="https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_large.pth "
        "or huggingface.co/timm/vit_large_patch16_224.mae",
        license="CC-BY-NC-4.0",
    ),
    EncoderSpec(
        name="jepa-vit-h",
        architecture="vit_huge_patch14_gap_224",
        width=1280,
        input_size=224,
        mean=_IMAGENET[0],
        std=_IMAGENET[1],
        prefix_tokens=0,
        source="https://dl.fbaipublicfiles.com/ijepa/IN1K-vit.h.14-300e.pth.tar",
        license="CC-BY-NC-4.0",
    ),
    EncoderSpec(
        name="clip-vit-L",
        architecture="vit_large_patch14_clip_quickgelu_224",
        width=1024,
        input_size=224,
        mean=_CLIP[0],
        std=_CLIP[1],
        resize="before",
        final_norm=False,
        source="huggingface.co/timm/vit_large_patch14_clip_224.openai",
        license="MIT (OpenAI's weights)",
    ),
    EncoderSpec(
        name="siglip-vit-b",
        architecture="vit_base_patch16_siglip_256",
        width=768,
        input_size=256,
        mean=_HALF[0],
        std=_HALF[1],
        resize="before",
        prefix_tokens=0,
        source="huggingface.co/timm/vit_base_patch16_siglip_256.webli",
        license="Apache-2.0",
    ),
)
ENCODERS: dict[str, EncoderSpec] = {spec.name: spec for spec in _SPECS}
#: All sizes of DINOv2; the smallest serves only to measure with.
DINOV2: dict[str, EncoderSpec] = {
    spec.name: spec
    for spec in (_dinov2("s", "vit_small_patch14_dinov2", 384), *ENCODERS.values())
    if spec.name.startswith("dinov2-")
}


@dataclass(frozen=True)
class EncoderOutput:
    """Outputs of a frozen encoder."""

    patches: Tensor
    """(N, tokens, width)."""
    class_token: Tensor | None
    """(N, width), after the last norm; none where the network has no class token."""
    attention: tuple[Tensor, ...]
    """Logits q k / sqrt(width of a head) over patch tokens, (N, heads, tokens, tokens) for each layer."""


class Encoder(nn.Module):
    """uint8 images to patch tokens; frozen, always in eval mode."""

    mean: Tensor
    std: Tensor
    content: str | None = None
    """SHA-256 of the weights' file; none while they are random."""
    notes: tuple[str, ...] = ()
    """What whoever reads its numbers should know of the weights."""

    def __init__(self, spec: EncoderSpec) -> None:
        """The network with random weights; `load_encoder` gives it the trained ones.

        Raises:
            ValueError: the network is not what the specification says.
        """
        super().__init__()
        self.spec = spec
        self.network = _network(spec)
        self.register_buffer("mean", torch.tensor(spec.mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).reshape(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> tokens (N, grid * grid, width), row by row, float32. Follows autocast inside."""
        return self.look(images).patches

    @torch.no_grad()
    def look(self, images: Tensor, *, attention: Sequence[int] = ()) -> EncoderOutput:
        """What it says of uint8 images (N, 3, H, W).

        Args:
            images: of any side.
            attention: layers, counted from 1, whose logits are wanted, without class and register tokens.
        """
        seen: dict[int, Tensor] = {}
        with ExitStack() as hooks:
            for layer in attention:
                inner = self._attention_of(layer)

                def keep(_: nn.Module, __: Any, qkv: Tensor, inner: Any = inner, layer: int = layer) -> None:
                    q, k, _v = qkv.unflatten(-1, (3, inner.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
                    first = self.spec.prefix_tokens
                    q, k = inner.q_norm(q)[:, :, first:], inner.k_norm(k)[:, :, first:]
                    seen[layer] = ((q * inner.scale) @ k.mT).float()

                handle = inner.qkv.register_forward_hook(keep)
                hooks.callback(handle.remove)
            tokens: Tensor = self.network.forward_features(self._prepared(images)).float()
        class_token = tokens[:, 0] if self.spec.prefix_tokens else None
        return EncoderOutput(tokens[:, self.spec.prefix_tokens :], class_token, tuple(seen[k] for k in attention))

    def _attention_of(self, layer: int) -> Any:
        blocks = self.network.blocks
        if layer > len(blocks):
            raise UserError(f"encoder {self.spec.name} has {len(blocks)} layers, and layer {layer} is wanted.")
        found = blocks[layer - 1].attn
        if not (hasattr(found, "qkv") and hasattr(found, "q_norm")):
            raise UserError(f"encoder {self.spec.name} has no attention whose logits can be taken; name another.")
        return found

    @full_precision
    def _prepared(self, images: Tensor) -> Tensor:
        pixels = images.to(self.mean.dtype) / 255
        if self.spec.resize == "before":
            return (self._resized(pixels) - self.mean) / self.std
        return self._resized((pixels - self.mean) / self.std)

    def _resized(self, pixels: Tensor) -> Tensor:
        side = self.spec.input_size
        if pixels.shape[-2:] == (side, side):
            return pixels
        return F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=False)


def _network(spec: EncoderSpec) -> Any:
    """timm's network without classifier and pooling, random weights."""
    import timm  # here, because it takes seconds to load

    network: Any = timm.create_model(
        spec.architecture, pretrained=False, num_classes=0, global_pool="", img_size=spec.input_size, **spec.kwargs
    )
    found = (network.num_features, network.patch_embed.grid_size, network.num_prefix_tokens)
    if found != (wanted := (spec.width, (spec.grid, spec.grid), spec.prefix_tokens)):
        raise ValueError(f"{spec.architecture} has (width, grid, prefix tokens) {found}, {spec.name} says {wanted}")
    if not spec.final_norm:
        network.norm = nn.Identity()
    return network


def load_encoder(
    spec: EncoderSpec, weights: Path, *, resample: Callable[[Tensor, int], Tensor] | None = None
) -> Encoder:
    """An encoder with trained weights, its position embedding resampled to the grid.

    Args:
        spec: usually one of `ENCODERS`.
        weights: the file that `spec.source` names, in timm's or the original naming, in a wrapper or not.
        resample: the position embedding, class token first, and the grid's side -> that of the grid; timm's rule by
            default, as in the released REPA code.

    Raises:
        UserError: the file is missing, cannot be read safely, or does not hold this network.
    """
    if not weights.is_file():
        raise UserError(f"{weights}, the weights of {spec.name}, is not there; download {spec.source}.")
    encoder = Encoder(spec)
    where = f"{weights}: the network of {spec.name}"
    state = _vision_transformer(load_state(weights), where=where)
    if resample is not None and "pos_embed" in state:
        state["pos_embed"] = resample(state["pos_embed"], spec.grid)
    state = _filtered(encoder.network, state, where=where)
    unused = _UNUSED if spec.final_norm else (*_UNUSED, "norm.")
    used = {name: value for name, value in state.items() if not name.startswith(unused)}
    load_exactly(encoder.network, used, where=where)
    encoder.content, encoder.notes = content_of(weights), notes_of(used, weights)
    return encoder


def _vision_transformer(loaded: Any, *, where: str) -> dict[str, Tensor]:
    """Extract the ViT state dict from any wrapping."""
    anchor = next((a for a in _ANCHORS if find(loaded, a)), _ANCHORS[0])
    refusal = f"{where}: not such a state dict: '{anchor}' is not there"
    state = network_in(loaded, anchor, where=where, refusal=refusal, prefer=_PREFERRED)
    # MoCo-v3 has called two layers of RCG's ViT-L norm13 and norm14, fc13 and fc14.
    layer = re.compile(r"(blocks\.\d+\.(?:norm|mlp\.fc))1([34])\.")
    return {layer.sub(lambda m: f"{m[1]}{int(m[2]) - 2}.", name): value for name, value in state.items()}


def _filtered(network: nn.Module, state: dict[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """Convert names with timm's checkpoint_filter_fn, suppressing its output."""
    convert = sys.modules[type(network).__module__].checkpoint_filter_fn
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            converted: dict[str, Tensor] = convert(state, network)
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
        raise UserError(f"{where}: not such a state dict ({type(error).__name__}: {error}).") from None
    return converted
