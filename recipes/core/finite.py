"""Refuse NaN/inf early: after casting or averaging they could no longer be noticed."""

from __future__ import annotations

from torch import Tensor

from recipes.core.errors import UserError


def finite(values: Tensor, what: str, first: int, cause: str) -> Tensor:
    """The values (N, ...), if all are finite.

    Args:
        values: a row for an image.
        what: they are, for a person.
        first: number of the first row.
        cause: why one may not be finite, and the remedy.

    Raises:
        UserError: with the number of the first row that is not.
    """
    rows = values.isfinite().reshape(len(values), -1).all(1)
    if not bool(rows.all()):
        raise UserError(f"{what} {first + int((~rows).nonzero()[0])} is not a number: {cause}.")
    return values
