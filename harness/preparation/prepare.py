"""Dispatches a suite to its preparation class."""

from __future__ import annotations

from collections.abc import Sequence

from harness.preparation import digits, imagenet
from harness.preparation.base import PreparationContext, Prepared
from harness.suites.base import Suite
from harness.suites.digits import DigitsSuite
from harness.suites.imagenet256 import ImagenetSuite


def prepare(suite: Suite, context: PreparationContext, variants: Sequence[str]) -> Prepared:
    """Find or make every asset that some of a suite's variants need.

    Raises:
        UserError: a file that others made is missing, or is not what it should be.
        TypeError: a suite of another kind.
    """
    if isinstance(suite, ImagenetSuite):
        return imagenet.Preparation(suite, context, variants).run()
    if not isinstance(suite, DigitsSuite):
        raise TypeError(f"nobody prepares a {type(suite).__name__}")
    with context.world.main_first():
        return digits.DigitsPreparation(suite, context, variants).run()
