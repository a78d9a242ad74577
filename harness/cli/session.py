"""Open a `Session` from CLI options."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from harness.cli.options import Chosen, Laid, Place, Sampled, Scored, Several, axes, overrides
from harness.pipeline.opening import Choice, choose, opened

if TYPE_CHECKING:
    from harness.pipeline.session import Session


def chosen_of(place: Place) -> Choice:
    """The suite with its changes, the results folder, and how long to train.

    Raises:
        UserError: see `harness.pipeline.opening.choose`.
    """
    grid = place if isinstance(place, Chosen) else Chosen()
    recipes = [place.recipe] if isinstance(place, Sampled) and place.recipe is not None else grid.recipes
    return choose(
        place.suite,
        recipes,
        axes=axes(place.grid or ()),
        overrides=overrides(place.set_ or ()),
        recipe_files=place.recipe_file or (),
        out=place.out,
        steps=grid.steps,
        score_every=grid.score_every,
    )


def open_session(place: Place, *, writes: bool = True) -> AbstractContextManager[Session]:
    """Open a `Session`; joins the process group under torchrun.

    Raises:
        UserError: see `harness.pipeline.opening.opened`.
    """
    return opened(
        chosen_of(place),
        cache=place.cache,
        data=place.data,
        device=place.device,
        seeds=place.seeds if isinstance(place, Chosen) else None,
        layout=_layout(place),
        keep_samples=isinstance(place, Scored) and place.keep_samples,
        wandb=place.wandb if isinstance(place, Several) else None,
        writes=writes,
    )


def _layout(place: Place) -> dict[str, Any]:
    """Fields of `Execution` from the options."""
    layout: dict[str, Any] = {"threads": place.threads} if isinstance(place, Chosen) else {}
    if isinstance(place, Laid):
        layout |= {
            "micro_batch": place.micro_batch,
            "compile": place.compile,
            "checkpointing": place.checkpointing,
            "save_every": place.save_every,
            "save_minutes": place.save_minutes,
            "keep": place.keep,
            "on_nan": place.on_nan.value,
        }
    return layout
