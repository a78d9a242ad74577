"""Released autoencoders and PatchGANs: CompVis and diffusers names, files, and the statistics of latents."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from recipes.core.atomic import write_text, written
from recipes.core.errors import UserError
from recipes.core.state_dicts import network_in, notes_of
from recipes.core.weights import load_exactly, load_state, some
from recipes.models.autoencoder import Autoencoder, AutoencoderSpec
from recipes.models.discriminator import DiscriminatorSpec, PatchDiscriminator

#: SD-VAE latents are multiplied by this in SiT, REPA and diffusers.
SD_SCALING = 0.18215
#: The tokenizers of the papers (SD-VAE; IN-VAE and VA-VAE), by REPA-E's names.
TOKENIZERS = {
    "f8d4": AutoencoderSpec(latent_channels=4, base_width=128, multipliers=(1, 2, 4, 4), residual_blocks=2),
    "f16d32": AutoencoderSpec(
        latent_channels=32, base_width=128, multipliers=(1, 1, 2, 2, 4), residual_blocks=2, attention_levels=(4,)
    ),
}

# ------------------------------------------------------------------------------------------------------------------
# Names of autoencoders

_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
#: What diffusers called them before 0.18; the published SD-VAE files still do.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@lru_cache
def _prefixes(levels: int) -> tuple[tuple[str, str], ...]:
    """(CompVis prefix, diffusers prefix); the decoder's levels are numbered from the other end."""
    pairs = [("quant_conv.", "quant_conv."), ("post_quant_conv.", "post_quant_conv.")]
    for side in ("encoder", "decoder"):
        pairs += [
            (f"{side}.conv_in.", f"{side}.conv_in."),
            (f"{side}.conv_out.", f"{side}.conv_out."),
            (f"{side}.norm_out.", f"{side}.conv_norm_out."),
            (f"{side}.mid.block_1.", f"{side}.mid_block.resnets.0."),
            (f"{side}.mid.block_2.", f"{side}.mid_block.resnets.1."),
            (f"{side}.mid.attn_1.", f"{side}.mid_block.attentions.0."),
        ]
    for level in range(levels):
        for ours, theirs, sampler in (
            (f"encoder.down.{level}", f"encoder.down_blocks.{level}", "downsample"),
            (f"decoder.up.{level}", f"decoder.up_blocks.{levels - 1 - level}", "upsample"),
        ):
            pairs += [
                (f"{ours}.block.", f"{theirs}.resnets."),
                (f"{ours}.attn.", f"{theirs}.attentions."),
                (f"{ours}.{sampler}.", f"{theirs}.{sampler}rs.0."),
            ]
    return tuple(pairs)


def _rename_attention(name: str, mapping: Mapping[str, str]) -> str:
    """The part in front of ``weight`` or ``bias`` through `mapping`; KeyError for another part."""
    head, _, leaf = name.rpartition(".")
    for part, renamed in mapping.items():
        if head.endswith(f".{part}"):
            return f"{head.removesuffix(part)}{renamed}.{leaf}"
    raise KeyError(name)


def diffusers_name(name: str, levels: int) -> str:
    """The name in diffusers' `AutoencoderKL` of a CompVis autoencoder's parameter.

    Raises:
        KeyError: the name is not one of a CompVis autoencoder's.
    """
    for prefix, replacement in _prefixes(levels):
        if name.startswith(prefix):
            renamed = replacement + name.removeprefix(prefix)
            if ".attentions." in renamed:
                return _rename_attention(renamed, _ATTENTION)
            return renamed.replace("nin_shortcut", "conv_shortcut")
    raise KeyError(name)


def compvis_name(name: str, levels: int) -> str:
    """The inverse of `diffusers_name`.

    Raises:
        KeyError: the name is not one of a diffusers autoencoder's.
    """
    for replacement, prefix in _prefixes(levels):
        if name.startswith(prefix):
            if ".attentions." in name:
                name = _rename_attention(name, {theirs: ours for ours, theirs in _ATTENTION.items()})
            return (replacement + name.removeprefix(prefix)).replace("conv_shortcut", "nin_shortcut")
    raise KeyError(name)


