"""One training run: a specification and data in, checkpoints out. The same call resumes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from recipes.core import checkpoint
from recipes.core.data import Batch, batches
from recipes.core.draws import KeyedDraws, seed_of
from recipes.core.errors import UserError
from recipes.core.loop import Trainer, subset
from recipes.core.spec import Spec, TrainSpec
from recipes.models import discriminator as gan
from recipes.models import sit as transformer
from recipes.models.autoencoder import Autoencoder, AutoencoderSpec
from recipes.networks import Networks
from recipes.registry import recipe, recipe_options

WEIGHTS, OPTIMIZER = "weights", "optimizer"


class RunSpec(Spec):
    """Everything that decides a run's weights at every step. The budget is not in it: more steps extend it."""

    suite: str
    arm: str
    """Its name in tables: a recipe, or a recipe with changed options."""
    recipe: str
    options: dict[str, JsonValue]
    sit: transformer.SiTSpec
    tokenizer: AutoencoderSpec
    discriminator: gan.DiscriminatorSpec = gan.DiscriminatorSpec()
    train: TrainSpec
    inputs: dict[str, str]
    """Content hash of every asset that the run trains on."""

    @property
    def name(self) -> str:
        """A folder name that tells a person what it is and cannot clash."""
        return f"{self.arm}-seed{self.train.seed}-{self.digest()[:8]}"


@dataclass(frozen=True)
class TrainingInputs:
    """What a run is given besides its specification."""

    data: Batch
    """The whole training set."""
    tokenizer: Autoencoder
    latent_mean: Tensor
    """(C,), of the tokenizer's latents over the training set."""
    latent_std: Tensor


def build_networks(spec: RunSpec, tokenizer: Autoencoder | None = None) -> Networks:
    """Freshly initialised networks; the tokenizer starts as a copy of the given one."""
    kind = recipe(spec.recipe)
    options = recipe_options(spec.recipe, spec.options, where=f"arm {spec.arm}")
    sit = transformer.SiT(spec.sit)
    transformer.initialize(sit, spec.train.seed)
    if not kind.trains_tokenizer:
        return Networks(sit=sit)
    vae = Autoencoder(spec.tokenizer)
    if tokenizer is not None:
        vae.load_state_dict(tokenizer.state_dict())
    discriminator = None
    if getattr(options, "gan", 0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(spec.train.seed, "init", "discriminator"))
            discriminator = gan.PatchDiscriminator(spec.discriminator)
            gan.initialize(discriminator)
    return Networks(sit=sit, vae=vae, discriminator=discriminator)


def build_trainer(spec: RunSpec, inputs: TrainingInputs) -> Trainer:
    """A trainer at step 0."""
    networks = build_networks(spec, inputs.tokenizer)
    networks.sit.set_latent_statistics(inputs.latent_mean, inputs.latent_std)
    options = recipe_options(spec.recipe, spec.options, where=f"arm {spec.arm}")
    return Trainer(recipe(spec.recipe)(networks, options), spec.train)


def flops_per_step(spec: RunSpec, image_size: int) -> int:
    """Floating-point operations of one training step, forward and backward, a multiply-add counted as two.

    Counted by PyTorch's `FlopCounterMode` (matrix products, convolutions, attention) on meta tensors, so any size
    costs nothing. Optimizers and elementwise work are not in it.
    """
    with torch.device("meta"):
        networks = build_networks(spec)
        options = recipe_options(spec.recipe, spec.options, where=f"arm {spec.arm}")
        n, side, channels = spec.train.batch_size, spec.sit.latent_size, spec.sit.channels
        batch = Batch(
            images=torch.zeros(n, 3, image_size, image_size, dtype=torch.uint8),
            labels=torch.zeros(n, dtype=torch.int64),
            features=tuple(torch.zeros(n, spec.sit.tokens, width) for width in spec.sit.encoder_widths),
            mean=torch.zeros(n, channels, side, side),
            std=torch.zeros(n, channels, side, side),
        )
        draws = KeyedDraws(0, 0, torch.arange(n))
        with FlopCounterMode(display=False) as counter:
            for update in recipe(spec.recipe)(networks, options).updates(batch, draws):
                update.loss.backward()
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Run:
    """A run's folder."""

    spec: RunSpec
    folder: Path

    @property
    def log_path(self) -> Path:
        """One JSON object for each logged step."""
        return self.folder / "log.jsonl"

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / "checkpoints" / f"{step:07d}"

    def steps(self) -> list[int]:
        """Steps with a checkpoint, in order."""
        return sorted(int(p.name) for p in (self.folder / "checkpoints").glob("[0-9]*") if p.is_dir())

    def resumable(self) -> int | None:
        """The last step that holds optimizer state."""
        kept = [s for s in self.steps() if (self.checkpoint(s) / f"{OPTIMIZER}.safetensors").exists()]
        return kept[-1] if kept else None

    def clock(self, step: int) -> dict[str, Any]:
        """``step`` and ``seconds`` of training at a checkpoint."""
        return checkpoint.read_manifest(self.checkpoint(step))

    def weights(self, step: int) -> dict[str, Tensor]:
        """``NETWORK.KEY`` and ``ema.NETWORK.KEY`` at a checkpoint."""
        return checkpoint.load_part(self.checkpoint(step), WEIGHTS)

    def weights_hash(self, step: int) -> str:
        """SHA-256 of the weights of a checkpoint."""
        manifest = json.loads((self.checkpoint(step) / checkpoint.MANIFEST).read_text())
        return str(manifest["files"][f"{WEIGHTS}.safetensors"])


