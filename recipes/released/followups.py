"""Tensor-name mapping from follow-up methods' code to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from recipes.core.errors import UserError

#: Beginnings of their names (iREPA 99ad4ac, REG 021ea2e, SRA 1723f85), and of ours.
_NAMES = (
    (r"projectors\.(\d+)\.projection_layer\.", r"projectors.\1."),
    (r"cls_projectors2\.", "class_embedder."),
    (r"wg_norm\.", "class_norm."),
    (r"final_layer\.linear_cls\.", "final_layer.class_linear."),
    (r"ap_head\.linear1\.", "student_head.0."),
    (r"ap_head\.linear2\.", "student_head.2."),
)


def our_name(name: str) -> str:
    """Our name of a tensor."""
    for theirs, ours in _NAMES:
        name = re.sub(rf"^{theirs}", ours, name)
    return name


#: Mean and standard deviation of sdvae-ft-mse's latents as iREPA's code has them (99ad4ac, `ldm/train.py:46`).
IREPA_LATENTS = (
    (-0.6916617155075073, -1.1567180156707764, -0.15859760344028473, -0.43302324414253235),
    (1 / 0.2093314677476883, 1 / 0.13004960119724274, 1 / 0.16120290756225586, 1 / 0.13015244901180267),
)


def without_class_position(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """REG's position embedding has a row of zeros for the class token, ours has none.

    Raises:
        UserError: the class token has a position.
    """
    out = dict(state)
    position = out.get("pos_embed")
    if position is not None and "class_embedder.weight" in out and position.ndim == 3:
        if position[:, 0].any():
            raise UserError("'pos_embed' gives the class token a position, which no network here has.")
        out["pos_embed"] = position[:, 1:]
    return out


def our_state(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under our names; see `without_class_position`."""
    return without_class_position({our_name(name): value for name, value in released.items()})
