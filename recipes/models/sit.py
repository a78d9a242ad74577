"""SiT, the diffusion transformer of all recipes, with the released REPA-E state-dict names.

Architecture: SiT (arXiv 2401.08740) = DiT (arXiv 2212.09748) blocks on a velocity target; REPA (arXiv 2410.06940)
adds projectors after block `encoder_depth`, REPA-E (arXiv 2504.10483) a batch norm that owns the latents' scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recipes.core.draws import seed_of
from recipes.core.errors import UserError
from recipes.core.frozen import frozen
from recipes.core.spec import Count, Depth, Positive, Spec
from recipes.models.heads import HeadKind, TokenConvolution, TokenLinear, make_projector, make_student_head
from recipes.models.latent_norm import LatentNorm

TIME_FEATURES = 256


class SiTSpec(Spec):
    """The size of a SiT. The papers' models are in `SIZES`."""

    ADDED = frozenset({"qk_norm", "null_class", "projector", "projector_kernel", "class_width", "student_head"})

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
    projector: HeadKind = "mlp"
    projector_kernel: Count = 1
    """Side of the convolution, odd."""
    class_width: Count | None = None
    """Width of REG's class token (an additional noised token in front); None: none."""
    student_head: bool = False
    """SRA's head."""
    null_class: bool = True
    """Whether the label table has a null class (absent if trained without label dropout)."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.latent_size % self.patch_size:
            raise ValueError(f"latent_size {self.latent_size} does not divide into patches of {self.patch_size}")
        if self.hidden % self.heads or self.hidden % 4:
            raise ValueError(f"hidden {self.hidden} does not divide by 4 and by {self.heads} heads")
        if self.encoder_widths and self.encoder_depth > self.depth:
            raise ValueError(f"encoder_depth {self.encoder_depth} is beyond the last block, {self.depth}")
        if self.projector_kernel % 2 == 0:
            raise ValueError(f"projector_kernel {self.projector_kernel} is even: the grid would change its size")
        if self.projector == "convolution" and self.class_width is not None:
            raise ValueError("a convolution over the token grid has no place for a class token; take the MLP")
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
    """The aligned tokens themselves: (N, tokens, hidden), a class token first where there is one."""
    taps: Mapping[int, Tensor] = field(default_factory=dict)
    """Tokens after the blocks that were asked for, by their numbers, counted from 1."""
    logits: Mapping[int, Tensor] = field(default_factory=dict)
    """Attention logits q k / sqrt(width) of the blocks that were asked for: (N, heads, tokens, tokens)."""
    class_velocity: Tensor | None = None
    """(N, class width), where there is a class token."""


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


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, hidden: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = TokenLinear(hidden, 3 * hidden)
        self.proj = TokenLinear(hidden, hidden)
        self.q_norm, self.k_norm = (nn.LayerNorm(hidden // heads) if qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, *, with_logits: bool = False) -> tuple[Tensor, Tensor | None]:
        """(N, T, D) -> (N, T, D), and the logits (N, heads, T, T) if they are asked for, beside the fused attention."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q).type_as(v), self.k_norm(k).type_as(v)
        mixed = F.scaled_dot_product_attention(q, k, v)
        logits = (q * q.shape[-1] ** -0.5) @ k.mT if with_logits else None
        return self.proj(mixed.transpose(1, 2).flatten(2)), logits


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

    def forward(self, x: Tensor, c: Tensor, *, with_logits: bool = False) -> tuple[Tensor, Tensor | None]:
        """Tokens (N, T, D) under condition (N, D), and the attention's logits if they are asked for."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        mixed, logits = self.attn(modulate(self.norm1(x), shift_a, scale_a), with_logits=with_logits)
        x = x + gate_a[:, None] * mixed
        return x + gate_m[:, None] * self.mlp(modulate(self.norm2(x), shift_m, scale_m)), logits


class FinalLayer(nn.Module):
    """Tokens to patches, channels last inside a patch; a class token in front to its velocity."""

    def __init__(self, hidden: int, out: int, class_width: int | None = None) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.linear = TokenLinear(hidden, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))
        self.class_linear = nn.Linear(hidden, class_width) if class_width is not None else None

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor | None]:
        """(N, T, D) -> (N, T, p * p * C), and the class token's velocity."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        x = modulate(self.norm_final(x), shift, scale)
        if self.class_linear is None:
            return self.linear(x), None
        return self.linear(x[:, 1:]), self.class_linear(x[:, 0])


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
            [
                make_projector(spec.projector, spec.hidden, spec.projector_width, width, spec.projector_kernel)
                for width in spec.encoder_widths
            ]
        )
        if spec.student_head:
            self.student_head = make_student_head(spec.hidden)
        if spec.class_width is not None:
            self.class_embedder = nn.Linear(spec.class_width, spec.hidden)
            self.class_norm = nn.LayerNorm(spec.hidden, eps=1e-6)
        self.final_layer = FinalLayer(spec.hidden, spec.patch_size**2 * spec.channels, spec.class_width)
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
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        *,
        class_token: Tensor | None = None,
        taps: Collection[int] = (),
        logits: Collection[int] = (),
        stop_after: int | None = None,
        project: bool = True,
    ) -> SiTOutput:
        """Predict the velocity.

        Args:
            x: noisy normalised latents, (N, C, h, w).
            t: times in [0, 1], (N,).
            y: labels in [0, num_classes], int64 (N,); num_classes is the null class.
            class_token: noisy, (N, class width), where the network has one.
            taps: numbers of the blocks, counted from 1, whose tokens are wanted.
            logits: numbers of the blocks whose attention logits are wanted.
            stop_after: run no block behind that one, and give no velocity.
            project: run the projectors, which sampling has no use for.
        """
        if (class_token is None) != (self.spec.class_width is None):
            raise ValueError("a class token goes with a network that has one, and only with that")
        condition = self.t_embedder(t) + self.y_embedder(y)
        tokens = self.x_embedder(x) + self.pos_embed
        if class_token is not None:  # it has no place on the grid, and so no position
            tokens = torch.cat((self.class_norm(self.class_embedder(class_token))[:, None], tokens), dim=1)
        features, tapped, seen = tokens, dict[int, Tensor](), dict[int, Tensor]()
        for depth, block in enumerate(self.blocks[:stop_after], start=1):
            tokens, scores = self._run(block, tokens, condition, with_logits=depth in logits)
            if depth == self.spec.encoder_depth:
                features = tokens
            if depth in taps:
                tapped[depth] = tokens
            if scores is not None:
                seen[depth] = scores
        projected = tuple(projector(features) for projector in self.projectors) if project else ()
        if stop_after is not None:
            return SiTOutput(None, projected, features, tapped, seen)
        out, class_velocity = self.final_layer(tokens, condition)
        return SiTOutput(self._unpatchify(out), projected, features, tapped, seen, class_velocity)

    def _run(
        self, block: nn.Module, tokens: Tensor, condition: Tensor, *, with_logits: bool
    ) -> tuple[Tensor, Tensor | None]:
        if not (self.checkpointing and torch.is_grad_enabled()):
            out: tuple[Tensor, Tensor | None] = block(tokens, condition, with_logits=with_logits)
            return out
        trains = any(p.requires_grad for p in block.parameters())

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            # A block that was frozen when it ran must be frozen when it runs again.
            return nullcontext(), nullcontext() if trains else frozen(block)

        again: tuple[Tensor, Tensor | None] = checkpoint(
            block,
            tokens,
            condition,
            with_logits=with_logits,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=contexts,
        )
        return again

    def _unpatchify(self, x: Tensor) -> Tensor:
        p, side = self.spec.patch_size, self.spec.latent_size // self.spec.patch_size
        patches: Tensor = x.unflatten(-1, (p, p, self.spec.channels)).unflatten(1, (side, side))
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


