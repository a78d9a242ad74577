"""The Inception score (arXiv 1606.03498) in splits, as ADM computes it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: Images of one part of ADM's Inception score.
ADM_SPLIT = 5000


class InceptionScore(NamedTuple):
    """An Inception score over splits."""

    mean: float
    se: float
    """Standard error of the mean: what other samples of the same model would move it by, to first order. Per split: IS
    x sd(KL) / sqrt(n) (errors of p(y) are second order), so an error exists even for one split. Does not include the
    bias from the split size.
    """


def inception_score(logits: Tensor, splits: int = 1, *, split_size: int | None = None) -> InceptionScore:
    """IS (arXiv 1606.03498): exp of the mean KL of p(y|x) from p(y), averaged over splits taken in order.

    Args:
        logits: (N, classes).
        splits: how many parts, as torch-fidelity and the paper say it.
        split_size: rows of a part instead, the last one may have fewer: ADM's evaluator takes 5,000.

    Raises:
        ValueError: both `splits` and `split_size` are given, or a probability is no number.
    """
    if split_size is not None and splits != 1:
        raise ValueError("give splits or split_size, not both")
    scores, errors = [], []
    for part in logits.chunk(splits) if split_size is None else logits.split(split_size):
        logp = part.double().log_softmax(dim=1)
        if bool(logp.isnan().any()):
            raise ValueError("logits hold NaN or infinity")
        # Of a class that no image may be of, both are log 0, and 0 log 0 is 0.
        marginal = logp.logsumexp(0, keepdim=True) - math.log(len(logp))
        kl = torch.where(logp == -torch.inf, 0.0, logp.exp() * (logp - marginal)).sum(1)
        scores.append(kl.mean().clamp(min=0).exp())  # no divergence is negative, but for rounding
        errors.append(scores[-1] * (kl - kl.mean()).square().mean().sqrt() / math.sqrt(max(1, len(kl) - 1)))
    return InceptionScore(
        float(torch.stack(scores).mean()), float(torch.stack(errors).square().sum().sqrt() / len(errors))
    )
