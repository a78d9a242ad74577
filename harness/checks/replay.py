"""Replays recorded outputs of the released code and reports our relative error.

A folder of the golden form holds `meta.json` (sizes, logged scalars) and six safetensors files with weights, inputs
and outputs on tiny networks; see tests/golden/README.md. Everything is computed in float64.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.checks.recorded import (
    OUTPUT_BOUND,
    PATHS,
    RECORDED_DTYPE,
    SOLVERS,
    STEP_BOUND,
    Folder,
    RecordedDraws,
    Replayed,
    count_steps,
    relative_error,
)
from harness.checks.replay_followups import FOLLOWUPS
from harness.sampling.solvers import Guidance, sample_latents
from recipes.base import Networks, Objective, SiTRecipe
from recipes.core.batch import Batch
from recipes.core.errors import UserError
from recipes.core.interpolant import interpolate
from recipes.core.loop import Trainer, subset
from recipes.core.losses import alignment_loss, denoising_loss, kl_loss
from recipes.core.spec import OptimizerSpec, TrainSpec
from recipes.core.step import Step
from recipes.released.autoencoder import autoencoder_spec, autoencoder_to_compvis
from recipes.repa import Repa
from recipes.repa_e import RepaE
from recipes.vanilla import Vanilla


class MeanSquares(nn.Module):
    """Stands in for LPIPS, whose weights are not part of a replay folder."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Mean squared difference of two image batches."""
        return (a - b).square().mean()


def replay_sit_forward(folder: Folder) -> Iterator[Replayed]:
    """Velocity, features, and both losses on both paths."""
    g = folder.tensors("sit_forward")
    sit = folder.sit(subset(g, "sit")).eval()
    with torch.no_grad():
        out = sit(g["x"], g["t"], g["y"])
        yield Replayed("sit_forward.velocity", relative_error(out.velocity, g["velocity"]), OUTPUT_BOUND)
        yield Replayed("sit_forward.features", relative_error(out.features, g["features"]), OUTPUT_BOUND)
        for path in PATHS:
            point = interpolate(sit.bn.normalize(g["x"]), g["noise"], g["t"], path)
            out = sit(point.x_t, point.t, g["y"])
            ours = {
                "model_output": out.velocity,
                "denoising_loss": denoising_loss(out.velocity, point.target),
                "zs_tilde": out.projected[0],
                "proj_loss": alignment_loss(out.projected[:1], (g["zs"],)).reshape(1),
            }
            for name, value in ours.items():
                key = f"{path}.{name}"
                yield Replayed(f"sit_forward.{key}", relative_error(value, g[key]), OUTPUT_BOUND)


def replay_samplers(folder: Folder) -> Iterator[Replayed]:
    """Every solver, path and guidance setting that the file names."""
    g = folder.tensors("samplers")
    sit = folder.sit(subset(g, "sit")).eval()
    number = r"(\d+(?:\.\d+)?)"
    name = re.compile(rf"({'|'.join(SOLVERS)})\.({'|'.join(PATHS)})\.cfg{number}\.{number}-{number}")
    for key in sorted(key for key in g if key.startswith(tuple(SOLVERS))):
        if (found := name.fullmatch(key)) is None:
            raise UserError(f"{folder.path}: samplers.{key} is not SOLVER.PATH.cfgSCALE.LOW-HIGH.")
        solver, path, *numbers = found.groups()
        out = sample_latents(
            sit,
            g["latents"],
            g["y"],
            solver=SOLVERS[solver],
            steps=int(folder.dims.get("steps", folder.meta.get("sampler_steps", 8))),
            guidance=Guidance(*map(float, numbers)),
            path="linear" if path == "linear" else "cosine",
            noise=lambda k, _: g["sde_noise"][k],
        )
        yield Replayed(f"samplers.{key}", relative_error(out, g[key]), OUTPUT_BOUND)


def replay_autoencoder(folder: Folder) -> Iterator[Replayed]:
    """Posterior, KL, reconstruction and discriminator logits."""
    g = folder.tensors("autoencoder")
    vae = folder.vae(subset(g, "vae")).eval()
    discriminator = folder.discriminator(subset(g, "disc")).eval()
    with torch.no_grad():
        posterior = vae.encode(g["image"])
        ours = {
            "posterior_mean": posterior.mean,
            "posterior_std": posterior.std,
            "posterior_kl": kl_loss(posterior.mean, posterior.std),
            "z": posterior.sample(g["eps"]),
        }
        ours["recon"] = vae.decode(ours["z"])
        ours["disc_logits"] = discriminator(g["image"])
    for name, value in ours.items():
        yield Replayed(f"autoencoder.{name}", relative_error(value, g[name]), OUTPUT_BOUND)


def _batch(step: Mapping[str, Tensor], num_pixels: int) -> Batch:
    blank = torch.zeros(len(step["y"]), 3, num_pixels, num_pixels, dtype=torch.uint8)
    return Batch(
        images=step.get("image", blank),
        labels=step["y"],
        features=(step["zs"],),
        mean=step.get("mean"),
        std=step.get("std"),
    )


