"""Measure tokenizer quality and the noise floor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.features.base import FEATURES, outputs_of
from harness.features.pixels import of_a_set, rows_about
from harness.metrics import frechet, reconstruction
from harness.metrics import latents as metrics_latents
from harness.metrics.frechet import Moments
from harness.metrics.latents import principal_images, spatial_variance, total_variation
from harness.metrics.statistics import Measured
from harness.pipeline.session import Session, threads_of
from harness.preparation.base import Prepared
from harness.records.schema import FloorRecord, TokenizerRecord
from harness.scoring.image_files import GRID_COLUMNS, save_grid
from harness.scoring.paired_images import decoded, encoded
from recipes.core.errors import UserError
from recipes.models.autoencoder import Autoencoder
from recipes.training.run_folder import Run

RECONSTRUCTED = 2048


def examine(session: Session, prepared: Prepared, variants: Sequence[str]) -> None:
    """Measure the tokenizers and the noise floor, and check the gate. Does nothing without an evaluator.

    Raises:
        UserError: a tokenizer's own rFID is over the suite's gate.
    """
    if prepared.judge is None or not session.world.main:
        return
    done = session.records.keys()
    names = {name for variant in variants if (name := prepared.tokenizer_of(variant)) is not None}
    with threads_of(session):
        for name in sorted(names):
            if ("tokenizer", name, None, None) not in done:
                session.records.append(measure_tokenizer(session, prepared, name, prepared.tokenizers[name]))
        _measure_floor(session, prepared, done)
    for before in session.records.all():
        if isinstance(before, TokenizerRecord) and before.run is None and before.rfid > session.suite.max_rfid:
            raise UserError(
                f"the rFID of {before.name} is {before.rfid:.2f}, over the gate of {session.suite.max_rfid:g}: FID "
                "would measure the tokenizer, not the recipes. Train it longer (--set tokenizer.training.steps=...)."
            )


def measure_tokenizer(
    session: Session,
    prepared: Prepared,
    name: str,
    tokenizer: Autoencoder,
    run: Run | None = None,
    step: int | None = None,
) -> TokenizerRecord:
    """Reconstruct reference images from their posterior means; rFID is against the whole reference."""
    evaluator = prepared.evaluator
    reference = evaluator.reference
    originals = reference.images[:RECONSTRUCTED]
    latent, images = _reconstructed(tokenizer.to(session.world.device), originals, session.suite.chunk)
    called, trained = name if run is None else run.spec.name, _of_run(run)
    for note in of_a_set(rows_about(images), f"reconstructions by {called}"):
        session.note(note, trained["variant"], trained["seed"])
    grid, chunk = f"reconstructions/{called}-{step or 0:07d}.png", session.suite.chunk
    components = grid.replace(".png", "-latents.png")
    save_grid(session.folder / grid, torch.cat((originals[:GRID_COLUMNS], images[:GRID_COLUMNS])), GRID_COLUMNS)
    shown = principal_images(latent, session.suite.image_size)[:GRID_COLUMNS]
    save_grid(session.folder / components, shown, GRID_COLUMNS)
    fake = Measured([outputs_of(images.split(chunk), evaluator.network)])
    pairs = list(zip(images.split(chunk), originals.split(chunk), strict=True))
    distances = [reference.lpips(a, b).cpu() for a, b in pairs] if reference.lpips else None
    return TokenizerRecord(
        **session.common(),
        name=name,
        **trained,
        step=step,
        rfid=frechet.frechet_distance(real=reference.measured.moments(FEATURES), fake=fake.moments(FEATURES)),
        psnr=float(torch.cat([reconstruction.psnr_each(a, b) for a, b in pairs]).mean()),
        ssim=float(torch.cat([reconstruction.ssim_each(a, b) for a, b in pairs]).double().mean()),
        lpips=None if distances is None else float(torch.cat(distances).double().mean()),
        latent_variance=float(latent.double().var(dim=(0, 2, 3)).mean()),
        effective_rank=metrics_latents.effective_rank(latent),
        spatial_variance=spatial_variance(latent) if latent[0, 0].numel() > 1 else None,
        total_variation=total_variation(latent),
        n=len(originals),
        grid=grid,
        components=components,
    )


def _of_run(run: Run | None) -> dict[str, Any]:
    """Record fields that identify the run that trained the tokenizer."""
    if run is None:
        return {"variant": None, "seed": None, "run": None}
    return {"variant": run.spec.variant, "seed": run.spec.train.seed, "run": run.spec.digest()}


def _reconstructed(tokenizer: Autoencoder, originals: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Posterior means of uint8 images (N, 3, H, W), and the images that they decode to; on the CPU."""
    latents, rebuilt = [], []
    for first in range(0, len(originals), chunk):
        mean = encoded(tokenizer, originals[first : first + chunk], first)
        latents.append(mean.cpu())
        rebuilt.append(decoded(tokenizer, mean, first))
    return torch.cat(latents), torch.cat(rebuilt)


def _measure_floor(session: Session, prepared: Prepared, done: set[tuple[object, ...]]) -> None:
    """FID between real images: (a) two halves of the reference, (b) as many training images as the protocol draws
    samples, scored like samples.
    """
    n = min(session.suite.curve_protocol.samples, prepared.floor_images)

    def of_training() -> tuple[Moments, Moments]:
        network, reference = prepared.evaluator.network, prepared.evaluator.reference
        chunks = reference.training_images[:n].split(session.suite.chunk)
        return reference.measured.moments(FEATURES), Moments.of(outputs_of(chunks, network)[FEATURES])

    def of_halves() -> tuple[Moments, Moments]:
        features = torch.as_tensor(prepared.evaluator.reference.measured.points(FEATURES))
        half = len(features) // 2
        return Moments.of(features[:half]), Moments.of(features[half:])

    pairs: dict[str, Callable[[], tuple[Moments, Moments]]] = {
        f"{n} training images, as many as samples are drawn": of_training,
        "two disjoint halves of the reference": of_halves,
    }
    for name, make in pairs.items():
        if ("floor", name) in done:
            continue
        real, fake = make()
        fid = frechet.frechet_distance(real=real, fake=fake)
        session.records.append(
            FloorRecord(**session.common(), name=name, fid=fid, n_fake=fake.count, n_real=real.count)
        )
