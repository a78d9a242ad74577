"""Export a run's tuned tokenizer (diffusers and CompVis formats)."""

from __future__ import annotations

from pathlib import Path

from recipes.core.atomic import temporary
from recipes.core.checkpoint import put
from recipes.core.errors import UserError
from recipes.core.loop import subset
from recipes.models.autoencoder import Autoencoder
from recipes.released.autoencoder import save_autoencoder
from recipes.training.run_folder import Run


def export_autoencoder(run_folder: Path, out: Path, name: str, step: int | None) -> Path:
    """Write a run's tokenizer and the statistics of its latents, which are the EMA's running ones where it has an EMA.

    Args:
        run_folder: of a run that trains its tokenizer.
        out: folder, made if it is not there.
        name: of the files.
        step: which checkpoint; the last by default.

    Returns:
        The released form, ``OUT/NAME.pt``.

    Raises:
        UserError: no such run or checkpoint, or the run holds no tokenizer.
    """
    run = Run.open(run_folder)
    kept = run.steps()
    if step is None and kept:
        step = kept[-1]
    if step not in kept:
        raise UserError(f"--step {step}: {run_folder} keeps {', '.join(map(str, kept)) or 'no checkpoint'}.")
    weights = run.weights(step)
    tuned = subset(weights, "vae")
    if not tuned:
        raise UserError(f"{run_folder} is a run of {run.spec.recipe}, which trains no tokenizer; give one of repa_e.")
    vae = Autoencoder(run.spec.tokenizer)
    vae.load_state_dict(tuned)
    statistics = subset(weights, "ema.sit.bn") or subset(weights, "sit.bn")
    with temporary(out / name) as made:  # a full disk leaves nothing half written
        save_autoencoder(made, name, vae, statistics["running_mean"], statistics["running_var"].sqrt())
        for part in made.iterdir():
            put(part, out / part.name)
    return out / f"{name}.pt"
