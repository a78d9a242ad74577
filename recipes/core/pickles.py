"""Reading files that others published: safetensors, and torch pickles that may build tensors and nothing else."""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from recipes.core.errors import UserError

#: What a pickle may build beside tensors, numbers, strings and containers: training scripts keep their arguments so.
ALLOWED: tuple[type, ...] = (argparse.Namespace,)
_REFUSED = re.compile(r"(?:Unsupported (?:global|class|operand|type)[^\n]*?|GLOBAL) ([\w.]+\.[\w.]+)")


def load_state(path: Path) -> Any:
    """Read a safetensors file, or a torch pickle without letting it run code.

    Args:
        path: ``.safetensors``, or any name for a pickle in torch's zip form or the older one.

    Returns:
        What the file holds, its tensors on the CPU (of a zip they are mapped, and read from the disk when used).

    Raises:
        UserError: the file is missing or damaged, or its pickle asks for something that is not allowed.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the path of a weights file.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} cannot be read ({error}); download it again.") from None
    return _load_pickle(path)


def _load_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    try:
        if is_zip and _is_torchscript(path):
            raise UserError(f"{path} is a TorchScript archive, which holds code; give a state dict or safetensors.")
        with torch.serialization.safe_globals(list(ALLOWED)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can make the reader raise anything
        if refused := _REFUSED.search(str(error)):
            raise UserError(
                f"{path} was not read: its pickle asks for {refused[1]}, which could run code; give a file that holds "
                "only tensors, or convert it to safetensors where you trust it."
            ) from None
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise UserError(
            f"{path} is not a torch pickle that can be read safely ({type(error).__name__}: {reason}); "
            "download it again, or give safetensors."
        ) from None


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def some(names: Iterable[str], limit: int = 4) -> str:
    """The first names of a list, for an error message."""
    ordered = sorted(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(f"'{name}'" for name in ordered[:limit]) + more


def check_state(network: nn.Module, state: Mapping[str, Any], *, where: str) -> None:
    """Compare a state dict's names and shapes with what a network has; the network may be on the meta device.

    Args:
        network: what the tensors are for.
        state: tensors by name.
        where: the file and what it should hold, for the error.

    Raises:
        UserError: a tensor is missing, of another shape, or unknown to the network.
    """
    wanted = network.state_dict()
    if missing := wanted.keys() - state.keys():
        raise UserError(f"{where} lacks {some(missing)}; give a file of this network.")
    if unknown := state.keys() - wanted.keys():
        raise UserError(
            f"{where} holds {some(unknown)}, which this network does not have; give a file of this network."
        )
    for name, value in wanted.items():
        found = state[name]
        if not isinstance(found, Tensor) or found.shape != value.shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(f"{where}: '{name}' is {shape}, not {tuple(value.shape)}; give a file of this size.")


def load_exactly(network: nn.Module, state: Mapping[str, Any], *, where: str) -> None:
    """`check_state`, then copy the tensors into the network's (whatever their dtype)."""
    check_state(network, state, where=where)
    network.load_state_dict(dict(state))
