"""Harmless replacements for classes in pickled checkpoints, so that unpickling runs no foreign code.

NumPy's own types are not handed out, because they believe what a pickle says of them: a forged state of ``numpy.dtype``
makes addresses of bytes.
"""

from __future__ import annotations

import argparse
import datetime
import re
import types
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch


class Forbidden(Exception):  # noqa: N818 (a refusal, told as a sentence by who reads the file)
    """A pickle asks for something that none of the stand-ins builds; the text names it."""


class Inert:
    """Stands for an object that nobody here needs (a random generator): takes whatever it is given, keeps nothing."""

    def __init__(self, *_: object) -> None:
        """Nothing."""

    def __setstate__(self, state: object) -> None:
        """Nothing."""


class DType:
    """``numpy.dtype`` of numbers and strings."""

    def __init__(self, code: str, *_: object) -> None:
        """`code` as NumPy pickles it: a letter and a size in bytes.

        Raises:
            Forbidden: objects, records, times.
        """
        if not isinstance(code, str) or not re.fullmatch(r"[biufcSU]\d{1,9}", code):
            raise Forbidden(f"numpy.dtype({code!r})")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Of NumPy's state, the byte order; a sub-array and fields are refused."""
        order, *structure = state[1:5]
        if any(part is not None for part in structure):
            raise Forbidden("numpy.dtype with fields")
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


class Array:
    """``numpy.ndarray`` of numbers and strings; `plain` makes a tensor of it."""

    value = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """NumPy's state: (version, shape, dtype, Fortran order, bytes)."""
        _, shape, kind, fortran, data = state
        if not isinstance(kind, DType) or not isinstance(data, bytes | bytearray):
            raise Forbidden("a numpy.ndarray of objects")
        self.value = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if fortran else "C")

    def content(self) -> Any:
        """A tensor; nested lists where the elements are strings."""
        if self.value.dtype.kind in "SU":
            return self.value.tolist()
        native = self.value.astype(self.value.dtype.newbyteorder("="))  # a copy, which may be written to
        return torch.from_numpy(
            native if native.dtype.itemsize <= 8 or native.dtype.kind == "c" else native.astype("f8")
        )


def _array(*_: object) -> Array:
    return Array()


def _scalar(kind: DType, data: bytes) -> Any:
    """A number of Python's own."""
    if not isinstance(kind, DType) or not isinstance(data, bytes | bytearray):
        raise Forbidden("a numpy scalar of objects")
    return np.frombuffer(data, kind.dtype, count=1)[0].item()


def _dict(*_: object) -> dict[Any, Any]:
    return {}


def _bytes(*of: object) -> bytes:
    """bytes() only; bytes(n) would allocate n bytes."""
    if of:
        raise Forbidden("bytes of a number")
    return b""


_PATHS = {"Path": PurePosixPath, "PosixPath": PurePosixPath, "PurePosixPath": PurePosixPath}
_PATHS |= {"WindowsPath": PureWindowsPath, "PureWindowsPath": PureWindowsPath}  # type: ignore[dict-item]
_GENERATORS = (
    *("_pickle.__randomstate_ctor", "_pickle.__generator_ctor", "_pickle.__bit_generator_ctor"),
    *("_mt19937.MT19937", "_pcg64.PCG64", "_pcg64.PCG64DXSM", "_philox.Philox", "_sfc64.SFC64"),
    *("bit_generator.SeedSequence", "bit_generator.__pyx_unpickle_SeedSequence", "mtrand.RandomState"),
)
#: What `torch.load` is allowed beside its own list: (what is built, the name that a pickle asks by).
ALLOWED: tuple[tuple[Any, str], ...] = (
    *((kind, f"{kind.__module__}.{kind.__name__}") for kind in (argparse.Namespace, types.SimpleNamespace)),
    *((kind, f"datetime.{kind.__name__}") for kind in (datetime.datetime, datetime.date, datetime.timedelta)),
    *((kind, f"builtins.{kind.__name__}") for kind in (list, tuple, dict, frozenset, int, float, bool, str)),
    (_bytes, "builtins.bytes"),
    (_dict, "collections.defaultdict"),
    (str, "torch.torch_version.TorchVersion"),
    *((kind, f"{module}.{name}") for name, kind in _PATHS.items() for module in ("pathlib", "pathlib._local")),
    (DType, "numpy.dtype"),
    (Array, "numpy.ndarray"),
    *((made, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core") for made in (_array,)),
    *((made, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core") for made in (_scalar,)),
    (Inert, "random.Random"),
    *((Inert, f"numpy.random.{name}") for name in _GENERATORS),
    # Lightning keeps its callbacks' states by the callbacks' classes.
    *(
        (Inert, f"{home}.callbacks.model_checkpoint.ModelCheckpoint")
        for home in ("pytorch_lightning", "lightning.pytorch")
    ),
    (dict, "pytorch_lightning.utilities.parsing.AttributeDict"),
)


def plain(value: Any) -> Any:
    """Recursively replace `Array` by tensors."""
    if isinstance(value, Array):
        return value.content()
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([plain(inner) for inner in value])
    if isinstance(value, argparse.Namespace | types.SimpleNamespace):
        return type(value)(**plain(vars(value)))
    return value
