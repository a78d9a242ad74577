"""SiT, the diffusion transformer of all recipes, with the released REPA-E state-dict names.

Architecture: SiT (arXiv 2401.08740) = DiT (arXiv 2212.09748) blocks on a velocity target; REPA (arXiv 2410.06940)
adds projectors after block `encoder_depth`, REPA-E (arXiv 2504.10483) a batch norm that owns the latents' scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recipes.core.draws import seed_of
from recipes.core.errors import UserError
from recipes.core.frozen import frozen
from recipes.core.spec import Count, Depth, Positive, Spec
from recipes.models.latent_norm import LatentNorm

TIME_FEATURES = 256


class SiTSpec(Spec):
    """The size of a SiT. The papers' models are in `SIZES`."""

    latent_size: Count
    """Side of the latent, in latent pixels."""
    channels: Count
    """Latent channels."""
    num_classes: Count
    patch_size: Count
    hidden: Count
    depth: Depth
    heads: Count
    mlp_ratio: Positive = 4.0
    encoder_depth: Depth = 8
    """The block after which tokens are aligned (counted from 1)."""
    encoder_widths: tuple[Count, ...] = ()
    """Feature width of each frozen encoder; one projector for each, none without alignment."""
    projector_width: Count = 2048
    qk_norm: bool = False
    """Layer norms on queries and keys, an option of REPA's code."""
    null_class: bool = True
    """Whether the label table has a row for no label; code that drops none makes none."""

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is as it was before the field existed, so that runs keep their digests."""
        new = {"qk_norm": False, "null_class": True}
        content: dict[str, Any] = handler(self)
        return {name: value for name, value in content.items() if name not in new or value != new[name]}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.latent_size % self.patch_size:
            raise ValueError(f"latent_size {self.latent_size} does not divide into patches of {self.patch_size}")
        if self.hidden % self.heads or self.hidden % 4:
            raise ValueError(f"hidden {self.hidden} does not divide by 4 and by {self.heads} heads")
        if self.encoder_widths and self.encoder_depth > self.depth:
            raise ValueError(f"encoder_depth {self.encoder_depth} is beyond the last block, {self.depth}")
        return self

    @property
    def tokens(self) -> int:
        """Tokens of one latent."""
        return (self.latent_size // self.patch_size) ** 2


#: hidden, depth, heads (SiT, table 1)
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}


@dataclass(frozen=True)
class SiTOutput:
    """What a forward pass gives."""

    velocity: Tensor | None
    """(N, C, h, w); absent if the pass stopped at the alignment depth."""
    projected: tuple[Tensor, ...]
    """The aligned tokens through each projector: (N, tokens, encoder width)."""
    features: Tensor
    """The aligned tokens themselves: (N, tokens, hidden)."""


def sincos_position_embedding(width: int, side: int) -> Tensor:
    """Fixed 2-D sine-cosine embedding, (1, side * side, width), float32.

    Half of the channels encode each axis, the horizontal one first; within an axis sines come before cosines.
    """
    frequencies = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    grid = torch.arange(side, dtype=torch.float64)
    rows, columns = torch.meshgrid(grid, grid, indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)[None].float()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale tokens (N, T, D) by (N, D)."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class PatchEmbed(nn.Module):
    """Latent to tokens, row by row."""

    def __init__(self, channels: int, hidden: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, hidden, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, tokens, hidden)."""
        out: Tensor = self.proj(x)
        return out.flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """Sinusoidal features of t (cosines first, periods up to 10,000, t not scaled), then an MLP."""

    frequencies: Tensor

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        half = TIME_FEATURES // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """(N,) -> (N, hidden)."""
        dtype = next(self.mlp.parameters()).dtype
        # At least float32: a low-precision angle would lose t.
        wide = torch.promote_types(dtype, torch.float32)
        angles = t.to(wide)[:, None] * self.frequencies.to(wide)
        out: Tensor = self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1).to(dtype))
        return out


