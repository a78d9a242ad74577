"""Suites: what is trained on what, and how it is judged. Each is a Python function that returns a whole spec."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from harness.suites.digits import DigitsSuite, digits
from harness.suites.imagenet256 import ImagenetSuite, imagenet256, imagenet_smoke
from harness.suites.smoke import smoke
from recipes.core.errors import UserError, nearest
from recipes.core.spec import EVERY_FIELD, with_overrides
from recipes.training.flops import flops_per_step

AnySuite = DigitsSuite | ImagenetSuite
SUITES: dict[str, Callable[[], AnySuite]] = {
    "digits": digits,
    "smoke": smoke,
    "imagenet256": imagenet256,
    "imagenet-smoke": imagenet_smoke,
}


def suite(name: str, overrides: Mapping[str, Any] | None = None) -> AnySuite:
    """A suite by name, with dotted keys replaced.

    Raises:
        UserError: no such suite, no such key, or a value that the key does not take.
    """
    if name not in SUITES:
        raise UserError(f"--suite: there is no suite '{name}'.{nearest(name, SUITES)}")
    default = SUITES[name]()
    if not overrides:
        return default
    changed = with_overrides(json.loads(default.model_dump_json(context=EVERY_FIELD)), overrides)
    return _tried(type(default).parse(changed, where="--set"))


def _tried(chosen: AnySuite) -> AnySuite:
    """Take a training step of every default variant on shapes alone, so that values that do not fit fail now.

    Raises:
        UserError: they do not fit together.
    """
    for variant in chosen.default_variants:
        try:
            flops_per_step(chosen.run_spec(variant, 0, {}), chosen.image_size)
        except UserError:
            raise
        except Exception as error:  # whatever PyTorch says of shapes
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"--set: with these values recipe {variant} cannot be built ({reason}).") from None
    return chosen
