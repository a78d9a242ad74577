"""Frozen, typed, strict specifications: everything that can change a number, and nothing else."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from recipes.core.errors import UserError, nearest
from recipes.core.precision import Precision
from recipes.core.watchdog import OnNaN

#: Sizes and numbers of things; what no machine can hold is refused here and not by the allocator.
Count = Annotated[int, Field(ge=1, le=2**31)]
#: Number of layers, blocks or levels.
Depth = Annotated[int, Field(ge=1, le=1000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
#: Serialisation context that includes every field (needed by --set).
EVERY_FIELD = "every field"
#: Keys that had other names before schema version 2. They are read under both, and count in digests under the old ones,
#: so that runs and assets of before are found again.
RENAMED = {"arm": "variant", "arms": "variants", "default_arms": "default_variants", "mask_share": "mask_fraction"}


def with_keys(value: Any, names: Mapping[str, str]) -> Any:
    """Nested JSON-able data with some keys renamed."""
    if isinstance(value, dict):
        return {names.get(key, key): with_keys(inner, names) for key, inner in value.items()}
    return [with_keys(inner, names) for inner in value] if isinstance(value, list) else value


def digest_of(value: Any) -> str:
    """SHA-256, in hex, of the canonical JSON (sorted keys, no spaces) of a JSON-able value."""
    value = with_keys(value, {new: old for old, new in RENAMED.items()})
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _not_finite(value: Any, key: str = "") -> str | None:
    """The dotted key of the first number in nested data that is not finite."""
    if isinstance(value, float):
        return None if math.isfinite(value) else key
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    found = (_not_finite(inner, f"{key}.{name}" if key else str(name)) for name, inner in items)
    return next((name for name in found if name is not None), None)


def _told(where: str, error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    got = "" if first["type"] == "value_error" else f" (got {str(first['input'])[:80]!r})"
    told = first["msg"].removeprefix("Value error, ")
    return ": ".join(filter(None, (where, key, f"{told}{got}."))).replace("\n", " ")


class Spec(BaseModel):
    """Base of every specification: immutable, no coercion, unknown keys refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
    ADDED: ClassVar[frozenset[str]] = frozenset()
    """Fields that came later: left out of dumps at their defaults, so that digests of before still hold."""

    def left_out(self) -> set[str]:
        """Fields that dumps leave out, unless their context is `EVERY_FIELD`."""
        fields = type(self).model_fields
        return {name for name in self.ADDED if getattr(self, name) == fields[name].default}

    @model_serializer(mode="wrap")
    def _dumped(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        dumped: dict[str, Any] = handler(self)
        if info.context != EVERY_FIELD:
            for name in self.left_out() & dumped.keys():
                del dumped[name]
        return dumped

    def digest(self) -> str:
        """SHA-256 of the specification; equal specifications have equal digests in every process."""
        return digest_of(self.model_dump(mode="json"))

    def changed(self, **fields: Any) -> Self:
        """Validated copy with changed fields."""
        return type(self)(**(dict(self) | fields))

    @classmethod
    def parse(cls, data: Mapping[str, Any], *, where: str) -> Self:
        """Validate JSON-like data; `where` names the file or flag in the error.

        Raises:
            UserError: one sentence naming the first wrong key.
        """
        try:
            text = json.dumps(with_keys(data, RENAMED), allow_nan=False)
        except RecursionError:
            raise UserError(f"{where}: it is nested too deep. Write it anew.") from None
        except ValueError:
            raise UserError(f"{where}: {_not_finite(data)}: Input should be a finite number.") from None
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise UserError(_told(where, error)) from None

    @classmethod
    def read_from(cls, where: str, **fields: Any) -> Self:
        """From values that were read out of somebody's file; `where` names it in the error.

        Raises:
            UserError: one sentence naming the first wrong key.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            raise UserError(_told(where, error)) from None


#: ``muon`` is Muon with the coefficients of RAEv2, ``muon_torch`` PyTorch's; both leave all but matrices to AdamW.
OptimizerKind = Literal["adamw", "muon", "muon_torch"]


class OptimizerSpec(Spec):
    """The optimizer of one network: constant rate after a linear warm-up, gradient norm clipped by itself."""

    ADDED = frozenset({"kind", "momentum"})

    kind: OptimizerKind = "adamw"
    momentum: Beta = 0.95
    """Of Muon."""
    lr: NotNegative = 1e-4
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    clip_norm: Positive | None = 1.0
    """None: gradients are not clipped."""
    warmup_steps: Annotated[int, Field(ge=0, le=2**31)] = 0


class EMASpec(Spec):
    """Exponential moving average of parameters and float buffers (REPA-E, released code)."""

    decay: Fraction = 0.9999
    warmup: bool = False
    """Use min(decay, (1 + s) / (10 + s)) at step s, for budgets shorter than the average's memory."""


class TrainSpec(Spec):
    """What the loop itself needs to know. The budget is not here: more steps extend the same run."""

    seed: Seed
    batch_size: Count
    """Global batch: the images of one effective optimizer step, whatever the number of processes."""
    optimizers: dict[str, OptimizerSpec]
    ema: EMASpec = EMASpec()
    precision: Precision = "fp32"
    norm_batch: Count | None = None
    """Group size of the discriminator's batch norm; None: the global batch."""


#: A kill without warning (a node that fails) costs at most so much training.
SAVE_MINUTES = 15.0


class Execution(Spec):
    """How a run is laid out on a machine. Not part of a run's digest: it may change from one start to the next."""

    device: str = "auto"
    micro_batch: int | None = None
    """At most so many images of a process go through the networks at once; the rest is accumulated."""
    compile: bool = False
    checkpointing: bool = False
    """Recompute the SiT's blocks in the backward pass."""
    threads: int = 8
    """Threads that read and decode images, for each process."""
    ahead: int = 3
    """Batches read before they are needed."""
    save_every: int | None = None
    """Steps between checkpoints that serve only to resume."""
    save_minutes: float = SAVE_MINUTES
    """Minutes between such checkpoints, beside those of `save_every`; 0: none by time."""
    keep: int = 2
    """How many of those are kept."""
    on_nan: OnNaN = "stop"
    """What to do about an update that is not finite; it never happens in either case."""


def with_overrides(data: dict[str, Any], overrides: Mapping[str, Any], flag: str = "--set") -> dict[str, Any]:
    """Set dotted keys in nested JSON-like data and return the changed copy.

    Raises:
        UserError: a key that does not exist, with the nearest one that does.
    """
    changed: dict[str, Any] = json.loads(json.dumps(data))
    for dotted, value in overrides.items():
        node = changed
        *parents, last = dotted.split(".")
        for depth, part in enumerate([*parents, last]):
            if not isinstance(node, dict) or part not in node:
                place = ".".join(dotted.split(".")[:depth]) or "the specification"
                known = node if isinstance(node, dict) else {}
                raise UserError(f"{flag} {dotted}: {place} has no key '{part}'.{nearest(part, known)}")
            if depth < len(parents):
                node = node[part]
        node[last] = value
    return changed
