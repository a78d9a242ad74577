"""Sweeps: variants of a suite that differ in one setting or several, made by ``--grid``."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import JsonValue

from harness.suites.base import Suite, Variant
from recipes.core.errors import UserError, nearest
from recipes.core.spec import EVERY_FIELD, with_overrides

S = TypeVar("S", bound=Suite)
#: Begins what a variant's name says of its settings.
MARK = "+"
#: Names are names of folders and files.
MOST_LETTERS = 80
FLAG = "--grid"


def with_grid(suite: S, chosen: Sequence[str], axes: Mapping[str, Sequence[JsonValue]]) -> tuple[S, list[str]]:
    """A suite with a variant for every combination of values, and the names of those that are wanted.

    A combination that gives what a variant is already is that variant, whose runs are not made again.

    Args:
        suite: whose variants are varied.
        chosen: the variants to vary, or varied ones by their whole names, as ``repa+alignment=0.25``.
        axes: by key, the values: an option of the recipe (``options.alignment``), another field of a variant, or a key
            of the suite that decides training alone (``sit_optimizer.lr``). An option that a recipe does not have is
            passed over.

    Raises:
        UserError: a key that nothing chosen has, or that decides what is measured; a value that it does not take.
    """
    if not axes:
        return suite, list(chosen)
    bases = list(dict.fromkeys(name.partition(MARK)[0] for name in chosen))
    every, made, used = dict[str, Variant](suite.variants), dict[str, list[str]](), set[str]()
    for base in bases:
        data = _data(suite, base)
        mine = {key: values for key, values in axes.items() if _has(suite, data, key)}
        used |= {*mine}
        made[base] = []
        same = {key: [v for v in values if _is_same(suite, base, data, key, v)] for key, values in mine.items()}
        for combination in itertools.product(*mine.values()):
            new = {key: v for key, v in zip(mine, combination, strict=True) if v not in same[key]}
            name = base + "".join(f"{MARK}{_short(key)}={_text(value)}" for key, value in new.items())
            if len(name) > MOST_LETTERS:
                raise UserError(f"{FLAG}: the name {name} is too long; vary fewer keys at a time.")
            made[base].append(name)
            if new:
                every[name] = _varied(suite, base, data, new)
    for key in axes:
        if key not in used:
            raise UserError(_unknown(suite, bases, key))
    wanted = [name for one in chosen for name in ([one] if MARK in one else made[one])]
    for name in wanted:
        if name not in every:
            raise UserError(f"--recipes: {FLAG} makes no '{name}'.{nearest(name, every)}")
    return suite.model_copy(update={"variants": every}), list(dict.fromkeys(wanted))


def _data(suite: Suite, base: str) -> dict[str, Any]:
    """A variant as JSON, all of its options written out."""
    found: dict[str, Any] = json.loads(suite.variants[base].model_dump_json(context=EVERY_FIELD))
    found["options"] = suite.method(base).options.model_dump(mode="json", context=EVERY_FIELD)
    for fixed in ("recipe", "label", "about", "later", "changes", "source"):
        found.pop(fixed, None)
    return found


def _has(suite: Suite, data: Mapping[str, Any], key: str) -> bool:
    """Whether a key is a variant's own, or one that the suite lets it have for itself."""
    node: Any = data
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return key.split(".")[0] in suite.varied_keys
        node = node[part]
    return True


def _is_same(suite: Suite, base: str, data: Mapping[str, Any], key: str, value: JsonValue) -> bool:
    """Whether a variant has that value already."""
    try:
        alone = suite.model_copy(update={"variants": {base: _varied(suite, base, data, {key: value})}})
        return alone.run_spec(base, 0, {}) == suite.run_spec(base, 0, {})
    except UserError as error:
        told = str(error)
        raise UserError(told if told.startswith(FLAG) else f"{FLAG} {key}: {told}") from None


def _varied(suite: Suite, base: str, data: Mapping[str, Any], values: Mapping[str, JsonValue]) -> Variant:
    """A variant with other values."""
    before = suite.variants[base]
    own = {key: value for key, value in values.items() if data.get(key.partition(".")[0]) is not None}
    told = ", ".join(f"{_short(key)} {_text(value)}" for key, value in values.items())
    fields = before.model_dump(context=EVERY_FIELD) | with_overrides(dict(data), own, flag=FLAG)
    fields |= {"label": f"{before.label}, {told}", "about": f"{before.about} With {told}."}
    fields["changes"] = {key: value for key, value in values.items() if key not in own}
    variant = type(before).parse(fields, where=FLAG)
    alone = suite.model_copy(update={"variants": {base: variant}})
    options = alone.method(base).options.model_dump(mode="json")
    return variant.model_copy(update={"options": options, "later": True})


def _short(key: str) -> str:
    return key.removeprefix("options.")


def _text(value: JsonValue) -> str:
    """A value as part of a name: of folders and files too."""
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")


def _unknown(suite: Suite, bases: Sequence[str], key: str) -> str:
    """Why a key cannot be varied."""
    first = key.split(".")[0]
    known = {*suite.varied_keys} | {f"options.{o}" for b in bases for o in _data(suite, b)["options"]}
    if first in type(suite).model_fields and first not in suite.varied_keys:
        return (
            f"{FLAG} {key}: it decides more than how a variant trains, and results of one folder share it; give "
            f"--set {key}=VALUE, for a folder of its own."
        )
    return f"{FLAG} {key}: none of {', '.join(bases)} has it.{nearest(key, known)}"
