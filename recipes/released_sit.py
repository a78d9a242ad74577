"""Released training checkpoints of SiT, REPA and REPA-E: their sizes, and their weights in our conventions."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from recipes.core.errors import UserError
from recipes.core.pickles import check_state, load_state, some
from recipes.models.autoencoder import AutoencoderSpec
from recipes.models.sit import SIZES, SiT, SiTSpec, TimestepEmbedder
from recipes.released import LatentStatistics, autoencoder_of, count_of, discriminator_of, state_of


def sit_spec(
    state: Mapping[str, Tensor], *, num_classes: int | None = None, encoder_depth: int = 8, heads: int | None = None
) -> SiTSpec:
    """Read the size of a released SiT, REPA, REPA-E or DiT off its state dict.

    Args:
        state: released names. A final layer that also predicts a variance (twice the channels) counts as one without.
        num_classes: without the null class; by default one less than the label table has rows.
        encoder_depth: the block after which tokens are aligned. It does not show in the state.
        heads: attention heads. They do not show either; by default those of the papers' size of that width and depth.

    Raises:
        UserError: a tensor is missing or has a shape that no SiT has, or the heads are not known.
    """
    _require(state, "x_embedder.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight", "final_layer.linear.weight")
    _require(state, "y_embedder.embedding_table.weight", "t_embedder.mlp.0.weight")
    hidden, channels, patch = state["x_embedder.proj.weight"].shape[:3]
    depth = count_of(state, r"blocks\.(\d+)\.")
    return SiTSpec.read_from(
        "the checkpoint's SiT",
        latent_size=_patches_per_side(state["pos_embed"], hidden) * patch,
        channels=channels,
        num_classes=_classes(state["y_embedder.embedding_table.weight"], num_classes),
        patch_size=patch,
        hidden=hidden,
        depth=depth,
        heads=_heads(heads, hidden, depth),
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / hidden,
        encoder_depth=min(encoder_depth, depth),
        **_projector_widths(state),
    )


def _patches_per_side(position: Tensor, hidden: int) -> int:
    side = math.isqrt(position.shape[1]) if position.ndim == 3 else 0
    if position.shape != (1, side**2, hidden):
        raise UserError(
            f"'pos_embed' is {tuple(position.shape)}, not (1, side * side, {hidden}); give a checkpoint of a SiT."
        )
    return side


def _classes(table: Tensor, given: int | None) -> int:
    """Without the null class, which is the last row of the label table."""
    rows = table.shape[0]
    if given is not None and rows != given + 1:
        raise UserError(f"'y_embedder' has {rows} rows, not {given} classes and a null class; give their number.")
    return rows - 1


def _heads(given: int | None, hidden: int, depth: int) -> int:
    known = {(size[0], size[1]): size[2] for size in SIZES.values()}
    heads = given or known.get((hidden, depth))
    if heads is None or hidden % heads:
        raise UserError(f"a SiT of width {hidden} and depth {depth} is none of the papers'; say how many heads it has.")
    return heads


def _projector_widths(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of `SiTSpec` that the projectors show; without any, the hidden width keeps its default."""
    projectors = range(count_of(state, r"projectors\.(\d+)\."))
    _require(
        state, *(f"projectors.{k}.4.weight" for k in projectors), *(f"projectors.{k}.0.weight" for k in projectors)
    )
    widths = tuple(state[f"projectors.{k}.4.weight"].shape[0] for k in projectors)
    hidden = {"projector_width": state["projectors.0.0.weight"].shape[0]} if projectors else {}
    return {"encoder_widths": widths, **hidden}


def _require(state: Mapping[str, Tensor], *names: str) -> None:
    if missing := [name for name in names if name not in state]:
        raise UserError(f"{some(missing)} is not in the state dict; give a checkpoint of a SiT.")


Kind = Literal["repa_e", "repa", "sit"]


@dataclass(frozen=True)
class ReleasedCheckpoint:
    """A released training checkpoint in our conventions; optimizer states are left behind."""

    kind: Kind
    """``sit``: trained without alignment, by SiT's code or by REPA's."""
    path: Path
    """The file itself."""
    step: int
    sit: SiTSpec
    model: dict[str, Tensor] | None
    """State dict for `SiT`; none in files that hold only the average."""
    ema: dict[str, Tensor] | None
    vae: dict[str, Tensor] | None
    """State dict for `Autoencoder`; none where the tokenizer was frozen."""
    tokenizer: AutoencoderSpec | None
    """Read off `vae`."""
    discriminator: dict[str, Tensor] | None
    """State dict for `PatchDiscriminator`."""
    args: dict[str, Any]
    """The training script's arguments, as far as the files say them."""


