"""How far a SiT's features agree with the encoder's, block by block and checkpoint by checkpoint (CKNNA)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.metrics.latents import cknna
from harness.pipeline.session import Session
from harness.preparation.base import Prepared
from harness.records.schema import AlignmentRecord
from harness.scoring.paired_images import encoded
from recipes.core.batch import Batch
from recipes.core.draws import KeyedDraws
from recipes.core.errors import UserError
from recipes.core.finite import finite
from recipes.core.interpolant import interpolate
from recipes.models.sit import SiT
from recipes.training.build import complete
from recipes.training.run_folder import Run, load_for_sampling

#: Training images that are looked at, the noise level, and the k of CKNNA that REPA (arXiv 2410.06940) uses.
COUNT, TIME, NEIGHBOURS = 1024, 0.5, 10


def aligned_variant(session: Session, variants: Sequence[str]) -> str:
    """A variant with an encoder; its data and encoder features are used for all variants.

    Raises:
        UserError: there is none among them.
    """
    for variant in variants:
        if session.suite.run_spec(variant, 0, {}).method.needs.features:
            return variant
    raise UserError("--recipes: none of them has an encoder to compare with; name repa or repa_e too.")


@torch.no_grad()
def encoder_features(session: Session, prepared: Prepared, variant: str, count: int) -> tuple[Batch, Tensor]:
    """Training images and the encoder's tokens of them, averaged over positions: (N, width)."""
    inputs = prepared.inputs(variant)
    batch = inputs.data.take(torch.arange(min(count, len(inputs.data))))
    assert batch.images is not None
    if batch.features:
        return batch, batch.features[0].float().mean(1)
    encoder = inputs.encoders[0].to(session.world.device)
    chunks = batch.images.to(session.world.device).split(session.suite.chunk)
    return batch, torch.cat([encoder(chunk).float().mean(1).cpu() for chunk in chunks])


@torch.no_grad()
def block_features(sit: SiT, x: Tensor, t: Tensor, y: Tensor, class_token: Tensor | None = None) -> list[Tensor]:
    """The patch tokens after each block, averaged over positions: (N, hidden) for every depth."""
    depth = len(sit.blocks)
    out = sit(x, t, y, class_token=class_token, taps=range(1, depth + 1), stop_after=depth, project=False)
    first = 0 if class_token is None else 1
    return [tokens[:, first:].float().mean(1).cpu() for tokens in out.taps.values()]


@torch.no_grad()
def _sit_features(session: Session, prepared: Prepared, run: Run, step: int, images: Tensor) -> list[Tensor]:
    device = session.world.device
    sit, tokenizer = load_for_sampling(run, step, prepared.tokenizer(run.spec.variant), average=True, device=device)
    path = run.spec.method.options.path
    class_tokens = _class_tokens(prepared, run, len(images))
    parts: list[list[Tensor]] = []
    for indices in torch.arange(len(images)).split(session.suite.chunk):
        latents = sit.bn.normalize(encoded(tokenizer, images[indices], int(indices[0])))
        noise = KeyedDraws(0, 0, indices.to(device)).normal_like("alignment noise", latents)
        t = torch.full((len(indices),), TIME, device=device, dtype=latents.dtype)
        null = torch.full((len(indices),), sit.null_class, device=device)
        token = None
        if class_tokens is not None:
            clean = class_tokens[indices].to(latents)
            own = KeyedDraws(0, 0, indices.to(device)).normal_like("alignment class noise", clean)
            token = interpolate(clean, own, t, path).x_t
        found = block_features(sit, interpolate(latents, noise, t, path).x_t, t, null, token)
        cause = f"{run.spec.name} has diverged at step {step}; take an earlier one"
        parts.append([finite(depth, "what the SiT says of image", int(indices[0]), cause) for depth in found])
    return [torch.cat(depth) for depth in zip(*parts, strict=True)]


def _class_tokens(prepared: Prepared, run: Run, count: int) -> Tensor | None:
    """The encoder's class tokens of the first training images, for a network that has one."""
    if run.spec.sit.class_width is None:
        return None
    inputs = prepared.inputs(run.spec.variant)
    data = inputs.data.take(torch.arange(count))
    return complete(data, run.spec.method.needs, inputs.encoders).class_tokens[-1]


def analyse(session: Session, prepared: Prepared, runs: Sequence[Run], reference: str, count: int = COUNT) -> None:
    """Record the alignment of every kept checkpoint of these runs, at every depth.

    Args:
        session: where the records go.
        prepared: with the encoder of `reference`.
        runs: trained ones.
        reference: a variant with an encoder.
        count: images.
    """
    done = session.records.keys()
    missing = [(run, step) for run in runs for step in run.steps() if _key(run, step, count) not in done]
    if not missing:
        return
    batch, tokens = encoder_features(session, prepared, reference, count)
    assert batch.images is not None
    with session.reporter.stage("alignment", len(missing)) as on_step:
        for number, (run, step) in enumerate(missing, start=1):
            depths = _sit_features(session, prepared, run, step, batch.images)
            session.records.append(
                AlignmentRecord(
                    **session.common(),
                    variant=run.spec.variant,
                    label=session.suite.variants[run.spec.variant].label,
                    seed=run.spec.train.seed,
                    run=run.spec.digest(),
                    step=step,
                    cknna=[cknna(depth, tokens, min(NEIGHBOURS, len(tokens) // 4)) for depth in depths],
                    aligned_depth=run.spec.sit.encoder_depth,
                    time=TIME,
                    count=count,
                )
            )
            on_step(number)


def _key(run: Run, step: int, count: int) -> tuple[object, ...]:
    return AlignmentRecord.key_of(run.spec.digest(), step, count)