#: Additional parameters initialised to zero.
ZERO = ("final_layer.linear.weight", "final_layer.class_linear.weight")


def initialize(sit: SiT, seed: int) -> None:
    """SiT's initialisation, each tensor from its own generator so that adding a projector moves nothing else.

    Xavier-uniform linears (the patch embedding flattened likewise) with zero bias, N(0, 0.02) for the label table
    and the time MLP, zero for every adaLN output and the final linear layers, PyTorch's own for a projector that is a
    convolution.
    """
    tables: tuple[Callable[[str], bool], ...] = (
        lambda n: n == "y_embedder.embedding_table.weight",
        lambda n: n.startswith("t_embedder.mlp") and n.endswith("weight"),
    )
    bounds = {  # of PyTorch's own initialisation
        f"{name}.{part}": module.weight[0].numel() ** -0.5
        for name, module in sit.named_modules()
        if isinstance(module, TokenConvolution)
        for part in ("weight", "bias")
    }
    for name, parameter in sit.named_parameters():
        if parameter.is_meta:  # only counted, never run
            continue
        generator = torch.Generator(parameter.device).manual_seed(seed_of(seed, "init", name))
        with torch.no_grad():
            if name == "pos_embed" or "_norm." in name:  # fixed, and ones and zeros
                continue
            if name in bounds:
                parameter.uniform_(-bounds[name], bounds[name], generator=generator)
            elif name.endswith("bias") or "adaLN_modulation" in name or name in ZERO:
                parameter.zero_()
            elif any(matches(name) for matches in tables):
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                nn.init.xavier_uniform_(parameter.view(len(parameter), -1), generator=generator)