def read_checkpoint(
    path: Path, *, step: int | None = None, encoder_depth: int | None = None, heads: int | None = None
) -> ReleasedCheckpoint:
    """Read a released checkpoint of REPA-E, REPA or SiT.

    REPA's latents and SiT's are multiplied by 0.18215; the batch norm that owns the scale here is filled in. SiT's own
    code has t = 1 at the data and predicts its direction: time and sign are turned round in the weights, exactly.

    Args:
        path: a folder with ``args.json`` and ``checkpoints/STEP.pt``, or the ``.pt`` (or a state dict) itself.
        step: which of a folder's checkpoints (the last by default); or what to call a file that does not say its step.
        encoder_depth: the block after which tokens are aligned, where the arguments do not say it.
        heads: attention heads, where the size is none of the papers'.

    Raises:
        UserError: one sentence naming the file or key, and the mend.
    """
    file, args = _locate(path, step)
    loaded = load_state(file)
    if not isinstance(loaded, Mapping):
        raise UserError(f"{file} holds no checkpoint; give a training checkpoint or a state dict.")
    args |= _arguments(loaded.get("args"))
    try:
        kind, spec, sits = _read_sits(loaded, args, encoder_depth, heads)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    vae = autoencoder_of(loaded["vae"], where=f"{file}: vae") if "vae" in loaded else None
    gan = loaded.get("discriminator")
    return ReleasedCheckpoint(
        kind=kind,
        path=file,
        step=_step(loaded, file, step),
        sit=spec,
        model=sits.get("model"),
        ema=sits.get("ema"),
        vae=dict(vae.state_dict()) if vae else None,
        tokenizer=vae.spec if vae else None,
        discriminator=dict(discriminator_of(gan, where=f"{file}: discriminator").state_dict()) if gan else None,
        args=args,
    )


def _read_sits(
    loaded: Mapping[str, Any], args: Mapping[str, Any], encoder_depth: int | None, heads: int | None
) -> tuple[Kind, SiTSpec, dict[str, dict[str, Tensor]]]:
    """The kind of a checkpoint, the size of its SiT, and our state dicts of it by ``model`` and ``ema``.

    Args:
        loaded: what the file holds; the average's state dict itself where it has neither key.
        args: the training script's arguments.
        encoder_depth: see `read_checkpoint`.
        heads: see `read_checkpoint`.

    Raises:
        UserError: a state dict is not that of a SiT; without the name of the file.
    """
    states = {name: loaded[name] for name in ("model", "ema") if name in loaded} or {"ema": loaded}
    networks = {name: _released_sit(state, name) for name, state in states.items()}
    reference = _without_empty_projectors(networks.get("ema") or networks["model"])
    spec = sit_spec(
        reference,
        num_classes=args.get("num_classes"),
        encoder_depth=encoder_depth or args.get("encoder_depth") or _legacy_depth(states) or 8,
        heads=heads,
    )
    ours = {}
    for name, state in networks.items():
        ours[name] = _our_sit(state, spec, args, joint="vae" in loaded)
        with torch.device("meta"):
            check_state(SiT(spec), ours[name], where=name)
    return _kind(reference, loaded, args), spec, ours


def _locate(path: Path, step: int | None) -> tuple[Path, dict[str, Any]]:
    """The checkpoint file, and the arguments that lie beside it."""
    if path.is_dir():
        files = {int(p.stem): p for p in (path / "checkpoints").glob("*.pt") if p.stem.isdigit()}
        if not files or (step is not None and step not in files):
            held = ", ".join(str(s) for s in sorted(files)) or "none"
            raise UserError(f"{path / 'checkpoints'} holds no {'STEP' if step is None else step}.pt; it has {held}.")
        path = files[max(files) if step is None else step]
    beside = path.parent.parent / "args.json"
    if path.parent.name != "checkpoints" or not beside.exists():
        return path, {}
    try:
        return path, _arguments(json.loads(beside.read_text()))
    except ValueError as error:
        raise UserError(f"{beside} cannot be read ({error}); download it again.") from None


def _arguments(args: Any) -> dict[str, Any]:
    """A namespace or mapping as JSON-able values."""
    items = args if isinstance(args, Mapping) else vars(args) if hasattr(args, "__dict__") else {}
    plain: dict[str, Any] = json.loads(json.dumps({str(k): v for k, v in items.items()}, default=str))
    return plain


def _step(loaded: Mapping[str, Any], file: Path, step: int | None) -> int:
    if isinstance(loaded.get("steps"), int):
        return int(loaded["steps"])
    if file.stem.isdigit():
        return int(file.stem)
    return step or 0


