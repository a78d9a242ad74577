"""Assets that are made once and found again: data, tokenizers, encoders, feature networks, cached features.

An asset is named by the digest of its specification and of what it was made from, lies in one folder of the cache,
and is recorded by the hash of its content.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.runtime.locks import alone
from recipes.core import atomic, checkpoint
from recipes.core.spec import digest_of

PART = "tensors"


@dataclass(frozen=True)
class Asset:
    """Tensors and facts, with the hash that identifies them."""

    kind: str
    folder: Path
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    content: str
    """SHA-256 of the tensor file."""


def _silent(told: str) -> None:
    """Say nothing. A function with a name, so that a store can be sent to other processes."""


class Store:
    """The cache folder. Several commands may share it: an asset has one maker, and the others wait for it."""

    def __init__(self, root: Path, say: Callable[[str], None] = _silent) -> None:
        """With `say`, a wait for another process is told."""
        self.root, self.say = root, say

    def below(self, folder: str) -> Store:
        """A part of the cache."""
        return Store(self.root / folder, self.say)

    def alone(self, folder: Path, *, on: bool = True) -> AbstractContextManager[None]:
        """Context: no other command makes what will lie in that folder.

        Args:
            folder: need not be there.
            on: false does nothing: of several processes of one command, one holds.
        """

        def wait(holder: str) -> None:
            self.say(f"  waiting for {holder}, which makes {folder}")

        return alone(folder.with_name(f".{folder.name}.lock"), on=on, on_wait=wait)

    def folder_of(self, kind: str, spec: Mapping[str, Any], sources: Mapping[str, str]) -> Path:
        """Where an asset lies once it is made; see `get`."""
        return self.root / f"{kind}-{digest_of({'spec': spec, 'sources': sources})[:16]}"

    def get(
        self,
        kind: str,
        spec: Mapping[str, Any],
        sources: Mapping[str, str],
        make: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Any]]],
    ) -> Asset:
        """Load an asset, making it first if it is not there.

        Args:
            kind: what it is; also the first half of the folder's name.
            spec: JSON-able facts that decide its content. Raise a ``version`` in it when code changes the content.
            sources: content hashes of the assets that it is made from.
            make: returns its tensors and what to remember about it.

        Raises:
            UserError: the cached folder is damaged.
        """
        folder = self.folder_of(kind, spec, sources)
        if not folder.exists():
            with self.alone(folder):
                if not folder.exists():  # nor has another process made it meanwhile
                    tensors, facts = make()
                    meta = {"kind": kind, "spec": dict(spec), "facts": dict(facts)}
                    checkpoint.save_folder(folder, {PART: tensors}, meta)
        tensors = checkpoint.load_part(folder, PART)
        facts = checkpoint.read_manifest(folder)["facts"]
        return Asset(kind, folder, tensors, facts, atomic.sha256_of(folder / f"{PART}.safetensors"))