def _save(run: Run, trainer: Trainer) -> None:
    parts = {WEIGHTS: trainer.weights(), OPTIMIZER: trainer.optimizer_state()}
    meta = {"step": trainer.step, "seconds": trainer.clock.seconds, "run": run.spec.digest()}
    earlier = run.steps()
    checkpoint.save_folder(run.checkpoint(trainer.step), parts, meta)
    for step in earlier:
        if step != trainer.step:
            checkpoint.drop_part(run.checkpoint(step), OPTIMIZER)


def _resume(run: Run, trainer: Trainer) -> None:
    step = run.resumable()
    if step is None:
        return
    clock = run.clock(step)
    state = checkpoint.load_part(run.checkpoint(step), OPTIMIZER)
    trainer.restore(run.weights(step), state, int(clock["step"]), float(clock["seconds"]))


def _trim_log(run: Run, step: int) -> None:
    """Forget what was logged after the checkpoint that we continue from."""
    rows = run.log_path.read_text().splitlines() if run.log_path.exists() else []
    kept = [row for row in rows if row.endswith("}") and json.loads(row)["step"] <= step]
    checkpoint.write_text(run.log_path, "".join(f"{row}\n" for row in kept))


def train_run(
    run: Run,
    inputs: TrainingInputs,
    milestones: Sequence[int],
    *,
    log_every: int = 25,
    on_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Train until the last milestone, keeping a checkpoint at each; does nothing where they exist.

    Args:
        run: specification and folder; a folder with checkpoints is continued.
        inputs: data and tokenizer.
        milestones: effective optimizer steps to keep.
        log_every: steps between the rows of ``log.jsonl``.
        on_step: told the number of steps done.

    Raises:
        UserError: the run went past a milestone without keeping it.
    """
    missing = sorted(set(milestones) - set(run.steps()))
    if not missing:
        return
    trainer = build_trainer(run.spec, inputs)
    _resume(run, trainer)
    if missing[0] < trainer.step:
        raise UserError(
            f"{run.folder} is at step {trainer.step} and kept no checkpoint of step {missing[0]}; "
            "keep --score-every as it was, or choose another --out."
        )
    checkpoint.write_text(run.folder / "spec.json", run.spec.model_dump_json(indent=1))
    _trim_log(run, trainer.step)
    train = run.spec.train
    stream = batches(inputs.data, seed=train.seed, batch_size=train.batch_size, start=trainer.step, stop=missing[-1])
    with run.log_path.open("a") as log:
        for step, logs in trainer.train(stream):
            if step % log_every == 0 or step == 1 or step in missing:
                with trainer.clock.stopped():
                    row = {name: round(value.item(), 7) for name, value in sorted(logs.items())}
                    log.write(json.dumps({"step": step, "seconds": round(trainer.clock.seconds, 4), **row}) + "\n")
                    log.flush()
                    if step in missing:
                        _save(run, trainer)
            on_step(step)


def load_for_sampling(
    run: Run, step: int, tokenizer: Autoencoder, *, average: bool
) -> tuple[transformer.SiT, Autoencoder]:
    """The SiT (its EMA or its raw weights) and the tokenizer that belongs to it, in eval mode."""
    weights = run.weights(step)
    sit = transformer.SiT(run.spec.sit)
    sit.load_state_dict(subset(weights, "ema.sit" if average else "sit"))
    tuned = subset(weights, "vae")
    if tuned:
        tokenizer = Autoencoder(run.spec.tokenizer)
        tokenizer.load_state_dict(tuned)
    return sit.eval().requires_grad_(False), tokenizer.eval().requires_grad_(False)
