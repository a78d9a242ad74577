"""The loop that the core is measured against trains the same weights. Not a benchmark: part of the normal suite."""

from __future__ import annotations

import pytest
import torch
from builders import make_batch, make_networks, make_train_spec
from plain_loop import PlainLoop

from recipes.base import Networks
from recipes.core.draws import KeyedDraws
from recipes.core.loop import Trainer
from recipes.registry import RECIPES

STEPS = 3


def networks_of(name: str) -> Networks:
    networks = make_networks()
    networks.sit.bn.start_from(torch.linspace(-0.5, 0.5, 4), torch.linspace(0.5, 1.5, 4))
    for network in (networks.sit, networks.vae, networks.discriminator):
        network.double()
    return networks if name == "repa_e" else Networks(sit=networks.sit)


@pytest.mark.parametrize("name", ["vanilla", "repa", "repa_e"])
def test_equals_the_core(name):
    kind = RECIPES[name]
    core = Trainer(kind(networks_of(name), kind.Options()), make_train_spec("sit", "vae", "discriminator"))
    plain = PlainLoop(name, networks_of(name), kind.Options(), core.spec)
    before = {key: value.clone() for key, value in core.weights().items()}
    for step in range(STEPS):
        batch = make_batch(seed=step, dtype=torch.float64)
        draws = KeyedDraws(3, step, torch.arange(len(batch)))
        logs, theirs = core.train_step(batch, draws), plain.step(batch, draws)
        assert {key: value.item() for key, value in logs.items()} == pytest.approx(
            {key: value for key, value in theirs.items() if key != "vae_loss"}, rel=1e-9, abs=1e-12
        )
    modules = plain.models | {"ema.sit": plain.ema}
    weights = {f"{name}.{key}": value for name, m in modules.items() for key, value in m.state_dict().items()}
    assert weights.keys() == before.keys()
    for key, value in core.weights().items():
        torch.testing.assert_close(weights[key], value, rtol=0, atol=1e-9, msg=key)
    moved = [key for key, value in core.weights().items() if not torch.equal(value, before[key])]
    assert {key.split(".")[0] for key in moved} == {"ema", *core.recipe.networks}
