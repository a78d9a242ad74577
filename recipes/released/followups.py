"""Names that the code of follow-up methods gives to a SiT's tensors, in ours."""

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


def our_state(released: Mapping[str, Tensor], tokens: int) -> dict[str, Tensor]:
    """A state dict under our names. REG's position embedding has a row of zeros for the class token, ours has none.

    Args:
        released: under the released names.
        tokens: patch tokens of a latent.

    Raises:
        UserError: the class token has a position.
    """
    state = {our_name(name): value for name, value in released.items()}
    position = state.get("pos_embed")
    if position is not None and position.shape[1] == tokens + 1:
        if position[:, 0].any():
            raise UserError("'pos_embed' gives the class token a position, which no network here has.")
        state["pos_embed"] = position[:, 1:]
    return state
