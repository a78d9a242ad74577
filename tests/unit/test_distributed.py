"""Two real processes and accumulation give what one process gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import make_batch, make_recipe, make_train_spec
from conftest import ROOT
from distributed_worker import NAMES
from safetensors.torch import load_file

from recipes.core.distributed import World
from recipes.core.draws import KeyedDraws
from recipes.core.loop import Trainer
from recipes.registry import RECIPES

WORKER = ROOT / "tests" / "distributed_worker.py"


def start(out: Path, processes: int) -> None:
    out.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(WORKER), str(out)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("processes")
    start(root / "one", 1)
    start(root / "two", 2)
    return root / "one", root / "two"


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one(results, name):
    one, two = results
    ours, theirs = (load_file(folder / f"{name}.safetensors") for folder in results)
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-9, atol=1e-9, msg=key)
    logs = [json.loads((folder / f"{name}.json").read_text()) for folder in (one, two)]
    for a, b in zip(*logs, strict=True):
        assert a == pytest.approx(b, rel=1e-9, abs=1e-12)  # the logs are global means


@pytest.mark.parametrize("name", NAMES)
def test_the_processes_hold_the_same_weights(results, name):
    ranks = [load_file(results[1] / f"{name}.rank{r}.safetensors") for r in (0, 1)]
    for key, value in ranks[0].items():
        assert torch.equal(value, ranks[1][key]), key


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.parametrize("part", [1, 2, 4])
def test_accumulation_changes_nothing(name, part):
    """Without a discriminator, whose batch norm sees parts, and for losses across two images with two at least."""
    if part == 1 and name in ("contrastive", "dispersive"):
        return

    def trained(part: int | None) -> tuple[Trainer, list[dict[str, torch.Tensor]]]:
        across = {"contrastive": {"group": 2}, "dispersive": {"group": 2}}
        options = {"repa_e": {"gan": 0.0}} | across
        recipe = make_recipe(name, dtype=torch.float64, **options.get(name, {}))
        trainer = Trainer(recipe, make_train_spec(*recipe.networks, batch_size=8), micro_batch=part)
        items = torch.arange(8)
        batches = [make_batch(8, seed=s, dtype=torch.float64) for s in range(3)]
        return trainer, [trainer.train_step(b, KeyedDraws(3, s, items)) for s, b in enumerate(batches)]

    (whole, logs), (parts, logs_of_parts) = trained(None), trained(part)
    for key, value in whole.weights().items():
        torch.testing.assert_close(parts.weights()[key], value, rtol=1e-9, atol=1e-9, msg=key)
    for a, b in zip(logs, logs_of_parts, strict=True):
        for key, value in a.items():
            torch.testing.assert_close(b[key], value, rtol=1e-9, atol=1e-9, msg=key)


def test_the_rows_of_a_batch_are_shared_out():
    shares = [World(rank=r, size=4).rows(12) for r in range(4)]
    assert [i for share in shares for i in range(12)[share]] == list(range(12))
    with pytest.raises(ValueError, match="does not divide by 5"):
        World(size=5).rows(12)
