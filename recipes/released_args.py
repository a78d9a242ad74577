"""What a released checkpoint says of itself: its training script's arguments, and whether they describe a SiT."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from recipes.core.errors import UserError

#: Keys under which scripts keep their arguments beside the weights, the first that says something first.
_KEYS = ("args", "config", "cfg", "hyper_parameters", "hparams", "model_args", "opts", "options")
#: Arguments that say what a network predicts, what it is, and which noise it was trained on.
_PREDICTION = re.compile(
    r"(model_)?(prediction|pred|predicts?|parameteri[sz]ation|objective|mean_type)(_?(type|mode))?"
)
_TARGET = re.compile(r".*(pred|target|objective|parameteri[sz]ation).*")
_OTHER = {"noise", "eps", "epsilon", "score", "x", "x0", "x_0", "xstart", "x_start", "sample", "data"}
_NOT_VELOCITY = re.compile(r"pred(ict)?_(x_?start|x_?0|eps|epsilon|noise|score)")
_MODEL = re.compile(r"(model|arch|architecture|backbone|network)(_?(name|type))?")
_DISCRETE = {"noise_schedule", "beta_schedule", "diffusion_steps", "num_diffusion_steps", "num_diffusion_timesteps"}
_VELOCITY = {"v", "velocity"}
#: What the scripts of REPA and REPA-E (small letters) and of SiT call the paths that we have.
PATHS = {"linear": "linear", "cosine": "cosine", "Linear": "linear", "GVP": "cosine"}
#: The files of DiT's release hold no arguments, only their names say what they are.
_DIT_FILE = re.compile(r"DiT-(S|B|L|XL)-\d-\d+x\d+\.pt")

Convention = Literal["repa", "sit"]


def arguments(*sources: Any) -> dict[str, Any]:
    """Arguments as JSON-able values; of nested ones the leaves too, by their last name.

    Args:
        sources: mappings or namespaces; a later one wins. What is neither says nothing.
    """
    found: dict[str, Any] = {}
    for source in sources:
        items = source if isinstance(source, Mapping) else getattr(source, "__dict__", {})
        plain = json.loads(json.dumps({str(k): v for k, v in items.items()}, default=str))
        nested = {_key(k): v for k, v in plain.items() if isinstance(v, Mapping)}
        found |= nested | dict(_leaves(plain)) | {_key(k): v for k, v in plain.items() if _key(k) not in nested}
    return found


def kept_in(loaded: Mapping[str, Any]) -> list[Any]:
    """What a file keeps of its training's arguments, the weightiest last."""
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


def judge(args: Mapping[str, Any], name: str) -> bool:
    """Whether a checkpoint is a SiT that predicts a velocity, by what it says of itself.

    Args:
        args: of `arguments`.
        name: the file's, which counts where there are no arguments.

    Returns:
        Whether it says so.

    Raises:
        UserError: it says that it is something else; without the name of the file.
    """
    mend = "give a checkpoint of a SiT that predicts the velocity."
    if not args and _DIT_FILE.fullmatch(name):
        raise UserError(f"it is a DiT of the release, which predicts noise at 1000 steps; {mend}")
    says = False
    for key, value in args.items():
        text, lower = str(value), key.lower()
        if _MODEL.fullmatch(lower) and isinstance(value, str):
            if re.search(r"(^|[^A-Za-z])DiT", text, re.IGNORECASE):
                raise UserError(f"it is a DiT ({key} = {text}), which predicts noise at 1000 steps; {mend}")
            says |= bool(re.search(r"SiT", text, re.IGNORECASE))
        elif isinstance(value, str) and (_PREDICTION.fullmatch(lower) or _TARGET.fullmatch(lower)):
            if text.lower() not in _VELOCITY and (_PREDICTION.fullmatch(lower) or text.lower() in _OTHER):
                raise UserError(f"it predicts {text} ({key}), not the velocity; {mend}")
            says |= text.lower() in _VELOCITY
        elif (_NOT_VELOCITY.fullmatch(lower) and value is True) or (lower in _DISCRETE and value):
            raise UserError(f"it was trained with {key} = {text}, which is no velocity's; {mend}")
    path_of(args)
    return says


def path_of(args: Mapping[str, Any]) -> str:
    """Our name of the path; linear where none is said.

    Raises:
        UserError: we have no such path.
    """
    if (path := str(args.get("path_type") or "linear")) not in PATHS:
        raise UserError(f"it was trained on the path '{path}'; only linear and cosine (GVP) can be imported.")
    return PATHS[path]


def convention(args: Mapping[str, Any], *, has_projectors: bool) -> Convention:
    """Whose time and sign: REPA's (noise at t = 1, velocity towards it) or SiT's (data at t = 1, towards it).

    The scripts write the same arguments differently. Without them projectors decide, which REPA's networks always have
    and SiT's own never.
    """
    path, prediction = args.get("path_type"), args.get("prediction")
    if path in ("linear", "cosine") or prediction == "v":
        return "repa"
    if path in ("Linear", "GVP") or prediction == "velocity":
        return "sit"
    return "repa" if has_projectors else "sit"