def autoencoder_from_compvis(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """A CompVis state dict under diffusers' names; attention's 1x1 convolutions become linear layers."""
    return {name: _as_linear(name, v) for name, v in ((diffusers_name(n, levels), v) for n, v in state.items())}


def _as_linear(name: str, value: Tensor) -> Tensor:
    return value.flatten(1) if ".attentions." in name and value.ndim == 4 else value


def autoencoder_to_compvis(state: Mapping[str, Tensor], levels: int | None = None) -> dict[str, Tensor]:
    """A state dict under diffusers' names back to CompVis names and shapes; resolution levels are counted by default.

    Raises:
        KeyError: a name is not one of a diffusers autoencoder's.
    """
    levels = count_of(state, r"encoder\.down_blocks\.(\d+)\.") if levels is None else levels
    out = {}
    for name, value in state.items():
        is_projection = ".attentions." in name and value.ndim == 2
        out[compvis_name(name, levels)] = value[..., None, None] if is_projection else value
    return out


def count_of(names: Mapping[str, Any], pattern: str) -> int:
    """One more than the largest number that the pattern finds; 0 if none."""
    return 1 + max((int(found[1]) for name in names if (found := re.match(pattern, name))), default=-1)


def autoencoder_spec(state: Mapping[str, Tensor], *, norm_groups: int = 32) -> AutoencoderSpec:
    """Read the size of a CompVis autoencoder off its state dict; the number of norm groups does not show in it.

    Raises:
        KeyError: a tensor of every such autoencoder is not there.
    """
    base, channels = state["encoder.conv_in.weight"].shape[:2]
    levels = count_of(state, r"encoder\.down\.(\d+)\.")
    widths = [state[f"encoder.down.{k}.block.0.conv2.weight"].shape[0] for k in range(levels)]
    attended = {int(m[1]) for name in state if (m := re.match(r"encoder\.down\.(\d+)\.attn\.", name))}
    return AutoencoderSpec(
        latent_channels=state["post_quant_conv.weight"].shape[1],
        base_width=base,
        multipliers=tuple(width // base for width in widths),
        residual_blocks=count_of(state, r"encoder\.down\.0\.block\.(\d+)\."),
        attention_levels=tuple(sorted(attended)),
        norm_groups=norm_groups,
        unshuffle=math.isqrt(channels // 3),
    )


# ------------------------------------------------------------------------------------------------------------------
# Files of autoencoders and discriminators


@dataclass(frozen=True)
class LatentStatistics:
    """Statistics of a tokenizer's latents over its training set; each (C,), float32."""

    mean: Tensor
    std: Tensor

    @classmethod
    def sd(cls, channels: int) -> LatentStatistics:
        """Statistics equivalent to the scaling factor 0.18215."""
        return cls(torch.zeros(channels), torch.full((channels,), 1 / SD_SCALING))


def load_autoencoder(path: Path, *, norm_groups: int = 32) -> tuple[Autoencoder, LatentStatistics | None]:
    """An autoencoder, and the statistics of its latents where the files say them.

    Args:
        path: a diffusers folder, see `diffusers_folder`; or a released ``NAME.pt`` (CompVis names); or a whole latent
            diffusion checkpoint; or a state dict of ours. ``NAME-latents-stats.pt`` beside it counts.
        norm_groups: of a state dict, in which they do not show. 32 in every published tokenizer.

    Raises:
        UserError: a file is missing, cannot be read safely, or is no autoencoder that `Autoencoder` can express.
    """
    if path.is_dir():
        return _load_folder(diffusers_folder(path) or path)
    name = f"{path.stem}-latents-stats.pt"
    vae = autoencoder_of(load_state(path), where=str(path), norm_groups=norm_groups)
    return vae, _read_statistics(path.with_name(name), vae.spec.latent_channels)


#: What lies beside an autoencoder in the state dict of its training: the loss's networks, and its average's counters.
_OF_TRAINING = ("loss.", "discriminator.", "model_ema.")


def autoencoder_of(loaded: Any, *, where: str, norm_groups: int = 32) -> Autoencoder:
    """An autoencoder from a state dict under CompVis names, diffusers' or ours, wherever it lies in a file.

    Raises:
        UserError: there is none.
    """
    anchor, refusal = "encoder.conv_in.weight", f"{where} is not a KL autoencoder"
    found = network_in(loaded, anchor, where=where, refusal=f"{refusal}: '{anchor}' is not there")
    tensors = {name: value for name, value in found.items() if not name.startswith(_OF_TRAINING)}
    try:
        if not any(re.match(r"encoder\.down\.\d", name) for name in tensors):
            tensors = autoencoder_to_compvis(_modern(tensors))
        spec = autoencoder_spec(tensors, norm_groups=norm_groups)
        renamed = autoencoder_from_compvis(tensors, len(spec.multipliers))
    except KeyError as error:
        raise UserError(f"{refusal}: {error} is missing or unknown; give another file.") from None
    except ValidationError:
        raise UserError(
            f"{where}: its widths do not divide into {norm_groups} norm groups; say how many there are."
        ) from None
    except (IndexError, ValueError, ZeroDivisionError):
        raise UserError(f"{refusal}: a convolution's weight has not four dimensions; give another file.") from None
    vae = Autoencoder(spec)
    _fill(vae, renamed, where=where, what="the autoencoder")
    return vae


def _fill(vae: Autoencoder, state: Mapping[str, Tensor], *, where: str, what: str) -> None:
    load_exactly(vae.kl, state, where=f"{where}: {what}")
    vae.notes = notes_of(state, where)


def _modern(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Today's diffusers names of attention."""
    out = {}
    for name, value in state.items():
        renamed = name
        if ".attentions." in name and name.split(".")[-2] in _OLD_ATTENTION:
            renamed = _rename_attention(name, _OLD_ATTENTION)
        out[renamed] = _as_linear(renamed, value)
    return out


def _read_statistics(path: Path, channels: int) -> LatentStatistics | None:
    """``latents_scale`` = 1 / std and ``latents_bias`` = mean, each (1, C, 1, 1); none where there is no file."""
    if not path.exists():
        return None
    state = load_state(path)
    names = ("latents_scale", "latents_bias")
    if missing := [n for n in names if not isinstance(state, Mapping) or not isinstance(state.get(n), Tensor)]:
        raise UserError(f"{path} lacks {some(missing)}; take the file that belongs to the autoencoder.")
    scale, bias = (state[name].double().flatten() for name in names)
    return _statistics(bias, 1 / scale, channels, where=str(path))


def _statistics(mean: Tensor, std: Tensor, channels: int, *, where: str) -> LatentStatistics:
    if len(mean) != channels or len(std) != channels or not (std.isfinite() & (std > 0) & mean.isfinite()).all():
        raise UserError(
            f"{where}: the latents' mean and scale are not {channels} positive numbers each; repair the file."
        )
    return LatentStatistics(mean.float(), std.float())


#: What `Autoencoder` always has, and what of a config changes no weight.
_FIXED = {"act_fn": "silu", "use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True}
_FREE = {"sample_size", "force_upcast", "scaling_factor", "shift_factor", "latents_mean", "latents_std"}
_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
}  # diffusers'
#: What diffusers calls the file of an autoencoder's weights.
_WEIGHTS = "diffusion_pytorch_model"


def diffusers_folder(folder: Path) -> Path | None:
    """Where in a folder the autoencoder's ``config.json`` lies: in itself, in a pipeline's ``vae``, or in the one
    snapshot of a hub's cache.
    """
    places = [folder, folder / "vae", *folder.glob("snapshots/*"), *folder.glob("snapshots/*/vae")]
    found = [place for place in places if (place / "config.json").is_file()]
    return found[0] if found and (found[0] in places[:2] or len(found) == 1) else None


def _weights_in(folder: Path) -> Path:
    """Pick the weights file: full precision, else sharded index, else a variant (fp16 last)."""
    kinds = ("safetensors", "bin")
    whole = [folder / f"{_WEIGHTS}.{kind}{index}" for kind in kinds for index in ("", ".index.json")]
    variants = [p for kind in kinds for p in sorted(folder.glob(f"{_WEIGHTS}.*.{kind}"))]
    found = [p for p in whole if p.exists()] + sorted(variants, key=lambda p: ".fp16." not in p.name)
    if not found:
        raise UserError(f"{folder} holds neither {whole[0].name} nor {_WEIGHTS}.bin; download one of them.")
    return found[0]


def _load_folder(folder: Path) -> tuple[Autoencoder, LatentStatistics | None]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); a diffusers autoencoder's folder holds one.") from None
    try:
        spec = diffusers_spec(config, where=str(path))
        known = _config_statistics(config, spec.latent_channels, path)
    except (TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError, RuntimeError) as error:
        raise UserError(
            f"{path} is not the configuration of a diffusers autoencoder ({error}); download it again."
        ) from None
    weights = _weights_in(folder)
    vae, anchor = Autoencoder(spec), "encoder.conv_in.weight"
    found = network_in(load_state(weights), anchor, where=str(weights), refusal=f"{weights} lacks '{anchor}'")
    _fill(vae, _modern(found), where=str(weights), what="the autoencoder of its config.json")
    if not vae.notes and re.fullmatch(rf"{_WEIGHTS}\.(?!safetensors|bin)\w+\.\w+", weights.name):
        vae.notes = (f"{weights} is a variant, of lower precision by its name; the whole file is not there.",)
    name = folder.name.removesuffix("-hf")
    beside = (place / f"{name}-latents-stats.pt" for place in (folder, folder.parent))
    statistics = (_read_statistics(file, spec.latent_channels) for file in beside)
    return vae, next((s for s in statistics if s), None) or known


def diffusers_spec(config: Mapping[str, Any], *, where: str) -> AutoencoderSpec:
    """The size that the ``config.json`` of diffusers' `AutoencoderKL` says.

    Raises:
        UserError: one sentence naming the first key that `Autoencoder` cannot express.
    """
    _check_keys(config, where)
    full = _DEFAULTS | dict(config)
    widths, down = full["block_out_channels"], full["down_block_types"]
    unshuffle = math.isqrt(full["in_channels"] // 3)
    if full["in_channels"] != 3 * unshuffle**2 or full["out_channels"] != full["in_channels"]:
        raise _unbuildable(where, "in_channels, out_channels", (full["in_channels"], full["out_channels"]))
    if any(width % widths[0] for width in widths):
        raise _unbuildable(where, "block_out_channels", widths)
    _check_blocks(down, full["up_block_types"], levels=len(widths), where=where)
    return AutoencoderSpec.read_from(
        where,
        latent_channels=full["latent_channels"],
        base_width=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        residual_blocks=full["layers_per_block"],
        attention_levels=tuple(k for k, kind in enumerate(down) if kind.startswith("Attn")),
        norm_groups=full["norm_num_groups"],
        unshuffle=unshuffle,
    )


def _check_keys(config: Mapping[str, Any], where: str) -> None:
    """Refuse another class, a key that nobody knows, and a fixed key with another value."""
    if config.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise _unbuildable(where, "_class_name", config["_class_name"])
    for key, value in config.items():
        if key in _FIXED and value != _FIXED[key]:
            raise _unbuildable(where, key, value)
        if not (key.startswith("_") or key in _FIXED or key in _FREE or key in _DEFAULTS):
            raise _unbuildable(where, key, value)


def _check_blocks(down: Sequence[str], up: Sequence[str], *, levels: int, where: str) -> None:
    """Refuse unknown encoder blocks, and a decoder that is not the encoder's mirror image."""
    if len(down) != levels or not set(down) <= {"DownEncoderBlock2D", "AttnDownEncoderBlock2D"}:
        raise _unbuildable(where, "down_block_types", down)
    mirrored = [kind.replace("DownEncoder", "UpDecoder") for kind in down][::-1]
    if list(up) != mirrored:
        raise _unbuildable(where, "up_block_types", up)


def _unbuildable(where: str, key: str, value: Any) -> UserError:
    return UserError(f"{where}: {key} = {value!r} is not an autoencoder that repa-bench can build; use another.")


def _config_statistics(config: Mapping[str, Any], channels: int, path: Path) -> LatentStatistics | None:
    if config.get("latents_mean") and config.get("latents_std"):
        mean, std = (torch.tensor(config[key]).double().flatten() for key in ("latents_mean", "latents_std"))
        return _statistics(mean, std, channels, where=str(path))
    scaling = config.get("scaling_factor")
    if not scaling:
        return None
    mean = torch.full((channels,), float(config.get("shift_factor") or 0.0))
    return _statistics(mean, torch.full((channels,), 1 / float(scaling)), channels, where=str(path))


def save_autoencoder(folder: Path, name: str, vae: Autoencoder, mean: Tensor, std: Tensor) -> None:
    """Write an autoencoder in both published forms.

    ``NAME-hf/`` is for `diffusers.AutoencoderKL.from_pretrained`; its config keeps diffusers' own ``scaling_factor``
    (0.18215, SD-VAE's) and says the latents' statistics in ``latents_mean`` and ``latents_std``. ``NAME.pt`` has
    CompVis names, ``NAME-latents-stats.pt`` holds ``latents_scale`` = 1 / std and ``latents_bias`` = mean,
    (1, C, 1, 1). Weights are float32.

    Args:
        folder: made if it is not there.
        name: of the files.
        vae: the autoencoder.
        mean: of its latents, (C,).
        std: of its latents, (C,).
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().float().cpu().contiguous() for key, value in vae.kl.state_dict().items()}
    clean = Autoencoder(vae.spec)  # on the CPU, whatever device and dtype the given one has
    clean.kl.load_state_dict(state)
    hub = folder / f"{name}-hf"
    clean.kl.save_pretrained(hub)
    config = json.loads((hub / "config.json").read_text())
    config |= {"latents_mean": mean.flatten().tolist(), "latents_std": std.flatten().tolist()}
    write_text(hub / "config.json", json.dumps(config, indent=2) + "\n")
    scale, bias = (v.detach().float().cpu().reshape(1, -1, 1, 1).contiguous() for v in (1 / std.double(), mean))
    _save_pickle(folder / f"{name}.pt", autoencoder_to_compvis(state))
    _save_pickle(folder / f"{name}-latents-stats.pt", {"latents_scale": scale, "latents_bias": bias})


def _save_pickle(path: Path, state: Mapping[str, Tensor]) -> None:
    # Through a stream: given a path, torch writes its name into the file, and equal tensors get other hashes.
    with written(path) as file:
        torch.save(dict(state), file)


def load_discriminator(path: Path) -> PatchDiscriminator:
    """A PatchGAN from ``NAME-discriminator-ckpt.pt``.

    Raises:
        UserError: the file is missing, cannot be read safely, or holds another network.
    """
    return discriminator_of(load_state(path), where=str(path))


def discriminator_of(loaded: Any, *, where: str) -> PatchDiscriminator:
    """A PatchGAN from its state dict, wherever it lies in a file, as in that of a whole loss.

    Raises:
        UserError: it is another network.
    """
    anchor = "main.0.weight"
    tensors = network_in(loaded, anchor, where=where, refusal=f"{where} is not a PatchGAN: '{anchor}' is not there")
    if tensors[anchor].ndim != 4:
        raise UserError(f"{where} is not a PatchGAN: '{anchor}' is no convolution's; give another file.")
    layers = sum(name.endswith("running_mean") for name in tensors)
    network = PatchDiscriminator(DiscriminatorSpec.read_from(where, base_width=tensors[anchor].shape[0], layers=layers))
    load_exactly(network, tensors, where=f"{where}: the discriminator")
    return network
