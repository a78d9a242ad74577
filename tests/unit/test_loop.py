"""The loop knows no recipe, and what each recipe's updates may touch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from builders import make_batch, make_networks, make_recipe, make_train_spec
from conftest import ROOT

from recipes.base import Networks
from recipes.core.draws import KeyedDraws
from recipes.core.frozen import frozen
from recipes.core.loop import Trainer
from recipes.core.step import Step
from recipes.registry import RECIPES
from recipes.repa import Repa
from recipes.repa_e import RepaE
from recipes.vanilla import Vanilla


def make_trainer(name: str, seed: int = 0, **options: float) -> Trainer:
    recipe = make_recipe(name, seed, **options)
    return Trainer(recipe, make_train_spec(*recipe.networks))


def train(trainer: Trainer, steps: int) -> list[dict[str, torch.Tensor]]:
    items, dtype = torch.arange(6), next(trainer.recipe.networks["sit"].parameters()).dtype
    return [
        trainer.train_step(make_batch(seed=trainer.step, dtype=dtype), KeyedDraws(3, trainer.step, items))
        for _ in range(steps)
    ]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_runs_through_the_same_loop(name):
    trainer = make_trainer(name)
    before = {k: v.clone() for k, v in trainer.weights().items()}
    logs = train(trainer, 3)
    assert trainer.step == 3
    assert all(torch.isfinite(value).all() for row in logs for value in row.values())
    for network in trainer.recipe.networks:
        assert f"grad_norm_{network}" in logs[0]
        moved = [k for k, v in trainer.weights().items() if k.startswith(f"{network}.") and not v.equal(before[k])]
        assert moved
    assert not torch.equal(trainer.weights()["ema.sit.x_embedder.proj.weight"], before["sit.x_embedder.proj.weight"])


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "core").glob("*.py")), ids=lambda p: p.name)
def test_core_names_no_recipe(path: Path):
    """No string and no identifier of the code in core/ names a recipe; docstrings may."""
    tree = ast.parse(path.read_text())
    documents = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            found.append(node.value)
        elif isinstance(node, ast.Name):
            found.append(node.id)
        elif isinstance(node, ast.Attribute):
            found.append(node.attr)
    words = {word.lower() for text in found for word in text.split(".")}
    assert not words & {*RECIPES, *(kind.__name__.lower() for kind in RECIPES.values())}


def test_the_recipes_share_initialisation_and_draws():
    """Vanilla and REPA see the same latents, noise, times and dropped labels: their denoising losses start equal."""
    vanilla, repa = make_trainer("vanilla"), make_trainer("repa")
    torch.testing.assert_close(train(vanilla, 1)[0]["denoising"], train(repa, 1)[0]["denoising"])


def test_without_its_coefficient_repa_is_vanilla():
    """In float64: the gradient of a key bias is zero but for rounding, and Adam would blow that up."""
    vanilla, repa = make_trainer("vanilla"), make_trainer("repa", alignment=0.0)
    for trainer in (vanilla, repa):
        for network in (*trainer.recipe.networks.values(), *trainer.averages.values()):
            network.double()
    train(vanilla, 3)
    train(repa, 3)
    ours, theirs = vanilla.weights(), repa.weights()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], msg=key)


def test_stop_gradient_and_frozen_passes():
    """The VAE's step gives the SiT and the discriminator no gradient; the SiT's step gives the VAE none."""
    networks = make_networks()
    recipe = RepaE(networks, RepaE.Options())
    owners = {"vae": networks.vae, "discriminator": networks.discriminator, "sit": networks.sit}
    order = []
    for update in recipe.updates(Step(0, make_batch(), KeyedDraws(0, 0, torch.arange(6)))):
        order.append(update.network)
        for network in owners.values():
            network.zero_grad(set_to_none=True)
        update.loss.backward()
        touched = {name for name, n in owners.items() if any(p.grad is not None for p in n.parameters())}
        assert touched == {update.network}
    assert order == ["vae", "discriminator", "sit"]


def test_alignment_reaches_the_tokenizer():
    """With every other term off, the VAE's gradient is the alignment's; with that off too, there is none."""

    def gradient(**options: float) -> float:
        networks = make_networks()
        off = {"l1": 0.0, "l2": 0.0, "perceptual": 0.0, "gan": 0.0, "kl": 0.0}
        recipe = RepaE(networks, RepaE.Options(**(off | options)))
        update = next(recipe.updates(Step(0, make_batch(), KeyedDraws(0, 0, torch.arange(6)))))
        update.loss.backward()
        return sum(float(p.grad.abs().sum()) for p in networks.vae.parameters() if p.grad is not None)

    assert gradient(vae_alignment=1.5) > 1e-6
    assert gradient(vae_alignment=0.0) == 0.0
    assert gradient(vae_alignment=0.0, vae_diffusion=1.0) > 1e-6


def test_the_frozen_pass_stops_at_the_alignment_depth(monkeypatch):
    networks = make_networks()
    deep = networks.sit.blocks[-1]
    calls = []
    deep.register_forward_hook(lambda *_: calls.append(1))
    recipe = RepaE(networks, RepaE.Options())
    next(recipe.updates(Step(0, make_batch(), KeyedDraws(0, 0, torch.arange(6)))))
    assert not calls


def test_running_statistics_move_in_the_sit_step_alone():
    networks = make_networks()
    recipe = RepaE(networks, RepaE.Options())
    updates = recipe.updates(Step(0, make_batch(), KeyedDraws(0, 0, torch.arange(6))))
    start = networks.sit.bn.running_mean.clone()
    next(updates)
    next(updates)
    assert torch.equal(networks.sit.bn.running_mean, start)
    next(updates)
    assert not torch.equal(networks.sit.bn.running_mean, start)
    vanilla = make_trainer("vanilla")
    train(vanilla, 1)
    assert torch.equal(vanilla.recipe.networks["sit"].bn.running_mean, torch.zeros(4))


def test_frozen_restores_the_flags():
    sit = make_networks().sit
    sit.pos_embed.requires_grad_(False)
    flags = [p.requires_grad for p in sit.parameters()]
    with frozen(sit):
        assert not any(p.requires_grad for p in sit.parameters())
    assert [p.requires_grad for p in sit.parameters()] == flags


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_resumed_equals_uninterrupted(name):
    whole, first = make_trainer(name), make_trainer(name)
    train(whole, 6)
    train(first, 3)
    weights = {k: v.clone() for k, v in first.weights().items()}
    moments = {k: v.clone() for k, v in first.optimizer_state().items()}
    second = make_trainer(name, seed=9)  # other weights, all of which must be replaced
    second.restore(weights, moments, position=3)
    second.clock.start(12.5, 100.0)
    train(second, 3)
    assert second.clock.seconds >= 12.5
    assert second.clock.device_seconds >= 100.0
    for key, value in whole.weights().items():
        assert torch.equal(value, second.weights()[key]), key
    for key, value in whole.optimizer_state().items():
        assert torch.equal(value, second.optimizer_state()[key]), key


def test_learning_rate_warms_up():
    trainer = make_trainer("vanilla")
    train(trainer, 1)
    assert trainer.optimizers["sit"].param_groups[0]["lr"] == pytest.approx(5e-4)
    train(trainer, 2)
    assert trainer.optimizers["sit"].param_groups[0]["lr"] == pytest.approx(1e-3)


def test_a_batch_of_another_step_is_a_bug():
    trainer = make_trainer("vanilla")
    with pytest.raises(ValueError, match="step 4 came at step 0"):
        next(iter(trainer.train([(4, make_batch())])))


def test_the_clock_stops():
    trainer = make_trainer("vanilla")
    stream = trainer.train((s, make_batch()) for s in range(2))
    next(stream)
    with trainer.clock.stopped():
        stopped = trainer.clock.seconds
        assert trainer.clock.seconds == stopped
    next(stream)
    assert trainer.clock.seconds > stopped


def test_a_missing_network_is_named():
    with pytest.raises(ValueError, match="'vae'"):
        RepaE(Networks(sit=make_networks().sit), RepaE.Options())
    assert issubclass(RepaE, Repa)
    assert issubclass(Repa, Vanilla)
