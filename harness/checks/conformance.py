"""Does a recipe keep the rules that every other relies on? Tried on a tiny network, in float64, in seconds."""

from __future__ import annotations

import inspect
import random
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from recipes.base import Networks, SiTRecipe
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

WIDTH, HEADS, BATCH = 12, 2, 8
#: Iterations at which FLOPs are compared, and those at which it trains, besides those beside each change.
COUNTED, TRAINED = (0, 1, 2, 3, 5, 10, 16, 17, 100, 999, 10**5), (0, 1, 10, 10**5)
SIT = SiTSpec(
    latent_size=4, channels=4, num_classes=10, patch_size=2, hidden=16, depth=20, heads=2, encoder_depth=8,
    projector_width=16,
)  # fmt: skip
TOKENIZER = AutoencoderSpec(
    latent_channels=4, base_width=8, multipliers=(1, 2), residual_blocks=1, norm_groups=4, unshuffle=2
)
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Check:
    """One rule."""

    rule: str
    fault: str
    """What is wrong, and the remedy; empty if nothing is."""
    skipped: str = ""
    """Why it could not be tried."""


class _MeanSquares(nn.Module):
    """Stands in for LPIPS, but where FLOPs are compared."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean()


class Bench:
    """A recipe on tiny networks, given exactly what it declares."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.needs, self.changes = recipe, recipe.needs, list(recipe.changes)
        beside = {max(0, change + apart) for change in self.changes for apart in (-1, 0)}
        self.trained = sorted({*TRAINED, *beside})
        middles = {(a + b) // 2 for a, b in pairwise([0, *self.changes])}
        self.counted = sorted({*COUNTED, *beside, *middles, *(change + 1 for change in self.changes)})

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

        return needs.of(
            Batch(
                labels=torch.randint(0, 10, (BATCH,), generator=g),
                images=torch.randint(0, 256, (BATCH, 3, 16, 16), generator=g, dtype=torch.uint8),
                mean=normal(4, 4, 4),
                std=normal(4, 4, 4).abs(),
                features=(normal(SIT.tokens, WIDTH),),
                class_tokens=(normal(WIDTH),),
                attention=tuple(normal(HEADS, SIT.tokens, SIT.tokens) for _ in needs.attention),
            )
        )

    def step(self, number: int, recipe: SiTRecipe) -> Step:
        """What it is given in iteration `number`; its average is itself."""
        return Step(number, self.batch(number), _draws(number), {"sit": recipe.sit})

    def trainer(self, seed: int = 0, micro_batch: int | None = None) -> Trainer:
        """A fresh trainer."""
        recipe = self.recipe.on(self.networks(seed))
        optimizers = {name: OptimizerSpec(lr=1e-3) for name in recipe.networks}
        spec = TrainSpec(seed=1, batch_size=BATCH, optimizers=optimizers, ema=EMASpec(decay=0.9))
        return Trainer(recipe, spec, micro_batch=micro_batch)

    def train(self, trainer: Trainer, numbers: Sequence[int] | None = None) -> Trainer:
        """Train the iterations `numbers`, by default all of `trained`."""
        for number in self.trained if numbers is None else numbers:
            trainer.position = number
            trainer.train_step(self.batch(number), _draws(number))
        return trainer


def _draws(number: int) -> KeyedDraws:
    return KeyedDraws(1, number, torch.arange(BATCH))


def _updates(bench: Bench) -> str:
    """Each update has a finite scalar loss that reaches only its own network, and detached logs."""
    recipe = bench.recipe.on(bench.networks())
    if "sit" not in recipe.averaged:
        return "averaged lacks 'sit', whose average is sampled from"
    if set(recipe.networks) != set(bench.needs.trained):
        return f"it trains {sorted(recipe.networks)}, and its needs say {sorted(bench.needs.trained)}"
    return next(filter(None, (_update_of(recipe, bench.step(number, recipe)) for number in bench.trained)), "")


def _update_of(recipe: SiTRecipe, step: Step) -> str:
    seen, where = [], f"in iteration {step.number}, "
    for update in recipe.updates(step):
        seen.append(update.network)
        if update.network not in recipe.networks:
            return f"{where}an update is for '{update.network}', which is not among its networks"
        if update.loss.ndim or not bool(update.loss.isfinite()):
            return f"{where}the loss of '{update.network}' is no finite scalar but {update.loss.detach()}"
        if any(not isinstance(value, Tensor) or value.requires_grad or value.ndim for value in update.logs.values()):
            return f"{where}a logged value is no detached scalar tensor; call .detach()"
        for network in recipe.networks.values():
            network.zero_grad(set_to_none=True)
        update.loss.backward()
        reached = {n for n, m in recipe.networks.items() if any(p.grad is not None for p in m.parameters())}
        if reached != {update.network}:
            told = f"the update of '{update.network}' gives gradients to {sorted(reached)}; detach, or use `frozen`"
            return where + told
    whole = sorted(seen) == sorted(recipe.networks)
    return "" if whole else f"{where}it updates {seen}, once each of its networks is wanted"


def _random(bench: Bench) -> str:
    """Randomness comes through `draws` alone: else neither resuming nor comparing means anything."""
    losses = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            recipe, before = bench.recipe.on(bench.networks()), _generators()
            losses.append(
                [
                    float(update.loss.detach())
                    for number in bench.trained
                    for update in recipe.updates(bench.step(number, recipe))
                ]
            )
            if before != _generators():
                return "it draws from a generator of PyTorch, NumPy or Python; ask step.draws"
    return (
        ""
        if str(losses[0]) == str(losses[1])
        else "two passes over one batch give different losses; draw from step.draws"
    )


def _generators() -> tuple[object, ...]:
    """The states of the generators that everybody shares."""
    return torch.random.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002


def _micro_batches(bench: Bench) -> str:
    """Accumulating micro-batches gives the same weights as one whole batch, if each micro-batch holds whole groups."""
    size = bench.needs.across or BATCH
    if bench.needs.discriminator or size >= BATCH:
        raise _SkippedError("its losses look across the global batch, which then goes through in one piece")
    whole, parts = (bench.train(bench.trainer(micro_batch=n)) for n in (None, size if size > 1 else BATCH // 2))
    return _difference(whole.weights(), parts.weights(), "a batch in parts trains other weights than in one")


def _resume(bench: Bench) -> str:
    """A restored run continues exactly like an uninterrupted one."""
    half = len(bench.trained) // 2
    whole, first = bench.train(bench.trainer()), bench.train(bench.trainer(), bench.trained[:half])
    second = bench.trainer(seed=9)
    second.restore(
        {k: v.clone() for k, v in first.weights().items()},
        {k: v.clone() for k, v in first.optimizer_state().items()},
        bench.trained[half],
    )
    told = "a resumed run ends elsewhere: it keeps a state of its own; keep none, or put it into a network's buffers"
    return _difference(whole.weights(), bench.train(second, bench.trained[half:]).weights(), told, 0.0)


def _difference(ours: dict[str, Tensor], theirs: dict[str, Tensor], told: str, most: float = TOLERANCE) -> str:
    for name, value in ours.items():
        apart = float((theirs[name].double() - value.double()).abs().max())
        if not apart <= most:
            return f"{told} ({name} by {apart:.1e})"
    return ""


def _flops(bench: Bench) -> str:
    """What is counted on the meta device is what a step costs, and it costs less once a need ends."""
    spec, changes = _run_spec(bench), bench.changes
    if changes != sorted(set(changes)) or any(change < 1 for change in changes):
        return f"changes are {changes}; they are to rise, from 1 on"
    late = changes[-1] if changes else 0
    if bench.recipe.needs_at(10**12) != bench.recipe.needs_at(late):
        return "its needs change later than `changes` says; name every step at which they do"
    networks = bench.networks()
    recipe = bench.recipe.on(replace(networks, perceptual=Perceptual().double()) if networks.perceptual else networks)
    for number in bench.counted[:: 4 if networks.perceptual else 1]:  # VGG16 takes a second each time
        spent, counted = flops_of(recipe, bench.step(number, recipe)), flops_per_step(spec, 16, number)
        if spent != counted:
            return (
                f"iteration {number} costs {spent:,} FLOPs and {counted:,} are counted; name in `changes` every "
                "iteration from which it costs something else, and compute the same on the meta device"
            )
    first, second = flops_to(spec, 16, 1), flops_to(spec, 16, late + 2) - flops_to(spec, 16, late + 1)
    fewer = bench.recipe.needs_at(late) != bench.needs
    return "a step costs as much after what it needs has stopped" if fewer and second >= first else ""


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
        train=TrainSpec(seed=0, batch_size=BATCH, optimizers=optimizers),
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
    told = ""
    for rule, check in CHECKS.items():
        try:
            yield Check(rule, check(Bench(recipe)))
        except _SkippedError as skipped:
            yield Check(rule, "", str(skipped))
        except Exception as error:  # whatever somebody's code raises
            before, told = told, _told(error, inspect.getfile(recipe.kind))
            yield Check(rule, "as above" if told == before else told)


def _told(error: Exception, file: str) -> str:
    """Where somebody's code failed, if possible in the recipe's own file, and how."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = ([f for f in frames if f.filename == file] or list(frames))[-1]
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{frame.filename.rpartition('/')[2]}, line {frame.lineno}: {type(error).__name__}: {text}"[:300]
