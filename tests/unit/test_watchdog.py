"""What is not a number never gets into a training, and somebody hears of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest
import torch
from builders import make_batch, make_networks, make_train_spec
from test_run import make_inputs, make_spec

from recipes.core import watchdog
from recipes.core.draws import KeyedDraws
from recipes.core.errors import Diverged
from recipes.core.loop import Trainer
from recipes.core.spec import Execution
from recipes.core.step import Update
from recipes.core.watchdog import Fault, Watch
from recipes.data.loader import order
from recipes.registry import RECIPES
from recipes.repa_e import RepaE
from recipes.training.run_folder import Run
from recipes.training.train import TrainingOptions, train_run
from recipes.vanilla import Vanilla


def poison(recipe: type, positions: set[int], network: str = "sit", by: float = math.nan) -> type:
    """A recipe whose loss for a network is not finite at some batches."""

    class Poisoned(recipe):  # type: ignore[misc, valid-type]
        calls = 0

        def updates(self, step) -> Iterator[Update]:
            type(self).calls += 1
            for update in super().updates(step):
                bad = update.network == network and type(self).calls - 1 in positions
                yield Update(update.network, update.loss * by, update.logs) if bad else update

    return Poisoned


def finite(tensors: dict[str, torch.Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point())


@pytest.mark.parametrize("by", [math.nan, math.inf])
@pytest.mark.parametrize("network", ["sit", "vae", "discriminator"])
def test_a_bad_update_does_not_happen(network, by):
    kind = poison(RepaE, {1}, network, by)
    recipe = kind(make_networks(), kind.Options())
    trainer = Trainer(recipe, make_train_spec(*recipe.networks))
    states = []
    for step in range(3):
        trainer.train_step(make_batch(seed=step), KeyedDraws(3, step, torch.arange(6)))
        states.append({k: v.clone() for k, v in trainer.weights().items()})
        assert finite(states[-1])
        assert finite(trainer.optimizer_state())
    for name, parameter in recipe.networks[network].named_parameters():
        if parameter.requires_grad:
            assert torch.equal(states[1][f"{network}.{name}"], states[0][f"{network}.{name}"])
    assert any(not torch.equal(states[2][k], states[1][k]) for k in states[1] if k.startswith(f"{network}."))
    found = trainer.settle()
    assert found.skipped == {name: int(name == network) for name in recipe.networks}
    assert found.position == 1
    assert not math.isfinite(found.logs[f"grad_norm_{network}"])
    assert found.fault("stop", scaled=False) == Fault(network, "the gradient was not finite", skippable=True)
    assert found.fault("skip", scaled=False) is None
    assert found.fault("stop", scaled=True) is None
    assert trainer.step == (2 if network == "sit" else 3)
    assert trainer.settle().position is None  # read once


def test_images_that_are_not_numbers_reach_no_statistic():
    """The batch norms of the SiT and of the discriminator move in the forward pass."""

    class Sick(RepaE):
        def updates(self, step) -> Iterator[Update]:
            self.vae.kl.encoder.conv_in.weight.data.fill_(math.nan)
            yield from super().updates(step)

    recipe = Sick(make_networks(), Sick.Options())
    trainer = Trainer(recipe, make_train_spec(*recipe.networks))
    before = {k: v.clone() for k, v in trainer.weights().items()}
    trainer.train_step(make_batch(), KeyedDraws(3, 0, torch.arange(6)))
    after = trainer.weights()
    for name in before:
        if not name.startswith("vae."):
            assert torch.isfinite(after[name]).all(), name
        if "running" in name:
            assert torch.equal(after[name], before[name]), name


def test_limits(monkeypatch):
    watch = Watch(["a", "b"], torch.device("cpu"))
    for position in range(watchdog.MOST_SKIPPED):
        watch.see("a", torch.tensor(math.nan))
        watch.see("b", torch.tensor(0.0))
        watch.end(position, {"grad_norm_a": torch.tensor(math.nan)})
    found = watch.read()
    assert found.position == 0
    for on_nan, scaled in (("skip", False), ("stop", True), ("skip", True)):
        assert found.fault(on_nan, scaled=scaled) == Fault("a", "50 updates in succession were not finite")
    watch.see("a", torch.tensor(1.0))
    for position in range(watchdog.MOST_STILL - watchdog.MOST_SKIPPED):
        watch.see("b", torch.tensor(0.0))
        watch.end(50 + position, {"grad_norm_a": torch.tensor(1.0)})
    found = watch.read()
    assert found.fault("stop", scaled=False) == Fault("b", "the gradient was exactly 0 for 100 updates in succession")
    watch.see("b", torch.tensor(1e-9))
    watch.end(100, {"grad_norm_a": torch.tensor(1.0)})
    assert watch.read().fault("stop", scaled=False) is None


def run_poisoned(tmp_path, monkeypatch, positions, on_nan="stop", milestones=(2, 4, 6), log_every=1):
    monkeypatch.setitem(RECIPES, "vanilla", poison(Vanilla, positions))
    run = Run(make_spec("vanilla"), tmp_path)
    try:
        train_run(
            run, make_inputs(), milestones, TrainingOptions(Execution(device="cpu", on_nan=on_nan), log_every=log_every)
        )
    finally:
        monkeypatch.setitem(RECIPES, "vanilla", Vanilla)
    return run


@pytest.mark.parametrize("log_every", [1, 25])
def test_stop_keeps_the_last_good_checkpoint_and_says_what_happened(tmp_path, monkeypatch, log_every):
    with pytest.raises(Diverged, match=r"sit: the gradient was not finite \(batch 2\).*--on-nan skip"):
        run_poisoned(tmp_path, monkeypatch, {2}, log_every=log_every)
    run = Run(make_spec("vanilla"), tmp_path)
    assert run.steps() == [2]
    assert finite(run.weights(2))
    told = json.loads((tmp_path / "incidents" / "0000002.json").read_text())
    assert (told["position"], told["network"], told["last_checkpoint"], told["seed"]) == (2, "sit", 2, 1)
    assert told["images"] == order(1, torch.arange(8, 12), 12).tolist()
    assert told["logs"]["grad_norm_sit"] == "nan"
    assert isinstance(told["logs"]["denoising"], float)
    for line in run.log_path.read_text().splitlines():
        assert all(value == value for value in json.loads(line).values())
    train_run(run, make_inputs(), [2, 4, 6])  # without the poison, the same call goes on
    assert run.steps() == [2, 4, 6]


def test_skip_leaves_the_update_out_counts_it_and_survives_a_restart(tmp_path, monkeypatch):
    run = run_poisoned(tmp_path, monkeypatch, {1, 3}, on_nan="skip", milestones=[2, 3])
    assert run.steps() == [2, 3]
    assert [run.clock(step)["left_out"] for step in run.steps()] == [{"sit": 1}, {"sit": 2}]
    assert [run.clock(step)["position"] for step in run.steps()] == [3, 5]
    rows = [json.loads(line) for line in run.log_path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[-1]["skipped_sit"] == 2
    train_run(run, make_inputs(), [2, 3, 6])  # and in the mode that stops, what was left out before is no news
    assert run.clock(6)["left_out"] == {"sit": 2}
    assert run.clock(6)["position"] == 8


def test_skip_gives_up_where_nothing_works(tmp_path, monkeypatch):
    with pytest.raises(Diverged, match="50 updates in succession were not finite"):
        run_poisoned(tmp_path, monkeypatch, set(range(2, 1000)), on_nan="skip", milestones=[2, 60])


def test_a_loss_that_is_not_finite_with_a_gradient_that_is(tmp_path, monkeypatch):
    class Odd(Vanilla):
        def updates(self, step) -> Iterator[Update]:
            for update in super().updates(step):
                yield Update(update.network, update.loss, {"denoising": update.loss.detach() * math.nan})

    monkeypatch.setitem(RECIPES, "vanilla", Odd)
    with pytest.raises(Diverged, match="denoising: the loss was not finite"):
        train_run(Run(make_spec("vanilla"), tmp_path), make_inputs(), [2])


def test_latents_that_explode(tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.training.train.EXPLODED", 1e-3)
    with pytest.raises(Diverged, match="the latents exploded"):
        train_run(Run(make_spec("repa_e"), tmp_path), make_inputs(), [2])


def test_a_quiet_training_is_as_before_to_the_bit():
    """The watch changes nothing where there is nothing to see: found_inf of 0 is no found_inf."""
    networks = [torch.nn.Linear(4, 4) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers = [torch.optim.AdamW(n.parameters(), lr=1e-2, fused=True) for n in networks]
    for step in range(5):
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
        for network, optimizer in zip(networks, optimizers, strict=True):
            optimizer.zero_grad()
            network(x).square().mean().backward()
        optimizers[1].found_inf = torch.zeros(())
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(networks[0].weight, networks[1].weight)
