"""REPA-E's batch norm of latents (arXiv 2504.10483, section 3.2), which owns their scale in every recipe."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.core.distributed import gather_equal
from recipes.core.precision import at_least_float32

EPS, MOMENTUM = 1e-4, 0.1


def latent_statistics(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (C,) each, of latents drawn from posteriors of which these are (N, C, h, w) each.

    The variance of a draw is that of the posterior means plus the mean of the posteriors' variances.
    """
    return mean.mean(dim=(0, 2, 3)), (mean.var(dim=(0, 2, 3)) + std.square().mean(dim=(0, 2, 3))).sqrt()


class LatentNorm(nn.BatchNorm2d):
    """Standardises tokenizer latents (N, C, h, w): by running statistics, or by those of the effective batch."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=EPS, momentum=MOMENTUM, affine=False)
        self._observed: list[tuple[int, Tensor, Tensor]] = []
        self._batch_statistics: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def start_from(self, mean: Tensor, std: Tensor) -> None:
        """Begin with the tokenizer's known statistics; each of shape (C,)."""
        self.running_mean.copy_(mean)
        self.running_var.copy_(std.square())

    def normalize(self, latents: Tensor) -> Tensor:
        """Standardise by the running statistics, which stay as they are."""
        return F.batch_norm(at_least_float32(latents), self.running_mean, self.running_var, eps=EPS)

    def denormalize(self, samples: Tensor) -> Tensor:
        """Back to the tokenizer's scale. Like the release, without the eps of `normalize`."""
        mean, var = (s.to(samples.dtype).reshape(1, -1, 1, 1) for s in (self.running_mean, self.running_var))
        return samples * var.sqrt() + mean

    def observe(self, latents: Tensor) -> None:
        """Remember the latents of a micro-batch, for `batch_statistics`."""
        var, mean = torch.var_mean(at_least_float32(latents.detach()), dim=(0, 2, 3), correction=0)
        self._observed.append((latents.numel() // latents.shape[1], mean, var))

    @torch.no_grad()
    def batch_statistics(self, *, move: bool) -> tuple[Tensor, Tensor]:
        """Mean and variance, each (C,), of the effective batch: all that was observed in all processes.

        So they depend neither on the number of processes nor on gradient accumulation. With `move`, the running
        statistics move towards them, once for each effective batch.
        """
        if not self._observed:  # another micro-batch of this effective batch was here before
            assert self._batch_statistics is not None
            return self._batch_statistics
        parts = gather_equal(torch.stack([torch.stack((mean, var)) for _, mean, var in self._observed]))
        means, variances = parts.flatten(0, 1).unbind(1)  # each (processes * micro-batches, C), of equal size
        mean, var = means.mean(0), variances.mean(0) + means.var(0, correction=0)
        if move:
            count = self._observed[0][0] * len(means)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), MOMENTUM)
            self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), MOMENTUM)
            self.num_batches_tracked += 1
        self._observed.clear()
        self._batch_statistics = mean, var
        return mean, var

    def normalize_batch(self, latents: Tensor) -> Tensor:
        """Standardise by the statistics of the effective batch, and move the running ones (REPA-E's training pass)."""
        mean, var = (s.reshape(1, -1, 1, 1) for s in self.batch_statistics(move=True))
        return (at_least_float32(latents) - mean) * (var + EPS).rsqrt()
