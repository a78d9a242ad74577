"""Suites: what is trained on what, and how it is judged. Each is a Python function that returns a whole spec."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from harness.suites.digits import DigitsSuite, digits
from harness.suites.imagenet import ImagenetSuite, imagenet256, imagenet_smoke
from harness.suites.smoke import smoke
from recipes.core.errors import UserError, nearest
from recipes.core.spec import with_overrides

SUITES: dict[str, Callable[[], DigitsSuite | ImagenetSuite]] = {
    "digits": digits,
    "smoke": smoke,
    "imagenet256": imagenet256,
    "imagenet-smoke": imagenet_smoke,
}


def suite(name: str, overrides: Mapping[str, Any] | None = None) -> DigitsSuite | ImagenetSuite:
    """A suite by name, with dotted keys replaced.

    Raises:
        UserError: no such suite, no such key, or a value that the key does not take.
    """
    if name not in SUITES:
        raise UserError(f"--suite: there is no suite '{name}'.{nearest(name, SUITES)}")
    default = SUITES[name]()
    if not overrides:
        return default
    changed = with_overrides(json.loads(default.model_dump_json()), overrides)
    return type(default).parse(changed, where="--set")
