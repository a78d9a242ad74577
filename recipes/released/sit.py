"""Released training checkpoints of SiT, REPA and REPA-E: their sizes, and their weights in our conventions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import torch
from torch import Tensor

from recipes.core.errors import UserError
from recipes.core.state_dicts import Found, find, held, low_precision, only
from recipes.core.weights import check_state, files_of, load_state, some
from recipes.models.autoencoder import AutoencoderSpec
from recipes.models.sit import SiT, SiTSpec, TimestepEmbedder
from recipes.released.arguments import Convention, arguments, convention, judge, kept_in, path_of, whole
from recipes.released.autoencoder import LatentStatistics, autoencoder_of, count_of, discriminator_of
from recipes.released.followups import IREPA_LATENTS, our_name, without_class_position
from recipes.released.sit_size import FINAL, IMAGENET_CLASSES, require, sit_spec

Kind = Literal["repa_e", "repa", "sit", "irepa", "reg", "sra"]
Weights = Literal["ema", "raw"]
#: A tensor that every SiT has.
ANCHOR = "x_embedder.proj.weight"
#: Names under which older files store the projector.
_PROJECTOR = re.compile(r"^(projectors?|proj|mlp)\.(?=\d+\.)")
WHOSE: dict[Convention, str] = {"repa": "with noise at t = 1 as REPA has it", "sit": "with data at t = 1 as SiT has it"}


@dataclass(frozen=True)
class ReleasedCheckpoint:
    """A released training checkpoint in our conventions; optimizer states are left behind."""

    kind: Kind
    """``sit``: trained without alignment, by SiT's code or by REPA's. Follow-ups are known by their heads."""
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
    places: dict[str, str]
    """Where in the file ``raw`` weights and their average, ``ema``, were."""
    notes: tuple[str, ...]
    """What whoever reads its numbers should know."""


class Given(TypedDict, total=False):
    """User-supplied facts that the file does not contain."""

    step: int | None
    """Which of a folder's checkpoints (the last by default); or what to call a file that does not say its step."""
    encoder_depth: int | None
    """The block after which tokens are aligned."""
    heads: int | None
    """Attention heads, where the size is none of the papers'."""
    classes: int | None
    """Number of classes, without the null class."""
    weights: Weights | None
    """What the weights are, where the file does not name an average."""


def read_checkpoint(path: Path, **given: Unpack[Given]) -> ReleasedCheckpoint:
    """Read a released checkpoint of REPA-E, REPA or SiT.

    REPA's latents and SiT's are multiplied by 0.18215; the batch norm that owns the scale here is filled in. SiT's own
    code has t = 1 at the data and predicts its direction: time and sign are turned round in the weights, exactly.

    Args:
        path: a folder with ``args.json`` and ``checkpoints/STEP.pt``, or with one file of weights; or the ``.pt``, the
            safetensors or the state dict itself, in shards too.
        given: see `Given`.

    Raises:
        UserError: one sentence naming the file or key, and the remedy.
    """
    file, beside = _locate(path, given.get("step"))
    loaded = load_state(file)
    if not isinstance(loaded, Mapping):
        raise UserError(f"{file} holds no checkpoint; give a training checkpoint or a state dict.")
    args = arguments(beside, *kept_in(loaded))
    try:
        return _read(file, loaded, args, given)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _read(file: Path, loaded: Mapping[str, Any], args: dict[str, Any], given: Given) -> ReleasedCheckpoint:
    says = judge(args, file.name)
    found, told = _weights_of(loaded, given.get("weights"))
    whose = _convention(next(iter(found.values())), args)
    kind, spec, sits = _read_sits(found, args, given, whose, joint=bool(loaded.get("vae")))
    vae = autoencoder_of(loaded["vae"], where="vae") if loaded.get("vae") else None
    gan = loaded.get("discriminator")
    notes = [told, low_precision(next(iter(found.values())).state), *_notes(spec, args, given)]
    notes += [note.removesuffix(".") for note in (vae.notes if vae else ())]
    if not says:
        taken = f"a velocity on the {path_of(args)} path, {WHOSE[whose]}"
        notes.insert(0, f"it does not say what it predicts; it is taken for {taken}")
    return ReleasedCheckpoint(
        kind=kind,
        path=file,
        step=_step(loaded, file, given.get("step")),
        sit=spec,
        model=sits.get("raw"),
        ema=sits.get("ema"),
        vae=dict(vae.state_dict()) if vae else None,
        tokenizer=vae.spec if vae else None,
        discriminator=dict(discriminator_of(gan, where="discriminator").state_dict()) if gan else None,
        args=args,
        places={role: network.place or "the top" for role, network in found.items()},
        notes=tuple(f"{file.name}: {note}." for note in notes if note),
    )


