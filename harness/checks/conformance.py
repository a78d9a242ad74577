"""Does a recipe keep the rules that every other relies on? Tried on a tiny network, in float64, in seconds."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recipes.base import Networks, SiTRecipe, declared
from recipes.core.batch import Batch
from recipes.core.draws import KeyedDraws
from recipes.core.loop import Trainer
from recipes.core.spec import EMASpec, OptimizerSpec, TrainSpec
from recipes.core.step import Step
from recipes.models.autoencoder import Autoencoder, AutoencoderSpec
from recipes.models.discriminator import DiscriminatorSpec, PatchDiscriminator
from recipes.models.perceptual import Perceptual
from recipes.models.sit import SiT, SiTSpec, initialize
from recipes.registry import Recipe
from recipes.training.flops import flops_of, flops_per_step, flops_to
from recipes.training.spec import RunSpec

WIDTH, HEADS, STEPS, BATCH = 12, 2, 4, 8
SIT = SiTSpec(
    latent_size=4, channels=4, num_classes=10, patch_size=2, hidden=16, depth=20, heads=2, encoder_depth=8,
    projector_width=16,
)  # fmt: skip
TOKENIZER = AutoencoderSpec(
    latent_channels=4, base_width=8, multipliers=(1, 2), residual_blocks=1, norm_groups=4, unshuffle=2
)
TOLERANCE = 1e-9
#: Iterations whose cost is counted, beside those at which a recipe says that it changes.
PROBES = (0, 1, 2, 7, 16, 100, 999, 10**5)


@dataclass(frozen=True)
class Check:
    """One rule."""

    rule: str
    fault: str
    """What is wrong, and the remedy; empty if nothing is."""
    skipped: str = ""
    """Why it could not be tried."""


class _MeanSquares(nn.Module):
    """Stands in for LPIPS."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean()


class Bench:
    """A recipe on tiny networks, given exactly what it declares."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.needs = recipe, recipe.needs
        self.start = max(0, next(iter(recipe.changes), 0) - STEPS // 2)
        """First step tried, chosen so that the tried steps cross the first change."""

    def networks(self, seed: int = 0) -> Networks:
        """The same for the same seed; outputs that start at zero are awake."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sit = SiT(self.recipe.shape(SIT, (WIDTH,)))
            initialize(sit, seed)
            for name, parameter in sit.named_parameters():
                if "adaLN" in name or name.startswith("final_layer"):
                    parameter.data.normal_(0, 0.1)
            vae = Autoencoder(TOKENIZER).double() if self.needs.tokenizer else None
            gan = PatchDiscriminator(DiscriminatorSpec(base_width=4, layers=1)) if self.needs.discriminator else None
        perceptual = _MeanSquares() if self.needs.perceptual else None
        return Networks(sit.double(), vae, gan.double() if gan else None, perceptual)

    def batch(self, step: int) -> Batch:
        """A batch with only the inputs that the recipe declares for that step."""
        g, needs = torch.Generator().manual_seed(step), self.recipe.needs_at(step)

        def normal(*shape: int) -> Tensor:
            return torch.randn(BATCH, *shape, generator=g, dtype=torch.float64)

        images = torch.randint(0, 256, (BATCH, 3, 16, 16), generator=g, dtype=torch.uint8)
        whole = Batch(
            labels=torch.randint(0, 10, (BATCH,), generator=g),
            images=images,
            mean=normal(4, 4, 4),
            std=normal(4, 4, 4).abs(),
            features=(normal(SIT.tokens, WIDTH),),
            class_tokens=(normal(WIDTH),),
            attention=tuple(normal(HEADS, SIT.tokens, SIT.tokens) for _ in needs.attention),
        )
        return declared(whole, needs)

    def trainer(self, seed: int = 0, micro_batch: int | None = None) -> Trainer:
        """A fresh trainer positioned at `self.start`."""
        recipe = self.recipe.on(self.networks(seed))
        optimizers = {name: OptimizerSpec(lr=1e-3) for name in recipe.networks}
        spec = TrainSpec(seed=1, batch_size=BATCH, optimizers=optimizers, ema=EMASpec(decay=0.9))
        trainer = Trainer(recipe, spec, micro_batch=micro_batch)
        trainer.position = self.start
        return trainer

    def train(self, trainer: Trainer, steps: int = STEPS) -> Trainer:
        """Train until `steps` steps after `self.start`."""
        for step in range(trainer.position, self.start + steps):
            trainer.train_step(self.batch(step), KeyedDraws(1, step, torch.arange(BATCH)))
        return trainer


