"""What float16 distances do to precision and recall: why ADM's evaluator prints more than ours, and by how much."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests_support import precision_recall
from torch import Tensor

from harness.checks import adm_evaluator, crosscheck
from harness.runtime.progress import Reporter

WIDTH, K = 2048, 3


def features(count: int) -> tuple[Tensor, Tensor]:
    """Two sets like pool_3: not negative, squared norms about 420, of which neighbours share three quarters."""
    g = torch.Generator().manual_seed(0)
    first, second = torch.randn(30, 300, generator=g) / 30**0.5, torch.randn(300, WIDTH, generator=g) / 300**0.5

    def made(shift: float) -> Tensor:
        latent = torch.randn(count, 30, generator=g) + shift
        noise = 0.1 * torch.randn(count, WIDTH, generator=g)
        return torch.relu(0.4 + 0.3 * torch.tanh(latent @ first) @ second + noise)

    return made(0.0), made(0.15)


def rounded_distances(a: Tensor, b: Tensor) -> np.ndarray:
    """Squared distances as ADM's graph has them: |a|^2 - 2 a.b + |b|^2, each result rounded to float16."""
    low_a, low_b = a.half(), b.half()
    norm_a, norm_b = ((x * x).float().sum(1).half().numpy() for x in (low_a, low_b))
    products = (low_a.float() @ low_b.float().T).half().numpy()
    return np.maximum((norm_a[:, None] - 2 * products) + norm_b, np.float16(0))


def float16_precision_recall(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """Of closed balls whose radii are the K-th of the sorted distances, the point itself at the 0-th place."""
    radius_real, radius_fake = (np.partition(rounded_distances(x, x), K, axis=1)[:, K] for x in (real, fake))
    between = rounded_distances(real, fake)
    return (
        float((between <= radius_real[:, None]).any(0).mean()),
        float((between <= radius_fake).any(1).mean()),
    )


@pytest.mark.parametrize("count", [1500, 2500])
def test_float16_puts_more_inside(count):
    """Shown by `pytest -rP`; by more where there are more points, as in ADM's 10,000 and 50,000."""
    real, fake = features(count)
    exact, low = precision_recall(real=real, fake=fake, k=K), float16_precision_recall(real, fake)
    for name, ours, theirs in zip(("precision", "recall"), exact, low, strict=True):
        print(f"{count} points: {name} {ours:.4f} exact, {theirs:.4f} in float16, {theirs - ours:+.4f}")
        _, below, above = adm_evaluator.KNOWN[name]
        assert above < theirs - ours < below  # not within the bound of exact numbers, within that of float16


@pytest.mark.parametrize(
    ("metric", "off", "passed"),
    [
        ("precision", -0.0085, True),
        ("precision", -0.003, True),
        ("precision", 0.0, True),
        ("precision", -0.012, False),
        ("precision", 0.003, False),  # exact numbers are not above
        ("recall", -0.0085, True),
        ("recall", 0.003, False),
        ("fid", 0.009, True),
        ("fid", -0.009, True),
        ("fid", 0.02, False),
    ],
)
def test_the_known_answer_allows_for_float16(monkeypatch, metric, off, passed):
    found = {name: value for name, (value, _, _) in adm_evaluator.KNOWN.items()}
    found[metric] += off

    class Anything:
        root = path = "nowhere"

    monkeypatch.setattr(crosscheck.catalogue, "require", lambda *_: Anything)
    for name in ("load_network", "Job", "NpzImages"):
        monkeypatch.setattr(crosscheck, name, lambda *_, **__: None)
    monkeypatch.setattr(crosscheck, "score", lambda *_: found)
    checks = {c.metric: c.passed for c in crosscheck.known_answer(Anything, torch.device("cpu"), Reporter(quiet=True))}
    assert checks == dict.fromkeys(adm_evaluator.KNOWN, True) | {metric: passed}
