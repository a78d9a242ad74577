"""The three recipes as a plain training loop, to measure the core against: the same networks and the same mathematics.

Written for this comparison in the way that research code is commonly written: eager, float32 weights without autocast
(TF32 products allowed on a GPU), `.item()` on everything that is logged, Python loops over images and parameters, the
SiT run to its end where only its aligned tokens are wanted. It trains the papers' settings and none of the ablations.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.base import Networks
from recipes.core.batch import Batch
from recipes.core.draws import Draws
from recipes.core.precision import matrix_products
from recipes.core.spec import TrainSpec


class TorchDraws:
    """Torch's global generator behind the few verbs of `Draws`; what a plain loop uses."""

    def __init__(self, items: int, device: torch.device) -> None:
        self._items, self._device = items, device

    def uniform(self, purpose: str) -> Tensor:
        return torch.rand(self._items, device=self._device)

    def normal_like(self, purpose: str, like: Tensor) -> Tensor:
        return torch.randn_like(like)

    def take(self, rows: Tensor) -> TorchDraws:
        return TorchDraws(len(rows), self._device)


def requires_grad(model: nn.Module, flag: bool) -> None:
    for p in model.parameters():
        p.requires_grad = flag


def alignment_by_image(projected: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
    """Minus the mean cosine, one image after the other."""
    loss: Tensor | float = 0.0
    for z, z_tilde in zip(projected, features, strict=True):
        for a, b in zip(z, z_tilde, strict=True):
            a = F.normalize(a, dim=-1)
            b = F.normalize(b, dim=-1)
            loss = loss - (a * b).sum(dim=-1).mean()
    assert isinstance(loss, Tensor)
    return loss / (len(projected) * len(projected[0]))


@torch.no_grad()
def update_ema(ema_model: nn.Module, model: nn.Module, decay: float) -> None:
    """One parameter after the other; then the buffers."""
    ema_params = dict(ema_model.named_parameters())
    for name, param in model.named_parameters():
        ema_params[name].mul_(decay).add_(param.data, alpha=1 - decay)
    ema_buffers = dict(ema_model.named_buffers())
    for name, buffer in model.named_buffers():
        if buffer.dtype.is_floating_point:
            ema_buffers[name].mul_(decay).add_(buffer, alpha=1 - decay)
        else:
            ema_buffers[name].copy_(buffer)


class PlainLoop:
    """Holds what a training script holds in local variables; `step` is the body of its loop."""

    def __init__(
        self,
        recipe: str,
        networks: Networks,
        options: object,
        train: TrainSpec,
        *,
        encoders: Sequence[nn.Module] = (),
        foreach: bool | None = False,
    ) -> None:
        """Args:
        recipe: ``vanilla``, ``repa`` or ``repa_e``.
        networks: on the device; trained in place.
        options: the recipe's.
        train: optimizers and EMA; batch size and precision are not looked at.
        encoders: frozen, where the batch holds no tokens.
        foreach: of AdamW and gradient clipping. None is torch's own choice: parameter by parameter on the CPU, all
            at once on a GPU.
        """
        self.recipe, self.options, self.train_spec, self.encoders = recipe, options, train, list(encoders)
        self.sit, self.vae = networks.sit, networks.vae
        self.discriminator, self.perceptual = networks.discriminator, networks.perceptual
        assert options.path == "linear"
        assert options.time_sampling == "uniform"
        self.models: dict[str, nn.Module] = {"sit": self.sit}
        if recipe == "repa_e":
            assert options.batch_norm
            assert options.train_pos_embed
            assert not options.vae_diffusion
            assert not options.l2
            self.sit.pos_embed.requires_grad = True
            self.models |= {"vae": self.vae, "discriminator": self.discriminator}
        self.foreach = foreach
        self.device = next(self.sit.parameters()).device
        self.ema = copy.deepcopy(self.sit)
        self.ema.eval()
        requires_grad(self.ema, False)
        self.optimizers = {}
        for name, model in self.models.items():
            own = train.optimizers[name]
            self.optimizers[name] = torch.optim.AdamW(
                [p for p in model.parameters() if p.requires_grad],
                lr=own.lr,
                betas=own.betas,
                eps=own.eps,
                weight_decay=own.weight_decay,
                foreach=foreach,
                fused=False,
            )
        self.global_step = 0

    def step(self, batch: Batch, draws: Draws) -> dict[str, float]:
        """One iteration; returns what a script would print."""
        with matrix_products("tf32" if self.device.type == "cuda" else "fp32"):
            logs = self.repa_e_step(batch, draws) if self.recipe == "repa_e" else self.frozen_vae_step(batch, draws)
        ema = self.train_spec.ema
        decay = min(ema.decay, (1 + self.global_step) / (10 + self.global_step)) if ema.warmup else ema.decay
        update_ema(self.ema, self.sit, decay)
        self.global_step += 1
        return logs

    def features(self, batch: Batch) -> Sequence[Tensor]:
        if batch.features:
            return batch.features
        with torch.no_grad():
            return [encoder(batch.images) for encoder in self.encoders]

    def optimize(self, name: str, loss: Tensor) -> float:
        """Backward, clip, step; the gradient norm."""
        own, optimizer = self.train_spec.optimizers[name], self.optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = own.lr * min(1.0, (self.global_step + 1) / max(1, own.warmup_steps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(self.models[name].parameters(), own.clip_norm, foreach=self.foreach)
        optimizer.step()
        return grad_norm.item()

    def sit_loss(
        self, x: Tensor, labels: Tensor, features: Sequence[Tensor], time: Tensor, noise: Tensor, drop: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        labels = torch.where(drop < self.options.label_dropout, self.sit.null_class, labels)
        t = time.view(-1, 1, 1, 1)
        out = self.sit((1 - t) * x + t * noise, time, labels)
        denoising = ((out.velocity - (noise - x)) ** 2).mean()
        loss, logs = denoising, {"denoising": denoising.item()}
        if self.recipe != "vanilla":
            alignment = alignment_by_image(out.projected, features)
            loss = loss + self.options.alignment * alignment
            logs["sit_align"] = alignment.item()
        return loss, logs

    def frozen_vae_step(self, batch: Batch, draws: Draws) -> dict[str, float]:
        features = self.features(batch) if self.recipe == "repa" else ()
        self.sit.bn.eval()
        latents = batch.mean + batch.std * draws.normal_like("posterior", batch.mean)
        x = self.sit.bn(latents)
        time = draws.uniform("time").to(x.dtype)
        noise = draws.normal_like("noise", x)
        loss, logs = self.sit_loss(x, batch.labels, features, time, noise, draws.uniform("label_dropout"))
        logs["grad_norm_sit"] = self.optimize("sit", loss)
        return logs

    def repa_e_step(self, batch: Batch, draws: Draws) -> dict[str, float]:
        options = self.options
        features = self.features(batch)
        images = batch.images.to(next(self.vae.parameters()).dtype) / 127.5 - 1

        # The tokenizer, seen by the SiT and the discriminator that must not learn from it.
        requires_grad(self.vae, True)
        requires_grad(self.sit, False)
        requires_grad(self.discriminator, False)
        self.vae.train()
        self.sit.bn.eval()
        posterior = self.vae.encode(images)
        latents = posterior.mean + posterior.std * draws.normal_like("posterior", posterior.mean)
        reconstruction = self.vae.decode(latents)
        variance = posterior.std**2
        kl = 0.5 * (posterior.mean**2 + variance - 1 - torch.log(variance)).sum(dim=(1, 2, 3)).mean()
        l1 = (reconstruction - images).abs().mean()
        perceptual = self.perceptual(reconstruction, images).mean()
        gan = -self.discriminator(reconstruction).mean()
        time = draws.uniform("time").to(latents.dtype)
        noise = draws.normal_like("noise", latents)
        x = self.sit.bn(latents)
        t = time.view(-1, 1, 1, 1)
        out = self.sit((1 - t) * x + t * noise, time, batch.labels)
        alignment = alignment_by_image(out.projected, features)
        loss = options.kl * kl + options.l1 * l1 + options.perceptual * perceptual + options.gan * gan
        loss = loss + options.vae_alignment * alignment
        logs = {"vae_loss": loss.item(), "kl": kl.item(), "l1": l1.item(), "perceptual": perceptual.item()}
        logs |= {"gan": gan.item(), "vae_align": alignment.item()}
        logs["grad_norm_vae"] = self.optimize("vae", loss)

        # The discriminator.
        requires_grad(self.discriminator, True)
        real, fake = self.discriminator(images), self.discriminator(reconstruction.detach())
        hinge = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        logs["disc"] = hinge.item()
        logs["grad_norm_discriminator"] = self.optimize("discriminator", hinge)

        # The SiT, on latents that it standardises by the batch.
        requires_grad(self.vae, False)
        requires_grad(self.sit, True)
        self.sit.bn.train()
        latents = latents.detach()
        logs["latent_variance"] = latents.var(dim=(0, 2, 3), unbiased=False).mean().item()
        x = self.sit.bn(latents)
        loss, sit_logs = self.sit_loss(x, batch.labels, features, time, noise, draws.uniform("label_dropout"))
        logs |= sit_logs
        logs["grad_norm_sit"] = self.optimize("sit", loss)
        return logs