def _kind(state: Mapping[str, Tensor], loaded: Mapping[str, Any], args: Mapping[str, Any]) -> Kind:
    if "vae" in loaded:
        return "repa_e"
    aligned = any(name.startswith("projectors.") for name in state) and args.get("proj_coeff", 0.5) != 0
    return "repa" if aligned else "sit"


def _legacy_depth(states: Mapping[str, Any]) -> int | None:
    """REPA's first checkpoints number the blocks after the alignment anew, which says where it is."""
    names = [name for state in states.values() for name in state]
    blocks = {m[1] for name in names if (m := re.search(r"(?:^|\.)blocks\.(\d+)\.", name))}
    return len(blocks) if any("decoder_blocks." in name for name in names) else None


def _released_sit(state: Any, where: str) -> dict[str, Tensor]:
    """Today's released names of a SiT's tensors, float32; projectors and later blocks once had others."""
    tensors = state_of(state, where, wrappers=("state_dict",))
    depth = count_of(tensors, r"blocks\.(\d+)\.")
    out = {}
    for name, value in tensors.items():
        renamed = re.sub(r"^decoder_blocks\.(\d+)\.", lambda m: f"blocks.{depth + int(m[1])}.", name)
        renamed = re.sub(r"^(projector|proj|mlp)\.(?=\d+\.)", "projectors.0.", renamed)
        out[renamed] = value.float() if value.is_floating_point() else value
    return out


def _without_empty_projectors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """REPA's code without an encoder has one projector, to no features."""
    empty = {m[1] for n, v in state.items() if (m := re.fullmatch(r"projectors\.(\d+)\.4\.weight", n)) and not len(v)}
    return {name: v for name, v in state.items() if not any(name.startswith(f"projectors.{k}.") for k in empty)}


def _our_sit(
    released: Mapping[str, Tensor], spec: SiTSpec, args: Mapping[str, Any], *, joint: bool
) -> dict[str, Tensor]:
    """Complete a released SiT to a state dict of ours."""
    state = _without_variance(_without_empty_projectors(released), spec)
    if any(name.startswith("bn.") for name in state):
        return state
    if joint:
        raise UserError("'bn.running_mean' is not there, though the file holds a tuned VAE; give a whole checkpoint.")
    if spec.channels != 4:
        raise UserError(f"'bn.running_mean' is not there, and nothing says the scale of {spec.channels} channels.")
    known = LatentStatistics.sd(spec.channels)
    state |= {"bn.running_mean": known.mean, "bn.running_var": known.std.square()}
    state["bn.num_batches_tracked"] = torch.tensor(0)
    # REPA's networks always have a projector, SiT's own never.
    from_repa = any(name.startswith("projectors.") for name in released)
    return state if from_repa else _turned(state, args)


def _without_variance(state: Mapping[str, Tensor], spec: SiTSpec) -> dict[str, Tensor]:
    """Of a final layer with twice the channels, the first half of each pixel of a patch: the velocity."""
    out, pixels = dict(state), spec.patch_size**2
    if len(out["final_layer.linear.weight"]) == 2 * pixels * spec.channels:
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            _require(out, name)
            out[name] = out[name].unflatten(0, (pixels, 2, spec.channels))[:, 0].flatten(0, 1).clone()
    return out


def _turned(state: Mapping[str, Tensor], args: Mapping[str, Any]) -> dict[str, Tensor]:
    """From SiT's convention (x_t = t x + (1 - t) noise, velocity x - noise) to ours: v(x, t) = -v_SiT(x, 1 - t).

    The time features of 1 - t are a rotation of those of t: cos(f - a) = cos f cos a + sin f sin a, and
    sin(f - a) = sin f cos a - cos f sin a with a = f t. So the first time layer takes the turn, in float64.
    """
    if args.get("prediction", "velocity") not in ("velocity", "v"):
        raise UserError(f"it predicts {args['prediction']}, not the velocity; give a velocity checkpoint.")
    out = dict(state)
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        _require(out, name)
        out[name] = -out[name]
    weight = out["t_embedder.mlp.0.weight"].double()
    frequencies = TimestepEmbedder(1).frequencies
    if weight.shape[1] != 2 * len(frequencies):
        raise UserError(f"'t_embedder.mlp.0.weight' is {tuple(weight.shape)}; it should have 256 columns.")
    cosines, sines = weight.chunk(2, dim=1)
    cos, sin = frequencies.cos(), frequencies.sin()
    turned = torch.cat((cosines * cos + sines * sin, cosines * sin - sines * cos), dim=1)
    out["t_embedder.mlp.0.weight"] = turned.float()
    return out