def _updates(bench: Bench) -> str:
    """Each update has a finite scalar loss that reaches only its own network, and detached logs."""
    recipe = bench.recipe.on(bench.networks())
    if "sit" not in recipe.averaged:
        return "averaged lacks 'sit', whose average is sampled from"
    if set(recipe.networks) != set(bench.needs.trained):
        return f"it trains {sorted(recipe.networks)}, and its needs say {sorted(bench.needs.trained)}"
    step, seen = Step(0, bench.batch(0), KeyedDraws(1, 0, torch.arange(BATCH)), {"sit": recipe.sit}), []
    for update in recipe.updates(step):
        seen.append(update.network)
        if update.network not in recipe.networks:
            return f"an update is for '{update.network}', which is not among its networks"
        if update.loss.ndim or not bool(update.loss.isfinite()):
            return f"the loss of '{update.network}' is no finite scalar but {update.loss.detach()}"
        if any(value.requires_grad or value.ndim for value in update.logs.values()):
            return "a logged value is no detached scalar; call .detach()"
        for network in recipe.networks.values():
            network.zero_grad(set_to_none=True)
        update.loss.backward()
        reached = {n for n, m in recipe.networks.items() if any(p.grad is not None for p in m.parameters())}
        if reached != {update.network}:
            return f"the update of '{update.network}' gives gradients to {sorted(reached)}; detach, or use `frozen`"
    return "" if sorted(seen) == sorted(recipe.networks) else f"it updates {seen}, once each of its networks is wanted"


def _random(bench: Bench) -> str:
    """Randomness comes through `draws` alone: else neither resuming nor comparing means anything."""
    losses = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            before = torch.random.get_rng_state()
            recipe = bench.recipe.on(bench.networks())
            step = Step(0, bench.batch(0), KeyedDraws(1, 0, torch.arange(BATCH)), {"sit": recipe.sit})
            losses.append([float(update.loss.detach()) for update in recipe.updates(step)])
            if not torch.equal(before, torch.random.get_rng_state()):
                return "it draws from PyTorch's own generator; ask step.draws"
    return "" if losses[0] == losses[1] else "two passes over one batch give different losses; draw from step.draws"


def _micro_batches(bench: Bench) -> str:
    """Accumulating micro-batches gives the same weights as one whole batch, if each micro-batch holds whole groups."""
    size = bench.needs.across or BATCH
    if bench.needs.discriminator or size >= BATCH:
        raise _SkippedError("its losses look across the global batch, which then goes through in one piece")
    whole, parts = (bench.train(bench.trainer(micro_batch=n)) for n in (None, max(size, 2)))
    return _difference(whole.weights(), parts.weights(), "a batch in parts trains other weights than in one")


