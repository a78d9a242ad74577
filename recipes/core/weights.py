"""Reading files that others published: safetensors, and torch pickles that may build tensors and nothing that runs."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from recipes.core.atomic import sha256_of
from recipes.core.errors import UserError
from recipes.core.inert import ALLOWED, Forbidden, plain
from recipes.core.spec import digest_of

_REFUSED = re.compile(r"(?:Unsupported (?:global|class|operand|type)[^\n]*?|GLOBAL) ([\w.]+\.[\w.]+)")
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(\.\w+)")
_LFS = b"version https://git-lfs"


def files_of(path: Path) -> list[Path]:
    """All files belonging to `path` (shards, if it is an index or a shard).

    Raises:
        UserError: a shard is missing, or an index is no such index.
    """
    if path.name.endswith(".index.json"):
        names = _indexed(path)
    elif shard := _SHARD.fullmatch(path.name):
        stem, number, count, suffix = shard.groups()
        names = [f"{stem}-{k:0{len(number)}}-of-{count}{suffix}" for k in range(1, int(count) + 1)]
    else:
        return [path]
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise UserError(f"{path} belongs to {len(names)} files, and {some(missing)} is not beside it; download it too.")
    return [path.parent / name for name in names]


def _indexed(path: Path) -> list[str]:
    try:
        names = {str(name) for name in json.loads(path.read_text())["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is not the index of a sharded file ('weight_map'); download it again.") from None
    if not names or any(Path(name).name != name for name in names):
        raise UserError(f"{path} names files outside its folder, or none; download it again.")
    return sorted(names)


def content_of(path: Path) -> str:
    """SHA-256 of a weights file; of a sharded one, of its files' names and hashes."""
    hashes = {file.name: sha256_of(file) for file in files_of(path)}
    return hashes[path.name] if len(hashes) == 1 and path.name in hashes else digest_of(hashes)


def load_state(path: Path) -> Any:
    """Read safetensors, or a torch pickle without letting it run code; shards are joined.

    Args:
        path: any name; what it is shows in its first bytes. The index or a shard of a sharded file stands for all.

    Returns:
        What the file holds, its tensors on the CPU (of a zip they are mapped, and read from the disk when used).

    Raises:
        UserError: the file is missing or damaged, or its pickle asks for something that is not allowed.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the path of a weights file.")
    files = files_of(path)
    if len(files) == 1:
        return _load_one(files[0])
    joined: dict[str, Any] = {}
    for file in files:
        part = _load_one(file)
        if not isinstance(part, Mapping) or part.keys() & joined.keys():
            raise UserError(f"{file} holds no shard of a state dict, or names of another shard; download it again.")
        joined |= part
    return joined


def _load_one(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(len(_LFS))
    if head == _LFS:
        raise UserError(f"{path} is a Git LFS pointer and not the weights; bring them with git lfs pull.")
    is_safe = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size
    if is_safe or path.suffix.lower() == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} cannot be read ({error}); download it again.") from None
    return _load_pickle(path, is_zip=head[:4] == b"PK\x03\x04")


def _load_pickle(path: Path, *, is_zip: bool) -> Any:
    try:
        if is_zip and _is_torchscript(path):
            raise UserError(f"{path} is a TorchScript archive, which holds code; give a state dict or safetensors.")
        if is_zip and (member := _damaged(path)):
            raise UserError(f"{path} is damaged: {member} has another CRC than when it was written; download it again.")
        with torch.serialization.safe_globals(list(ALLOWED)):
            return plain(torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip))
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can make the reader raise anything
        refused = _REFUSED.search(str(error))
        if refused or isinstance(error, Forbidden):
            raise UserError(
                f"{path} was not read: its pickle asks for {refused[1] if refused else error}, which could run code; "
                f"give a file that holds only tensors. Where you trust it, make one: {conversion(path)}"
            ) from None
        said = str(error).strip()
        reason = (re.findall(r"WeightsUnpickler error: *(.+)", said) or said.splitlines() or [""])[0][:200]
        raise UserError(
            f"{path} is not a torch pickle that can be read safely ({type(error).__name__}: {reason}); "
            "download it again, or give safetensors."
        ) from None


def conversion(path: Path) -> str:
    """Shell command that converts a pickle to plain tensors (executes the pickle's code!)."""
    kinds = "(dict, torch.Tensor, torch.nn.Module, str, int, float)"
    keep = (
        "f = lambda v: f(v.state_dict()) if isinstance(v, torch.nn.Module) else "
        f"{{k: f(x) for k, x in v.items() if isinstance(x, {kinds})}} if isinstance(v, dict) else v"
    )
    if not re.fullmatch(r"[\w./+@ -]+", str(path)):  # what a shell would take for more than a name
        path = Path("FILE.pt")
    reader = "torch.load"  # in the words of a sentence: nothing here calls it so
    read = f"{reader}('{path}', map_location='cpu', weights_only=False)"
    return f"python -c \"import torch; {keep}; torch.save(f({read}), '{path.with_name(path.stem + '-tensors.pt')}')\""


def _damaged(path: Path) -> str | None:
    """First zip member with a wrong CRC (torch does not check when memory-mapping).

    Files written without CRCs fail for all members and are accepted.
    """
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if m.file_size]
        wrong = [m.filename for m in members if not _whole(archive, m)]
    return wrong[0] if wrong and len(wrong) < len(members) else None


def _whole(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(member) as file:
            while file.read(2**24):
                pass
    except (zipfile.BadZipFile, zlib.error):
        return False
    return True


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
        UserError: a tensor is missing, of another shape or kind, unknown to the network, or not finite.
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
        if value.is_floating_point() and not found.is_floating_point():
            raise UserError(f"{where}: '{name}' holds {found.dtype}, which is no weight; give a file not quantised.")
    check_finite(state, where=where)


def check_finite(state: Mapping[str, Tensor], *, where: str) -> None:
    """Refuse non-finite or non-dense tensors.

    Raises:
        UserError: a tensor holds a number that is not finite in float32, or none.
    """
    for name, value in state.items():
        if value.is_meta or value.layout != torch.strided or value.numel() > max(value.untyped_storage().nbytes(), 1):
            raise UserError(f"{where}: '{name}' is no plain tensor with all its numbers; save a dense copy of it.")
        if value.is_floating_point() and not bool(value.float().isfinite().all()):
            raise UserError(
                f"{where}: '{name}' holds NaN or numbers beyond float32: the training had diverged, or the file is "
                "damaged; give another checkpoint."
            )


def load_exactly(network: nn.Module, state: Mapping[str, Any], *, where: str) -> None:
    """`check_state`, then copy the tensors into the network's (whatever their dtype)."""
    check_state(network, state, where=where)
    network.load_state_dict(dict(state))
