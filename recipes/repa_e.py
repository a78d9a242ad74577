"""REPA-E (arXiv 2504.10483): tokenizer, discriminator and SiT trained together, every iteration, in this order.

The alignment loss alone reaches the tokenizer: the SiT's own step sees detached latents (the stop-gradient).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from recipes.base import Needs, Networks, diffuse
from recipes.core.frozen import frozen
from recipes.core.losses import (
    alignment_loss,
    denoising_loss,
    discriminator_loss,
    generator_loss,
    kl_loss,
    l1_loss,
    l2_loss,
)
from recipes.core.precision import at_least_float32, outside_autocast
from recipes.core.step import Step, Update
from recipes.models.autoencoder import Posterior, to_signed
from recipes.repa import Repa


class RepaE(Repa):
    """Up to three updates for each batch: vae, discriminator (if it has a weight), sit."""

    class Options(Repa.Options):
        """REPA-E's own options; each default is the paper's."""

        vae_alignment: float = 1.5
        vae_diffusion: float = 0.0
        """Coefficient of the denoising loss in the VAE's step: naive end-to-end tuning, which collapses."""
        l1: float = 1.0
        l2: float = 0.0
        perceptual: float = 1.0
        kl: float = 1e-6
        gan: float = 0.1
        loss_precision: Literal["fp32", "autocast"] = "fp32"
        """Number format of LPIPS and the discriminator: float32, as in the release, or that of the run's autocast."""
        train_pos_embed: bool = True
        """The released loop re-enables the gradient of the position embedding."""
        batch_norm: bool = True
        """Standardise the SiT's latents by each batch's statistics; off, by those that the run started with."""

        def left_out(self) -> set[str]:
            """Also leaves out `loss_precision` if neither LPIPS nor GAN is used (keeps old run digests unchanged)."""
            return super().left_out() | (set() if self.perceptual or self.gan else {"loss_precision"})

    def __init__(self, networks: Networks, options: Options) -> None:
        super().__init__(networks, options)
        self.vae = networks.require("vae")
        self.discriminator = networks.require("discriminator") if options.gan else None
        self.perceptual = networks.require("perceptual") if options.perceptual else None
        self.networks["vae"] = self.vae
        if self.discriminator is not None:
            self.networks["discriminator"] = self.discriminator
        self.sit.pos_embed.requires_grad_(options.train_pos_embed)

    @classmethod
    def needs(cls, options: Any, number: int = 0) -> Needs:
        """Needs everything except networks whose loss weight is 0."""
        gan, perceptual = bool(options.gan), bool(options.perceptual)
        return Needs(features=True, tokenizer=True, discriminator=gan, perceptual=perceptual)

    def updates(self, step: Step) -> Iterator[Update]:
        """Step the tokenizer, the discriminator and the SiT."""
        if not self.vae.training:
            self.vae.train()
        assert step.batch.images is not None
        images = to_signed(step.batch.images, next(self.vae.parameters()))
        posterior = self.vae.encode(images)
        latents = posterior.sample(step.draws.normal_like("posterior", posterior.mean))
        self.sit.bn.observe(latents)
        reconstruction = self.vae.decode(latents)
        terms = self.reconstruction_terms(images, reconstruction, posterior)
        terms |= self.latent_terms(latents, step)
        loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
        logs = {name: value.detach() for name, (_, value) in terms.items()}
        yield Update("vae", loss, logs)

        if self.discriminator is not None:
            with self._loss_precision():
                real, fake = at_least_float32(images), at_least_float32(reconstruction.detach())
                hinge = discriminator_loss(self.discriminator(real), self.discriminator(fake))
            yield Update("discriminator", hinge, {"disc": hinge.detach()})

        latents = latents.detach()
        _, variance = self.sit.bn.batch_statistics(move=self.options.batch_norm)
        normal = self.sit.bn.normalize_batch(latents) if self.options.batch_norm else self.sit.bn.normalize(latents)
        loss, sit_logs = self.sit_loss(normal, step)
        yield Update("sit", loss, {**sit_logs, "latent_variance": variance.mean()})

    def reconstruction_terms(
        self, images: Tensor, reconstruction: Tensor, posterior: Posterior
    ) -> dict[str, tuple[float, Tensor]]:
        """(weight, value) of the tokenizer's usual losses."""
        terms = {"kl": (self.options.kl, kl_loss(posterior.mean, posterior.std).mean())}
        if self.options.l1:
            terms["l1"] = (self.options.l1, l1_loss(reconstruction, images))
        if self.options.l2:
            terms["l2"] = (self.options.l2, l2_loss(reconstruction, images))
        with self._loss_precision():
            reconstruction = at_least_float32(reconstruction)
            if self.perceptual is not None:
                terms["perceptual"] = (self.options.perceptual, self.perceptual(reconstruction, images).mean())
            if self.discriminator is not None:
                with frozen(self.discriminator):
                    terms["gan"] = (self.options.gan, generator_loss(self.discriminator(reconstruction)))
        return terms

    def _loss_precision(self) -> AbstractContextManager[None]:
        return outside_autocast() if self.options.loss_precision == "fp32" else nullcontext()

    def latent_terms(self, latents: Tensor, step: Step) -> dict[str, tuple[float, Tensor]]:
        """(weight, value) of what the frozen SiT says of the latents: running statistics, no label dropout."""
        diffusion = self.options.vae_diffusion
        if not (self.options.vae_alignment or diffusion):
            return {}
        with frozen(self.sit):
            point = diffuse(self.sit.bn.normalize(latents), step.draws, self.options)
            depth = None if diffusion else self.sit.spec.encoder_depth
            out = self.sit(point.x_t, point.t, step.batch.labels, stop_after=depth)
            terms = {
                "vae_align": (
                    self.options.vae_alignment,
                    alignment_loss(out.projected, self.options.targets(step.batch)),
                )
            }
            if diffusion:
                terms["vae_denoising"] = (diffusion, denoising_loss(out.velocity, point.target).mean())
        return terms
