"""Open a `Session` from CLI options."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from harness.cli.options import Chosen, Laid, Place, Scored, overrides
from harness.pipeline.opening import opened

if TYPE_CHECKING:
    from harness.pipeline.session import Session


def open_session(place: Place, *, writes: bool = True) -> AbstractContextManager[Session]:
    """Open a `Session`; joins the process group under torchrun.

    Raises:
        UserError: see `harness.pipeline.opening.opened`.
    """
    grid = place if isinstance(place, Chosen) else Chosen()
    return opened(
        place.suite,
        overrides=overrides(place.set_ or ()),
        recipe_files=place.recipe_file or (),
        out=place.out,
        cache=place.cache,
        data=place.data,
        device=place.device,
        seeds=grid.seeds,
        steps=grid.steps,
        score_every=grid.score_every,
        layout=_layout(place),
        keep_samples=isinstance(place, Scored) and place.keep_samples,
        writes=writes,
    )


def _layout(place: Place) -> dict[str, Any] | None:
    """Fields of `Execution` from the options."""
    if not isinstance(place, Laid):
        return None
    return {
        "micro_batch": place.micro_batch,
        "compile": place.compile,
        "checkpointing": place.checkpointing,
        "threads": place.threads,
        "save_every": place.save_every,
        "save_minutes": place.save_minutes,
        "keep": place.keep,
        "on_nan": place.on_nan.value,
    }
