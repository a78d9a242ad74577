"""Networks in what a file holds: each is found by a tensor that it must have, whatever lies around it.

Training scripts, wrappers and libraries put state dicts under keys (``ema``, ``state_dict``), prefixes (``model.``,
``first_stage_model.``) and parts inside names (``_orig_mod``). What stands in front of the known tensor is its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recipes.core.errors import UserError
from recipes.core.weights import some

#: What data parallelism, sharding, compilation and activation checkpointing put into names.
WRAPPERS = {
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module"),
}
#: Scalars that count: of `torch.optim.swa_utils`, LDM's LitEma, ema_pytorch, torch_ema, diffusers.
COUNTERS = {"n_averaged", "decay", "num_updates", "initted", "step", "optimization_step"}
#: Words of a place that say which weights these are; words that begin with "ema" say it too.
AVERAGE, RAW = {"averaged", "average", "avg", "shadow", "polyak"}, {"online", "raw", "student", "non", "without", "no"}
#: A module's only attribute: such a prefix says nothing of which weights these are.
MODULES = {"", "model", "net", "network", "backbone", "transformer", "sit"}
_DEPTH = 5
#: Buffers that LitEma does not average.
_FIXED = re.compile(r"(^|\.)(pos_embed|running_mean|running_var|num_batches_tracked)$")


@dataclass(frozen=True)
class Found:
    """A state dict in a file."""

    keys: tuple[str, ...]
    """Keys of the mappings around it."""
    prefix: str
    """Name prefix, with wrapper parts removed."""
    state: dict[str, Tensor]

    @property
    def place(self) -> str:
        """Keys and prefix; empty where its names stand bare at the top."""
        return ".".join(filter(None, (*self.keys, self.prefix)))

    @property
    def is_average(self) -> bool | None:
        """True: EMA, False: raw, None: unknown (judged by the place's words)."""
        for part in reversed([*self.keys, *self.prefix.split(".")]):
            words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", part)}
            if words & RAW:
                return False
            if words & AVERAGE or any(word.startswith("ema") for word in words):
                return True
        return False if self.keys or self.prefix not in MODULES else None


def unwrapped(name: str) -> str:
    """A tensor's name without the parts that wrappers put into it, wherever they stand."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def find(loaded: Any, anchor: str) -> list[Found]:
    """Every state dict that holds a tensor.

    Args:
        loaded: what a file holds: mappings of mappings and tensors.
        anchor: the name, in the network itself, of the tensor that it must have.

    Returns:
        State dicts in file order, without counter scalars.

    Raises:
        UserError: two names of one place are the same without their wrappers.
    """
    rows = [(keys, name, unwrapped(name), value) for keys, name, value in _rows(loaded)]
    places: dict[tuple[tuple[str, ...], str], dict[str, tuple[str, Tensor]]] = {}
    glued: dict[tuple[tuple[str, ...], str], str] = {}  # of LDM's LitEma, which writes names without their dots
    for keys, _, clean, _ in rows:
        head, _, last = clean.rpartition(".")
        if clean == anchor or clean.endswith(f".{anchor}"):
            places.setdefault((keys, clean.removesuffix(anchor).removesuffix(".")), {})
        elif (head or keys) and last.endswith(anchor.replace(".", "")):
            glued[keys, head] = clean.removesuffix(anchor.replace(".", ""))
    for keys, name, clean, value in rows:
        fitting = [p for k, p in places if k == keys and (not p or clean.startswith(f"{p}."))]
        is_counter = clean.rpartition(".")[2] in COUNTERS and value.numel() == 1
        if not fitting or is_counter or (keys, clean.rpartition(".")[0]) in glued:
            continue
        prefix = max(fitting, key=len)
        state, inner = places[keys, prefix], clean[len(prefix) + 1 if prefix else 0 :]
        if inner in state:
            raise UserError(
                f"'{state[inner][0]}' and '{name}' are one name without their wrappers; remove one of them."
            )
        state[inner] = name, value
    found = [Found(k, p, {n: value for n, (_, value) in state.items()}) for (k, p), state in places.items()]
    for (keys, head), start in glued.items():
        average = {clean.removeprefix(start): v for k, _, clean, v in rows if k == keys and clean.startswith(start)}
        if places:  # it averages trained tensors alone; the rest is the raw weights'
            raw = found[0].state
            if gone := [n for n in raw if n.replace(".", "") not in average and not _FIXED.search(n)]:
                raise UserError(f"the average {start!r} lacks {some(gone)}; give a whole checkpoint.")
            found.append(Found(keys, head, {name: average.get(name.replace(".", ""), raw[name]) for name in raw}))
    return found


def _rows(loaded: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, Tensor]]:
    """Every tensor: the keys of the mappings around it, its name, itself."""
    if isinstance(loaded, Mapping) and len(keys) < _DEPTH:
        for key, value in loaded.items():
            if isinstance(value, Tensor):
                yield keys, str(key), value
            else:
                yield from _rows(value, (*keys, str(key)))


def same(a: Found, b: Found) -> bool:
    """Whether two state dicts hold equal tensors."""
    return a.state.keys() == b.state.keys() and all(
        value.shape == b.state[name].shape and torch.equal(value, b.state[name]) for name, value in a.state.items()
    )


def only(found: Sequence[Found], *, where: str, what: str) -> Found | None:
    """The single state dict, or None; identical duplicates are allowed.

    Raises:
        UserError: there are several.
    """
    if any(not same(found[0], other) for other in found[1:]):
        places = some((f.place or "the top" for f in found), limit=9)
        raise UserError(f"{where} holds several {what}: {places}; save the one that is meant in a file of its own.")
    return found[0] if found else None


def network_in(loaded: Any, anchor: str, *, where: str, refusal: str, prefer: Sequence[str] = ()) -> dict[str, Tensor]:
    """The state dict of the one network of its kind in a file. Prefers EMA over raw weights.

    Args:
        loaded: what the file holds.
        anchor: a tensor that the network must have.
        where: the file, for errors.
        refusal: the beginning of the sentence where there is none.
        prefer: parts of a place that decide between several, the strongest first.

    Raises:
        UserError: there is none, or there are several.
    """
    found = find(loaded, anchor)
    for part in prefer:
        found = [f for f in found if part in f.place.split(".")] or found
    found = [f for f in found if f.is_average] or found
    chosen = only(found, where=where, what="such networks")
    if chosen is None:
        raise UserError(f"{refusal}; it holds {held(loaded)}. Give another file.")
    return chosen.state


def held(loaded: Any) -> str:
    """Short description of a file's content for error messages."""
    if not isinstance(loaded, Mapping):
        return f"no mapping but a {type(loaded).__name__}"
    return some(map(str, loaded)) or "nothing"


def low_precision(state: Mapping[str, Tensor]) -> str | None:
    """Note text if weights have fewer than 32 bits, else None."""
    kinds = {value.dtype for value in state.values() if value.is_floating_point() and value.dtype.itemsize < 4}
    if not kinds:
        return None
    names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    return f"its weights are {names}: numbers differ a little from those of the float32 file"


def notes_of(state: Mapping[str, Tensor], path: object) -> tuple[str, ...]:
    """`low_precision` as a sentence about a file."""
    return (f"{path}: {note}.",) if (note := low_precision(state)) else ()
