"""Samples as a function of (checkpoint, protocol, generation seed, index): not of batch size or resume point."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from harness.sampling.protocol import Protocol
from harness.sampling.solvers import sample_latents
from recipes.core.draws import KeyedDraws
from recipes.core.errors import UserError
from recipes.core.interpolant import PathName
from recipes.core.precision import matrix_products
from recipes.models.autoencoder import Autoencoder
from recipes.models.sit import SiT


def sample_labels(protocol: Protocol, generation_seed: int, indices: Tensor, num_classes: int) -> Tensor:
    """The class of each sample, int64, (N,), on the device of `indices`.

    Balanced labels are a list of `protocol.samples` in which every class is as often, to within one, permuted by the
    generation seed as the release permutes its 50 of each class. The seed also decides which classes get the extra
    sample (or appear at all, if there are fewer samples than classes). Any prefix of the list is a random part of it,
    and is not balanced;
    beyond its end the list begins again, so that any number of whole lists is balanced.

    Raises:
        UserError: the protocol is of the version that had balanced labels in the order of the classes.
    """
    if protocol.labels == "uniform":
        drawn = KeyedDraws(generation_seed, 0, indices).uniform("sample label")
        return (drawn * num_classes).long()
    if protocol.version < 2:
        raise UserError(
            f"protocol {protocol.label}: its balanced labels came in the order of the classes, and are no longer drawn "
            "so; use version 2."
        )
    labels = _balanced_labels(generation_seed, protocol.samples, num_classes)
    return labels[indices.cpu() % protocol.samples].to(indices.device)


@lru_cache(maxsize=8)
def _balanced_labels(generation_seed: int, count: int, num_classes: int) -> Tensor:
    """The list of `sample_labels`, int64, (count,), on the CPU; kept, since every chunk of samples asks for it."""
    # Stable sorts: among 50,000 numbers of 32 bits some are equal.
    classes, places = (
        KeyedDraws(generation_seed, 0, torch.arange(n)).uniform(f"sample label, {purpose}").argsort(stable=True)
        for n, purpose in ((num_classes, "classes"), (count, "places"))
    )
    return classes[places % num_classes]


def to_uint8(images: Tensor, rule: str) -> Tensor:
    """Images about [-1, 1] to uint8: ``floor`` truncates 255 x (REPA, REPA-E), ``round`` rounds it (SiT)."""
    scaled = (images.clamp(-1, 1) + 1) * 127.5
    return (scaled.round() if rule == "round" else scaled).to(torch.uint8)


@dataclass(frozen=True)
class Sampler:
    """Networks needed to sample a checkpoint."""

    sit: SiT
    tokenizer: Autoencoder
    path: PathName

    @torch.no_grad()
    def draw(self, protocol: Protocol, generation_seed: int, indices: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (N, 3, H, W) and labels (N,) of the samples with these indices, on the network's device.

        Raises:
            UserError: a sample is not finite.
        """
        with matrix_products(protocol.precision):
            return self._draw(protocol, generation_seed, indices)

    def _draw(self, protocol: Protocol, generation_seed: int, indices: Tensor) -> tuple[Tensor, Tensor]:
        spec, indices = self.sit.spec, indices.to(self.sit.pos_embed.device)
        labels = sample_labels(protocol, generation_seed, indices, spec.num_classes)
        shape = (len(indices), spec.channels, spec.latent_size, spec.latent_size)
        first = KeyedDraws(generation_seed, 0, indices)
        like = torch.empty(shape, dtype=torch.float64, device=indices.device)
        width = spec.class_width
        latents = sample_latents(
            self.sit,
            first.normal_like("sample start", like),
            labels,
            solver=protocol.solver,
            steps=protocol.steps,
            guidance=protocol.guidance,
            path=self.path,
            noise=lambda k, x: KeyedDraws(generation_seed, k, indices).normal_like("sample noise", x),
            class_start=None
            if width is None
            else first.normal_like("class start", like.new_empty(len(indices), width)),
            class_noise=lambda k, x: KeyedDraws(generation_seed, k, indices).normal_like("class noise", x),
            last_step=protocol.last_step,
            correct_last_step=protocol.correct_last_step,
            precision=protocol.precision,
        )
        decoded = self.tokenizer.decode(self.sit.bn.denormalize(latents).float())
        finite = decoded.isfinite().flatten(1).all(1)
        if not bool(finite.all()):  # as integers they would look like any image
            raise UserError(
                f"sample {int(indices[~finite][0])} under {protocol.label} is not a number: the checkpoint's "
                f"{protocol.weights} weights have diverged; score an earlier step."
            )
        return to_uint8(decoded, protocol.to_uint8), labels
