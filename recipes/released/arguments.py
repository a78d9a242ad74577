"""Training arguments stored in released checkpoints; check that they describe a velocity-predicting SiT."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from recipes.core.errors import UserError

#: Keys under which scripts keep their arguments beside the weights, the first that says something first.
_KEYS = ("args", "config", "cfg", "hyper_parameters", "hparams", "model_args", "opts", "options")
#: Words in argument names that denote the prediction target.
_PREDICTION = {"prediction", "pred", "predict", "predicts", "parameterization", "parametrization", "objective"}
_TARGET = _PREDICTION | {"target", "output", "mean", "loss"}
#: Values that denote other prediction targets.
_OTHER = {"noise", "eps", "epsilon", "score", "x", "x0", "xstart", "start", "sample", "data", "edm", "ddpm"}
_MODEL = re.compile(r"(model|arch|architecture|backbone|network)(_?(name|type))?")
#: Related but incompatible networks.
_OTHER_MODEL = re.compile(r"LightningDiT|DDT|MDT|MaskDiT|U-?ViT|FiT|UNet", re.IGNORECASE)
#: Arguments of discrete diffusion, and of other architectures; a truthy value means "not a SiT".
_DISCRETE = {
    *("noise_schedule", "beta_schedule", "diffusion_steps", "num_diffusion_steps", "num_diffusion_timesteps"),
    *("num_train_timesteps", "num_timesteps"),
}
_ARCHITECTURE = {"use_rope", "rope", "use_swiglu", "swiglu", "use_rmsnorm", "rmsnorm"}
#: Arguments that may name the path or the kind of diffusion, and names of those that are not ours.
_PATH = {"path", "pathtype", "interpolant", "interpolanttype", "schedule", "transport", "diffusion", "diffusiontype",
         "process", "sde", "sdetype", "framework"}  # fmt: skip
_NO_PATH = {"vp", "ve", "edm", "ddpm", "ddim", "iddpm", "karras", "vpsde", "vesde", "subvp", "scaled_linear"}
_VELOCITY = {"v", "velocity"}
#: What the scripts of REPA and REPA-E (small letters) and of SiT call the paths that we have.
PATHS = {"linear": "linear", "cosine": "cosine", "Linear": "linear", "GVP": "cosine"}
#: The files of DiT's release hold no arguments, only their names say what they are.
_DIT_FILE = re.compile(r"DiT-(S|B|L|XL)-\d-\d+x\d+\.pt")
_REMEDY = "give a checkpoint of a SiT that predicts the velocity."
Convention = Literal["repa", "sit"]


def arguments(*sources: Any) -> dict[str, Any]:
    """Merge arguments into one flat JSON-able dict (nested leaves under their last key).

    Args:
        sources: mappings or namespaces; a later one wins. Other types are ignored.
    """
    found: dict[str, Any] = {}
    for source in sources:
        items = source if isinstance(source, Mapping) else getattr(source, "__dict__", {})
        plain = json.loads(json.dumps({str(k): v for k, v in items.items()}, default=str))
        nested = {_key(k): v for k, v in plain.items() if isinstance(v, Mapping)}
        found |= nested | dict(_leaves(plain)) | {_key(k): v for k, v in plain.items() if _key(k) not in nested}
    return found


def kept_in(loaded: Mapping[str, Any]) -> list[Any]:
    """Argument containers found in a file, highest priority last."""
    return [loaded[key] for key in reversed(_KEYS) if loaded.get(key) is not None]


def _key(name: Any) -> str:
    return str(name).replace("-", "_")


def _leaves(mapping: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings; one called ``name``, ``type`` or ``target`` is its parent's."""
    for key, value in mapping.items():
        if not isinstance(value, Mapping):
            continue
        for inner, leaf in value.items():
            if not isinstance(leaf, Mapping):
                yield (_key(key) if inner in ("name", "type", "target", "_target_") else _key(inner)), leaf
        yield from _leaves(value)


def number(args: Mapping[str, Any], key: str, default: float) -> float:
    """Numeric argument (number or numeric string).

    Raises:
        UserError: it is something else; without the name of the file.
    """
    if (value := args.get(key)) is None:
        return default
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"its argument {key} is {value!r}, which is no number; correct it in the file.") from None