class LabelEmbedder(nn.Module):
    """A table of the classes and, last where there is one, the null class of classifier-free guidance."""

    def __init__(self, rows: int, hidden: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(rows, hidden)

    def forward(self, labels: Tensor) -> Tensor:
        """int64 (N,) -> (N, hidden)."""
        out: Tensor = self.embedding_table(labels)
        return out


class TokenLinear(nn.Linear):
    """A linear layer for tokens.

    In float32 on the CPU it is computed as a convolution of 1 x 1: PyTorch gives matrix products to MKL, which leaves
    half of an AMD processor's vector width unused, and convolutions to oneDNN, which does not.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, E)."""
        if x.device.type != "cpu" or x.dtype != torch.float32:
            return super().forward(x)
        n, tokens, width = x.shape
        columns = x.reshape(n, tokens, 1, width).permute(0, 3, 1, 2)  # channels last, as they lie
        out = F.conv2d(columns, self.weight[:, :, None, None], self.bias)
        return out.permute(0, 2, 3, 1).reshape(n, tokens, -1)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, hidden: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = TokenLinear(hidden, 3 * hidden)
        self.proj = TokenLinear(hidden, hidden)
        self.q_norm, self.k_norm = (nn.LayerNorm(hidden // heads) if qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(self.q_norm(q).type_as(v), self.k_norm(k).type_as(v), v)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """Two layers with the tanh approximation of GELU."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.fc1 = TokenLinear(hidden, inner)
        self.fc2 = TokenLinear(inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """A transformer block whose norms and residuals are modulated by the condition (adaLN-zero)."""

    def __init__(self, hidden: int, heads: int, mlp_ratio: float, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(hidden, heads, qk_norm=qk_norm)
        self.norm2 = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.mlp = MLP(hidden, int(hidden * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens (N, T, D) under condition (N, D)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_a[:, None] * self.attn(modulate(self.norm1(x), shift_a, scale_a))
        out: Tensor = x + gate_m[:, None] * self.mlp(modulate(self.norm2(x), shift_m, scale_m))
        return out


class FinalLayer(nn.Module):
    """Tokens to patches, channels last inside a patch."""

    def __init__(self, hidden: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.linear = TokenLinear(hidden, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, p * p * C)."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        out: Tensor = self.linear(modulate(self.norm_final(x), shift, scale))
        return out


def make_projector(hidden: int, width: int, out: int) -> nn.Sequential:
    """REPA's three-layer projector."""
    first, second, last = TokenLinear(hidden, width), TokenLinear(width, width), TokenLinear(width, out)
    return nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), last)


class SiT(nn.Module):
    """A class-conditional velocity network on latents that its own batch norm standardises."""

    def __init__(self, spec: SiTSpec) -> None:
        super().__init__()
        self.spec = spec
        self.x_embedder = PatchEmbed(spec.channels, spec.hidden, spec.patch_size)
        self.t_embedder = TimestepEmbedder(spec.hidden)
        self.y_embedder = LabelEmbedder(spec.num_classes + spec.null_class, spec.hidden)
        position = sincos_position_embedding(spec.hidden, spec.latent_size // spec.patch_size)
        self.pos_embed = nn.Parameter(position, requires_grad=False)
        self.blocks = nn.ModuleList(
            [Block(spec.hidden, spec.heads, spec.mlp_ratio, qk_norm=spec.qk_norm) for _ in range(spec.depth)]
        )
        self.projectors = nn.ModuleList(
            [make_projector(spec.hidden, spec.projector_width, width) for width in spec.encoder_widths]
        )
        self.final_layer = FinalLayer(spec.hidden, spec.patch_size**2 * spec.channels)
        self.bn = LatentNorm(spec.channels)
        self.checkpointing = False
        """Recompute each block in the backward pass instead of keeping its activations."""

    @property
    def null_class(self) -> int:
        """The label that stands for no label.

        Raises:
            UserError: the network has none.
        """
        if not self.spec.null_class:
            raise UserError("this SiT has no null class, which guidance needs; name a protocol without guidance.")
        return self.spec.num_classes

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, *, stop_at_alignment: bool = False, project: bool = True
    ) -> SiTOutput:
        """Predict the velocity.

        Args:
            x: noisy normalised latents, (N, C, h, w).
            t: times in [0, 1], (N,).
            y: labels in [0, num_classes], int64 (N,); num_classes is the null class.
            stop_at_alignment: run only the blocks that the aligned tokens need.
            project: run the projectors, which sampling has no use for.
        """
        condition = self.t_embedder(t) + self.y_embedder(y)
        tokens = self.x_embedder(x) + self.pos_embed
        features = tokens
        for depth, block in enumerate(self.blocks, start=1):
            tokens = self._run(block, tokens, condition)
            if depth == self.spec.encoder_depth:
                features = tokens
                if stop_at_alignment:
                    break
        projected = tuple(projector(features) for projector in self.projectors) if project else ()
        velocity = None if stop_at_alignment else self._unpatchify(self.final_layer(tokens, condition))
        return SiTOutput(velocity, projected, features)

    def _run(self, block: nn.Module, tokens: Tensor, condition: Tensor) -> Tensor:
        if not (self.checkpointing and torch.is_grad_enabled()):
            out: Tensor = block(tokens, condition)
            return out
        trains = any(p.requires_grad for p in block.parameters())

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            # A block that was frozen when it ran must be frozen when it runs again.
            return nullcontext(), nullcontext() if trains else frozen(block)

        again: Tensor = checkpoint(
            block, tokens, condition, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
        )
        return again

    def _unpatchify(self, x: Tensor) -> Tensor:
        p, side = self.spec.patch_size, self.spec.latent_size // self.spec.patch_size
        patches: Tensor = x.unflatten(-1, (p, p, self.spec.channels)).unflatten(1, (side, side))
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def initialize(sit: SiT, seed: int) -> None:
    """SiT's initialisation, each tensor from its own generator so that adding a projector moves nothing else.

    Xavier-uniform linears (the patch embedding flattened likewise) with zero bias, N(0, 0.02) for the label table
    and the time MLP, zero for every adaLN output and the final linear layer.
    """
    tables: tuple[Callable[[str], bool], ...] = (
        lambda n: n == "y_embedder.embedding_table.weight",
        lambda n: n.startswith("t_embedder.mlp") and n.endswith("weight"),
    )
    for name, parameter in sit.named_parameters():
        if parameter.is_meta:  # only counted, never run
            continue
        generator = torch.Generator(parameter.device).manual_seed(seed_of(seed, "init", name))
        with torch.no_grad():
            if name == "pos_embed" or "_norm." in name:  # fixed, and ones and zeros
                continue
            if name.endswith("bias") or "adaLN_modulation" in name or name == "final_layer.linear.weight":
                parameter.zero_()
            elif any(matches(name) for matches in tables):
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                nn.init.xavier_uniform_(parameter.view(len(parameter), -1), generator=generator)
