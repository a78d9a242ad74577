"""Names of the released file formats: CompVis autoencoders against diffusers' `AutoencoderKL`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from recipes.models.autoencoder import AutoencoderSpec

_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def _rules(levels: int) -> list[tuple[str, str]]:
    """(CompVis pattern, diffusers replacement); the decoder's levels are numbered from the other end."""
    rules = [
        (r"^quant_conv\.", "quant_conv."),
        (r"^post_quant_conv\.", "post_quant_conv."),
        (r"^(encoder|decoder)\.(conv_in|conv_out)\.", r"\1.\2."),
        (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
        (r"^(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
        (r"^(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
        (r"^(encoder|decoder)\.mid\.attn_1\.", r"\1.mid_block.attentions.0."),
    ]
    for level in range(levels):
        ends = [
            (f"encoder.down.{level}", f"encoder.down_blocks.{level}", "downsample", "downsamplers.0"),
            (f"decoder.up.{level}", f"decoder.up_blocks.{levels - 1 - level}", "upsample", "upsamplers.0"),
        ]
        for ours, theirs, sampler, samplers in ends:
            here = "^" + re.escape(ours) + r"\."
            rules += [
                (here + r"block\.(\d+)\.", theirs + r".resnets.\1."),
                (here + r"attn\.(\d+)\.", theirs + r".attentions.\1."),
                (here + sampler + r"\.", f"{theirs}.{samplers}."),
            ]
    return rules


def diffusers_name(name: str, levels: int) -> str:
    """The name in diffusers' `AutoencoderKL` of a CompVis autoencoder's parameter.

    Raises:
        KeyError: the name is not one of a CompVis autoencoder's.
    """
    for pattern, replacement in _rules(levels):
        renamed, hits = re.subn(pattern, replacement, name)
        if hits:
            if ".attentions." in renamed:
                head, part, leaf = renamed.rsplit(".", 2)
                return f"{head}.{_ATTENTION[part]}.{leaf}"
            return renamed.replace("nin_shortcut", "conv_shortcut")
    raise KeyError(name)


def autoencoder_from_compvis(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """A CompVis state dict under diffusers' names; attention's 1x1 convolutions become linear layers."""
    out = {}
    for name, value in state.items():
        renamed = diffusers_name(name, levels)
        is_projection = ".attentions." in renamed and "group_norm" not in renamed and value.ndim == 4
        out[renamed] = value.flatten(1) if is_projection else value
    return out


def autoencoder_to_compvis(state: Mapping[str, Tensor], like: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Back to CompVis names and shapes, taking both from a CompVis state dict `like`."""
    return {
        name: state[diffusers_name(name, levels)].reshape(value.shape)
        for name, value in like.items()
        if diffusers_name(name, levels) in state
    }


def autoencoder_spec(state: Mapping[str, Tensor]) -> AutoencoderSpec:
    """Read the size of a CompVis autoencoder off its state dict."""
    base = state["encoder.conv_in.weight"].shape[0]
    levels = 1 + max(int(m[1]) for name in state if (m := re.match(r"encoder\.down\.(\d+)\.", name)))
    widths = [state[f"encoder.down.{k}.block.0.conv2.weight"].shape[0] for k in range(levels)]
    blocks = 1 + max(int(m[1]) for name in state if (m := re.match(r"encoder\.down\.0\.block\.(\d+)\.", name)))
    attended = {int(m[1]) for name in state if (m := re.match(r"encoder\.down\.(\d+)\.attn\.", name))}
    return AutoencoderSpec(
        latent_channels=state["post_quant_conv.weight"].shape[1],
        base_width=base,
        multipliers=tuple(width // base for width in widths),
        residual_blocks=blocks,
        attention_levels=tuple(sorted(attended)),
    )