def _logged(recipe: SiTRecipe, logs: Mapping[str, Tensor]) -> dict[str, float]:
    """Our logs under the names and scalings of the recorded ones."""
    values = {name: float(value) for name, value in logs.items()}
    renamed = {"l1": "reconstruction", "grad_norm_discriminator": "grad_norm_disc"}
    out = {renamed.get(name, name): value for name, value in values.items()}
    if isinstance(recipe, RepaE):
        o = recipe.options
        out["kl_weighted"] = o.kl * out.pop("kl")
        weighted = {"reconstruction": o.l1, "perceptual": o.perceptual, "kl_weighted": 1.0, "gan": o.gan}
        out["vae_total"] = sum(w * out[k] for k, w in weighted.items()) + o.vae_alignment * out["vae_align"]
    return out


def _replay_steps(
    folder: Folder, file: str, log: str, build: Callable[[Folder, Mapping[str, Tensor]], SiTRecipe]
) -> Iterator[Replayed]:
    """Train the recorded steps through the one loop; compare every logged scalar and every network's change."""
    g = folder.tensors(file)
    recipe = build(folder, g)
    spec = TrainSpec(
        seed=0, batch_size=folder.dims["B"], optimizers={name: OptimizerSpec() for name in recipe.networks}
    )
    trainer = Trainer(recipe, spec)
    for step in range(count_steps(g)):
        recorded = subset(g, f"step{step}")
        batch, draws = _batch(recorded, folder.dims["img"]), RecordedDraws(recorded)
        # Vanilla has no alignment term; the recording measures it all the same.
        extra = {} if isinstance(recipe, Repa) else _measure_alignment(recipe, batch, draws)
        ours = _logged(recipe, trainer.train_step(batch, draws) | extra)
        for name, value in folder.meta[log][step].items():
            error = abs(ours[name] - value) / (abs(value) or 1.0) if name in ours else float("inf")
            yield Replayed(f"{file}.step{step}.{name}", error, OUTPUT_BOUND)
    yield from _compare_changes(file, g, trainer)


def _measure_alignment(recipe: SiTRecipe, batch: Batch, draws: RecordedDraws) -> dict[str, Tensor]:
    watcher = Repa(Networks(sit=recipe.sit), Repa.Options())
    with torch.no_grad():
        return dict(next(watcher.updates(Step(0, batch, draws))).logs)


def _compare_changes(file: str, g: Mapping[str, Tensor], trainer: Trainer) -> Iterator[Replayed]:
    networks = dict(trainer.recipe.networks) | {"ema": trainer.averages["sit"]}
    names = {"sit": "sit", "vae": "vae", "disc": "discriminator", "ema": "ema"}
    for recorded, name in names.items():
        after, before = subset(g, f"after.{recorded}"), subset(g, f"before.{recorded}")
        before = before or subset(g, "before.sit")
        if name not in networks or not after:
            continue
        ours = dict(networks[name].state_dict())
        if recorded == "vae":
            ours = {k.removeprefix("kl."): v for k, v in ours.items()}
            ours = autoencoder_to_compvis(ours, len(autoencoder_spec(after).multipliers))
        keys = [key for key in after if after[key].is_floating_point()]
        change = torch.cat([(after[k] - before[k]).flatten() for k in keys])
        # An average moves by less than float32's spacing, so ours is rounded as the recording was.
        mine = [(ours[k].to(RECORDED_DTYPE).double() - before[k]).flatten() for k in keys if k in ours]
        yield Replayed(f"{file}.change.{recorded}", relative_error(torch.cat(mine), change), STEP_BOUND)


def _vanilla(folder: Folder, g: Mapping[str, Tensor]) -> SiTRecipe:
    return Vanilla(Networks(sit=folder.sit(subset(g, "before.sit"))), Objective())


def _repa(folder: Folder, g: Mapping[str, Tensor]) -> SiTRecipe:
    return Repa(Networks(sit=folder.sit(subset(g, "before.sit"))), Repa.Options())


def _repa_e(folder: Folder, g: Mapping[str, Tensor]) -> SiTRecipe:
    networks = Networks(
        sit=folder.sit(subset(g, "before.sit")),
        vae=folder.vae(subset(g, "before.vae")),
        discriminator=folder.discriminator(subset(g, "before.disc")),
        perceptual=MeanSquares(),
    )
    return RepaE(networks, RepaE.Options())


def replay(path: Path) -> Iterator[Replayed]:
    """Compare every quantity of a folder, as it is computed.

    Raises:
        UserError: the folder is not of the golden form.
    """
    folder = Folder(path)
    if (method := folder.meta.get("method")) is not None:
        if method not in FOLLOWUPS:
            raise UserError(f"{path}: there is no replay of the method '{method}'; known are {', '.join(FOLLOWUPS)}.")
        yield from FOLLOWUPS[method](folder)
        return
    yield from replay_sit_forward(folder)
    yield from replay_samplers(folder)
    yield from replay_autoencoder(folder)
    yield from _replay_steps(folder, "vanilla_steps", "vanilla_log", _vanilla)
    yield from _replay_steps(folder, "repa_steps", "repa_log", _repa)
    yield from _replay_steps(folder, "repa_e_steps", "repa_e_log", _repa_e)
