"""Metrics on a CUDA device: `nox -s gpu`."""

from __future__ import annotations

import pytest
import torch
from tests_support import Toy, pictures

from harness.features.base import FEATURES, LOGITS, SPATIAL
from harness.features.inception import load, write_inception
from harness.metrics.evaluate import evaluate
from harness.metrics.statistics import Measured

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")
WANTED = ("fid", "sfid", "is", "precision", "recall", "density", "coverage", "kid")


def measured(seed: int) -> Measured:
    images = torch.from_numpy(pictures(seed, 300)).permute(0, 3, 1, 2).contiguous()
    return Measured([Toy()(part) for part in images.split(100)])


def test_every_metric_is_the_cpus():
    here, there = (
        evaluate(WANTED, real=measured(0), fake=measured(1), device=d).values for d in (torch.device("cpu"), CUDA)
    )
    for name in WANTED:
        assert there[name] == pytest.approx(here[name], rel=1e-9), name


def test_inception_is_the_cpus(tmp_path):
    torch.manual_seed(0)
    weights = write_inception(tmp_path)
    images = torch.from_numpy(pictures(0, 8)).permute(0, 3, 1, 2).contiguous()
    here, there = (load(weights, d)(images) for d in (torch.device("cpu"), CUDA))
    for name in (FEATURES, LOGITS, SPATIAL):
        torch.testing.assert_close(there[name].cpu(), here[name], rtol=2e-3, atol=2e-3 * float(here[name].abs().max()))