def whole(args: Mapping[str, Any], key: str) -> int | None:
    """An argument that is a positive whole number; None where it is not said.

    Raises:
        UserError: it is something else; without the name of the file.
    """
    value = number(args, key, 0)
    if args.get(key) is not None and (value < 1 or value != int(value)):
        raise UserError(f"its argument {key} is {args[key]!r}, which is no number of them; correct it in the file.")
    return int(value) or None


def judge(args: Mapping[str, Any], name: str) -> bool:
    """Whether a checkpoint is a SiT that predicts a velocity, by what it says of itself.

    Args:
        args: of `arguments`.
        name: the file's, which counts where there are no arguments.

    Returns:
        Whether the arguments state a velocity prediction.

    Raises:
        UserError: it says that it is something else; without the name of the file.
    """
    if not args and _DIT_FILE.fullmatch(name):
        raise UserError(f"it is a DiT of the release, which predicts noise at 1000 steps; {_REMEDY}")
    says = [_says_velocity(key, value) for key, value in args.items()]
    path_of(args)
    return any(says)


def _says_velocity(key: str, listed: Any) -> bool:
    """Whether one argument says that a velocity is predicted.

    Raises:
        UserError: it says something else.
    """
    value = listed[0] if isinstance(listed, list) and len(listed) == 1 else listed
    text, lower = str(value), key.lower()
    words, said = set(lower.split("_")), set(re.split(r"[^a-z0-9]+", text.lower()))
    if _MODEL.fullmatch(lower) and isinstance(value, str):
        if re.search(r"(^|[^A-Za-z])DiT", text, re.IGNORECASE):
            raise UserError(f"it is a DiT ({key} = {text}), which predicts noise at 1000 steps; {_REMEDY}")
        if _OTHER_MODEL.search(text) or said & {"noise", "eps", "epsilon", "score"}:
            raise UserError(f"it is another network than a SiT, or another target ({key} = {text}); {_REMEDY}")
    elif isinstance(value, str) and words & _TARGET:
        if said & _OTHER or (words & _PREDICTION and text.lower() not in _VELOCITY):
            raise UserError(f"it predicts {text} ({key}), not the velocity; {_REMEDY}")
        return text.lower() in _VELOCITY
    elif value is False and words & _PREDICTION and words & _VELOCITY:
        raise UserError(f"it was trained with {key} = {text}, so it predicts no velocity; {_REMEDY}")
    elif (value in (True, 1) and words & _PREDICTION and words & _OTHER) or (lower in _DISCRETE and value):
        raise UserError(f"it was trained with {key} = {text}, which is no velocity's; {_REMEDY}")
    elif lower in _ARCHITECTURE and value:
        raise UserError(f"it was built with {key} = {text}, which a SiT has not; give a checkpoint of a SiT.")
    return False


def _path_said(args: Mapping[str, Any]) -> str | None:
    """The path as it is written: ``path_type``, in whatever capitals, or what another argument says in known names.

    Raises:
        UserError: we have no such path.
    """
    for key, value in args.items():
        plain = key.lower().replace("_", "")
        if plain not in _PATH or not isinstance(value, str):
            continue
        if value in PATHS and plain != "schedule":  # a learning rate has one too
            return value
        if plain == "pathtype" or value.lower() in _NO_PATH:
            raise UserError(f"it was trained on the path '{value}'; only linear and cosine (GVP) can be imported.")
    return None


def path_of(args: Mapping[str, Any]) -> str:
    """Our name of the path; linear where none is said.

    Raises:
        UserError: we have no such path.
    """
    return PATHS[_path_said(args) or "linear"]


def convention(args: Mapping[str, Any], *, has_projectors: bool) -> Convention:
    """Whose time and sign: REPA's (noise at t = 1, velocity towards it) or SiT's (data at t = 1, towards it).

    The scripts write the same arguments differently. Without them projectors decide, which REPA's networks always have
    and SiT's own never.
    """
    path, prediction = _path_said(args), args.get("prediction")
    if path in ("linear", "cosine") or prediction == "v":
        return "repa"
    if path in ("Linear", "GVP") or prediction == "velocity":
        return "sit"
    return "repa" if has_projectors else "sit"
