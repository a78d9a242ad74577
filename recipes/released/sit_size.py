"""The size of a SiT, read off the shapes of a released state dict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from recipes.core.errors import UserError
from recipes.core.weights import some
from recipes.models.sit import SIZES, SiTSpec
from recipes.released.autoencoder import count_of

IMAGENET_CLASSES = 1000


def sit_spec(
    state: Mapping[str, Tensor], *, num_classes: int | None = None, encoder_depth: int = 8, heads: int | None = None
) -> SiTSpec:
    """Read the size of a released SiT, REPA, REPA-E or DiT off its state dict.

    Args:
        state: released names. A final layer that also predicts a variance (twice the channels) counts as one without.
        num_classes: without the null class. By default one less than the label table has rows, but for 1000, which are
            ImageNet's without a null class.
        encoder_depth: the block after which tokens are aligned. It does not show in the state.
        heads: attention heads. They show in the norms of queries and keys alone; by default those of the papers' size
            of that width and depth.

    Raises:
        UserError: a tensor is missing or has a shape that no SiT has, or the heads are not known.
    """
    require(state, _DIMENSIONS)
    hidden, channels, patch = state["x_embedder.proj.weight"].shape[:3]
    depth = count_of(state, r"blocks\.(\d+)\.")
    norm = state.get("blocks.0.attn.q_norm.weight")
    if norm is not None and norm.ndim == 1 and len(norm):
        heads = hidden // len(norm)
    return SiTSpec.read_from(
        "the checkpoint's SiT",
        latent_size=_patches_per_side(state["pos_embed"], hidden) * patch,
        channels=channels,
        **_classes(state["y_embedder.embedding_table.weight"], num_classes),
        patch_size=patch,
        hidden=hidden,
        depth=depth,
        heads=_heads(heads, hidden, depth),
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / hidden,
        encoder_depth=min(encoder_depth, depth),
        qk_norm=norm is not None,
        **_projector_widths(state),
    )


#: Required tensors and their number of dimensions.
_DIMENSIONS = {
    "x_embedder.proj.weight": 4, "pos_embed": 3, "blocks.0.mlp.fc1.weight": 2, "final_layer.linear.weight": 2,
    "y_embedder.embedding_table.weight": 2, "t_embedder.mlp.0.weight": 2,
}  # fmt: skip
FINAL = {"final_layer.linear.weight": 2, "final_layer.linear.bias": 1}


def _patches_per_side(position: Tensor, hidden: int) -> int:
    side = math.isqrt(position.shape[1])
    if position.shape != (1, side**2, hidden):
        raise UserError(
            f"'pos_embed' is {tuple(position.shape)}, not (1, side * side, {hidden}); give a checkpoint of a SiT."
        )
    return side


def _classes(table: Tensor, given: int | None) -> dict[str, Any]:
    """The classes, and whether the label table's last row is the null class: code that drops no label makes none."""
    rows = table.shape[0]
    if given is None:
        given = rows if rows == IMAGENET_CLASSES else rows - 1
    if rows not in (given, given + 1):
        raise UserError(f"'y_embedder' has {rows} rows, not {given} classes and a null class; say --classes.")
    return {"num_classes": given, "null_class": rows == given + 1}


def _heads(given: int | None, hidden: int, depth: int) -> int:
    known = {(size[0], size[1]): size[2] for size in SIZES.values()}
    heads = given or known.get((hidden, depth))
    if heads is None or hidden % heads:
        raise UserError(f"a SiT of width {hidden} and depth {depth} is none of the papers'; give its --heads.")
    return heads


def _projector_widths(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """SiTSpec fields inferred from projector and head tensors."""
    projectors = range(count_of(state, r"projectors\.(\d+)\."))
    fields: dict[str, Any] = {"student_head": "student_head.0.weight" in state}
    if (token := state.get("class_embedder.weight")) is not None and token.ndim == 2:
        fields["class_width"] = token.shape[1]
    if "projectors.0.weight" in state:
        require(state, {f"projectors.{k}.weight": 4 for k in projectors})
        weights = [state[f"projectors.{k}.weight"] for k in projectors]
        kernel = {"projector": "convolution", "projector_kernel": weights[0].shape[-1]}
        return {"encoder_widths": tuple(w.shape[0] for w in weights), **kernel, **fields}
    require(state, {f"projectors.{k}.{layer}.weight": 2 for layer in (4, 0) for k in projectors})
    widths = tuple(state[f"projectors.{k}.4.weight"].shape[0] for k in projectors)
    hidden = {"projector_width": state["projectors.0.0.weight"].shape[0]} if projectors else {}
    return {"encoder_widths": widths, **hidden, **fields}


def require(state: Mapping[str, Tensor], dimensions: Mapping[str, int]) -> None:
    """Refuse a state dict that lacks some tensors, or has them with other numbers of dimensions."""
    if missing := [name for name in dimensions if name not in state]:
        raise UserError(f"{some(missing)} is not in the state dict; give a checkpoint of a SiT.")
    for name, ndim in dimensions.items():
        if state[name].ndim != ndim:
            raise UserError(
                f"'{name}' has {state[name].ndim} dimensions and a SiT's has {ndim}; give a checkpoint of a SiT."
            )
