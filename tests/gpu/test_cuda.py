"""The core on a CUDA device: `nox -s gpu`."""

from __future__ import annotations

import pytest
import torch
from builders import make_batch, make_recipe, make_train_spec

from recipes.core.draws import KeyedDraws, key_of, uniform
from recipes.core.loop import Trainer
from recipes.registry import RECIPES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def make_trainer(name: str, device: str) -> Trainer:
    recipe = make_recipe(name)
    for network in recipe.networks.values():
        network.to(device)
    return Trainer(recipe, make_train_spec(*recipe.networks))


def test_draws_are_the_same_integers():
    items = torch.arange(100)
    here, there = (uniform(key_of(1, "x"), 3, items.to(d), 17).cpu() for d in ("cpu", "cuda"))
    assert torch.equal(here, there)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_losses_agree_with_the_cpu(name):
    logs = {}
    for device in ("cpu", "cuda"):
        trainer = make_trainer(name, device)
        draws = KeyedDraws(3, 0, torch.arange(6, device=device))
        logs[device] = trainer.train_step(make_batch().to(torch.device(device)), draws)
    for key, value in logs["cpu"].items():
        torch.testing.assert_close(logs["cuda"][key].cpu(), value, rtol=2e-3, atol=2e-4, msg=key)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_step_never_waits_for_the_device(name):
    trainer = make_trainer(name, "cuda")
    batch, items = make_batch().to(torch.device("cuda")), torch.arange(6, device="cuda")
    trainer.train_step(batch, KeyedDraws(3, 0, items))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step(batch, KeyedDraws(3, 1, items))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.step == 2
