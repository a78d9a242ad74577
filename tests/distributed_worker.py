"""Run under torchrun by tests: train each recipe for a few steps, and leave losses and weights in a folder.

torchrun --nproc-per-node 2 tests/distributed_worker.py OUT [PART]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from builders import make_batch, make_recipe, make_train_spec
from safetensors.torch import save_file

from recipes.core.distributed import World, world
from recipes.core.draws import KeyedDraws
from recipes.core.loop import Trainer
from recipes.core.step import Step, Update
from recipes.registry import RECIPES

STEPS, BATCH = 4, 8


class Pauses:
    """Two layers, one of which gets a gradient in every second step."""

    averaged = ("sit",)

    def __init__(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.networks = {"sit": torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)]).to(dtype)}

    def updates(self, step: Step) -> Iterator[Update]:
        first, second = self.networks["sit"]
        assert step.batch.mean is not None
        seen = first(step.batch.mean.mean((2, 3)))
        loss = seen.square().mean() + (second(seen).square().mean() if step.number % 2 == 0 else 0.0)
        yield Update("sit", loss, {"loss": loss.detach()})


NAMES = [*sorted(RECIPES), "pauses"]


def train(name: str, here: World, part: int | None, dtype: torch.dtype) -> tuple[Trainer, list[dict[str, float]]]:
    """Float64, because Adam turns the rounding of a zero gradient into a step of its own."""
    recipe = Pauses(dtype) if name == "pauses" else make_recipe(name, dtype=dtype)
    trainer = Trainer(recipe, make_train_spec(*recipe.networks, batch_size=BATCH), world=here, micro_batch=part)
    logs = []
    for step in range(STEPS):
        rows = torch.arange(BATCH)[trainer.rows]
        batch = make_batch(BATCH, seed=step, dtype=dtype).take(rows)
        found = trainer.train_step(batch, KeyedDraws(3, step, rows))
        names = sorted(found)
        values = here.mean(torch.stack([found[k].double() for k in names])).tolist()
        logs.append(dict(zip(names, values, strict=True)))
    return trainer, logs


def main(out: Path, part: int | None) -> None:
    with world("cpu") as here:
        for name in NAMES:
            trainer, logs = train(name, here, part, torch.float64)
            if here.main:
                save_file({k: v.contiguous() for k, v in trainer.weights().items()}, out / f"{name}.safetensors")
                (out / f"{name}.json").write_text(json.dumps(logs))
            save_file(
                {k: v.contiguous() for k, v in trainer.recipe.networks["sit"].state_dict().items()},
                out / f"{name}.rank{here.rank}.safetensors",
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
