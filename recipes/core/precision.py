"""Number formats: what runs in 16 bits, and the islands that stay in 32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

#: ``bf16`` and ``fp16`` are autocast over float32 weights; fp16 scales its loss. ``tf32`` is float32 with TF32 matrix
#: products, which other devices than NVIDIA's ignore.
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
P = ParamSpec("P")
R = TypeVar("R")


def autocast(precision: Precision, device: torch.device) -> Any:
    """Autocast context for a precision."""
    if precision not in _AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST[precision])


@contextmanager
def matrix_products(precision: Precision) -> Iterator[None]:
    """Allow TF32 for remaining float32 products unless precision is ``fp32``."""
    before = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def outside_autocast() -> Iterator[None]:
    """Run in the tensors' own number format: autocast is off, on any device."""
    with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
        yield


def at_least_float32(x: Tensor) -> Tensor:
    """16-bit tensors as float32; wider ones as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Keep autocast out of a function: a matrix product inside it is not cast to 16 bits."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with outside_autocast():
            return function(*args, **kwargs)

    return wrapped
