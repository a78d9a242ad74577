"""Samples as a function of (checkpoint, protocol, generation seed, index): not of batch size or resume point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.protocol import Protocol
from harness.sampler import sample_latents
from recipes.core.draws import KeyedDraws
from recipes.core.errors import UserError
from recipes.core.interpolant import PathName
from recipes.core.precision import matrix_products
from recipes.models.autoencoder import Autoencoder
from recipes.models.sit import SiT


def sample_labels(protocol: Protocol, generation_seed: int, indices: Tensor, num_classes: int) -> Tensor:
    """The class of each sample, int64, (N,)."""
    if protocol.labels == "balanced":
        return indices % num_classes
    drawn = KeyedDraws(generation_seed, 0, indices).uniform("sample label")
    return (drawn * num_classes).long()


def to_uint8(images: Tensor, rule: str) -> Tensor:
    """Images about [-1, 1] to uint8: ``floor`` truncates 255 x (REPA, REPA-E), ``round`` rounds it (SiT)."""
    scaled = (images.clamp(-1, 1) + 1) * 127.5
    return (scaled.round() if rule == "round" else scaled).to(torch.uint8)


@dataclass(frozen=True)
class Sampler:
    """A checkpoint that is ready to draw from."""

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
        like = torch.empty(shape, dtype=torch.float64, device=indices.device)
        latents = sample_latents(
            self.sit,
            KeyedDraws(generation_seed, 0, indices).normal_like("sample start", like),
            labels,
            solver=protocol.solver,
            steps=protocol.steps,
            guidance=protocol.guidance,
            path=self.path,
            noise=lambda k, x: KeyedDraws(generation_seed, k, indices).normal_like("sample noise", x),
            last_step=protocol.last_step,
            precision=protocol.precision,
        )
        decoded = self.tokenizer.decode(self.sit.denormalize(latents).float())
        finite = decoded.isfinite().flatten(1).all(1)
        if not bool(finite.all()):  # as integers they would look like any image
            raise UserError(
                f"sample {int(indices[~finite][0])} under {protocol.label} is not a number: the checkpoint's "
                f"{protocol.weights} weights have diverged; score an earlier step."
            )
        return to_uint8(decoded, protocol.to_uint8), labels