def _convention(found: Found, args: Mapping[str, Any]) -> Convention:
    """REPA-E's checkpoints have a batch norm, and REPA's time."""
    if any(name.startswith(("bn.", "ap_head.")) for name in found.state):  # SRA's code has REPA's time
        return "repa"
    return convention(args, has_projectors=any(_PROJECTOR.match(name) for name in found.state))


def _notes(spec: SiTSpec, args: Mapping[str, Any], given: Given) -> Iterator[str]:
    """Notes about assumptions made."""
    if given.get("classes") is None and args.get("num_classes") is None and spec.num_classes != IMAGENET_CLASSES:
        yield f"it does not say how many classes it has; by its label table {spec.num_classes} (else: --classes)"
    if not spec.null_class:
        yield "its label table has no null class, so it cannot be guided"
    if spec.projector == "convolution":
        yield "iREPA's convolution: its latents are taken to be standardised by the statistics of iREPA's code"
    if args.get("legacy"):
        yield "REPA's --legacy dropped labels twice, in the loop and in the network: their rates are joined"


def _weights_of(loaded: Mapping[str, Any], given: Weights | None) -> tuple[dict[Weights, Found], str | None]:
    """The raw weights and their average in a file, and a sentence where it holds or says less.

    Raises:
        UserError: there are none, or several of one role, or an average that cannot be read.
    """
    found = find(loaded, ANCHOR)
    average = only([f for f in found if f.is_average], where="it", what="averages")
    raw = only([f for f in found if not f.is_average], where="it", what="state dicts of a SiT")
    if average is None and (unread := _unread_average(loaded)):
        raise UserError(
            f"'{unread}' is an average by its name, but holds no tensor '{ANCHOR}' (torch_ema's and diffusers' "
            "shadow_params are a list without names); copy the average into the model, and save its state_dict() as "
            "'ema'."
        )
    for network in (average, raw):
        if network is not None and not network.state[ANCHOR].any():
            raise UserError(
                f"'{network.place or ANCHOR}' is of zeros, as an average that was never taken; give another checkpoint."
            )
    if average is not None:
        if given is not None:
            raise UserError(f"--weights decides nothing: it names its average '{average.place}'. Leave it out.")
        return ({"ema": average, "raw": raw}, _copied(average, raw)) if raw is not None else ({"ema": average}, None)
    if raw is None:
        sharded = any("flat_param" in name for name in loaded) and " (FSDP's flat parameters: save a full state dict)"
        raise UserError(
            f"no state dict in it holds '{ANCHOR}', as every SiT's does; it holds {held(loaded)}{sharded or ''}. "
            "Give a checkpoint of a SiT."
        )
    if given is not None:
        return {given: raw}, f"it does not say which weights it holds; they are taken for {given}, as --weights says"
    if raw.is_average is None:
        return {"ema": raw}, (
            "it holds one state dict and does not say which weights they are; they are taken for the average (EMA), as "
            "published ones are. If they are not, import them again with --weights raw"
        )
    return {"raw": raw}, (
        f"it holds raw weights alone ('{raw.place}') and no average, so protocols of EMA weights are refused: name one "
        "of raw weights, as --protocol repa-e-v3+raw; if they are the average, import them again with --weights ema"
    )


def _copied(average: Found, raw: Found) -> str | None:
    """Note if the EMA equals the raw weights (EMA never updated)."""
    if all(name in raw.state and torch.equal(value, raw.state[name]) for name, value in average.state.items()):
        return (
            f"its average '{average.place}' equals its raw weights '{raw.place}', tensor for tensor: one is a copy of "
            "the other, unless this is step 0"
        )
    return None