def _resume(bench: Bench) -> str:
    """A restored run continues exactly like an uninterrupted one."""
    whole, first = bench.train(bench.trainer()), bench.train(bench.trainer(), STEPS // 2)
    second = bench.trainer(seed=9)
    second.restore(
        {k: v.clone() for k, v in first.weights().items()},
        {k: v.clone() for k, v in first.optimizer_state().items()},
        bench.start + STEPS // 2,
    )
    told = "a resumed run ends elsewhere: it keeps a state of its own; keep none, or put it into a network's buffers"
    return _difference(whole.weights(), bench.train(second).weights(), told, 0.0)


def _difference(ours: dict[str, Tensor], theirs: dict[str, Tensor], told: str, most: float = TOLERANCE) -> str:
    for name, value in ours.items():
        apart = float((theirs[name].double() - value.double()).abs().max())
        if not apart <= most:
            return f"{told} ({name} by {apart:.1e})"
    return ""


def _flops(bench: Bench) -> str:
    """The step runs on the meta device (so FLOPs can be counted), and costs less once a need ends."""
    spec, changes = _run_spec(bench), list(bench.recipe.changes)
    if changes != sorted(set(changes)) or any(change < 1 for change in changes):
        return f"changes are {changes}; they are to rise, from 1 on"
    flops_of.cache_clear()
    networks = bench.networks()
    if networks.perceptual is not None:
        networks = replace(networks, perceptual=Perceptual(input_range="unit").double())
    recipe = bench.recipe.on(networks)
    for number in sorted({*PROBES, *(change + k for change in changes for k in (-1, 0, 1))}):
        with sdpa_kernel(SDPBackend.MATH):  # each device has its own kernels, which count differently
            counted = flops_per_step(spec, 16, number)
            spent = _spent(recipe, bench.batch(number).take(torch.arange(2)), number)
        if counted != spent:
            return (
                f"iteration {number} costs {spent:,} operations, and {counted:,} are counted; name the iterations at "
                "which its cost changes in `changes`, and compute the same on PyTorch's meta device"
            )
    late = changes[-1] if changes else 0
    if bench.recipe.needs_at(10**12) != bench.recipe.needs_at(late):
        return "its needs change later than `changes` says; name every step at which they do"
    first, second = flops_to(spec, 16, 1), flops_to(spec, 16, late + 2) - flops_to(spec, 16, late + 1)
    if first <= 0:
        return "nothing is counted"
    fewer = bench.recipe.needs_at(late) != bench.needs
    return "a step costs as much after what it needs has stopped" if fewer and second >= first else ""


def _spent(recipe: SiTRecipe, batch: Batch, number: int) -> int:
    """Operations of a real iteration, counted as `flops_per_step` counts those of an imagined one."""
    draws = KeyedDraws(1, number, torch.arange(len(batch)))
    with FlopCounterMode(display=False) as counter:
        for update in recipe.updates(Step(number, batch, draws, {"sit": recipe.sit})):
            update.loss.backward()
    return int(counter.get_total_flops())


def _run_spec(bench: Bench) -> RunSpec:
    optimizers = {name: OptimizerSpec() for name in bench.needs.trained}
    return RunSpec(
        suite="check",
        variant="check",
        recipe=_name_of(bench.recipe),
        source=bench.recipe.source,
        options=bench.recipe.options.model_dump(mode="json"),
        sit=bench.recipe.shape(SIT, (WIDTH,)),
        tokenizer=TOKENIZER,
        discriminator=DiscriminatorSpec(base_width=4, layers=1),
        perceptual="unit" if bench.needs.perceptual else None,
        train=TrainSpec(seed=0, batch_size=2, optimizers=optimizers),
        inputs={},
    )


def _name_of(recipe: Recipe) -> str:
    from recipes.recipe_files import outside_recipes
    from recipes.registry import RECIPES

    known = {**RECIPES, **{name: one.kind for name, one in outside_recipes().items()}}
    return next(name for name, kind in known.items() if kind is recipe.kind)


class _SkippedError(Exception):
    """A rule that does not apply."""


CHECKS: dict[str, Callable[[Bench], str]] = {
    "losses are finite scalars, each for its own network": _updates,
    "randomness comes through step.draws alone": _random,
    "any micro-batch gives the same": _micro_batches,
    "resuming is exact": _resume,
    "FLOPs are counted, and what stops stops costing": _flops,
}


def conform(recipe: Recipe) -> Iterator[Check]:
    """Try every rule; what is not declared is not given, so that what is missing shows."""
    bench = Bench(recipe)
    for rule, check in CHECKS.items():
        try:
            yield Check(rule, check(bench))
        except _SkippedError as skipped:
            yield Check(rule, "", str(skipped))
        except Exception as error:  # whatever somebody's code raises
            yield Check(rule, _told(error))


def _told(error: Exception) -> str:
    """Where somebody's code failed, and how."""
    frames: list[Any] = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename.rpartition('/')[2]}, line {frames[-1].lineno}: " if frames else ""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{where}{type(error).__name__}: {text}"[:300]