def _unread_average(loaded: Any, keys: tuple[str, ...] = ()) -> str | None:
    """Path of an entry that its name calls an average, but that holds no SiT; optimizer entries are ignored."""
    for key, value in loaded.items():
        place = Found((*keys, *str(key).split(".")), "", {})
        if not keys and str(key).lower().startswith("opt"):
            continue
        if place.is_average and _holds_tensors(value):
            return place.place
        if isinstance(value, Mapping) and not keys and (inner := _unread_average(value, place.keys)):
            return inner
    return None


def _holds_tensors(value: Any) -> bool:
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return value.numel() > 1 if isinstance(value, Tensor) else any(_holds_tensors(v) for v in inside)


def _read_sits(
    found: Mapping[Weights, Found], args: Mapping[str, Any], given: Given, whose: Convention, *, joint: bool
) -> tuple[Kind, SiTSpec, dict[Weights, dict[str, Tensor]]]:
    """The kind of a checkpoint, the size of its SiT, and our state dicts of it.

    Args:
        found: of `_weights_of`.
        args: the training script's arguments.
        given: see `Given`.
        whose: time and sign.
        joint: whether the file holds a tokenizer that was trained with it.

    Raises:
        UserError: a state dict is not that of a SiT; without the name of the file.
    """
    networks = {role: _released_sit(network.state) for role, network in found.items()}
    if gone := networks.get("raw", {}).keys() - next(iter(networks.values())).keys():
        whole_one, other = found["raw"].place or "the top", next(iter(found.values())).place
        raise UserError(f"'{other}' lacks {some(gone)}, which '{whole_one}' has; give a whole checkpoint.")
    reference = _without_empty_projectors(networks.get("ema") or networks["raw"])
    spec = sit_spec(
        reference,
        num_classes=given.get("classes") or whole(args, "num_classes"),
        encoder_depth=given.get("encoder_depth") or whole(args, "encoder_depth") or _legacy_depth(found) or 8,
        heads=given.get("heads") or whole(args, "num_heads"),
    )
    if args.get("qk_norm") is True and not spec.qk_norm:
        raise UserError("it was built with qk_norm = True and holds no norms of queries and keys; give a whole file.")
    ours: dict[Weights, dict[str, Tensor]] = {}
    for role, state in networks.items():
        ours[role] = _our_sit(state, spec, whose, joint=joint)
        with torch.device("meta"):
            network = SiT(spec)
        check_state(network, ours[role], where=found[role].place or "its state dict")
    return _kind(reference, args, joint=joint), spec, ours


def _locate(path: Path, step: int | None) -> tuple[Path, dict[str, Any]]:
    """The checkpoint file, and the arguments that lie beside it."""
    if path.is_dir():
        files = {int(p.stem): p for p in (path / "checkpoints").glob("*.pt") if p.stem.isdigit()}
        if not (path / "checkpoints").is_dir():
            return _locate(_only_file(path), step)
        if not files or (step is not None and step not in files):
            there = ", ".join(str(s) for s in sorted(files)) or "none"
            raise UserError(f"{path / 'checkpoints'} holds no {'STEP' if step is None else step}.pt; it has {there}.")
        path = files[max(files) if step is None else step]
    places = [path.parent, *([path.parent.parent] if path.parent.name == "checkpoints" else [])]
    beside = next((p / "args.json" for p in places if (p / "args.json").exists()), None)
    return (path, {}) if beside is None else (path, _read_arguments(beside))


def _read_arguments(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); download it again.") from None


def _only_file(folder: Path) -> Path:
    """The one weights file of a folder; shards and their index are one.

    Raises:
        UserError: there are none, or several.
    """
    ends = (".index.json", ".safetensors", ".pt", ".pth", ".ckpt", ".bin")
    files = [p for p in sorted(folder.iterdir()) if p.name.endswith(ends) and not p.name.startswith(".")]
    found = {tuple(files_of(p)): p for p in files}
    if len(found) != 1:
        there = some((p.name for p in found.values()), limit=9) or "none"
        raise UserError(
            f"{folder} has no checkpoints/STEP.pt, and of weights files not one but {there}; name the file."
        )
    return next(iter(found.values()))


def _step(loaded: Mapping[str, Any], file: Path, given: int | None) -> int:
    """The step: from the file's content, else its name, else --step.

    Raises:
        UserError: the file says another step than was given, or none that can be.
    """
    said = [int(file.stem)] if file.stem.isdigit() else []
    for key in ("steps", "global_step", "train_steps", "step", "iteration", "iterations", "train_step"):
        value = loaded.get(key)
        value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if isinstance(value, int | float) and not isinstance(value, bool):
            if value < 0 or value != int(value):
                raise UserError(f"its {key} is {value:g}, which is no number of steps; say it with --step.")
            said.insert(0, int(value))
            break
    if given is not None and said and given != said[0]:
        raise UserError(f"--step {given}: the file says step {said[0]}; leave --step out.")
    return said[0] if said else given or 0


def _kind(state: Mapping[str, Tensor], args: Mapping[str, Any], *, joint: bool) -> Kind:
    if joint:
        return "repa_e"
    if "class_embedder.weight" in state:
        return "reg"
    if "student_head.0.weight" in state:
        return "sra"
    if (projector := state.get("projectors.0.weight")) is not None and projector.ndim == 4:
        return "irepa"
    aligned = any(name.startswith("projectors.") for name in state) and args.get("proj_coeff", 0.5) != 0
    return "repa" if aligned else "sit"


def _legacy_depth(found: Mapping[Weights, Found]) -> int | None:
    """REPA's first checkpoints number the blocks after the alignment depth separately (decoder_blocks.N), which reveals
    that depth.
    """
    names = [name for network in found.values() for name in network.state]
    blocks = {m[1] for name in names if (m := re.match(r"blocks\.(\d+)\.", name))}
    return len(blocks) if any(name.startswith("decoder_blocks.") for name in names) else None


def _released_sit(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Today's released names of a SiT's tensors, float32; projectors and later blocks once had others."""
    depth = count_of(tensors, r"blocks\.(\d+)\.")
    out = {}
    for name, value in tensors.items():
        renamed = re.sub(r"^decoder_blocks\.(\d+)\.", lambda m: f"blocks.{depth + int(m[1])}.", name)
        renamed = renamed if renamed.startswith("projectors.") else _PROJECTOR.sub("projectors.0.", renamed)
        out[our_name(renamed)] = value.float() if value.is_floating_point() else value
    return without_class_position(out)


def _without_empty_projectors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drops projectors of width 0, which REPA's code creates when there is no encoder."""
    empty = {
        m[1] for n, v in state.items() if (m := re.fullmatch(r"projectors\.(\d+)\.4\.weight", n)) and not v.numel()
    }
    return {name: v for name, v in state.items() if not any(name.startswith(f"projectors.{k}.") for k in empty)}


def _our_sit(released: Mapping[str, Tensor], spec: SiTSpec, whose: Convention, *, joint: bool) -> dict[str, Tensor]:
    """Complete a released SiT to a state dict of ours."""
    state = _without_variance(_without_empty_projectors(released), spec)
    if any(name.startswith("bn.") for name in state):
        return state
    if joint:
        raise UserError("'bn.running_mean' is not there, though the file holds a tuned VAE; give a whole checkpoint.")
    if spec.channels != 4:
        raise UserError(f"'bn.running_mean' is not there, and nothing says the scale of {spec.channels} channels.")
    known = LatentStatistics.sd(spec.channels)
    if spec.projector == "convolution":
        known = LatentStatistics(*(torch.tensor(values) for values in IREPA_LATENTS))
    state |= {"bn.running_mean": known.mean, "bn.running_var": known.std.square()}
    state["bn.num_batches_tracked"] = torch.tensor(0)
    return state if whose == "repa" else _turned(state)


def _without_variance(state: Mapping[str, Tensor], spec: SiTSpec) -> dict[str, Tensor]:
    """If the final layer also predicts a variance (twice the channels), keep only the velocity half."""
    out, pixels = dict(state), spec.patch_size**2
    if len(out["final_layer.linear.weight"]) == 2 * pixels * spec.channels:
        require(out, FINAL)
        for name in FINAL:
            out[name] = out[name].unflatten(0, (pixels, 2, spec.channels))[:, 0].flatten(0, 1).clone()
    return out


def _turned(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From SiT's convention (x_t = t x + (1 - t) noise, velocity x - noise) to ours: v(x, t) = -v_SiT(x, 1 - t).

    The time features of 1 - t are a rotation of those of t: cos(f - a) = cos f cos a + sin f sin a, and
    sin(f - a) = sin f cos a - cos f sin a with a = f t. So the first time layer takes the turn, in float64.
    """
    out = dict(state)
    require(out, FINAL)
    for name in FINAL:
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
